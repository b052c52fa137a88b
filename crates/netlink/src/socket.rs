//! A netlink socket: batches out, answers in. It stays in the namespace it was opened in.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use crate::message::{Message, NLM_F_ACK, NLM_F_DUMP, NLMSG_DONE, Received, split};

/// The kernel answers at once; one that does not answer at all is reported, never waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const BUFFER: usize = 64 * 1024;
/// Above what one transaction of thousands of endpoints takes.
const SOCKET_BUFFER: usize = 32 * 1024 * 1024;
/// Bytes sent at once where order matters but atomicity does not.
const BATCH_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Route,
    Netfilter,
    SockDiag,
}

thread_local! {
    /// One for all sockets of the thread: a daemon holds sockets by the thousand.
    static RECEIVED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens it in the namespace of the calling thread.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
            Family::SockDiag => Some(netlink::SOCK_DIAG),
        };
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_MAX))?;
        // Without the right to force it the system's limit is what we get.
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, SOCKET_BUFFER);
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, SOCKET_BUFFER);
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends independent requests in order and returns what went wrong, by index.
    /// Only the last is acknowledged; the kernel reports failures of the others by itself.
    pub fn batch(&mut self, messages: Vec<Message>) -> io::Result<Vec<(usize, io::Error)>> {
        let mut failures = Vec::new();
        let mut waiting = messages.into_iter().enumerate().peekable();
        while waiting.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut offset = None;
            while let Some((index, mut message)) = waiting.next() {
                offset.get_or_insert(index);
                let full = bytes.len() + message.len() >= BATCH_MAX;
                let last = full || waiting.peek().is_none();
                if last {
                    message.add_flags(NLM_F_ACK);
                }
                bytes.extend(message.finish(self.next_sequence()));
                if last {
                    break;
                }
            }
            self.send(&bytes)?;
            let last = self.sequence;
            for (sequence, error) in self.errors(first, last)? {
                let index = sequence.wrapping_sub(first) as usize + offset.unwrap_or(0);
                failures.push((index, error));
            }
        }
        Ok(failures)
    }

    /// Sends prepared messages as one datagram (an nfnetlink batch, the last but one of which asks
    /// for an acknowledgement) and returns the first failure.
    pub fn transaction(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let count = messages.len() as u32;
        let mut bytes = Vec::new();
        for message in messages {
            bytes.extend(message.finish(self.next_sequence()));
        }
        self.send(&bytes)?;
        let acknowledged = first.wrapping_add(count.saturating_sub(2));
        match self.errors(first, acknowledged)?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// One request, its answers.
    pub fn request(&mut self, message: Message) -> io::Result<Vec<Received>> {
        let mut message = message;
        message.add_flags(NLM_F_ACK);
        self.answers(message)
    }

    pub fn dump(&mut self, message: Message) -> io::Result<Vec<Received>> {
        // A dump that was interrupted by a change is asked for again.
        let mut message = message;
        message.add_flags(NLM_F_DUMP);
        self.answers(message)
    }

    fn answers(&mut self, message: Message) -> io::Result<Vec<Received>> {
        let sequence = self.next_sequence();
        let bytes = message.finish(sequence);
        self.send(&bytes)?;
        let mut answers = Vec::new();
        loop {
            for received in self.receive()? {
                if received.sequence != sequence {
                    continue;
                }
                match received.error() {
                    Some(0) => return Ok(answers),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    None if received.kind == NLMSG_DONE => return Ok(answers),
                    None => answers.push(received),
                }
            }
        }
    }

    /// Failures of the sequence numbers from `first`, until `last` is answered.
    fn errors(&mut self, first: u32, last: u32) -> io::Result<Vec<(u32, io::Error)>> {
        let mut failures = Vec::new();
        loop {
            for received in self.receive()? {
                let sequence = received.sequence;
                // Late answers to an earlier batch, counted with wrap-around.
                if sequence.wrapping_sub(first) > u32::MAX / 2 {
                    continue;
                }
                match received.error() {
                    Some(0) if sequence == last => return Ok(failures),
                    Some(0) | None => {}
                    Some(errno) => {
                        failures.push((sequence, io::Error::from_raw_os_error(errno)));
                        if sequence == last {
                            return Ok(failures);
                        }
                        // A whole batch is refused under the number of its first message.
                        if sequence == first && last != first && errno != libc::EEXIST {
                            return Ok(self.drain(last, failures));
                        }
                    }
                }
            }
        }
    }

    /// The acknowledgement may or may not follow: takes what is there without waiting.
    fn drain(&mut self, last: u32, mut failures: Vec<(u32, io::Error)>) -> Vec<(u32, io::Error)> {
        loop {
            let Ok(answers) = self.receive_with(RecvFlags::DONTWAIT) else { return failures };
            for received in answers {
                if let Some(errno) = received.error().filter(|errno| *errno != 0) {
                    failures.push((received.sequence, io::Error::from_raw_os_error(errno)));
                }
                if received.sequence == last {
                    return failures;
                }
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.fd, bytes, SendFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<Received>> {
        self.receive_with(RecvFlags::empty())
    }

    fn receive_with(&mut self, flags: RecvFlags) -> io::Result<Vec<Received>> {
        RECEIVED.with_borrow_mut(|buffer| {
            loop {
                match rustix::net::recv(&self.fd, &mut buffer[..], flags) {
                    Ok((_, length)) => return Ok(split(&buffer[..length.min(BUFFER)])),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

//! A netlink socket: batches out, answers in. It stays in the namespace it was opened in.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use crate::message::{Message, NLM_F_ACK, NLM_F_DUMP, Received, split};

/// The kernel answers at once; one that does not answer at all is reported, never waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const BUFFER: usize = 64 * 1024;
/// A host whose links never stand still is seen as well as it can be.
const DUMPS_MAX: usize = 5;
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

    /// Everything of a kind. What changes while it is told is asked for again, a few times; then what was told
    /// last has to do.
    pub fn dump(&mut self, message: Message) -> io::Result<Vec<Received>> {
        let mut message = message;
        message.add_flags(NLM_F_DUMP);
        let mut answers = self.answers(message.clone())?;
        for _ in 1..DUMPS_MAX {
            if !answers.iter().any(Received::interrupted) {
                break;
            }
            answers = self.answers(message.clone())?;
        }
        answers.retain(|received| received.end().is_none());
        Ok(answers)
    }

    /// Up to the acknowledgement, or the end of a dump, which is the last of them.
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
                match (received.error(), received.end()) {
                    (Some(0), _) => return Ok(answers),
                    (Some(errno), _) => return Err(io::Error::from_raw_os_error(errno)),
                    (None, Some(0)) => {
                        answers.push(received);
                        return Ok(answers);
                    }
                    (None, Some(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                    (None, None) => answers.push(received),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{NLMSG_DONE, NLMSG_ERROR};

    const LINK: u16 = 16;
    const INTERRUPTED: u16 = 0x10;

    /// A socket whose other end is asked as often as there are answers, and gives these: kind, flags, code.
    fn told(answers: &'static [&'static [(u16, u16, i32)]]) -> Socket {
        let (ours, kernel) = std::os::unix::net::UnixDatagram::pair().unwrap();
        std::thread::spawn(move || {
            for parts in answers {
                let mut asked = [0; 256];
                kernel.recv(&mut asked).unwrap();
                let sequence = u32::from_ne_bytes(asked[8..12].try_into().unwrap());
                let part = |(kind, flags, code): &(u16, u16, i32)| {
                    Message::new(*kind, *flags).body(&code.to_ne_bytes()).finish(sequence)
                };
                kernel.send(&parts.iter().flat_map(part).collect::<Vec<u8>>()).unwrap();
            }
        });
        Socket { fd: ours.into(), sequence: 0 }
    }

    fn dump(socket: &mut Socket) -> io::Result<usize> {
        socket.dump(Message::new(LINK, 0)).map(|answers| answers.len())
    }

    #[test]
    fn a_dump_during_which_something_changed_is_asked_for_again() {
        let mut socket = told(&[
            &[(LINK, 2, 0), (NLMSG_DONE, 2 | INTERRUPTED, 0)],
            &[(LINK, 2 | INTERRUPTED, 0), (NLMSG_DONE, 2, 0)],
            &[(LINK, 2, 0), (LINK, 2, 0), (NLMSG_DONE, 2, 0)],
        ]);
        assert_eq!(dump(&mut socket).unwrap(), 2);
        const NEVER: &[(u16, u16, i32)] = &[(LINK, 2, 0), (NLMSG_DONE, 2 | INTERRUPTED, 0)];
        assert_eq!(dump(&mut told(&[NEVER; DUMPS_MAX])).unwrap(), 1, "it is not asked for ever");
    }

    #[test]
    fn a_dump_that_was_cut_short_is_an_error() {
        for end in [(NLMSG_DONE, 2, -libc::EIO), (NLMSG_ERROR, 0, -libc::EIO)] {
            let answers: &[(u16, u16, i32)] = vec![(LINK, 2, 0), end].leak();
            let error = dump(&mut told(vec![answers].leak())).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
    }
}

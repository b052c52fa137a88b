//! One connection to the shim: the daemon's control lines, or a client's byte stream.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::logs::LogStream;
use crate::protocol::LINE_BYTES_MAX;

/// A client that takes less than this behind makes the container wait, as in Docker.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;

pub enum Kind {
    Control,
    Attach(Attach),
}

/// Which process a client is attached to, and what it wants of it.
pub struct Attach {
    pub exec: Option<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// The client has closed its side.
    pub input_ended: bool,
}

pub struct Connection {
    pub fd: OwnedFd,
    pub kind: Kind,
    pub output: Vec<u8>,
    pub input: Vec<u8>,
    /// Close when the output is written.
    pub closing: bool,
    pub dead: bool,
}

impl Connection {
    pub fn new(fd: OwnedFd) -> Connection {
        Connection {
            fd,
            kind: Kind::Control,
            output: Vec::new(),
            input: Vec::new(),
            closing: false,
            dead: false,
        }
    }

    pub fn is_control(&self) -> bool {
        matches!(self.kind, Kind::Control)
    }

    pub fn attach(&self) -> Option<&Attach> {
        match &self.kind {
            Kind::Attach(attach) => Some(attach),
            Kind::Control => None,
        }
    }

    /// What the client sees of its process: framed, or raw from a terminal.
    pub fn deliver(&mut self, stream: LogStream, tty: bool, data: &[u8]) {
        let Kind::Attach(attach) = &self.kind else { return };
        let (wanted, number) = match stream {
            LogStream::Stdout => (attach.stdout, 1),
            LogStream::Stderr => (attach.stderr, 2),
        };
        if !wanted || self.dead {
            return;
        }
        if !tty {
            let length = (data.len() as u32).to_be_bytes();
            self.output
                .extend_from_slice(&[number, 0, 0, 0, length[0], length[1], length[2], length[3]]);
        }
        self.output.extend_from_slice(data);
        self.flush();
    }

    pub fn full(&self) -> bool {
        self.output.len() >= OUTPUT_BYTES_MAX
    }

    /// Writes as much as the other side takes.
    pub fn flush(&mut self) {
        let mut done = 0;
        while done < self.output.len() {
            use rustix::net::{SendFlags, send};
            match send(&self.fd, &self.output[done..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => done += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.dead = true;
                    break;
                }
            }
        }
        self.output.drain(..done);
        if self.output.is_empty() {
            if self.output.capacity() > 4096 {
                self.output = Vec::new();
            }
            self.dead |= self.closing;
        }
    }

    /// Reads what is there; `None` at the end of the other side's output.
    pub fn read(&mut self, space: &mut [u8]) -> Option<usize> {
        match rustix::net::recv(&self.fd, &mut *space, rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) => None,
            Ok((count, _)) => Some(count),
            Err(Errno::AGAIN | Errno::INTR) => Some(0),
            Err(_) => {
                self.dead = true;
                None
            }
        }
    }

    /// The next complete control line.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|b| *b == b'\n');
        let Some(end) = end else {
            self.dead |= self.input.len() > LINE_BYTES_MAX;
            return None;
        };
        let rest = self.input.split_off(end + 1);
        Some(std::mem::replace(&mut self.input, rest))
    }

    /// A control line to the daemon.
    pub fn send(&mut self, message: &crate::protocol::Message) {
        if let Ok(mut line) = serde_json::to_vec(message) {
            line.push(b'\n');
            self.output.extend_from_slice(&line);
            self.flush();
        }
    }
}

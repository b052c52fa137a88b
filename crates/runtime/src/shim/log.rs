//! The container's log in the shim's loop: written at once, or by a process of its own that the container never waits for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::sys;
use crate::logs::write::{LINE_BYTES_MAX, Lines, LogWriter};
use crate::logs::{LogConfig, LogDriver, LogStream};
use crate::memory;

/// How long the end of a container waits for its log, as in Docker (loggerCloseTimeout).
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// Of an entry on its way: stream, seconds, nanoseconds, length.
const HEAD_BYTES: usize = 1 + 8 + 4 + 4;

pub struct Log {
    lines: Lines,
    to: To,
}

enum To {
    File(LogWriter),
    Queue(Queue),
}

/// `mode=non-blocking`: a bounded queue before the log process.
struct Queue {
    pid: i32,
    /// `None` when nothing more comes.
    pipe: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    bytes_max: u64,
    closing: Option<Instant>,
    ended: bool,
}

impl Log {
    pub fn open(config: &LogConfig) -> io::Result<Log> {
        let writer = LogWriter::open(config)?;
        let to = match config.buffer.filter(|_| config.driver != LogDriver::None) {
            None => To::File(writer),
            Some(bytes_max) => To::Queue(Queue::open(config, bytes_max)?),
        };
        Ok(Log { lines: Lines::default(), to })
    }

    /// Output as it was read.
    pub fn write(&mut self, stream: LogStream, data: &[u8], at: SystemTime) {
        let to = &mut self.to;
        self.lines.split(stream, data, |line| to.entry(stream, line, at));
        to.flush();
    }

    /// The stream has ended: what is left without a newline is an entry too.
    pub fn finish(&mut self, stream: LogStream, at: SystemTime) {
        if let Some(line) = self.lines.rest(stream) {
            self.to.entry(stream, &line, at);
            self.to.flush();
        }
    }

    /// To be polled until it takes more; `None` when nothing waits.
    pub fn full(&self) -> Option<&OwnedFd> {
        match &self.to {
            To::Queue(queue) if !queue.waiting.is_empty() => queue.pipe.as_ref(),
            _ => None,
        }
    }

    pub fn flush(&mut self) {
        self.to.flush();
    }

    /// A child of the shim has ended.
    pub fn reaped(&mut self, pid: i32) {
        match &mut self.to {
            To::Queue(queue) => queue.ended |= queue.pid == pid,
            To::File(writer) => writer.reaped(pid),
        }
    }

    /// Nothing more comes. True when all is written, or patience is over.
    pub fn close(&mut self, now: Instant) -> bool {
        let To::Queue(queue) = &mut self.to else { return true };
        let until = *queue.closing.get_or_insert(now + CLOSE_MAX);
        if queue.waiting.is_empty() {
            queue.pipe = None;
        }
        queue.ended || until <= now
    }

    /// When [`Log::close`] is to be asked again at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.to {
            To::Queue(queue) if !queue.ended => queue.closing,
            _ => None,
        }
    }
}

impl To {
    fn entry(&mut self, stream: LogStream, line: &[u8], at: SystemTime) {
        match self {
            To::File(writer) => writer.entry(stream, line, at),
            To::Queue(queue) => queue.push(stream, line, at),
        }
    }

    fn flush(&mut self) {
        match self {
            To::File(writer) => writer.flush(),
            To::Queue(queue) => queue.flush(),
        }
    }
}

impl Queue {
    /// Starts the log process; that the log can be opened is known.
    fn open(config: &LogConfig, bytes_max: u64) -> io::Result<Queue> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let Some(pid) = sys::fork()? else {
            // The daemon's connection must not stay open here when the shim is gone.
            let kept = sys::keep_only(&read);
            let kept = kept.and_then(|pipe| keep_log(config, pipe));
            sys::exit_now(i32::from(kept.is_err()));
        };
        drop(read);
        sys::nonblocking(&write)?;
        let waiting = VecDeque::new();
        Ok(Queue { pid, pipe: Some(write), waiting, bytes_max, closing: None, ended: false })
    }

    /// A line that there is no room for is lost; one always has room, as in Docker (daemon/logger/ring.go).
    fn push(&mut self, stream: LogStream, line: &[u8], at: SystemTime) {
        if !self.has_room(line) {
            self.flush();
        }
        if !self.has_room(line) {
            return;
        }
        self.waiting.extend(head(stream, line.len(), at));
        self.waiting.extend(line);
    }

    fn has_room(&self, line: &[u8]) -> bool {
        self.waiting.is_empty() || (self.waiting.len() + line.len()) as u64 <= self.bytes_max
    }

    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let Some(pipe) = &self.pipe else { break };
            match rustix::io::write(pipe, self.waiting.as_slices().0) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // The log process was killed: the container goes on without a log.
                Err(_) => {
                    self.waiting.clear();
                    self.pipe = None;
                }
            }
        }
        self.waiting.clear();
        if self.waiting.capacity() > 4096 {
            self.waiting = VecDeque::new();
        }
    }
}

fn head(stream: LogStream, length: usize, at: SystemTime) -> [u8; HEAD_BYTES] {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut head = [0; HEAD_BYTES];
    head[0] = stream as u8;
    head[1..9].copy_from_slice(&since.as_secs().to_ne_bytes());
    head[9..13].copy_from_slice(&since.subsec_nanos().to_ne_bytes());
    head[13..].copy_from_slice(&(length as u32).to_ne_bytes());
    head
}

/// The log process: what comes through the pipe goes to the files, until the shim has closed it or is gone.
fn keep_log(config: &LogConfig, pipe: OwnedFd) -> io::Result<()> {
    let mut writer = LogWriter::open(config)?;
    let mut pipe = BufReader::new(File::from(pipe));
    let (mut head, mut line) = ([0; HEAD_BYTES], Vec::with_capacity(LINE_BYTES_MAX));
    memory::give_back(memory::Of::ProgramAndLibraries);
    loop {
        match pipe.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let stream =
            if head[0] == LogStream::Stderr as u8 { LogStream::Stderr } else { LogStream::Stdout };
        let number =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut seconds = [0; 8];
        seconds.copy_from_slice(&head[1..9]);
        let at = UNIX_EPOCH + Duration::new(u64::from_ne_bytes(seconds), number(9));
        line.resize(number(13) as usize, 0);
        pipe.read_exact(&mut line)?;
        writer.entry(stream, &line, at);
        if pipe.buffer().is_empty() {
            writer.flush();
        }
    }
}

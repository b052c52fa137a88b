//! The stdio of one process in the container: pipes or a pseudo terminal, and what waits to be written to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime};

use crate::protocol::{ExecState, State};
use crate::runtime::ExitStatus;
use crate::shim::sys;

/// More stdin than this is not read from clients until the process has taken some.
pub const STDIN_BYTES_MAX: usize = 64 * 1024;

/// The shim's ends.
#[derive(Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// The process's ends, closed in the shim once it runs.
pub struct ChildStdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl ChildStdio {
    /// In the child: becomes descriptors 0, 1 and 2.
    pub fn install(&self) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        // First out of the way of 0..2, should the shim's own have been closed.
        let up = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 10);
        let fds = [up(&self.stdin)?, up(&self.stdout)?, up(&self.stderr)?];
        for (number, fd) in fds.iter().enumerate() {
            sys::duplicate_to(fd.as_raw_fd(), number as i32)?;
        }
        Ok(())
    }
}

/// Pipes owned by `uid`, so that a process that gave up root can open /dev/stdout again.
pub fn pipes(open_stdin: bool, uid: u32) -> io::Result<(Stdio, ChildStdio)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    let (stdin, child_stdin) = if open_stdin {
        let (read, write) = pipe()?;
        rustix::fs::fchown(&read, owner, None)?;
        sys::nonblocking(&write)?;
        (Some(write), read)
    } else {
        (None, sys::open_null()?)
    };
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    for end in [&out_write, &err_write] {
        rustix::fs::fchown(end, owner, None)?;
    }
    for end in [&out_read, &err_read] {
        sys::nonblocking(end)?;
    }
    let ours = Stdio { stdin, stdout: Some(out_read), stderr: Some(err_read) };
    Ok((ours, ChildStdio { stdin: child_stdin, stdout: out_write, stderr: err_write }))
}

/// Before the terminal exists: the process is born with /dev/null.
pub fn nothing() -> io::Result<ChildStdio> {
    Ok(ChildStdio {
        stdin: sys::open_null()?,
        stdout: sys::open_null()?,
        stderr: sys::open_null()?,
    })
}

/// The shim's ends of a pseudo terminal: one descriptor for both directions.
pub fn terminal(master: OwnedFd, open_stdin: bool) -> io::Result<Stdio> {
    sys::nonblocking(&master)?;
    let stdin =
        if open_stdin { Some(rustix::io::fcntl_dupfd_cloexec(master.as_fd(), 3)?) } else { None };
    Ok(Stdio { stdin, stdout: Some(master), stderr: None })
}

/// A process of the container that the shim looks after: its main process, or an exec.
pub struct Process {
    /// `None`: the container's own.
    pub exec: Option<String>,
    pub pid: i32,
    pub tty: bool,
    pub stdio: Stdio,
    /// The first client's end of input ends the process's.
    pub stdin_once: bool,
    pub input: Vec<u8>,
    pub close_input: bool,
    pub status: Option<ExitStatus>,
    /// How long output is still waited for after the end.
    pub drain_until: Option<Instant>,
    /// Output read to the end, everybody told.
    pub finished: bool,
}

impl Process {
    pub fn new(
        exec: Option<String>,
        pid: i32,
        tty: bool,
        stdio: Stdio,
        stdin_once: bool,
    ) -> Process {
        Process {
            exec,
            pid,
            tty,
            stdio,
            stdin_once,
            input: Vec::new(),
            close_input: false,
            status: None,
            drain_until: None,
            finished: false,
        }
    }

    pub fn drained(&self) -> bool {
        self.stdio.stdout.is_none() && self.stdio.stderr.is_none()
    }

    /// Notes the end; output is read on for a bounded time.
    pub fn ended(&mut self, code: i32, oom: bool, grace: std::time::Duration) {
        self.status = Some(ExitStatus { code, oom, at: SystemTime::now() });
        self.drain_until = Some(Instant::now() + grace);
        self.stdio.stdin = None;
        self.input = Vec::new();
    }

    /// Passes on what clients have typed.
    pub fn write_input(&mut self) {
        if let Some(fd) = &self.stdio.stdin {
            while !self.input.is_empty() {
                match rustix::io::write(fd, &self.input) {
                    Ok(count) => drop(self.input.drain(..count)),
                    Err(rustix::io::Errno::AGAIN) => return,
                    Err(rustix::io::Errno::INTR) => {}
                    // Nobody reads any more.
                    Err(_) => {
                        self.input.clear();
                        self.close_input = !self.tty;
                    }
                }
            }
        }
        if self.input.capacity() > 4096 {
            self.input = Vec::new();
        }
        if self.close_input {
            self.stdio.stdin = None;
        }
    }
}

/// How the processes of a container stand; the first is its own.
pub fn state(
    processes: &[Process],
    ended: &[(String, ExitStatus)],
    started_at: Option<SystemTime>,
) -> State {
    let main = processes.first();
    let ended = ended
        .iter()
        .map(|(id, status)| (id.clone(), ExecState { pid: 0, exit: Some(status.clone()) }));
    let running = processes.iter().filter_map(|process| {
        let state = ExecState { pid: process.pid as u32, exit: process.status.clone() };
        Some((process.exec.clone()?, state))
    });
    State {
        pid: main.map_or(0, |p| p.pid as u32),
        started_at,
        exit: main.and_then(|p| p.status.clone()),
        execs: ended.chain(running).collect(),
    }
}

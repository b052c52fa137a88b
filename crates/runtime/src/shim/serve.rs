//! The shim's loop: output to logs and clients, input to processes, requests, exits.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::connection::{Attach, Connection, Kind};
use super::exit::{reserve_exit, write_exit};
use super::log::Log;
use super::oom::OomWatch;
use super::stdio::{self, Process, STDIN_BYTES_MAX};
use super::{create, exec, sys};
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::logs::LogStream;
use crate::memory;
use crate::protocol::*;
use crate::runtime::ExitStatus;
use crate::steps;

/// Output of a process that has ended is read this long when others keep its pipe open.
const DRAIN: Duration = Duration::from_secs(2);
/// Slow clients get this long to take the last output of a container that has ended.
const LINGER: Duration = Duration::from_secs(10);
/// Ended execs whose exit no daemon has heard of; older ones are forgotten.
const ENDED_EXECS_MAX: usize = 1_000;
const CONNECTIONS_MAX: usize = 1_024;
/// After this long without anything to do the shim makes itself small.
const IDLE: Duration = Duration::from_secs(2);
/// How often an exit status is tried to be written that the disk had no room for.
const RETRY: Duration = Duration::from_secs(1);

pub struct Shim {
    bundle: PathBuf,
    spec: ShimSpec,
    signals: OwnedFd,
    listener: OwnedFd,
    /// See [`create::Made`]; until the start.
    executed: Option<OwnedFd>,
    connections: Vec<Connection>,
    /// The container's own process first, then execs.
    processes: Vec<Process>,
    log: Option<Log>,
    oom: Option<OomWatch>,
    oom_seen: bool,
    started_at: Option<SystemTime>,
    ended_execs: Vec<(String, ExitStatus)>,
    quit_at: Option<Instant>,
    /// The exit status that is not on the disk yet, and when to try again.
    unwritten: Option<ExitStatus>,
    retry_at: Option<Instant>,
    quit: bool,
    space: Vec<u8>,
    /// When to give memory back; `None` when that is done.
    trim_at: Option<Instant>,
}

/// What a polled descriptor stands for.
#[derive(Clone, Copy)]
enum Token {
    Signals,
    Listener,
    Oom,
    Log,
    Connection(usize),
    Input(usize),
    Output(usize, LogStream),
}

impl Shim {
    pub fn new(
        bundle: PathBuf,
        spec: ShimSpec,
        signals: OwnedFd,
        listener: OwnedFd,
        control: OwnedFd,
    ) -> Shim {
        Shim {
            bundle,
            spec,
            signals,
            listener,
            executed: None,
            connections: vec![Connection::new(control)],
            processes: Vec::new(),
            log: None,
            oom: None,
            oom_seen: false,
            started_at: None,
            ended_execs: Vec::new(),
            quit_at: None,
            unwritten: None,
            retry_at: None,
            quit: false,
            space: Vec::new(),
            trim_at: None,
        }
    }

    /// Makes the container, then serves until it has ended and everybody knows.
    pub fn run(&mut self) {
        let result = self.create();
        let failed = result.is_err();
        // Sequence number 0: the daemon's first question, never sent, is how the creation went.
        self.connections[0].send(&Message::Reply { seq: 0, result: result.map_err(failure) });
        steps::of_shim("shim: told the creation");
        if failed {
            self.clean();
            return;
        }
        while !self.quit {
            self.trim_at.get_or_insert_with(|| Instant::now() + IDLE);
            let mut ready = self.poll(false);
            if ready.is_empty() && self.trim_at.is_some_and(|at| at <= Instant::now()) {
                self.trim_at = None;
                ready = self.poll(true);
            }
            for (token, flags) in ready {
                self.handle(token, flags);
            }
            self.settle();
        }
        self.clean();
    }

    fn create(&mut self) -> Result<Reply, Error> {
        let log = Log::open(&self.spec.log);
        self.log = Some(log.map_err(|e| Error::system("log file not opened", e))?);
        steps::of_shim("shim: opened the log");
        reserve_exit().map_err(|e| Error::system("no room for the exit status", e))?;
        steps::of_shim("shim: reserved the exit");
        let made = create::create(&self.spec, &self.bundle)?;
        steps::of_shim("shim: made the container");
        let pid = made.pid;
        self.executed = made.executed;
        let once = self.spec.stdin_once;
        self.processes.push(Process::new(None, pid, self.spec.tty, made.stdio, once));
        self.oom = OomWatch::open(Cgroup::at(&self.spec.cgroup));
        Ok(Reply::Pid(pid as u32))
    }

    /// Waits for something to do; with `trim` small, as it may be long.
    fn poll(&mut self, trim: bool) -> Vec<(Token, PollFlags)> {
        let limit = self.deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let mut tokens = vec![Token::Signals, Token::Listener];
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        if let Some(oom) = &self.oom {
            let (fd, flags) = oom.poll();
            tokens.push(Token::Oom);
            fds.push(PollFd::new(fd, flags));
        }
        if let Some(log) = self.log.as_ref().and_then(Log::full) {
            tokens.push(Token::Log);
            fds.push(PollFd::new(log, PollFlags::OUT));
        }
        for (n, connection) in self.connections.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if self.takes_input(connection) {
                flags |= PollFlags::IN;
            }
            if !connection.output.is_empty() {
                flags |= PollFlags::OUT;
            }
            tokens.push(Token::Connection(n));
            fds.push(PollFd::new(&connection.fd, flags));
        }
        for (n, process) in self.processes.iter().enumerate() {
            if let (Some(fd), false) = (&process.stdio.stdin, process.input.is_empty()) {
                tokens.push(Token::Input(n));
                fds.push(PollFd::new(fd, PollFlags::OUT));
            }
            if self.clients_of(process).any(Connection::full) {
                continue;
            }
            for (stream, fd) in [
                (LogStream::Stdout, &process.stdio.stdout),
                (LogStream::Stderr, &process.stdio.stderr),
            ] {
                if let Some(fd) = fd {
                    tokens.push(Token::Output(n, stream));
                    fds.push(PollFd::new(fd, PollFlags::IN));
                }
            }
        }
        if trim {
            memory::give_back(memory::Of::ProgramAndLibraries);
        }
        match rustix::event::poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(_) => return Vec::new(),
        }
        let ready = fds.iter().map(PollFd::revents);
        tokens.into_iter().zip(ready).filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        let draining = self.processes.iter().filter(|p| !p.finished).filter_map(|p| p.drain_until);
        let log = self.log.as_ref().and_then(Log::deadline);
        draining.chain(log).chain(self.quit_at).chain(self.trim_at).chain(self.retry_at).min()
    }

    fn clients_of<'a>(&'a self, process: &'a Process) -> impl Iterator<Item = &'a Connection> {
        self.connections
            .iter()
            .filter(|c| !c.dead && c.attach().is_some_and(|a| a.exec == process.exec))
    }

    fn takes_input(&self, connection: &Connection) -> bool {
        match &connection.kind {
            Kind::Control => true,
            Kind::Attach(attach) if attach.input_ended => false,
            // A client of an exec that is still to come waits with its input.
            Kind::Attach(attach) => {
                let target = self.processes.iter().find(|p| p.exec == attach.exec);
                target.is_some_and(|p| !attach.stdin || p.input.len() < STDIN_BYTES_MAX)
            }
        }
    }

    fn handle(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Signals => self.reap(),
            Token::Listener => self.accept(),
            Token::Oom => self.out_of_memory(),
            Token::Log => self.log.iter_mut().for_each(Log::flush),
            Token::Connection(n) => self.connection_ready(n, flags),
            Token::Input(n) => self.processes[n].write_input(),
            Token::Output(n, stream) => self.read_output(n, stream),
        }
    }

    fn accept(&mut self) {
        use rustix::net::{SocketFlags, accept_with};
        while let Ok(fd) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            if self.connections.len() < CONNECTIONS_MAX {
                self.connections.push(Connection::new(fd));
            }
        }
    }

    fn out_of_memory(&mut self) {
        if self.oom.as_mut().is_some_and(OomWatch::check) {
            self.oom_seen = true;
            self.tell(&Message::Oom);
        }
        // The group is gone with the container; its events are no news then.
        if self.processes.first().is_some_and(|p| p.status.is_some()) {
            self.oom = None;
        }
    }

    fn tell(&mut self, message: &Message) {
        for connection in self.connections.iter_mut().filter(|c| c.is_control()) {
            connection.send(message);
        }
    }

    fn reap(&mut self) {
        let mut info = [0; 512];
        while rustix::io::read(&self.signals, &mut info).is_ok_and(|count| count > 0) {}
        while let Some((pid, code)) = sys::reap() {
            self.log.iter_mut().for_each(|log| log.reaped(pid));
            let Some(n) = self.processes.iter().position(|p| p.pid == pid && p.status.is_none())
            else {
                continue;
            };
            let main = self.processes[n].exec.is_none();
            if main {
                let cgroup = Cgroup::at(&self.spec.cgroup);
                self.oom_seen |= cgroup.oom_kills() > 0;
                if self.spec.shared_pid {
                    cgroup.kill_all();
                }
            }
            self.processes[n].ended(code, main && self.oom_seen, DRAIN);
        }
    }

    fn read_output(&mut self, n: usize, stream: LogStream) {
        self.space.resize(32 * 1024, 0);
        let process = &mut self.processes[n];
        let slot = match stream {
            LogStream::Stdout => &mut process.stdio.stdout,
            LogStream::Stderr => &mut process.stdio.stderr,
        };
        let Some(fd) = slot else { return };
        let count = match rustix::io::read(fd.as_fd(), &mut self.space) {
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            // EIO: the last process has closed the terminal.
            Err(_) => 0,
        };
        let now = SystemTime::now();
        let main = process.exec.is_none();
        if count == 0 {
            *slot = None;
            if let (true, Some(log)) = (main, &mut self.log) {
                log.finish(stream, now);
            }
            return;
        }
        let (tty, data) = (process.tty, &self.space[..count]);
        if let (true, Some(log)) = (main, &mut self.log) {
            log.write(stream, data, now);
        }
        let exec = process.exec.clone();
        for client in &mut self.connections {
            if client.attach().is_some_and(|a| a.exec == exec) {
                client.deliver(stream, tty, data);
            }
        }
    }

    fn connection_ready(&mut self, n: usize, flags: PollFlags) {
        if flags.contains(PollFlags::OUT) {
            self.connections[n].flush();
        }
        if flags.contains(PollFlags::IN) {
            self.space.resize(32 * 1024, 0);
            match self.connections[n].read(&mut self.space) {
                Some(count) => self.received(n, count),
                None => self.input_ended(n),
            }
        } else if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.connections[n].dead = true;
        }
    }

    fn received(&mut self, n: usize, count: usize) {
        if self.connections[n].is_control() {
            self.connections[n].input.extend_from_slice(&self.space[..count]);
            while self.connections[n].is_control() {
                let Some(line) = self.connections[n].line() else { return };
                self.request(n, &line);
            }
            // What came behind the line that turned it into a stream is input already.
            let early = std::mem::take(&mut self.connections[n].input);
            self.type_input(n, &early);
        } else {
            let data = self.space[..count].to_vec();
            self.type_input(n, &data);
        }
    }

    fn type_input(&mut self, n: usize, data: &[u8]) {
        let Some(attach) = self.connections[n].attach() else { return };
        if !attach.stdin || data.is_empty() {
            return;
        }
        if let Some(process) = self.processes.iter_mut().find(|p| p.exec == attach.exec)
            && process.stdio.stdin.is_some()
        {
            process.input.extend_from_slice(data);
            process.write_input();
        }
    }

    fn input_ended(&mut self, n: usize) {
        match &mut self.connections[n].kind {
            Kind::Control => self.connections[n].dead = true,
            Kind::Attach(attach) => {
                attach.input_ended = true;
                let target = self.processes.iter_mut().find(|p| p.exec == attach.exec);
                if let (true, Some(process)) = (attach.stdin, target)
                    && process.stdin_once
                    && !process.tty
                {
                    process.close_input = true;
                    process.write_input();
                }
            }
        }
    }

    fn request(&mut self, n: usize, line: &[u8]) {
        let Ok(request) = serde_json::from_slice::<Request>(line) else {
            self.connections[n].dead = true;
            return;
        };
        let seq = request.seq;
        if let Call::Attach { exec, stdin, stdout, stderr } = request.call {
            self.connections[n].send(&Message::Reply { seq, result: Ok(Reply::Done) });
            self.connections[n].kind =
                Kind::Attach(Attach { exec, stdin, stdout, stderr, input_ended: false });
            return;
        }
        let result = self.call(request.call).map_err(failure);
        self.connections[n].send(&Message::Reply { seq, result });
    }

    fn call(&mut self, call: Call) -> Result<Reply, Error> {
        match call {
            Call::State => {
                let ended = &self.ended_execs;
                Ok(Reply::State(stdio::state(&self.processes, ended, self.started_at)))
            }
            Call::Start => {
                create::start(&self.spec, self.executed.take())?;
                steps::of_shim("shim: started the container");
                let now = SystemTime::now();
                self.started_at = Some(now);
                Ok(Reply::Started(now))
            }
            Call::Signal { signal } => self.signal(None, signal),
            Call::ExecSignal { exec, signal } => self.signal(Some(exec), signal),
            Call::Exec { process } => self.exec(&process),
            Call::Resize { exec, height, width } => {
                let process = self.process(exec)?;
                let terminal = process.stdio.stdout.as_ref().filter(|_| process.tty);
                let terminal = terminal.ok_or_else(|| Error::conflict("no terminal to resize"))?;
                sys::set_window(terminal, height, width)
                    .map_err(|e| Error::system("terminal not resized", e))?;
                Ok(Reply::Done)
            }
            Call::Quit => self.signal(None, libc::SIGKILL).map(|_| Reply::Done),
            Call::Attach { .. } => Ok(Reply::Done),
        }
    }

    fn process(&self, exec: Option<String>) -> Result<&Process, Error> {
        let found = self.processes.iter().find(|p| p.exec == exec);
        let found = found.ok_or_else(|| Error::not_found("no such exec in this container"))?;
        match found.status {
            None => Ok(found),
            Some(_) => Err(Error::conflict("the process has ended")),
        }
    }

    fn signal(&self, exec: Option<String>, signal: i32) -> Result<Reply, Error> {
        let process = self.process(exec)?;
        // Signal 0 asks only; a negative or unknown one is refused by the kernel.
        sys::kill(process.pid, signal)
            .map_err(|e| Error::system(format!("signal {signal} not sent"), e))?;
        Ok(Reply::Done)
    }

    fn exec(&mut self, process: &ExecProcess) -> Result<Reply, Error> {
        let init = self.process(None)?.pid;
        if self.started_at.is_none() {
            return Err(Error::conflict("container is not running"));
        }
        if self.processes.iter().any(|p| p.exec.as_ref() == Some(&process.id)) {
            return Err(Error::conflict(format!("exec {} runs already", process.id)));
        }
        let made = match &self.spec.runtime {
            crate::spec::OciRuntime::BuiltIn => exec::start(&self.spec, init, process),
            crate::spec::OciRuntime::Binary { .. } => create::exec_by_binary(&self.spec, process),
        };
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                // Clients that wait for it are told by the end of their stream.
                self.close_clients(&Some(process.id.clone()));
                return Err(error);
            }
        };
        let pid = made.pid as u32;
        self.processes.push(Process::new(
            Some(process.id.clone()),
            made.pid,
            process.tty,
            made.stdio,
            true,
        ));
        // Clients may have closed their input before the process existed.
        let closed = self.connections.iter().filter_map(Connection::attach);
        if closed.filter(|a| a.input_ended).any(|a| a.exec.as_ref() == Some(&process.id))
            && let Some(process) = self.processes.last_mut()
            && !process.tty
        {
            process.close_input = true;
            process.write_input();
        }
        Ok(Reply::Pid(pid))
    }

    fn close_clients(&mut self, exec: &Option<String>) {
        for client in &mut self.connections {
            if client.attach().is_some_and(|a| a.exec == *exec) {
                client.closing = true;
                client.flush();
            }
        }
    }

    /// After each round: ends that are complete, connections that are gone, the end of the shim.
    fn settle(&mut self) {
        let now = Instant::now();
        for n in 0..self.processes.len() {
            let process = &self.processes[n];
            let late = process.drain_until.is_some_and(|at| at <= now);
            if !process.finished && process.status.is_some() && (process.drained() || late) {
                self.end_output(n);
                if self.processes[n].exec.is_some() || self.log_is_closed(now) {
                    self.finish(n);
                }
            }
        }
        let main_over = self.processes.first().is_none_or(|p| p.finished);
        self.processes.retain(|p| p.exec.is_none() || !p.finished);
        self.connections.retain(|c| !c.dead);
        if self.space.capacity() > 0 {
            self.space = Vec::new();
        }
        let abandoned =
            self.started_at.is_none() && !self.connections.iter().any(Connection::is_control);
        if abandoned && !main_over {
            // The daemon died between making and starting: nobody knows this container.
            let _ = self.signal(None, libc::SIGKILL);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.keep_exit();
        }
        if main_over && self.unwritten.is_none() {
            let quit_at = *self.quit_at.get_or_insert(now + LINGER);
            let idle = self.connections.iter().all(|c| c.output.is_empty() && c.is_control());
            self.quit = (self.processes.len() == 1 && idle) || quit_at <= now;
        }
    }

    /// What is open still is not read any more.
    fn end_output(&mut self, n: usize) {
        let process = &mut self.processes[n];
        for (stream, slot) in [
            (LogStream::Stdout, &mut process.stdio.stdout),
            (LogStream::Stderr, &mut process.stdio.stderr),
        ] {
            if let (Some(_), Some(log), true) = (slot.take(), &mut self.log, process.exec.is_none())
            {
                log.finish(stream, SystemTime::now());
            }
        }
    }

    /// Whoever hears of the container's end finds the whole log.
    fn log_is_closed(&mut self, now: Instant) -> bool {
        self.log.as_mut().is_none_or(|log| log.close(now))
    }

    /// The process has ended and its output is read: everybody may know.
    fn finish(&mut self, n: usize) {
        let process = &mut self.processes[n];
        process.finished = true;
        let Some(status) = process.status.clone() else { return };
        let exec = process.exec.clone();
        match &exec {
            None => {
                steps::of_shim("shim: saw the end");
                self.unwritten = Some(status.clone());
                self.keep_exit();
                steps::of_shim("shim: wrote the exit");
                self.tell(&Message::Exited { status });
                steps::of_shim("shim: told the exit");
            }
            Some(id) => {
                if !self.connections.iter().any(Connection::is_control) {
                    self.ended_execs.truncate(ENDED_EXECS_MAX - 1);
                    self.ended_execs.insert(0, (id.clone(), status.clone()));
                }
                self.tell(&Message::ExecExited { exec: id.clone(), status });
            }
        }
        self.close_clients(&exec);
    }

    /// Writes the exit status down; what cannot be written is tried again, and the shim stays
    /// until it is, or until the daemon has taken the bundle away.
    fn keep_exit(&mut self) {
        let Some(status) = &self.unwritten else { return };
        match write_exit(status) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                // Standard error is the bundle's shim.log, as far as there is room.
                eprintln!("exit status {} not written: {error}", status.code);
                self.retry_at = Some(Instant::now() + RETRY);
            }
            _ => (self.unwritten, self.retry_at) = (None, None),
        }
    }

    fn clean(&mut self) {
        create::forget(&self.spec);
        steps::of_shim("shim: forgot the container");
        let _ = std::fs::remove_file(SOCKET_FILE);
    }
}

fn failure(error: Error) -> Failure {
    Failure { kind: error.kind, text: error.text }
}

//! The daemon's side of the resolver.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dns::Zone;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::message::{self, Ports, Relay, Request, Response, Sandbox};

/// How long a started process may take until it listens.
const START_MAX: Duration = Duration::from_secs(10);
/// A process that ends as soon as it is started is not started again at once.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How often a call is made to processes that end under it: a call that ends each one is given up.
const ATTEMPTS_MAX: u32 = 3;
/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(10);
/// How many calls in a row are not answered in that time until the process is taken for one that
/// hangs. What it serves may be old by then, and nobody can tell it: it is killed, and the next one begun.
const SILENT_CALLS_MAX: u32 = 3;

/// A log that is longer is begun anew with the next process.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// Why the resolver could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the resolver process could not be started from {program}: {source}")]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the resolver at {socket} does not answer: {source}")]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("namespace {netns}: {source}")]
    Namespace {
        netns: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the resolver refused: {0}")]
    Refused(String),
}

/// A connection to the resolver process, made again when it breaks. Calls block for milliseconds.
pub struct Client {
    program: PathBuf,
    exec_root: PathBuf,
    /// How long a call may take.
    patience: Duration,
    /// The zones that were set here. Held during a call that sets or drops zones.
    zones: Mutex<BTreeSet<String>>,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    stream: Option<UnixStream>,
    /// How many connections there were.
    connection: u64,
    /// Calls in a row that nobody answered in time.
    silent: u32,
    /// The processes that this client started and that have not ended as far as it knows.
    children: Vec<Child>,
}

impl Link {
    /// Takes the exit status of those that have ended. Another client may have started what serves now.
    fn reap(&mut self) {
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

impl Client {
    /// `program` is this binary; the process is started as `<program> resolver --exec-root <exec_root>`.
    pub fn new(program: &Path, exec_root: &Path) -> Self {
        Self {
            program: program.to_owned(),
            exec_root: exec_root.to_owned(),
            patience: CALL_MAX,
            zones: Mutex::default(),
            link: Mutex::default(),
        }
    }

    /// With another time for a call than ten seconds.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Starts the process if it does not run. Called at start and by whoever looks after it. Gives the
    /// number of the connection: another one than before may lead to another process, which knows
    /// only what the one before it had written down.
    pub fn ensure(&self) -> Result<u64, Error> {
        self.call(&Request::Hello, None)?;
        Ok(self.link().connection)
    }

    /// Whether a process was ever started for this root: what it serves may still be there.
    pub fn has_run(&self) -> bool {
        socket_path(&self.exec_root).exists()
    }

    /// Opens a sandbox's sockets, or only replaces what it sees when they are open.
    pub fn set_sandbox(&self, id: &str, sandbox: &Sandbox) -> Result<Ports, Error> {
        let netns = sandbox.netns.clone();
        let namespace = File::open(&netns).map_err(|source| Error::Namespace { netns, source })?;
        let request = Request::SetSandbox { id: id.to_owned(), sandbox: sandbox.clone() };
        match self.call(&request, Some(namespace.as_fd()))? {
            Response::Ports(ports) => Ok(ports),
            other => Err(unexpected(other)),
        }
    }

    /// Closes a sandbox's sockets; fine when there are none.
    pub fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        self.call(&Request::RemoveSandbox { id: id.to_owned() }, None).map(drop)
    }

    /// Replaces the names of a network, for all sandboxes on it at once.
    pub fn set_zone(&self, network: &str, zone: &Zone) -> Result<(), Error> {
        let request = Request::SetZone { id: network.to_owned(), zone: zone.clone() };
        let mut zones = self.zones();
        zones.insert(network.to_owned());
        self.call(&request, None).map(drop)
    }

    pub fn remove_zone(&self, network: &str) -> Result<(), Error> {
        let mut zones = self.zones();
        self.call(&Request::RemoveZone { id: network.to_owned() }, None)?;
        zones.remove(network);
        Ok(())
    }

    /// Has the process drop the zones that an earlier daemon set, this one has not, and no sandbox
    /// sees: those of networks that were removed in between.
    pub fn drop_old_zones(&self) -> Result<(), Error> {
        let zones = self.zones();
        self.call(&Request::KeepZones { ids: zones.clone() }, None).map(drop)
    }

    fn zones(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes these relays run and no others; gives those that could not be opened, with the reason.
    pub fn set_relays(&self, relays: &BTreeSet<Relay>) -> Result<Vec<(Relay, String)>, Error> {
        match self.call(&Request::SetRelays { relays: relays.clone() }, None)? {
            Response::Relays(refused) => Ok(refused),
            other => Err(unexpected(other)),
        }
    }

    /// The sandboxes that the process holds, by id: what a restarted daemon compares with.
    pub fn sandboxes(&self) -> Result<BTreeMap<String, Ports>, Error> {
        match self.call(&Request::Sandboxes, None)? {
            Response::Sandboxes(sandboxes) => Ok(sandboxes),
            other => Err(unexpected(other)),
        }
    }

    /// What was answered, forwarded and dropped since the process started.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>, Error> {
        match self.call(&Request::Counters, None)? {
            Response::Counters(counters) => Ok(counters),
            other => Err(unexpected(other)),
        }
    }

    /// One request and its response. A connection that broke since the last call is made again.
    fn call(&self, request: &Request, with: Option<BorrowedFd<'_>>) -> Result<Response, Error> {
        let mut link = self.link();
        link.reap();
        let mut attempt = 0;
        loop {
            let kept = link.stream.take();
            let again = kept.is_some();
            let stream = match kept {
                Some(stream) => stream,
                None => self.connect(&mut link)?,
            };
            let source = match exchange(&stream, request, with) {
                Ok(response) => {
                    (link.stream, link.silent) = (Some(stream), 0);
                    return checked(response);
                }
                Err(source) => source,
            };
            if is_silent(&source) {
                link.silent += 1;
                if link.silent < SILENT_CALLS_MAX {
                    return Err(self.unreachable(source));
                }
                link.silent = 0;
                self.end(&stream).map_err(|source| self.unreachable(source))?;
            }
            // A process that ends still listens for a moment.
            attempt += u32::from(!again);
            if !again && (attempt == ATTEMPTS_MAX || !(ended(&source) || is_silent(&source))) {
                return Err(self.unreachable(source));
            }
        }
    }

    /// Kills the process that listens at the other end.
    fn end(&self, stream: &UnixStream) -> io::Result<()> {
        let process = socket_peercred(stream)?.pid;
        let handle = pidfd_open(process, PidfdFlags::empty())?;
        // Whoever listens now still lives, so its number is nobody else's.
        connect(&socket_path(&self.exec_root), self.patience)?;
        tracing::warn!(pid = %process, "the resolver hangs and is started anew");
        pidfd_send_signal(&handle, Signal::KILL)?;
        // Until it is dead it listens.
        let mut dead = [PollFd::new(&handle, PollFlags::IN)];
        let patience = Timespec::try_from(self.patience).map_err(io::Error::other)?;
        poll(&mut dead, Some(&patience))?;
        Ok(())
    }

    fn connect(&self, link: &mut Link) -> Result<UnixStream, Error> {
        let socket = socket_path(&self.exec_root);
        link.connection += 1;
        if let Ok(stream) = connect(&socket, self.patience) {
            return Ok(stream);
        }
        self.start(link)?;
        let begun = Instant::now();
        let mut started = begun;
        loop {
            match connect(&socket, self.patience) {
                Ok(stream) => return Ok(stream),
                Err(source) if begun.elapsed() > START_MAX => {
                    return Err(self.unreachable(source));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            link.reap();
            // It took one that was ending for one that serves: that one still held the lock.
            if link.children.is_empty() && started.elapsed() > AGAIN_AFTER {
                self.start(link)?;
                started = Instant::now();
            }
        }
    }

    fn start(&self, link: &mut Link) -> Result<(), Error> {
        let child = Command::new(&self.program)
            .arg("resolver")
            .arg("--exec-root")
            .arg(&self.exec_root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log())
            .spawn()
            .map_err(|source| Error::Start { program: self.program.clone(), source })?;
        // One from before that lives and does not listen is starting.
        link.children.push(child);
        Ok(())
    }

    /// Where the process says what went wrong; what the ones before it said is kept while it is short.
    fn log(&self) -> Stdio {
        let path = self.exec_root.join("resolver").join("log");
        let long = std::fs::metadata(&path).is_ok_and(|file| file.len() > LOG_BYTES_MAX);
        let open = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
            File::options().create(true).append(!long).write(true).truncate(long).open(&path)
        });
        match open {
            Ok(file) => file.into(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the resolver has no log");
                Stdio::null()
            }
        }
    }

    fn unreachable(&self, source: io::Error) -> Error {
        Error::Unreachable { socket: socket_path(&self.exec_root), source }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the resolver of a daemon listens.
pub(crate) fn socket_path(exec_root: &Path) -> PathBuf {
    exec_root.join("resolver").join("control.sock")
}

fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn exchange(
    stream: &UnixStream,
    request: &Request,
    with: Option<BorrowedFd<'_>>,
) -> io::Result<Response> {
    message::send(stream, request, with)?;
    match message::receive(stream)? {
        Some((response, _)) => Ok(response),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The other end is gone, as opposed to slow.
fn ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Neither gone nor heard in time.
fn is_silent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn checked(response: Response) -> Result<Response, Error> {
    match response {
        Response::Refused(why) => Err(Error::Refused(why)),
        response => Ok(response),
    }
}

fn unexpected(response: Response) -> Error {
    Error::Refused(format!("an answer to another question: {response:?}"))
}

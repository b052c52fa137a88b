//! The daemon's handle on its containers: one shim each, spoken to over a unix socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::attach::{AttachOptions, PendingAttach};
use crate::bundle;
use crate::client::{Handle, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{Call, ExecProcess, Reply, SHIM_FILE};
use crate::spec::{ContainerSpec, ExecSpec, Resources};
use crate::stats::Stats;
use crate::steps;
use crate::users;

/// Events nobody has taken yet; a shim's next line waits behind them.
const EVENTS_MAX: usize = 1_024;
/// A frozen group stands still within this, or the kernel cannot freeze it.
const FREEZE_MAX: Duration = Duration::from_secs(10);
/// What a shim does at once it does within this even on a busy host; one that does not is blocked or stopped.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A shim makes the exec's process before it answers.
const EXEC_MAX: Duration = Duration::from_secs(60);
/// The kernel lets go of an ended container's groups a little later.
pub(crate) const REMOVE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Config {
    /// The daemon's --exec-root; everything of the runtime lives in `<exec_root>/containers/<id>`.
    pub exec_root: PathBuf,
    /// The program to run as `<shim_exe> shim`; normally /proc/self/exe of the daemon.
    pub shim_exe: PathBuf,
    /// Parent of the containers' cgroups, `/docker` when empty.
    pub cgroup_parent: String,
    /// `--init-path`: the program for `--init` instead of the runtime's own.
    pub init_program: Option<PathBuf>,
}

/// How a container or exec ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// 128 + signal when killed by one.
    pub code: i32,
    pub oom: bool,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// Process 1 of the container, as the daemon sees it.
    pub pid: u32,
}

/// A container that a former daemon left behind.
#[derive(Debug, Clone)]
pub struct Adopted {
    pub id: String,
    pub pid: u32,
    pub started_at: Option<SystemTime>,
    pub paused: bool,
    /// Set when it ended while no daemon looked. Call `delete` when that is written down.
    pub exit: Option<ExitStatus>,
    /// Its shim is there and does not answer: how the container stands is not known, and nothing may be done to it
    /// before [`Event::Found`]. In words for people.
    pub silent: Option<String>,
}

/// What a container did by itself.
#[derive(Debug, Clone)]
pub enum Event {
    Exited {
        id: String,
        status: ExitStatus,
    },
    ExecExited {
        id: String,
        exec: String,
        status: ExitStatus,
    },
    Oom {
        id: String,
    },
    /// A shim that was silent when its container was adopted has answered; `None` when that was never started.
    Found {
        id: String,
        adopted: Option<Adopted>,
    },
}

/// The daemon's handle; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub containers: Mutex<HashMap<String, Arc<Handle>>>,
    /// Clients that came before their container or exec.
    pending: Mutex<HashMap<(String, Option<String>), Vec<Pending>>>,
    sender: mpsc::Sender<Event>,
    /// `None` once taken; before that nobody listens and events are not kept.
    receiver: Mutex<Option<mpsc::Receiver<Event>>>,
}

struct Pending {
    options: AttachOptions,
    stream: oneshot::Sender<Result<UnixStream>>,
}

impl Runtime {
    /// Makes the directories; starts nothing.
    pub fn new(config: Config) -> Result<Runtime> {
        let dir = bundle::containers_dir(&config);
        std::fs::create_dir_all(&dir)
            .map_err(|e| Error::system(format!("{} not made", dir.display()), e))?;
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let inner = Inner {
            config,
            containers: Mutex::default(),
            pending: Mutex::default(),
            sender,
            receiver: Mutex::new(Some(receiver)),
        };
        Ok(Runtime { inner: Arc::new(inner) })
    }

    /// Events of all containers, in order; call once.
    pub fn events(&self) -> mpsc::Receiver<Event> {
        lock(&self.inner.receiver).take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    pub(crate) fn events_sender(&self) -> Option<mpsc::Sender<Event>> {
        lock(&self.inner.receiver).is_none().then(|| self.inner.sender.clone())
    }

    pub(crate) fn handle(&self, id: &str) -> Result<Arc<Handle>> {
        let found = lock(&self.inner.containers).get(id).cloned();
        found.ok_or_else(|| Error::conflict(format!("container {id} is not running")))
    }

    /// Starts the shim and makes the container up to the point where its command would be executed.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<Created> {
        let known = lock(&self.inner.containers).get(&spec.id).cloned();
        if known.is_some_and(|known| known.exit.borrow().is_none()) {
            return Err(Error::conflict(format!("container {} is already running", spec.id)));
        }
        // What a broken removal left behind would be in the way.
        self.delete(&spec.id).await?;
        let result = self.create_fresh(spec).await;
        if result.is_err() {
            let _ = self.delete(&spec.id).await;
            self.give_up(&spec.id);
        }
        result
    }

    async fn create_fresh(&self, spec: &ContainerSpec) -> Result<Created> {
        let (config, spec_copy) = (self.inner.config.clone(), spec.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            let (dir, shim) = bundle::prepare(&config, &spec_copy)?;
            tracing::trace!(target: "step", "bundle written");
            let stream = spawn_shim(&config, &dir)?;
            tracing::trace!(target: "step", "shim started");
            Ok::<_, Error>((dir, shim, stream))
        });
        let (dir, shim, stream) =
            prepared.await.map_err(|e| Error::system("container not prepared", e))??;
        let handle = Arc::new(Handle::new(spec.id.clone(), dir, shim));
        lock(&self.inner.containers).insert(spec.id.clone(), handle.clone());
        let stream =
            UnixStream::from_std(stream).map_err(|e| Error::system("shim not reached", e))?;
        let first = handle.connect(stream, self.events_sender()).await;
        let pid = match first.await {
            Ok(Ok(Reply::Pid(pid))) => pid,
            Ok(Err(failure)) => return Err(Error::new(failure.kind, failure.text)),
            _ => return Err(Error::new(ErrorKind::System, "the container's shim did not start")),
        };
        tracing::trace!(target: "step", "container made");
        handle.pid.store(pid, Ordering::Relaxed);
        self.serve_pending(&handle, None).await;
        Ok(Created { pid })
    }

    /// Connects the clients that came early.
    async fn serve_pending(&self, handle: &Handle, exec: Option<&str>) {
        let key = (handle.id.clone(), exec.map(str::to_owned));
        let waiting = lock(&self.inner.pending).remove(&key).unwrap_or_default();
        for one in waiting.into_iter().filter(|one| !one.stream.is_closed()) {
            let _ = one.stream.send(handle.attach(key.1.clone(), one.options).await);
        }
    }

    /// Nobody will come: waiting clients see the end.
    fn give_up(&self, id: &str) {
        lock(&self.inner.pending).retain(|(container, _), _| container != id);
    }

    /// Lets the command run. Attaches begun before this call see its first byte.
    pub async fn start(&self, id: &str) -> Result<SystemTime> {
        let handle = self.handle(id)?;
        self.serve_pending(&handle, None).await;
        match handle.call(Call::Start).await? {
            Reply::Started(at) => Ok(at),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a signal to process 1.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        let handle = self.handle(id)?;
        match handle.ask(Call::Signal { signal }, ANSWER_MAX).await {
            Err(error) if error.kind == ErrorKind::NoAnswer => {
                handle.signal_without_shim(signal, error).await?;
            }
            answer => drop(answer?),
        }
        if signal == libc::SIGKILL && handle.cgroup.is_frozen() {
            // A frozen process does not even die.
            handle.cgroup.freeze(false)?;
        }
        Ok(())
    }

    pub async fn pause(&self, id: &str) -> Result<()> {
        let handle = self.handle(id)?;
        handle.cgroup.freeze(true)?;
        let end = tokio::time::Instant::now() + FREEZE_MAX;
        // v1 has no notification of it.
        while !handle.cgroup.settled() {
            if tokio::time::Instant::now() > end {
                handle.cgroup.freeze(false)?;
                return Err(Error::new(
                    ErrorKind::System,
                    "unable to freeze the container's processes",
                ));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            handle.cgroup.freeze(true)?;
        }
        Ok(())
    }

    pub async fn resume(&self, id: &str) -> Result<()> {
        self.handle(id)?.cgroup.freeze(false)
    }

    /// Resolves when the container has ended; at once when it has already.
    pub async fn wait(&self, id: &str) -> Result<ExitStatus> {
        wait_for(&self.handle(id)?.exit).await
    }

    /// Removes what is left of an ended (or only created) container: shim, cgroups, bundle. Not the logs. Idempotent.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let handle = lock(&self.inner.containers).get(id).cloned();
        let Some(handle) = handle else {
            return remove_bundle(&bundle::containers_dir(&self.inner.config).join(id));
        };
        if handle.is_unheard() {
            return Err(handle.silence().await);
        }
        if handle.exit.borrow().is_none() && handle.pid.load(Ordering::Relaxed) != 0 {
            let _ = handle.ask(Call::Quit, ANSWER_MAX).await;
            let _ = handle.cgroup.freeze(false);
            let _ = tokio::time::timeout(REMOVE_MAX, wait_for(&handle.exit)).await;
        }
        let end = tokio::time::Instant::now() + REMOVE_MAX;
        while let Err(error) = handle.cgroup.remove() {
            if tokio::time::Instant::now() > end {
                return Err(Error::system(
                    format!("control groups of container {id} not removed"),
                    error,
                ));
            }
            handle.cgroup.kill_all();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tracing::trace!(target: "step", "cgroup removed");
        // The shim may still be putting its own things away there.
        while let Err(error) = remove_bundle(&handle.bundle) {
            if tokio::time::Instant::now() > end {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tracing::trace!(target: "step", "bundle removed");
        lock(&self.inner.containers).remove(id);
        Ok(())
    }

    /// Runs a command in a running container and returns its pid.
    /// Attach to it first (`attach_exec`) to see its first byte.
    pub async fn exec(&self, id: &str, exec: &ExecSpec) -> Result<u32> {
        let handle = self.handle(id)?;
        let process = exec_process(&handle, exec)?;
        lock(&handle.execs).insert(exec.id.clone(), watch::Sender::new(None));
        self.serve_pending(&handle, Some(&exec.id)).await;
        let reply = handle.ask(Call::Exec { process: Box::new(process) }, EXEC_MAX).await;
        match reply {
            Ok(Reply::Pid(pid)) => Ok(pid),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => {
                lock(&handle.execs).remove(&exec.id);
                Err(error)
            }
        }
    }

    /// Resolves when the exec has ended.
    pub async fn exec_wait(&self, id: &str, exec: &str) -> Result<ExitStatus> {
        let handle = self.handle(id)?;
        let mut watch = {
            let execs = lock(&handle.execs);
            let found = execs
                .get(exec)
                .ok_or_else(|| Error::not_found(format!("No such exec instance: {exec}")))?;
            found.subscribe()
        };
        let status = watch.wait_for(Option::is_some).await;
        let status =
            status.map_err(|_| Error::not_found(format!("No such exec instance: {exec}")))?;
        status.clone().ok_or_else(|| Error::not_found(format!("No such exec instance: {exec}")))
    }

    /// Sends a signal to an exec's process.
    pub async fn exec_kill(&self, id: &str, exec: &str, signal: i32) -> Result<()> {
        let call = Call::ExecSignal { exec: exec.to_owned(), signal };
        self.handle(id)?.ask(call, ANSWER_MAX).await.map(drop)
    }

    /// Registers an attach at once (also before `create`); `.ready().await` then gives the stream.
    pub fn attach(&self, id: &str, options: AttachOptions) -> PendingAttach {
        let live = |handle: &Handle| {
            handle.exit.borrow().is_none() && handle.pid.load(Ordering::Relaxed) != 0
        };
        let handle = lock(&self.inner.containers).get(id).cloned().filter(|h| live(h));
        self.attach_to(id, None, options, handle)
    }

    /// The same for an exec, also before `exec`.
    pub fn attach_exec(&self, id: &str, exec: &str, options: AttachOptions) -> PendingAttach {
        let handle = lock(&self.inner.containers).get(id).cloned();
        let handle = handle.filter(|h| lock(&h.execs).contains_key(exec));
        self.attach_to(id, Some(exec), options, handle)
    }

    fn attach_to(
        &self,
        id: &str,
        exec: Option<&str>,
        options: AttachOptions,
        now: Option<Arc<Handle>>,
    ) -> PendingAttach {
        let (sender, stream) = oneshot::channel();
        let one = Pending { options, stream: sender };
        let exec = exec.map(str::to_owned);
        let mut pending = lock(&self.inner.pending);
        let waiting = pending.entry((id.to_owned(), exec.clone())).or_default();
        waiting.retain(|one| !one.stream.is_closed());
        waiting.push(one);
        drop(pending);
        if let Some(handle) = now {
            let runtime = self.clone();
            tokio::spawn(async move { runtime.serve_pending(&handle, exec.as_deref()).await });
        }
        PendingAttach { stream }
    }

    /// New size of the terminal of the container, or of one of its execs.
    pub async fn resize(
        &self,
        id: &str,
        exec: Option<&str>,
        height: u16,
        width: u16,
    ) -> Result<()> {
        let call = Call::Resize { exec: exec.map(str::to_owned), height, width };
        self.handle(id)?.ask(call, ANSWER_MAX).await.map(drop)
    }

    /// One reading of the cgroup's counters (without network; the engine knows the links).
    pub async fn stats(&self, id: &str) -> Result<Stats> {
        crate::stats::read(&self.handle(id)?.cgroup)
    }

    /// Titles and rows as `docker top` shows them.
    pub async fn top(&self, id: &str, ps_args: &str) -> Result<(Vec<String>, Vec<Vec<String>>)> {
        let (pids, ps_args) = (self.handle(id)?.cgroup.pids(), ps_args.to_owned());
        tokio::task::spawn_blocking(move || crate::top::table(&pids, &ps_args))
            .await
            .map_err(|e| Error::system("processes not listed", e))?
    }

    /// Host pids of all processes in the container.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>> {
        Ok(self.handle(id)?.cgroup.pids())
    }

    /// New limits for a running container; zero fields stay as they are.
    pub async fn update(&self, id: &str, resources: &Resources) -> Result<()> {
        self.handle(id)?.cgroup.update(resources)
    }
}

/// A path that names `name` in an open directory, short enough for any socket address.
pub(crate) fn fd_path(dir: &OwnedFd, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Starts the shim with one end of a socket as its stdin; returns when it has detached itself.
fn spawn_shim(config: &Config, dir: &Path) -> Result<std::os::unix::net::UnixStream> {
    let failed =
        |e: io::Error| Error::system(format!("shim {} not started", config.shim_exe.display()), e);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    let log = std::fs::File::create(dir.join("shim.log")).map_err(failed)?;
    let status = std::process::Command::new(&config.shim_exe)
        .arg("shim")
        .arg(dir)
        .env_clear()
        .envs(std::env::var_os(steps::VARIABLE).map(|directory| (steps::VARIABLE, directory)))
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(log)
        .status()
        .map_err(failed)?;
    if !status.success() {
        let text = std::fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
        return Err(Error::new(
            ErrorKind::System,
            format!("shim ended with {status}: {}", text.trim()),
        ));
    }
    ours.set_nonblocking(true).map_err(failed)?;
    Ok(ours)
}

fn remove_bundle(dir: &Path) -> Result<()> {
    // First what makes it one: of a bundle without its exit status a container would be taken for killed.
    match std::fs::remove_file(dir.join(SHIM_FILE)) {
        Ok(()) => tracing::trace!(target: "step", "bundle void"),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(e) => return Err(Error::system(format!("bundle {} not removed", dir.display()), e)),
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("bundle {} not removed", dir.display()), e))
        }
        _ => Ok(()),
    }
}

async fn wait_for(exit: &watch::Sender<Option<ExitStatus>>) -> Result<ExitStatus> {
    let mut watch = exit.subscribe();
    let gone = || Error::not_found("the container is gone");
    let status = watch.wait_for(Option::is_some).await.map_err(|_| gone())?;
    status.clone().ok_or_else(gone)
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(ErrorKind::System, format!("the shim answered something else: {reply:?}"))
}

/// The exec complete: environment, user and directory filled in from the container's.
fn exec_process(handle: &Handle, exec: &ExecSpec) -> Result<ExecProcess> {
    let spec = &handle.spec;
    if exec.args.is_empty() {
        return Err(Error::invalid("No exec command specified"));
    }
    let wanted = if exec.user.is_empty() { &spec.user } else { &exec.user };
    let groups: &[String] = if exec.user.is_empty() { &spec.groups } else { &[] };
    // As the container sees its files, mounts over /etc/passwd included.
    let root = PathBuf::from(format!("/proc/{}/root", handle.pid.load(Ordering::Relaxed)));
    let user = users::resolve(&root, wanted, groups)?;
    let mut env = spec.env.clone();
    let mut set = |entry: &str, replace: bool| {
        let name = entry.split('=').next().unwrap_or("");
        let position = env.iter().position(|e| e.split('=').next() == Some(name));
        match position {
            Some(at) if replace && !entry.contains('=') => drop(env.remove(at)),
            Some(at) if replace => env[at] = entry.to_owned(),
            Some(_) => {}
            None if entry.contains('=') => env.push(entry.to_owned()),
            None => {}
        }
    };
    for entry in &exec.env {
        set(entry, true);
    }
    if exec.tty {
        set("TERM=xterm", false);
    }
    set(&format!("HOME={}", user.home), false);
    Ok(ExecProcess {
        id: exec.id.clone(),
        args: exec.args.clone(),
        env,
        cwd: if exec.cwd.is_empty() { spec.cwd.clone() } else { exec.cwd.clone() },
        user,
        tty: exec.tty,
        stdin: exec.stdin,
        console_size: exec.console_size,
        privileged: exec.privileged,
    })
}

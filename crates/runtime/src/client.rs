//! One container as the daemon knows it: the connection to its shim, and what came over it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};

use crate::attach::{self, AttachOptions};
use crate::cgroup::Cgroup;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::*;
use crate::runtime::{Adopted, Event, ExitStatus, REMOVE_MAX};

/// Ended execs whose status can still be asked for.
const ENDED_EXECS_MAX: usize = 1_000;
/// An attach is begun by the shim's next round.
const ATTACH_MAX: Duration = Duration::from_secs(10);
/// How soon a shim whose queue of connections is full is tried again.
const AGAIN: Duration = Duration::from_secs(1);

type Waiting = HashMap<u64, oneshot::Sender<std::result::Result<Reply, Failure>>>;

/// Shared by everybody who has to do with one container.
pub(crate) struct Handle {
    pub id: String,
    pub bundle: PathBuf,
    pub spec: ShimSpec,
    pub cgroup: Cgroup,
    pub pid: AtomicU32,
    pub exit: watch::Sender<Option<ExitStatus>>,
    pub execs: Mutex<HashMap<String, watch::Sender<Option<ExitStatus>>>>,
    writer: tokio::sync::Mutex<Option<OwnedWriteHalf>>,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    /// It has left a question unanswered, and has said nothing since.
    silent: AtomicBool,
    adoption: Mutex<Adoption>,
}

/// How far a former daemon's container is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adoption {
    Asked,
    /// Nobody waits for the answer any more; it may still come.
    Unheard,
    Heard,
}

impl Handle {
    /// Of a container that is made now.
    pub fn new(id: String, bundle: PathBuf, spec: ShimSpec) -> Handle {
        Self { adoption: Mutex::new(Adoption::Heard), ..Self::left_behind(id, bundle, spec) }
    }

    /// Of a former daemon's container.
    pub fn left_behind(id: String, bundle: PathBuf, spec: ShimSpec) -> Handle {
        let cgroup = Cgroup::at(&spec.cgroup);
        Handle {
            id,
            bundle,
            spec,
            cgroup,
            pid: AtomicU32::new(0),
            exit: watch::Sender::new(None),
            execs: Mutex::default(),
            writer: tokio::sync::Mutex::new(None),
            waiting: Mutex::default(),
            // 0 is the shim's own first reply.
            next: AtomicU64::new(1),
            silent: AtomicBool::new(false),
            adoption: Mutex::new(Adoption::Asked),
        }
    }

    /// Takes over the connection; returns the reply to question 0 as a receiver.
    pub async fn connect(
        self: &Arc<Self>,
        stream: UnixStream,
        events: Option<mpsc::Sender<Event>>,
    ) -> oneshot::Receiver<std::result::Result<Reply, Failure>> {
        let (read, write) = stream.into_split();
        *self.writer.lock().await = Some(write);
        let (sender, first) = oneshot::channel();
        lock(&self.waiting).insert(0, sender);
        let handle = self.clone();
        tokio::spawn(async move {
            let mut reader = BufReader::new(read);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).await.is_ok_and(|count| count > 0) {
                if let Ok(message) = serde_json::from_slice(&line) {
                    handle.message(message, events.as_ref()).await;
                }
                line.clear();
            }
            handle.disconnected(events.as_ref()).await;
        });
        first
    }

    async fn message(&self, message: Message, events: Option<&mpsc::Sender<Event>>) {
        if self.silent.swap(false, Ordering::Relaxed) {
            tracing::info!(container = %self.id, "its shim answers again");
        }
        let event = match message {
            Message::Reply { seq, result } => {
                if let Some(waiting) = lock(&self.waiting).remove(&seq) {
                    let _ = waiting.send(result);
                }
                return;
            }
            Message::Exited { status } => {
                if !self.end(&status) {
                    return;
                }
                Event::Exited { id: self.id.clone(), status }
            }
            Message::ExecExited { exec, status } => {
                self.exec_ended(&exec, &status);
                Event::ExecExited { id: self.id.clone(), exec, status }
            }
            Message::Oom => Event::Oom { id: self.id.clone() },
        };
        if let Some(events) = events {
            let _ = events.send(event).await;
        }
    }

    pub fn exec_ended(&self, exec: &str, status: &ExitStatus) {
        let mut execs = lock(&self.execs);
        if execs.len() > ENDED_EXECS_MAX {
            // Those with an end and nobody waiting can go.
            execs.retain(|_, watch| watch.borrow().is_none() || watch.receiver_count() > 0);
        }
        execs
            .entry(exec.to_owned())
            .or_insert_with(|| watch::Sender::new(None))
            .send_replace(Some(status.clone()));
    }

    /// The shim is gone. It has written why; if it was killed itself, its container goes too.
    async fn disconnected(&self, events: Option<&mpsc::Sender<Event>>) {
        *self.writer.lock().await = None;
        self.silent.store(false, Ordering::Relaxed);
        if self.exit.borrow().is_none() && self.pid.load(Ordering::Relaxed) != 0 {
            let status = self.final_status();
            if self.end(&status)
                && let Some(events) = events
            {
                let _ = events.send(Event::Exited { id: self.id.clone(), status }).await;
            }
        }
        lock(&self.waiting).clear();
        let open: Vec<String> = {
            let execs = lock(&self.execs);
            execs.iter().filter(|(_, w)| w.borrow().is_none()).map(|(id, _)| id.clone()).collect()
        };
        for exec in open {
            let status = ExitStatus { code: 137, oom: false, at: SystemTime::now() };
            self.exec_ended(&exec, &status);
            if let Some(events) = events {
                let _ = events.send(Event::ExecExited { id: self.id.clone(), exec, status }).await;
            }
        }
    }

    /// What the shim left behind; without that, the container is ended here and counts as killed.
    pub fn final_status(&self) -> ExitStatus {
        let written = std::fs::read(self.bundle.join(EXIT_FILE)).ok();
        if let Some(status) = written.and_then(|text| serde_json::from_slice(&text).ok()) {
            return status;
        }
        self.cgroup.kill_all();
        ExitStatus { code: 137, oom: false, at: SystemTime::now() }
    }

    /// Notes the end; false when one is known already.
    pub fn end(&self, status: &ExitStatus) -> bool {
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            if first {
                *exit = Some(status.clone());
            }
            first
        })
    }

    /// A question that a shim answers within the limit, unless it is stopped or blocked. Who leaves it meanwhile
    /// leaves no half a line behind.
    ///
    /// # Errors
    /// Of kind `NoAnswer`, at once when it is known to be silent.
    pub async fn ask(self: &Arc<Self>, call: Call, limit: Duration) -> Result<Reply> {
        if self.is_silent() {
            return Err(self.silence().await);
        }
        let handle = self.clone();
        let asked = tokio::spawn(async move { handle.call(call).await });
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(Error::system("the shim was not asked", error)),
            Err(_) => {
                self.silent.store(true, Ordering::Relaxed);
                let error = self.silence().await;
                tracing::warn!("{error}");
                Err(error)
            }
        }
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed) || self.is_unheard()
    }

    /// A former daemon's container of which nothing is known but that it is there.
    pub fn is_unheard(&self) -> bool {
        *lock(&self.adoption) == Adoption::Unheard
    }

    /// The shim has told how its container stands; true when nobody waited for it any more.
    pub fn heard(&self) -> bool {
        let late = std::mem::replace(&mut *lock(&self.adoption), Adoption::Heard);
        late == Adoption::Unheard
    }

    /// Waits no longer; false when there is nothing to wait for.
    pub fn give_up(&self) -> bool {
        let mut adoption = lock(&self.adoption);
        let waiting = *adoption == Adoption::Asked;
        if waiting {
            *adoption = Adoption::Unheard;
        }
        waiting
    }

    /// What is known without its shim.
    pub fn adopted(&self) -> Adopted {
        Adopted {
            id: self.id.clone(),
            pid: 0,
            started_at: None,
            paused: false,
            exit: self.exit.borrow().clone(),
            silent: None,
        }
    }

    pub async fn unheard(&self) -> Adopted {
        Adopted { silent: Some(self.silence().await.text), ..self.adopted() }
    }

    /// What people are told of a shim that does not answer.
    pub async fn silence(&self) -> Error {
        let id = &self.id;
        let (name, advice) = match self.shim_pid().await {
            Some(pid) => (
                format!("its shim, process {pid},"),
                format!("kill -CONT {pid} lets it go on if it is stopped; docker kill ends both"),
            ),
            None => ("its shim".to_owned(), "docker kill ends both".to_owned()),
        };
        Error::new(
            ErrorKind::NoAnswer,
            format!("container {id}: {name} does not answer, so it is left as it is: {advice}"),
        )
    }

    /// As the kernel noted it when the shim began to listen.
    async fn shim_pid(&self) -> Option<i32> {
        self.reach().await.ok()?.peer_cred().ok()?.pid().filter(|pid| *pid > 1)
    }

    /// A signal past a shim that does not answer. SIGKILL ends everything of the container, and at last the shim, whose
    /// end is the container's for everybody.
    pub async fn signal_without_shim(&self, signal: i32, silence: Error) -> Result<()> {
        let pid = self.pid.load(Ordering::Relaxed).cast_signed();
        if signal != libc::SIGKILL {
            // Its parent does not reap it meanwhile: the number stays its own.
            let sent = pid > 1 && crate::shim::sys::kill(pid, signal).is_ok();
            return if sent { Ok(()) } else { Err(silence) };
        }
        let _ = self.cgroup.freeze(false);
        let end = tokio::time::Instant::now() + REMOVE_MAX;
        while !self.cgroup.pids().is_empty() && tokio::time::Instant::now() < end {
            self.cgroup.kill_all();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some);
        // A shim that is only slow tells the end better than its own.
        if tokio::time::timeout_at(end, ended).await.is_ok() {
            return Ok(());
        }
        let shim = self.shim_pid().await.ok_or_else(|| silence.clone())?;
        crate::shim::sys::kill(shim, libc::SIGKILL)
            .map_err(|e| Error::system(format!("shim {shim} not ended"), e))?;
        let ended = exit.wait_for(Option::is_some);
        tokio::time::timeout(REMOVE_MAX, ended).await.map(drop).map_err(|_| silence)
    }

    /// A byte stream of the container or an exec.
    pub async fn attach(&self, exec: Option<String>, options: AttachOptions) -> Result<UnixStream> {
        if self.is_silent() {
            return Err(self.silence().await);
        }
        let stream = self.dial().await?;
        let begun = attach::begin(stream, exec, options);
        match tokio::time::timeout(ATTACH_MAX, begun).await {
            Ok(begun) => begun,
            Err(_) => Err(self.silence().await),
        }
    }

    pub async fn call(&self, call: Call) -> Result<Reply> {
        let gone = || Error::conflict(format!("container {} is not running", self.id));
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line =
            serde_json::to_vec(&Request { seq, call }).map_err(|e| Error::system("request", e))?;
        line.push(b'\n');
        if line.len() > LINE_BYTES_MAX {
            return Err(Error::invalid("the command and its environment are too large"));
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            let writer = writer.as_mut().ok_or_else(gone)?;
            lock(&self.waiting).insert(seq, sender);
            writer.write_all(&line).await.map_err(|_| gone())?;
        }
        match receiver.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(failure)) => Err(Error::new(failure.kind, failure.text)),
            Err(_) => Err(gone()),
        }
    }

    /// A further connection to the shim.
    async fn dial(&self) -> Result<UnixStream> {
        self.reach().await.map_err(|e| {
            Error::new(
                crate::ErrorKind::Conflict,
                format!("container {}: its shim does not answer: {e}", self.id),
            )
        })
    }

    async fn reach(&self) -> std::io::Result<UnixStream> {
        reach(&self.bundle).await
    }

    /// The shim of a former daemon's container; `None` when it is gone.
    ///
    /// # Errors
    /// When that cannot be found out: nobody may end the container for it.
    pub async fn find(&self) -> Result<Option<UnixStream>> {
        loop {
            match self.reach().await {
                // Its queue is full of those who asked before: it does not take them.
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(AGAIN).await;
                }
                reached => {
                    let text =
                        || format!("container {} runs on, but its shim cannot be asked", self.id);
                    return found(reached).map_err(|e| Error::system(text(), e));
                }
            }
        }
    }
}

async fn reach(bundle: &Path) -> std::io::Result<UnixStream> {
    let dir = crate::runtime::open_dir(bundle)?;
    let path = crate::runtime::fd_path(&dir, Path::new(SOCKET_FILE));
    UnixStream::connect(path).await
}

/// A shim that is gone is no error.
fn found(reached: std::io::Result<UnixStream>) -> std::io::Result<Option<UnixStream>> {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
    match reached {
        Ok(stream) => Ok(Some(stream)),
        // Reset: it ended while this connection was in its queue.
        Err(e) if matches!(e.kind(), NotFound | ConnectionRefused | ConnectionReset) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A poisoned lock only means that another task panicked; the maps are whole at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shim_that_ends_while_it_is_asked_is_gone() {
        let bundle = tempfile::tempdir().expect("a folder");
        let asked = || async { found(reach(bundle.path()).await).expect("known").is_some() };
        assert!(!asked().await, "never there");
        let listener = std::os::unix::net::UnixListener::bind(bundle.path().join(SOCKET_FILE));
        let listener = listener.expect("bound");
        assert!(asked().await, "there");
        let ends = async { drop(listener) };
        // The connection is made at the first poll, and looked at after the shim's end.
        assert!(!tokio::join!(asked(), ends).0, "ended meanwhile");
        assert!(!asked().await, "ended");
    }
}

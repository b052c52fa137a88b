//! One container as the daemon knows it: the connection to its shim, and what came over it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::protocol::*;
use crate::runtime::{Event, ExitStatus};

/// Ended execs whose status can still be asked for.
const ENDED_EXECS_MAX: usize = 1_000;

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
}

impl Handle {
    pub fn new(id: String, bundle: PathBuf, spec: ShimSpec) -> Handle {
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
        }
    }

    /// Takes over the connection; returns the reply to question 0 as a receiver.
    pub async fn connect(
        self: &std::sync::Arc<Self>,
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
        let event = match message {
            Message::Reply { seq, result } => {
                if let Some(waiting) = lock(&self.waiting).remove(&seq) {
                    let _ = waiting.send(result);
                }
                return;
            }
            Message::Exited { status } => {
                if self.exit.borrow().is_some() {
                    return;
                }
                self.exit.send_replace(Some(status.clone()));
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
        lock(&self.waiting).clear();
        if self.exit.borrow().is_none() && self.pid.load(Ordering::Relaxed) != 0 {
            let status = self.final_status();
            self.exit.send_replace(Some(status.clone()));
            if let Some(events) = events {
                let _ = events.send(Event::Exited { id: self.id.clone(), status }).await;
            }
        }
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
    pub async fn dial(&self) -> Result<UnixStream> {
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
        found(self.reach().await).map_err(|e| {
            Error::system(format!("container {} runs on, but its shim cannot be asked", self.id), e)
        })
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

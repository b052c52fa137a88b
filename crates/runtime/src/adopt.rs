//! A former daemon's containers: every shim is asked at once, and one that does not answer holds up nobody.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::bundle;
use crate::client::{Handle, lock};
use crate::error::{Error, Result};
use crate::protocol::{Call, Reply, SHIM_FILE, ShimSpec, State};
use crate::runtime::{Adopted, Event, Runtime};

/// A daemon that begins waits no longer than this for the shims, all of them together: one that is stopped or blocked
/// may be so for ever.
const ANSWER_MAX: Duration = Duration::from_secs(5);

type Found = Result<Option<Adopted>>;

impl Runtime {
    /// Reconnects to every shim left by a former daemon. Call once, before anything else (but after `events`).
    ///
    /// A shim that does not answer in time is told in [`Adopted::silent`]; it is listened to until it does.
    ///
    /// # Errors
    /// When a container is there and it cannot be found out how it stands (the daemon may open no more files): it
    /// is left alone, and no daemon can begin before that is mended.
    pub async fn adopt(&self) -> Result<Vec<Adopted>> {
        let mut asked = Vec::new();
        for (path, spec) in self.left_behind()? {
            let handle = Arc::new(Handle::left_behind(spec.id.clone(), path, spec));
            lock(&self.inner.containers).insert(handle.id.clone(), handle.clone());
            let (answer, answered) = oneshot::channel();
            tokio::spawn(self.clone().find_out(handle.clone(), answer));
            asked.push((handle, answered));
        }
        let end = Instant::now() + ANSWER_MAX;
        let mut adopted = Vec::new();
        for (handle, mut answered) in asked {
            let found = match tokio::time::timeout_at(end, &mut answered).await {
                Ok(found) => found,
                Err(_) if handle.give_up() => {
                    adopted.push(handle.unheard().await);
                    continue;
                }
                // It has answered at this moment.
                Err(_) => answered.await,
            };
            adopted.extend(found.map_err(|e| Error::system("a shim was not asked", e))??);
        }
        Ok(adopted)
    }

    /// The bundles; one that was never completed goes.
    fn left_behind(&self) -> Result<Vec<(PathBuf, ShimSpec)>> {
        let dir = bundle::containers_dir(&self.inner.config);
        let failed = |e: io::Error| Error::system(format!("{} not read", dir.display()), e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let text = match std::fs::read(path.join(SHIM_FILE)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
                read => read.map_err(|e| {
                    Error::system(format!("{} not read", path.join(SHIM_FILE).display()), e)
                })?,
            };
            match serde_json::from_slice::<ShimSpec>(&text) {
                Ok(spec) => found.push((path, spec)),
                // Written before any process existed, and never completed.
                Err(_) => drop(std::fs::remove_dir_all(&path)),
            }
        }
        Ok(found)
    }

    /// Waits for the shim as long as it takes. When nobody waits for it any more, its answer is an event.
    async fn find_out(self, handle: Arc<Handle>, answer: oneshot::Sender<Found>) {
        let state = match self.ask_state(&handle).await {
            Ok(state) => state,
            Err(error) if handle.give_up() => return drop(answer.send(Err(error))),
            Err(error) => return tracing::error!("{error}"),
        };
        let late = handle.heard();
        let found = self.take_over(&handle, state).await;
        if !late {
            return drop(answer.send(Ok(found)));
        }
        if let Some(events) = self.events_sender() {
            let _ = events.send(Event::Found { id: handle.id.clone(), adopted: found }).await;
        }
    }

    /// `None`: there is no shim any more.
    async fn ask_state(&self, handle: &Arc<Handle>) -> Result<Option<State>> {
        let Some(stream) = handle.find().await? else { return Ok(None) };
        let _first = handle.connect(stream, self.events_sender()).await;
        match handle.call(Call::State).await {
            Ok(Reply::State(state)) => Ok(Some(state)),
            _ => Ok(None),
        }
    }

    async fn take_over(&self, handle: &Handle, state: Option<State>) -> Option<Adopted> {
        let Some(state) = state else {
            handle.end(&handle.final_status());
            return Some(handle.adopted());
        };
        handle.pid.store(state.pid, Ordering::Relaxed);
        for (exec, known) in &state.execs {
            match &known.exit {
                Some(status) => handle.exec_ended(exec, status),
                None => drop(lock(&handle.execs).insert(exec.clone(), watch::Sender::new(None))),
            }
        }
        if state.started_at.is_none() {
            // Made but never started: nothing was acknowledged.
            let _ = self.delete(&handle.id).await;
            return None;
        }
        if let Some(status) = &state.exit {
            handle.end(status);
        }
        let paused = handle.cgroup.is_frozen();
        Some(Adopted {
            pid: state.pid,
            started_at: state.started_at,
            paused,
            exit: state.exit,
            ..handle.adopted()
        })
    }

    /// The process of a container whose shim is silent, as it was noted at its start.
    pub fn presume(&self, id: &str, pid: u32) {
        if let Ok(handle) = self.handle(id) {
            // What the shim has said since counts more.
            let _ = handle.pid.compare_exchange(0, pid, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Why nothing may be done to a container: its shim has not told yet how it stands.
    pub async fn silence(&self, id: &str) -> Option<Error> {
        let handle = self.handle(id).ok().filter(|handle| handle.is_unheard())?;
        Some(handle.silence().await)
    }

    /// What an event has told, as it stands now; `None` when it is about a run that is over.
    pub fn current(&self, id: &str, found: Option<Adopted>) -> Option<Option<Adopted>> {
        let handle = self.handle(id).ok();
        let Some(found) = found else { return handle.is_none().then_some(None) };
        let exit = handle.as_ref()?.exit.borrow().clone();
        let same = handle?.pid.load(Ordering::Relaxed) == found.pid;
        let same = same || (exit.is_some() && exit == found.exit);
        same.then_some(Some(Adopted { exit, ..found }))
    }
}

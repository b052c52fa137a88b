//! One container: what was asked for (its spec), how it stands (its state), and who waits for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard_stubs::models::{ContainerConfig, EndpointSettings, HostConfig};
use model::ContainerId;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::mounts::MountRecord;
use super::record;
use crate::attachments::Place;
use crate::error::Result;
use crate::network::{Cidr, IngressTarget, Mac};

/// What a container is made of; written once at create, changed by rename, update and connect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    pub id: ContainerId,
    /// Without the slash.
    pub name: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// The image's id, `sha256:…`.
    pub image: String,
    /// Docker's own object, the image's settings merged in.
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    /// By network name, as asked for.
    #[serde(default)]
    pub networks: BTreeMap<String, EndpointSettings>,
    #[serde(default)]
    pub mounts: Vec<MountRecord>,
    pub log: runtime::LogConfig,
    /// Only on a task of the swarm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskSpec>,
}

/// What only the swarm's executor gives: addresses that the manager allocated, mesh ports, files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskSpec {
    pub endpoints: Vec<TaskEndpoint>,
    pub ingress: Vec<IngressTarget>,
    pub files: Vec<TaskFile>,
    /// The swarm's names for the task, for `{{.Service.Name}}` and the like in logs.
    pub attributes: BTreeMap<String, String>,
}

/// One network of a task; on an overlay with the manager's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskEndpoint {
    /// Id of an overlay, or name of a local network.
    pub network: String,
    pub network_name: String,
    pub addresses: Vec<Cidr>,
    pub mac: Option<Mac>,
    pub aliases: Vec<String>,
    pub driver_opts: BTreeMap<String, String>,
}

/// A secret or configuration as a file; its bytes live in memory-backed files only.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskFile {
    /// Inside the container; a relative one is below `/run/secrets` (secrets) or `/` (configs).
    pub target: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub secret: bool,
    #[serde(skip)]
    pub data: Vec<u8>,
}

impl std::fmt::Debug for TaskFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskFile").field("target", &self.target).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    #[default]
    Created,
    Running,
    Paused,
    /// Waiting for its next start by the restart policy.
    Restarting,
    Exited,
    /// Being removed: what a crash leaves here is removed at the next start.
    Removing,
    /// A removal failed half-way.
    Dead,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub phase: Phase,
    pub pid: u32,
    pub exit_code: i32,
    pub error: String,
    pub oom_killed: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// Restarts by the policy since the last start by a user.
    pub restart_count: i64,
    /// `docker stop` and `docker kill` end the restart policy's hold.
    pub stopped_by_user: bool,
    pub health: Option<Health>,
    /// How the run ended, from when that is known until it has been cleaned up and told: the only
    /// place where a crash in between leaves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<runtime::ExitStatus>,
    /// `docker rm -v`, for a removal that a crash has cut short.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remove_volumes: bool,
    /// On attachable networks of the swarm, while it runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: String,
    pub failing_streak: i64,
    pub log: Vec<HealthProbe>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HealthProbe {
    #[serde(with = "time::serde::rfc3339")]
    pub start: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub end: OffsetDateTime,
    pub exit_code: i64,
    pub output: String,
}

/// What `wait` and followers of the log look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    pub running: bool,
    /// How often it has ended.
    pub exits: u64,
    pub exit_code: i32,
    pub error: String,
    pub removed: bool,
}

pub struct Container {
    id: ContainerId,
    directory: PathBuf,
    inner: Mutex<Inner>,
    /// Held by whoever starts, stops, removes or changes it.
    pub(crate) operation: tokio::sync::Mutex<()>,
    life: watch::Sender<Life>,
    ended: watch::Sender<bool>,
    /// Ends the wait before the restart policy's next start, and the health probes.
    pub(crate) cancel: watch::Sender<u64>,
    /// How many want to decide themselves what follows its end: `docker restart`, `docker rm -f`.
    keep: AtomicUsize,
    backoff: Mutex<Duration>,
}

pub(crate) struct KeptExit<'a>(&'a AtomicUsize);

impl Drop for KeptExit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Inner {
    spec: Arc<Spec>,
    state: State,
}

impl Container {
    pub(crate) fn new(directory: PathBuf, spec: Spec, state: State) -> Self {
        let running = matches!(state.phase, Phase::Running | Phase::Paused);
        Self {
            id: spec.id.clone(),
            directory,
            life: watch::Sender::new(Life {
                running: running || state.phase == Phase::Restarting,
                exit_code: state.exit_code,
                ..Default::default()
            }),
            ended: watch::Sender::new(!running),
            inner: Mutex::new(Inner { spec: Arc::new(spec), state }),
            operation: tokio::sync::Mutex::new(()),
            cancel: watch::Sender::new(0),
            keep: AtomicUsize::new(0),
            backoff: Mutex::new(Duration::ZERO),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// `<data-root>/containers/<id>`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Without the slash.
    pub fn name(&self) -> String {
        self.inner().spec.name.clone()
    }

    pub fn spec(&self) -> Arc<Spec> {
        self.inner().spec.clone()
    }

    pub fn state(&self) -> State {
        self.inner().state.clone()
    }

    pub fn phase(&self) -> Phase {
        self.inner().state.phase
    }

    /// Has a process: running or paused.
    pub fn is_running(&self) -> bool {
        matches!(self.phase(), Phase::Running | Phase::Paused)
    }

    pub fn is_paused(&self) -> bool {
        self.phase() == Phase::Paused
    }

    pub fn tty(&self) -> bool {
        self.inner().spec.config.tty.unwrap_or_default()
    }

    /// True when (and as soon as) there is no process: the end of a followed log.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    pub fn life(&self) -> watch::Receiver<Life> {
        self.life.subscribe()
    }

    /// Writes the changed spec to disk before anybody sees it.
    pub(crate) fn change_spec(&self, change: impl FnOnce(&mut Spec)) -> Result<Arc<Spec>> {
        let mut inner = self.inner();
        let mut spec = (*inner.spec).clone();
        change(&mut spec);
        record::write_spec(&self.directory, &spec)?;
        inner.spec = Arc::new(spec);
        Ok(inner.spec.clone())
    }

    /// Changes the state, writes it down and tells who waits.
    pub(crate) fn change_state(&self, change: impl FnOnce(&mut State)) -> State {
        let state = {
            let mut inner = self.inner();
            let stopped_by_user = inner.state.stopped_by_user;
            change(&mut inner.state);
            // Who was told that it is stopped does not find it running after a power cut.
            let durable = inner.state.stopped_by_user != stopped_by_user;
            if let Err(error) = record::write_state(&self.directory, &inner.state, durable) {
                tracing::error!(container = %self.id, %error, "state not written");
            }
            inner.state.clone()
        };
        let running = matches!(state.phase, Phase::Running | Phase::Paused);
        self.ended.send_if_modified(|ended| std::mem::replace(ended, !running) == running);
        self.life.send_if_modified(|life| {
            let alive = running || state.phase == Phase::Restarting;
            if life.running && !alive {
                // Whoever waits for its end may look before the end is told.
                life.exit_code = state.exit_code;
            }
            std::mem::replace(&mut life.running, alive) != alive
        });
        state
    }

    /// One end of a run, for `wait`.
    pub(crate) fn tell_exit(&self, code: i32, error: &str) {
        self.life.send_modify(|life| {
            life.exits += 1;
            life.exit_code = code;
            life.error = error.to_owned();
        });
    }

    pub(crate) fn tell_removed(&self) {
        self.life.send_modify(|life| {
            life.running = false;
            life.removed = true;
        });
        self.ended.send_replace(true);
    }

    /// Whatever was planned for this container (a restart, a probe) is off.
    pub(crate) fn cancel_plans(&self) {
        self.cancel.send_modify(|generation| *generation += 1);
    }

    /// The end that comes is no reason to remove or restart it, as long as what is returned lives.
    pub(crate) fn keep_next_exit(&self) -> KeptExit<'_> {
        self.keep.fetch_add(1, Ordering::SeqCst);
        KeptExit(&self.keep)
    }

    pub(crate) fn keeps_next_exit(&self) -> bool {
        self.keep.load(Ordering::SeqCst) > 0
    }

    /// The pause before the next start, given how long the last run was.
    pub(crate) fn next_backoff(
        &self,
        ran: Duration,
        first: Duration,
        most: Duration,
        good: Duration,
    ) -> Duration {
        let mut backoff = self.backoff.lock().unwrap_or_else(PoisonError::into_inner);
        *backoff = if ran >= good || backoff.is_zero() { first } else { (*backoff * 2).min(most) };
        *backoff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sees_that_it_runs_no_more_sees_its_exit_code() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = Spec {
            id: "c".into(),
            name: "n".into(),
            created: OffsetDateTime::UNIX_EPOCH,
            image: String::new(),
            config: ContainerConfig::default(),
            host_config: HostConfig::default(),
            networks: BTreeMap::new(),
            mounts: Vec::new(),
            log: runtime::LogConfig::default(),
            task: None,
        };
        let state = State { phase: Phase::Running, ..Default::default() };
        let container = Container::new(folder.path().to_owned(), spec, state);
        let mut life = container.life();
        life.mark_unchanged();
        container.change_state(|state| {
            state.phase = Phase::Exited;
            state.exit_code = 4;
        });
        assert!(life.has_changed().expect("it is there"));
        let seen = life.borrow().clone();
        assert_eq!((seen.running, seen.exit_code), (false, 4));
    }
}

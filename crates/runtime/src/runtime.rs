//! The daemon's handle on its containers: one shim each, spoken to over a unix socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::attach::{AttachOptions, PendingAttach};
use crate::error::{Error, Result};
use crate::spec::{ContainerSpec, ExecSpec, Resources};
use crate::stats::Stats;

#[derive(Debug, Clone)]
pub struct Config {
    /// The daemon's --exec-root; everything of the runtime lives in `<exec_root>/containers/<id>`.
    pub exec_root: PathBuf,
    /// The program to run as `<shim_exe> shim`; normally /proc/self/exe of the daemon.
    pub shim_exe: PathBuf,
    /// Parent of the containers' cgroups, `/docker` when empty.
    pub cgroup_parent: String,
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
}

/// What a container did by itself.
#[derive(Debug, Clone)]
pub enum Event {
    Exited { id: String, status: ExitStatus },
    ExecExited { id: String, exec: String, status: ExitStatus },
    Oom { id: String },
}

#[derive(Clone)]
pub struct Runtime {
    #[allow(dead_code)]
    inner: Arc<Config>,
}

fn not_ready<T>() -> Result<T> {
    Err(Error::new(
        crate::ErrorKind::Unsupported,
        "not supported by skep yet: the runtime is being built",
    ))
}

impl Runtime {
    /// Makes the directories; starts nothing.
    pub fn new(config: Config) -> Result<Runtime> {
        Ok(Runtime { inner: Arc::new(config) })
    }

    /// Reconnects to every shim left by a former daemon. Call once, before anything else.
    pub async fn adopt(&self) -> Result<Vec<Adopted>> {
        Ok(Vec::new())
    }

    /// Events of all containers, in order; call once.
    pub fn events(&self) -> tokio::sync::mpsc::Receiver<Event> {
        tokio::sync::mpsc::channel(1).1
    }

    /// Starts the shim and makes the container up to the point where its command would be executed.
    pub async fn create(&self, _spec: &ContainerSpec) -> Result<Created> {
        not_ready()
    }

    /// Lets the command run. Attaches begun before this call see its first byte.
    pub async fn start(&self, _id: &str) -> Result<SystemTime> {
        not_ready()
    }

    /// Sends a signal to process 1.
    pub async fn kill(&self, _id: &str, _signal: i32) -> Result<()> {
        not_ready()
    }

    pub async fn pause(&self, _id: &str) -> Result<()> {
        not_ready()
    }

    pub async fn resume(&self, _id: &str) -> Result<()> {
        not_ready()
    }

    /// Resolves when the container has ended; at once when it has already.
    pub async fn wait(&self, _id: &str) -> Result<ExitStatus> {
        not_ready()
    }

    /// Removes what is left of an ended (or only created) container: shim, cgroups, bundle. Not the logs. Idempotent.
    pub async fn delete(&self, _id: &str) -> Result<()> {
        not_ready()
    }

    /// Runs a command in a running container. Attach to it first (`attach_exec`) to see its first byte.
    /// Returns the pid.
    pub async fn exec(&self, _id: &str, _exec: &ExecSpec) -> Result<u32> {
        not_ready()
    }

    /// Resolves when the exec has ended.
    pub async fn exec_wait(&self, _id: &str, _exec: &str) -> Result<ExitStatus> {
        not_ready()
    }

    /// Registers an attach at once (also before `create`); `.ready().await` then gives the stream.
    pub fn attach(&self, _id: &str, _options: AttachOptions) -> PendingAttach {
        PendingAttach {}
    }

    /// The same for an exec, also before `exec`.
    pub fn attach_exec(&self, _id: &str, _exec: &str, _options: AttachOptions) -> PendingAttach {
        PendingAttach {}
    }

    /// New size of the terminal of the container, or of one of its execs.
    pub async fn resize(
        &self,
        _id: &str,
        _exec: Option<&str>,
        _height: u16,
        _width: u16,
    ) -> Result<()> {
        not_ready()
    }

    /// One reading of the cgroup's counters (without network; the engine knows the links).
    pub async fn stats(&self, _id: &str) -> Result<Stats> {
        not_ready()
    }

    /// Titles and rows as `docker top` shows them.
    pub async fn top(&self, _id: &str, _ps_args: &str) -> Result<(Vec<String>, Vec<Vec<String>>)> {
        not_ready()
    }

    /// Host pids of all processes in the container.
    pub async fn pids(&self, _id: &str) -> Result<Vec<u32>> {
        not_ready()
    }

    /// New limits for a running container; zero fields stay as they are.
    pub async fn update(&self, _id: &str, _resources: &Resources) -> Result<()> {
        not_ready()
    }
}

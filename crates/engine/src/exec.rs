//! Further processes in running containers: what was asked for, and how it went.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use runtime::ExecSpec;
use runtime::{AttachOptions, PendingAttach};

use crate::Engine;
use crate::containers::Container;
use crate::error::{Error, Result};

/// Ended ones can be asked about this long, as in Docker (moby daemon/exec.go).
const KEPT: Duration = Duration::from_secs(300);
const EXECS_MAX: usize = 10_000;
/// Docker's code of an exec that did not start, whatever the reason (docker-py's tests rely on it).
const CANNOT_EXECUTE: i32 = 126;

/// Every exec of every container, by id.
#[derive(Default)]
pub struct Execs {
    all: Mutex<BTreeMap<String, Arc<Exec>>>,
}

pub struct Exec {
    pub container: Arc<Container>,
    pub spec: ExecSpec,
    pub detach_keys: String,
    state: Mutex<ExecState>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ExecState {
    pub started: bool,
    pub running: bool,
    pub pid: u32,
    pub exit_code: Option<i32>,
    ended: Option<Instant>,
}

/// The right to start an exec, given back when nothing comes of it: its client may have left before.
pub struct Claim {
    pub exec: Arc<Exec>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.exec.lock();
        state.started = state.running || state.ended.is_some();
    }
}

impl Exec {
    pub fn state(&self) -> ExecState {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, ExecState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Execs {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ids of those of one container that are not over, for its inspect.
    pub fn of_container(&self, container: &str) -> Vec<String> {
        let mine = |exec: &Arc<Exec>| {
            exec.container.id().as_str() == container && exec.state().ended.is_none()
        };
        self.lock().values().filter(|exec| mine(exec)).map(|exec| exec.spec.id.clone()).collect()
    }

    fn find(&self, id: &str) -> Result<Arc<Exec>> {
        let all = self.lock();
        let mut matching = all.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
        match (matching.next(), matching.next()) {
            (Some((key, exec)), other) if key == id || (other.is_none() && !id.is_empty()) => {
                Ok(exec.clone())
            }
            _ => Err(Error::not_found(format!("No such exec instance: {id}"))),
        }
    }

    fn insert(&self, exec: Arc<Exec>) -> Result<()> {
        let mut all = self.lock();
        let old = |exec: &Exec| exec.state().ended.is_some_and(|at| at.elapsed() > KEPT);
        all.retain(|_, exec| {
            !old(exec) && (exec.state().ended.is_some() || exec.container.is_running())
        });
        if all.len() >= EXECS_MAX {
            return Err(Error::unavailable(format!("more than {EXECS_MAX} execs at once")));
        }
        all.insert(exec.spec.id.clone(), exec);
        Ok(())
    }
}

impl Engine {
    /// Notes a command to run in a container; it runs with `exec_start`.
    pub fn exec_create(
        &self,
        container: &str,
        spec: ExecSpec,
        detach_keys: String,
    ) -> Result<String> {
        if spec.args.is_empty() {
            return Err(Error::bad_parameter("No exec command specified"));
        }
        let container = self.running_container(container)?;
        let id = self.containers.new_id().into_string();
        let action = format!("exec_create: {}", spec.args.join(" "));
        let spec = ExecSpec { id: id.clone(), ..spec };
        let exec =
            Exec { container: container.clone(), spec, detach_keys, state: Mutex::default() };
        self.execs.insert(Arc::new(exec))?;
        self.publish(&container, &action, [("execID".to_owned(), id.clone())]);
        Ok(id)
    }

    pub fn exec_find(&self, id: &str) -> Result<Arc<Exec>> {
        let exec = self.execs.find(id)?;
        let gone = self.containers.get(exec.container.id().as_str()).is_none();
        if gone { Err(Error::not_found(format!("No such exec instance: {id}"))) } else { Ok(exec) }
    }

    /// Checks that it may start, and claims it: only one start of an exec succeeds.
    pub fn exec_claim(&self, id: &str) -> Result<Claim> {
        let exec = self.exec_find(id)?;
        self.running_container(exec.container.id().as_str())?;
        let mut state = exec.lock();
        if state.running {
            return Err(Error::conflict(format!("Error: Exec command {id} is already running")));
        }
        if state.started {
            return Err(Error::conflict(format!("Error: Exec command {id} has already run")));
        }
        state.started = true;
        drop(state);
        Ok(Claim { exec })
    }

    /// Registered before the start, so that nothing of its output is missed.
    pub fn exec_attach(&self, exec: &Exec) -> PendingAttach {
        let options = AttachOptions {
            stdin: exec.spec.stdin,
            stdout: exec.spec.stdout,
            stderr: exec.spec.stderr,
        };
        self.runtime.attach_exec(exec.container.id().as_str(), &exec.spec.id, options)
    }

    /// Starts a claimed exec. Its end is noted by itself.
    pub async fn exec_start(
        self: &Arc<Self>,
        claim: Claim,
        console_size: (u16, u16),
    ) -> Result<()> {
        let exec = &claim.exec;
        let mut spec = exec.spec.clone();
        if console_size != (0, 0) {
            spec.console_size = console_size;
        }
        let container = exec.container.id().as_str();
        let attributes = || [("execID".to_owned(), spec.id.clone())];
        self.publish(
            &exec.container,
            &format!("exec_start: {}", spec.args.join(" ")),
            attributes(),
        );
        exec.lock().running = true;
        match self.runtime.exec(container, &spec).await {
            Ok(pid) => exec.lock().pid = pid,
            Err(error) => {
                end(exec, CANNOT_EXECUTE);
                return Err(error.into());
            }
        }
        let exec = exec.clone();
        let waiting = self.runtime.clone();
        tokio::spawn(async move {
            let id = exec.spec.id.clone();
            let status = waiting.exec_wait(exec.container.id().as_str(), &id).await;
            let code = status.map_or(137, |status| status.code);
            end(&exec, code);
        });
        Ok(())
    }

    /// Until the exec's end is noted; clients ask for the code as soon as the output ends.
    pub async fn exec_ended(&self, exec: &Exec) {
        let _ = self.runtime.exec_wait(exec.container.id().as_str(), &exec.spec.id).await;
        // The note is taken by another task that woke at the same moment.
        while exec.state().running {
            tokio::task::yield_now().await;
        }
    }

    pub async fn exec_resize(&self, id: &str, height: u16, width: u16) -> Result<()> {
        let exec = self.exec_find(id)?;
        let container = exec.container.id().as_str();
        Ok(self.runtime.resize(container, Some(&exec.spec.id), height, width).await?)
    }
}

fn end(exec: &Exec, code: i32) {
    let mut state = exec.lock();
    state.running = false;
    state.exit_code = Some(code);
    state.ended = Some(Instant::now());
}

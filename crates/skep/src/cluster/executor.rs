//! Carries out a task's stages on this host's engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{Container, Event, Record, Stage, StageError, Work};
use engine::Engine;
use engine::containers::{RemoveOptions, WaitFor};
use image::{Platform, ProgressSender, Reference};
use tokio::sync::{mpsc, watch};
use wire::swarmkit as pb;

use super::agent_task::{Input, View, locked};
use super::credentials::credentials;
use super::saved::Folder;
use super::task_containers::containers_by_task;
use super::{description, listening, task_spec};

mod logs;

/// A container that cannot be removed is tried again, each time after twice the pause; for what
/// stays even so the agent asks again.
const REMOVE_ATTEMPTS: u32 = 6;
const REMOVE_PAUSE: Duration = Duration::from_millis(250);
/// Between attempts to stop a container that has to end before its task can be told as failed.
const STOP_PAUSE: Duration = Duration::from_secs(10);
/// The overlay that a task needs is applied within this time, or the start says what went wrong.
const OVERLAYS_TIME_MAX: Duration = Duration::from_secs(10);

/// The agent's hands. Cheap to clone.
#[derive(Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    inputs: mpsc::WeakSender<Input>,
    overlays_applied: watch::Receiver<u64>,
    view: Arc<View>,
    /// Container by task.
    containers: Mutex<BTreeMap<String, String>>,
    /// Tasks that were told to stop: a start that is still under way comes to nothing.
    stopping: Mutex<BTreeSet<String>>,
    /// Held while a task's container is started: nobody stops or removes what is half started.
    starting: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Who follows logs hears when a task's container has started.
    starts: watch::Sender<()>,
}

impl Executor {
    pub fn new(
        engine: Arc<Engine>,
        inputs: mpsc::WeakSender<Input>,
        overlays_applied: watch::Receiver<u64>,
        _folder: Folder,
        view: Arc<View>,
    ) -> Self {
        let containers = Mutex::new(containers_by_task(&engine));
        Self {
            inner: Arc::new(Inner {
                engine,
                inputs,
                overlays_applied,
                view,
                containers,
                stopping: Mutex::default(),
                starting: Mutex::default(),
                starts: watch::Sender::new(()),
            }),
        }
    }

    /// After a restart: containers that still run are watched again, dead ones are told.
    pub async fn adopt(&self, records: &[Record]) {
        self.sweep(records);
        for record in records {
            let task = record.task.id.clone();
            let state = record.status.state();
            if !(pb::TaskState::Starting..=pb::TaskState::Running).contains(&state) {
                continue;
            }
            // A container that the user runs stands for this task; the engine says so again.
            if self.is_attached(&task) {
                continue;
            }
            match self.container(&task).and_then(|id| self.inner.engine.container(&id).ok()) {
                None => {
                    self.tell(Event::Exited {
                        task,
                        container: None,
                        message: "the container is gone".into(),
                    })
                    .await
                }
                // Made but not started: the agent asks for its start again.
                Some(container) if state == pb::TaskState::Starting && !container.is_running() => {}
                Some(_) => self.watch(task),
            }
        }
    }

    /// Containers of tasks of which nothing is known any more: they could not be removed in time.
    fn sweep(&self, records: &[Record]) {
        let known: BTreeSet<&String> = records.iter().map(|record| &record.task.id).collect();
        let all = locked(&self.inner.containers).clone();
        for task in all.into_keys().filter(|task| !known.contains(task)) {
            let executor = self.clone();
            tokio::spawn(async move {
                if let Err(error) = executor.erase(&task).await {
                    tracing::warn!(task, error = error.message, "left behind");
                }
            });
        }
    }

    fn start_lock(&self, task: &str) -> Arc<tokio::sync::Mutex<()>> {
        locked(&self.inner.starting).entry(task.to_owned()).or_default().clone()
    }

    /// Whether a running container that no service made holds this task's place on a network.
    fn is_attached(&self, task: &str) -> bool {
        self.inner.engine.containers.all().iter().any(|container| {
            container.is_running() && container.state().places.iter().any(|it| it.task == task)
        })
    }

    pub fn prepare(&self, work: Work) {
        let executor = self.clone();
        tokio::spawn(async move {
            let task = work.task.id.clone();
            let result = executor.create(work).await;
            executor.staged(task, Stage::Prepare, result).await;
        });
    }

    pub fn start(&self, task: String, overlays: u64) {
        let executor = self.clone();
        tokio::spawn(async move {
            let result = executor.run(&task, overlays).await;
            let runs = result.is_ok();
            executor.staged(task.clone(), Stage::Start, result).await;
            if runs {
                executor.watch(task);
            }
        });
    }

    pub fn shutdown(&self, task: String) {
        locked(&self.inner.stopping).insert(task.clone());
        let executor = self.clone();
        tokio::spawn(async move {
            let result = executor.stop(&task).await;
            executor.staged(task, Stage::Shutdown, result).await;
        });
    }

    pub fn remove(&self, task: String) {
        let executor = self.clone();
        tokio::spawn(async move {
            let result = executor.erase(&task).await;
            executor.staged(task, Stage::Remove, result).await;
        });
    }

    async fn staged(&self, task: String, stage: Stage, result: Result<Container, StageError>) {
        if let Err(error) = &result {
            tracing::warn!(task, ?stage, error = error.message, "task");
        }
        self.tell(Event::Staged { task, stage, result }).await;
    }

    async fn tell(&self, event: Event) {
        if let Some(inputs) = self.inner.inputs.upgrade() {
            let _ = inputs.send(Input::Event(event)).await;
        }
    }

    fn container(&self, task: &str) -> Option<String> {
        locked(&self.inner.containers).get(task).cloned()
    }

    async fn create(&self, work: Work) -> Result<Container, StageError> {
        let engine = &self.inner.engine;
        let task = work.task.id.clone();
        // Left by a daemon that stopped in between: its secrets are gone with that daemon's memory.
        if self.container(&task).is_some() {
            self.erase(&task).await?;
        }
        let node = pb::NodeDescription {
            hostname: description::hostname(),
            platform: Some(pb::Platform {
                architecture: std::env::consts::ARCH.into(),
                os: "linux".into(),
            }),
            ..Default::default()
        };
        let request = task_spec::create_request(&work, &node).map_err(rejected)?;
        self.pull(&work).await?;
        let created = engine.create(request).await.map_err(|error| rejected(error.message))?;
        let id = created.container.id().to_string();
        locked(&self.inner.containers).insert(task, id.clone());
        Ok(Container { container_id: id, ..Default::default() })
    }

    /// An image that is here is used: the command line pins digests whenever it can reach the registry,
    /// so that a name without digest means what this host has.
    async fn pull(&self, work: &Work) -> Result<(), StageError> {
        let store = &self.inner.engine.images.store;
        let spec = work.task.spec.as_ref().and_then(|spec| spec.runtime.as_ref());
        let Some(pb::task_spec::Runtime::Container(container)) = spec else { return Ok(()) };
        if store.resolve(&container.image).is_ok() {
            return Ok(());
        }
        let missing =
            |cause: String| rejected(format!("No such image: {} ({cause})", container.image));
        let reference =
            Reference::parse(&container.image).map_err(|error| missing(error.to_string()))?;
        let auth = container.pull_options.as_ref().map_or("", |options| &options.registry_auth);
        let credentials = credentials(auth).map_err(missing)?;
        let progress = ProgressSender::nobody();
        let pulled =
            store.pull(&reference, false, &Platform::host(), credentials.as_ref(), &progress).await;
        pulled.map(drop).map_err(|error| missing(error.to_string()))
    }

    async fn run(&self, task: &str, overlays: u64) -> Result<Container, StageError> {
        let engine = &self.inner.engine;
        let mut applied = self.inner.overlays_applied.clone();
        let _ = tokio::time::timeout(
            OVERLAYS_TIME_MAX,
            applied.wait_for(|applied| *applied >= overlays),
        )
        .await;
        let id = self.container(task).ok_or_else(|| failed("the task's container is gone"))?;
        let lock = self.start_lock(task);
        let starting = lock.lock().await;
        if self.is_stopping(task) {
            return Err(failed("the task was stopped before it started"));
        }
        match engine.start(&id).await {
            Ok(()) => {}
            Err(error) if error.kind == engine::Kind::NotModified => {}
            Err(error) => {
                return Err(failed(format!("starting container failed: {}", error.message)));
            }
        }
        self.inner.starts.send_replace(());
        drop(starting);
        if self.is_stopping(task) {
            self.stop(task).await?;
            return Err(failed("the task was stopped while it started"));
        }
        if !self.healthy(&id).await? {
            return Err(self.give_up(task).await);
        }
        self.listening(task, &id).await;
        let container = engine.container(&id).map_err(|error| failed(error.message))?;
        let state = container.state();
        Ok(Container {
            container_id: id,
            pid: i32::try_from(state.pid).unwrap_or_default(),
            exit_code: 0,
            ports: self.host_ports(task, container.id()),
        })
    }

    fn is_stopping(&self, task: &str) -> bool {
        locked(&self.inner.stopping).contains(task)
    }

    /// A task that never got healthy has failed when its container no longer runs, not before: another
    /// task gets its addresses then.
    async fn give_up(&self, task: &str) -> StageError {
        loop {
            match self.stop(task).await {
                Ok(Container { exit_code, .. }) => {
                    let cause = "dockerexec: unhealthy container";
                    return failed(format!("task: non-zero exit ({exit_code}): {cause}"));
                }
                Err(error) if self.is_stopping(task) => return error,
                Err(error) => tracing::warn!(task, error = error.message, "unhealthy, not stopped"),
            }
            tokio::time::sleep(STOP_PAUSE).await;
        }
    }

    /// A task with a health check runs once it is healthy; whether it did not turn out unhealthy.
    async fn healthy(&self, id: &str) -> Result<bool, StageError> {
        let container = self.inner.engine.container(id).map_err(|error| failed(error.message))?;
        loop {
            let state = container.state();
            match state.health.as_ref().map(|health| health.status.as_str()) {
                Some("starting") if container.is_running() => {}
                Some("unhealthy") => return Ok(false),
                _ => return Ok(true),
            }
            let mut ended = container.ended();
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return Ok(true),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    /// A task without a health check runs once its program listens where the service publishes, or a
    /// moment later.
    async fn listening(&self, task: &str, id: &str) {
        let Ok(container) = self.inner.engine.container(id) else { return };
        let ports: BTreeSet<u16> = locked(&self.inner.view.works)
            .get(task)
            .and_then(|work| work.task.endpoint.as_ref())
            .into_iter()
            .flat_map(|endpoint| &endpoint.ports)
            .filter(|port| port.protocol() == pb::port_config::Protocol::Tcp)
            .filter_map(|port| u16::try_from(port.target_port).ok())
            .collect();
        let pid = container.state().pid;
        let waits = || {
            container.is_running() && container.state().health.is_none() && !self.is_stopping(task)
        };
        if !ports.is_empty() && !listening::until(pid, &ports, waits).await {
            tracing::debug!(%task, ?ports, "its program does not listen on these yet");
        }
    }

    /// Ports in host mode as they were really bound: none on internal networks.
    fn host_ports(&self, task: &str, container: &model::ContainerId) -> Vec<pb::PortConfig> {
        let wanted: Vec<pb::PortConfig> = locked(&self.inner.view.works)
            .get(task)
            .and_then(|work| work.task.endpoint.clone())
            .map(|endpoint| endpoint.ports)
            .unwrap_or_default();
        let bound = self
            .inner
            .engine
            .network
            .sandbox(container)
            .map(|sandbox| sandbox.ports)
            .unwrap_or_default();
        wanted
            .into_iter()
            .filter(|port| port.publish_mode() == pb::port_config::PublishMode::Host)
            .filter_map(|mut port| {
                let real = bound.iter().find(|bound| u32::from(bound.port) == port.target_port)?;
                if port.published_port == 0 {
                    port.published_port = u32::from(real.host_port);
                }
                Some(port)
            })
            .collect()
    }

    /// Tells the end of a task's container.
    fn watch(&self, task: String) {
        let executor = self.clone();
        tokio::spawn(async move {
            let Some(id) = executor.container(&task) else { return };
            let Ok(ended) = executor.inner.engine.wait(&id, WaitFor::NotRunning) else { return };
            tokio::pin!(ended);
            // The agent says what the end of a task is called; here only what the engine knows more.
            let message = tokio::select! {
                (_, error) = &mut ended => error,
                () = executor.unhealthy(&id) => {
                    executor.tell(Event::Health { task: task.clone(), healthy: false }).await;
                    ended.await.1
                }
            };
            let container = executor.inner.engine.container(&id).ok().map(|container| {
                let state = container.state();
                Container {
                    container_id: id.clone(),
                    exit_code: state.exit_code,
                    ..Default::default()
                }
            });
            executor.tell(Event::Exited { task, container, message }).await;
        });
    }

    /// Returns when the health check has given the container up.
    async fn unhealthy(&self, id: &str) {
        let Ok(container) = self.inner.engine.container(id) else {
            return std::future::pending().await;
        };
        if container.state().health.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if container.state().health.is_some_and(|health| health.status == "unhealthy") {
                return;
            }
        }
    }

    async fn stop(&self, task: &str) -> Result<Container, StageError> {
        let Some(id) = self.container(task) else { return Ok(Container::default()) };
        let lock = self.start_lock(task);
        let _not_starting = lock.lock().await;
        // Of a task from before the daemon's start only the container knows its grace period.
        let grace = locked(&self.inner.view.works).get(task).and_then(grace_seconds);
        match self.inner.engine.stop(&id, grace, None).await {
            Ok(()) => {}
            Err(error)
                if matches!(error.kind, engine::Kind::NotModified | engine::Kind::NotFound) => {}
            Err(error) => return Err(failed(error.message)),
        }
        let exit_code =
            self.inner.engine.container(&id).map_or(0, |container| container.state().exit_code);
        Ok(Container { container_id: id, exit_code, ..Default::default() })
    }

    async fn erase(&self, task: &str) -> Result<Container, StageError> {
        let Some(id) = self.container(task) else {
            self.forget(task);
            return Ok(Container::default());
        };
        let lock = self.start_lock(task);
        let _not_starting = lock.lock().await;
        let mut pause = REMOVE_PAUSE;
        for attempt in 1.. {
            let options = RemoveOptions { force: true, volumes: true };
            match self.inner.engine.remove(&id, options).await {
                Ok(()) => break,
                Err(error) if error.kind == engine::Kind::NotFound => break,
                Err(error) if attempt == REMOVE_ATTEMPTS => return Err(failed(error.message)),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
        self.forget(task);
        Ok(Container { container_id: id, ..Default::default() })
    }

    /// Nothing of the task is here any more.
    fn forget(&self, task: &str) {
        locked(&self.inner.containers).remove(task);
        locked(&self.inner.stopping).remove(task);
        locked(&self.inner.starting).remove(task);
    }
}

fn grace_seconds(work: &Work) -> Option<i64> {
    let Some(pb::task_spec::Runtime::Container(container)) = &work.task.spec.as_ref()?.runtime
    else {
        return None;
    };
    container.stop_grace_period.as_ref().map(|grace| grace.seconds)
}

fn rejected(message: impl Into<String>) -> StageError {
    StageError { message: message.into(), reject: true }
}

fn failed(message: impl Into<String>) -> StageError {
    StageError { message: message.into(), reject: false }
}

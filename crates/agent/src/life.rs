//! One task's life on this node, one step at a time.

use std::time::Duration;

use model::Instant;
use store::access::TaskState;
use wire::swarmkit as pb;

use crate::event::{Container, Guest, Record, Stage, StageError};

/// What could not be stopped or removed is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What a step of a life asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Prepare,
    Start,
    Shutdown,
    Remove,
    /// An attachment needs no container made here.
    Attach,
    Detach,
    /// Nothing remains: the record can go.
    Gone,
}

pub struct Life {
    pub task: pb::Task,
    pub status: pb::TaskStatus,
    /// The status or the task changed since the record was written.
    pub unsaved: bool,
    pub unreported: bool,
    /// The manager wants nothing more of it.
    pub unassigned: bool,
    under_way: Option<Stage>,
    /// New connections go elsewhere since then; it is stopped when nobody sends any more.
    draining: Option<Instant>,
    /// Not before then.
    stops_at: Option<Instant>,
    /// Its stop or its removal failed: not again before then.
    retries_at: Option<Instant>,
    /// It runs, and the managers may not have heard it.
    entering: bool,
    /// Until when other nodes may not yet follow what was announced of it.
    pub awaits: Option<Instant>,
    /// It is stopped because it is unhealthy.
    unhealthy: bool,
    pub container: Container,
    /// The container that it stands for, when no service made that.
    pub attached: Option<Guest>,
    removed: bool,
}

impl Life {
    pub fn new(task: pb::Task) -> Self {
        let mut status = task.status.clone().unwrap_or_default();
        // What the managers wrote on it is theirs.
        (status.applied_by, status.applied_at) = (String::new(), None);
        Self {
            task,
            status,
            unsaved: false,
            unreported: false,
            unassigned: false,
            under_way: None,
            draining: None,
            stops_at: None,
            retries_at: None,
            entering: false,
            awaits: None,
            unhealthy: false,
            container: Container::default(),
            attached: None,
            removed: false,
        }
    }

    /// A task of an earlier life of this daemon: what runs goes on running.
    pub fn adopt(record: Record) -> Self {
        let mut life = Self::new(record.task);
        life.status = record.status;
        if let Some(pb::task_status::RuntimeStatus::Container(container)) =
            &life.status.runtime_status
        {
            life.container.container_id = container.container_id.clone();
            life.container.pid = container.pid;
        }
        life.unreported = true;
        // Whether the managers have heard it is not known.
        life.entering = life.state() == TaskState::Running;
        life
    }

    /// A task that the manager knows to be at work here, and of which nothing is kept here, cannot
    /// be going on.
    pub fn doubt(&mut self) {
        if (TaskState::Accepted..=TaskState::Running).contains(&self.state())
            && !self.is_attachment()
        {
            let at = self.status.timestamp;
            self.status.err = "nothing is known here of the task's container".to_owned();
            self.change(Instant::default(), TaskState::Failed, "lost");
            self.status.timestamp = at;
        }
    }

    /// Nothing was done for it yet.
    pub fn is_untouched(&self) -> bool {
        self.state() < TaskState::Preparing && !self.wants_end()
    }

    /// It is to go, and was sent to until now.
    pub fn is_to_drain(&self) -> bool {
        self.state() == TaskState::Running && self.under_way.is_none() && self.wants_end()
    }

    pub fn state(&self) -> TaskState {
        self.status.state()
    }

    pub fn is_attachment(&self) -> bool {
        let runtime = self.task.spec.as_ref().and_then(|spec| spec.runtime.as_ref());
        matches!(runtime, Some(pb::task_spec::Runtime::Attachment(_)))
    }

    /// It holds its addresses here.
    pub fn is_present(&self) -> bool {
        (TaskState::Preparing..=TaskState::Running).contains(&self.state())
            || matches!(self.under_way, Some(Stage::Shutdown | Stage::Prepare | Stage::Start))
    }

    /// It is about to be reachable, or is.
    pub fn is_reachable(&self) -> bool {
        (TaskState::Starting..=TaskState::Running).contains(&self.state())
            || (self.state() <= TaskState::Running && self.under_way == Some(Stage::Shutdown))
    }

    /// It serves, or ends its connections.
    pub fn serves(&self) -> bool {
        self.state() == TaskState::Running && (!self.is_attachment() || self.attached.is_some())
    }

    /// New connections may come.
    pub fn is_ready(&self) -> bool {
        self.serves() && self.draining.is_none() && !self.unhealthy && !self.wants_end()
    }

    fn wants_end(&self) -> bool {
        self.unassigned || !store::access::is_wanted(&self.task)
    }

    pub fn deadline(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        let runs = self.state() == TaskState::Running;
        let said = self.awaits.filter(|_| runs && self.unreported);
        // The time to stop is past when the stop has failed.
        let stops = self.retries_at.or(self.stops_at.filter(|_| runs));
        said.into_iter().chain(stops).min()
    }

    /// Nothing new is to be sent to it any more.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// What the others do with its newest rows is waited for.
    pub fn needs_others(&self) -> bool {
        self.state() == TaskState::Running
            && (self.draining.is_some() || (self.entering && self.unreported))
    }

    fn change(&mut self, now: Instant, state: TaskState, message: &str) {
        self.status.set_state(state);
        self.status.message = message.to_owned();
        if state > TaskState::Running {
            // It holds none of the node's ports any more.
            self.status.port_status =
                self.status.port_status.take().map(|_| pb::PortStatus::default());
        }
        let (seconds, nanos) = now.unix();
        self.status.timestamp = Some(prost_types::Timestamp { seconds, nanos });
        self.unsaved = true;
        self.unreported = true;
    }

    /// While the task runs and shall run on: what is wrong around it, or nothing.
    pub fn warn(&mut self, warning: String) {
        let ends = self.wants_end() || self.unhealthy;
        if self.state() == TaskState::Running && !ends && self.status.err != warning {
            self.status.err = warning;
            self.unsaved = true;
            self.unreported = true;
        }
    }

    fn note_container(&mut self, container: Container) {
        self.status.runtime_status =
            Some(pb::task_status::RuntimeStatus::Container(pb::ContainerStatus {
                container_id: container.container_id.clone(),
                pid: container.pid,
                exit_code: container.exit_code,
            }));
        if !container.ports.is_empty() && self.state() <= TaskState::Running {
            self.status.port_status = Some(pb::PortStatus { ports: container.ports.clone() });
        }
        self.container = container;
        self.unsaved = true;
    }

    /// The next step, if one is due. A task that leaves is drained for `drain` at least, and until
    /// no other node sends to it.
    pub fn advance(&mut self, now: Instant, drain: Duration) -> Option<Wish> {
        if self.under_way == Some(Stage::Start) && self.wants_end() {
            // A start that waits for health is cut short.
            return self.ask(Stage::Shutdown, Wish::Shutdown);
        }
        if self.under_way.is_some() {
            return None;
        }
        self.retries_at = self.retries_at.filter(|at| *at > now);
        if self.wants_end() || self.unhealthy {
            return self.wind_up(now, drain);
        }
        if self.is_attachment() {
            return self.advance_attachment(now);
        }
        match self.state() {
            state if state < TaskState::Accepted => {
                self.change(now, TaskState::Accepted, "accepted");
                self.advance(now, drain)
            }
            TaskState::Accepted => {
                self.change(now, TaskState::Preparing, "preparing");
                self.ask(Stage::Prepare, Wish::Prepare)
            }
            // Only after a restart in the middle of it.
            TaskState::Preparing => self.ask(Stage::Prepare, Wish::Prepare),
            TaskState::Ready if self.task.desired_state() >= TaskState::Running => {
                self.change(now, TaskState::Starting, "starting");
                self.ask(Stage::Start, Wish::Start)
            }
            TaskState::Starting => self.ask(Stage::Start, Wish::Start),
            _ => None,
        }
    }

    fn ask(&mut self, stage: Stage, wish: Wish) -> Option<Wish> {
        self.under_way = Some(stage);
        Some(wish)
    }

    fn advance_attachment(&mut self, now: Instant) -> Option<Wish> {
        if self.state() >= TaskState::Running {
            return None;
        }
        self.change(now, TaskState::Running, "started");
        Some(Wish::Attach)
    }

    fn wind_up(&mut self, now: Instant, drain: Duration) -> Option<Wish> {
        if self.retries_at.is_some() {
            return None;
        }
        let state = self.state();
        if self.is_attachment() && state <= TaskState::Running {
            self.change(now, TaskState::Shutdown, "shutdown");
            // The container is not ours to remove.
            self.removed = true;
            return Some(Wish::Detach);
        }
        if state < TaskState::Preparing {
            self.change(now, TaskState::Shutdown, "shutdown");
        } else if state <= TaskState::Running {
            if state == TaskState::Running && !self.unhealthy {
                let since = *self.draining.get_or_insert(now);
                let stops_at = (since + drain).max(self.awaits.unwrap_or(since));
                if stops_at > now {
                    self.stops_at = Some(stops_at);
                    return None;
                }
            }
            return self.ask(Stage::Shutdown, Wish::Shutdown);
        }
        match (self.unassigned, self.removed || self.is_attachment()) {
            (true, false) => self.ask(Stage::Remove, Wish::Remove),
            (true, true) => Some(Wish::Gone),
            _ => None,
        }
    }

    /// A stage ended.
    pub fn staged(&mut self, now: Instant, stage: Stage, result: Result<Container, StageError>) {
        if self.under_way != Some(stage) {
            return;
        }
        self.under_way = None;
        if let Ok(container) = &result
            && !container.container_id.is_empty()
        {
            self.note_container(container.clone());
        }
        match (stage, result) {
            (Stage::Prepare, Ok(_)) => self.change(now, TaskState::Ready, "prepared"),
            (Stage::Start, Ok(_)) => {
                self.entering = true;
                self.change(now, TaskState::Running, "started");
            }
            (Stage::Prepare, Err(error)) => {
                self.status.err = error.message;
                self.change(now, TaskState::Rejected, "preparing");
            }
            (Stage::Start, Err(error)) => {
                self.status.err = error.message;
                let state = if error.reject { TaskState::Rejected } else { TaskState::Failed };
                self.change(now, state, "starting");
            }
            // Its container may run on, with its addresses: nobody may take it for stopped.
            (Stage::Shutdown, Err(error)) => {
                self.status.err = error.message;
                self.retries_at = Some(now + TRY_AGAIN);
                (self.unsaved, self.unreported) = (true, true);
            }
            (Stage::Shutdown, Ok(_)) if self.unhealthy && !self.wants_end() => {
                let exit = self.container.exit_code;
                self.status.err =
                    format!("task: non-zero exit ({exit}): dockerexec: unhealthy container");
                self.change(now, TaskState::Failed, "started");
            }
            (Stage::Shutdown, Ok(_)) => self.shut_down(now),
            (Stage::Remove, Err(_)) => self.retries_at = Some(now + TRY_AGAIN),
            (Stage::Remove, Ok(_)) => self.removed = true,
        }
    }

    fn shut_down(&mut self, now: Instant) {
        // Earlier attempts may have failed.
        self.status.err.clear();
        self.change(now, TaskState::Shutdown, "shutdown");
    }

    pub fn exited(&mut self, now: Instant, container: Option<Container>, message: String) {
        // Its end was asked for or is known already, or a start is under way that will tell itself.
        if self.state() > TaskState::Running
            || matches!(self.under_way, Some(Stage::Start | Stage::Shutdown | Stage::Remove))
        {
            return;
        }
        if self.state() == TaskState::Preparing {
            // After a restart in the middle of the preparation it begins again.
            return;
        }
        self.under_way = None;
        let exit = container.as_ref().map(|container| container.exit_code);
        if let Some(container) = container {
            self.note_container(container);
        }
        if self.retries_at.is_some() && self.wants_end() {
            // What it was told in vain to do has happened after all.
            return self.shut_down(now);
        }
        if exit == Some(0) {
            self.status.err.clear();
            self.change(now, TaskState::Complete, "finished");
            return;
        }
        self.status.err = match exit {
            // The executor has more to say.
            Some(_) if message.starts_with("task: ") => message,
            Some(code) if message.is_empty() => format!("task: non-zero exit ({code})"),
            Some(code) => format!("task: non-zero exit ({code}): {message}"),
            None if message.is_empty() => "the container is gone".to_owned(),
            None => message,
        };
        self.change(now, TaskState::Failed, "started");
    }

    pub fn health(&mut self, healthy: bool) {
        if self.state() == TaskState::Running && !healthy {
            self.unhealthy = true;
        }
    }

    /// The manager's newest word; states stay this node's own.
    pub fn assign(&mut self, task: pb::Task) {
        self.unassigned = false;
        if self.task != task {
            let desired = self.task.desired_state();
            // What is wanted only ever goes forward, whatever arrives late.
            let wanted = task.desired_state().max(desired);
            self.task = task;
            self.task.set_desired_state(wanted);
            self.unsaved = true;
        }
        if !self.wants_end() {
            // It was on its way out, and is wanted after all.
            (self.draining, self.stops_at) = (None, None);
        }
    }

    pub fn record(&self) -> Record {
        Record { task: self.task.clone(), status: self.status.clone() }
    }
}

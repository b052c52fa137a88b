//! The session with a manager: opened, kept alive, opened again.

use std::collections::BTreeMap;
use std::time::Duration;

use model::Instant;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use wire::swarmkit as pb;

use crate::event::{Effect, Key};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// A manager that says nothing for so long is left for another.
const OPENING_MAX: Duration = Duration::from_secs(10);
/// A report that was not taken is sent again after this.
const REPORT_AGAIN: Duration = Duration::from_millis(200);

enum State {
    Closed { again_at: Instant },
    Opening { since: Instant },
    Open { id: String, heartbeat_at: Option<Instant> },
}

pub struct Session {
    state: State,
    backoff: Duration,
    description: pb::NodeDescription,
    /// What the last assignments resulted in.
    assigned: String,
    pending: BTreeMap<String, pb::TaskStatus>,
    in_flight: Option<BTreeMap<String, pb::TaskStatus>>,
    report_at: Instant,
    told: pb::SessionMessage,
}

/// What to do with a message of assignments.
pub enum Take {
    Complete(Vec<pb::AssignmentChange>),
    Incremental(Vec<pb::AssignmentChange>),
    /// It does not follow on what is known: the stream was opened anew.
    Reopen(Effect),
}

impl Session {
    pub fn new(description: pb::NodeDescription) -> Self {
        Self {
            state: State::Closed { again_at: Instant::default() },
            backoff: BACKOFF_MIN,
            description,
            assigned: String::new(),
            pending: BTreeMap::new(),
            in_flight: None,
            report_at: Instant::default(),
            told: pb::SessionMessage::default(),
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Closed { again_at } => Some(*again_at),
            State::Opening { since } => Some(*since + OPENING_MAX),
            State::Open { heartbeat_at, .. } => {
                let reports = !self.pending.is_empty() && self.in_flight.is_none();
                let report_at = reports.then_some(self.report_at);
                (*heartbeat_at).into_iter().chain(report_at).min()
            }
        }
    }

    pub fn tick(&mut self, now: Instant, dice: &mut ChaCha8Rng, effects: &mut Vec<Effect>) {
        match &mut self.state {
            State::Closed { again_at } if *again_at <= now => {
                self.state = State::Opening { since: now };
                effects.push(Effect::OpenSession(pb::SessionRequest {
                    description: Some(self.description.clone()),
                    session_id: String::new(),
                }));
            }
            State::Opening { since } if *since + OPENING_MAX <= now => {
                self.lose(now, dice, effects);
            }
            State::Open { id, heartbeat_at } if heartbeat_at.is_some_and(|at| at <= now) => {
                *heartbeat_at = None;
                effects.push(Effect::Heartbeat(pb::HeartbeatRequest { session_id: id.clone() }));
            }
            _ => {}
        }
        self.flush(now, effects);
    }

    /// Sends what is to be reported, one request at a time.
    pub fn flush(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let State::Open { id, .. } = &self.state else { return };
        if self.in_flight.is_some() || self.pending.is_empty() || self.report_at > now {
            return;
        }
        let updates = self.pending.iter().map(|(task, status)| {
            pb::update_task_status_request::TaskStatusUpdate {
                task_id: task.clone(),
                status: Some(status.clone()),
            }
        });
        let updates = updates.collect();
        effects
            .push(Effect::Report(pb::UpdateTaskStatusRequest { session_id: id.clone(), updates }));
        self.in_flight = Some(std::mem::take(&mut self.pending));
    }

    pub fn report(&mut self, task: &str, status: &pb::TaskStatus) {
        self.pending.insert(task.to_owned(), status.clone());
    }

    pub fn forget(&mut self, task: &str) {
        self.pending.remove(task);
    }

    pub fn reported(&mut self, now: Instant, ok: bool) {
        let sent = self.in_flight.take().unwrap_or_default();
        if !ok {
            self.report_at = now + REPORT_AGAIN;
            for (task, status) in sent {
                self.pending.entry(task).or_insert(status);
            }
        }
    }

    pub fn heartbeat_done(&mut self, now: Instant, period: Duration) {
        if let State::Open { heartbeat_at, .. } = &mut self.state {
            *heartbeat_at = Some(now + period.max(Duration::from_millis(100)));
        }
    }

    pub fn lose(&mut self, now: Instant, dice: &mut ChaCha8Rng, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Closed { .. }) {
            return;
        }
        effects.push(Effect::CloseSession);
        self.reported(now, false);
        let wait = self.backoff.as_millis() as u64;
        let wait = Duration::from_millis(dice.random_range(wait / 2..=wait));
        self.state = State::Closed { again_at: now + wait };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    pub fn describe(
        &mut self,
        now: Instant,
        description: pb::NodeDescription,
        effects: &mut Vec<Effect>,
    ) {
        if self.description == description {
            return;
        }
        self.description = description;
        if !matches!(self.state, State::Closed { .. }) {
            effects.push(Effect::CloseSession);
            self.reported(now, false);
            self.state = State::Closed { again_at: now };
        }
    }

    /// A manager has told this node something.
    pub fn is_known(&self) -> bool {
        !self.told.session_id.is_empty()
    }

    /// True when the session is a new one: all is to be reported again.
    pub fn told(
        &mut self,
        message: pb::SessionMessage,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let known = match &self.state {
            State::Open { id, .. } => *id == message.session_id,
            State::Opening { .. } => false,
            State::Closed { .. } => return false,
        };
        let last = &self.told;
        if !message.managers.is_empty() && message.managers != last.managers {
            effects.push(Effect::Managers(message.managers.clone()));
        }
        if message.network_bootstrap_keys != last.network_bootstrap_keys {
            effects.push(Effect::Keys(keys(&message)));
        }
        if !message.root_ca.is_empty() && message.root_ca != last.root_ca {
            effects.push(Effect::RootCa(message.root_ca.clone()));
        }
        if let Some(node) = message.node.as_ref().filter(|node| last.node.as_ref() != Some(node)) {
            effects.push(Effect::Node(Box::new(node.clone())));
        }
        if !known {
            let session_id = message.session_id.clone();
            effects.push(Effect::OpenAssignments(pb::AssignmentsRequest {
                session_id: session_id.clone(),
            }));
            effects
                .push(Effect::Heartbeat(pb::HeartbeatRequest { session_id: session_id.clone() }));
            self.state = State::Open { id: session_id, heartbeat_at: None };
            self.backoff = BACKOFF_MIN;
            self.report_at = now;
            self.assigned.clear();
        }
        self.told = message;
        !known
    }

    pub fn take(&mut self, message: pb::AssignmentsMessage) -> Take {
        let complete = message.r#type() == pb::assignments_message::Type::Complete;
        if !complete && message.applies_to != self.assigned {
            let session_id = self.told.session_id.clone();
            return Take::Reopen(Effect::OpenAssignments(pb::AssignmentsRequest { session_id }));
        }
        self.assigned = message.results_in;
        match complete {
            true => Take::Complete(message.changes),
            false => Take::Incremental(message.changes),
        }
    }
}

fn keys(message: &pb::SessionMessage) -> Vec<Key> {
    let keys = message.network_bootstrap_keys.iter();
    keys.map(|key| Key {
        subsystem: key.subsystem.clone(),
        lamport: key.lamport_time,
        secret: key.key.clone(),
    })
    .collect()
}

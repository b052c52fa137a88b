//! What happened on this host: the last events for `since`, and a stream for who listens.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use bollard_stubs::models::{
    EventActor, EventMessage, EventMessageScopeEnum, EventMessageTypeEnum,
};
use time::OffsetDateTime;
use tokio::sync::broadcast;

/// As many as Docker keeps (moby daemon/events/events.go `eventsLimit`).
const EVENTS_KEPT_MAX: usize = 256;
/// A listener further behind than this loses the oldest ones.
const EVENTS_QUEUED_MAX: usize = 1_024;

pub use bollard_stubs::models::{EventMessageScopeEnum as Scope, EventMessageTypeEnum as Type};

pub struct Bus {
    kept: Mutex<VecDeque<EventMessage>>,
    sender: broadcast::Sender<EventMessage>,
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus {
    pub fn new() -> Self {
        Self {
            kept: Mutex::new(VecDeque::with_capacity(EVENTS_KEPT_MAX)),
            sender: broadcast::Sender::new(EVENTS_QUEUED_MAX),
        }
    }

    /// Tells everybody, in Docker's form; the time is taken here.
    pub fn publish<K: Into<String>, V: Into<String>>(
        &self,
        kind: EventMessageTypeEnum,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: impl IntoIterator<Item = (K, V)>,
    ) {
        self.publish_scoped(kind, action, id, attributes, EventMessageScopeEnum::LOCAL);
    }

    /// The same for the swarm's objects.
    pub fn publish_scoped<K: Into<String>, V: Into<String>>(
        &self,
        kind: EventMessageTypeEnum,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: impl IntoIterator<Item = (K, V)>,
        scope: EventMessageScopeEnum,
    ) {
        let attributes: HashMap<String, String> =
            attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = OffsetDateTime::now_utc();
        let event = EventMessage {
            typ: Some(kind),
            action: Some(action.into()),
            actor: Some(EventActor { id: Some(id.into()), attributes: Some(attributes) }),
            scope: Some(scope),
            time: Some(now.unix_timestamp()),
            time_nano: i64::try_from(now.unix_timestamp_nanos()).ok(),
        };
        if kept.len() == EVENTS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Nobody listening is no error.
        let _ = self.sender.send(event);
    }

    /// What is kept, oldest first, and the stream that follows without a gap.
    pub fn subscribe(&self) -> (Vec<EventMessage>, broadcast::Receiver<EventMessage>) {
        let kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.sender.subscribe())
    }

    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }
}

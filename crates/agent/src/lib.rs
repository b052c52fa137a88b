//! A worker: task stages, its view of the network, what it reports.
//!
//! [`Agent::step`] takes what managers, the executor and the gossip say, and says what follows.

pub mod event;

pub use event::{
    Config, Container, Effect, Endpoint, Event, Key, OverlayState, Record, Stage, StageError, Work,
};

use model::Instant;

/// One node's agent.
pub struct Agent {
    _config: Config,
}

impl Agent {
    /// `records` are the tasks that the disk kept; those whose containers live on are adopted.
    pub fn new(config: Config, _records: Vec<Record>) -> Self {
        Self { _config: config }
    }

    /// Takes one event and says what follows from it. Begin with [`Event::Deadline`].
    #[must_use]
    pub fn step(&mut self, _now: Instant, _event: Event) -> Vec<Effect> {
        Vec::new()
    }

    /// When [`Event::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }
}

//! One host: perhaps a manager, an agent, and the containers that outlive both.

use std::collections::BTreeMap;

use agent::{Agent, Record, Work};
use manager::{Identity, Manager, StreamId};
use model::Instant;

use crate::disk::Disk;

pub struct Host {
    pub node_id: String,
    pub address: String,
    /// What its clock shows more than the others'.
    pub skew: i64,
    pub manager: Option<Manager>,
    pub identity: Option<Identity>,
    pub disk: Disk,
    /// The step after which it loses power, counted in effects.
    pub dies_after: Option<usize>,
    pub agent: Option<Agent>,
    pub records: BTreeMap<String, Record>,
    pub containers: BTreeMap<String, Container>,
    /// Counts the agent's sessions: what belongs to an older one is dropped.
    pub session: u64,
    pub session_manager: Option<usize>,
    pub streams: Vec<StreamId>,
    pub managers: Vec<String>,
    pub turn: usize,
    /// Counts the lives of manager and agent: deadlines of an older one are dropped.
    pub manager_life: u64,
    pub agent_life: u64,
    /// Counts the daemon's lives: stages of an older one are never done.
    pub executor_life: u64,
}

#[derive(Clone)]
pub struct Container {
    pub work: Work,
    pub running: bool,
    /// It was told to stop.
    pub stopped: bool,
}

impl Host {
    pub fn new(node_id: String, address: String, skew: i64) -> Self {
        Self {
            node_id,
            address,
            skew,
            manager: None,
            identity: None,
            disk: Disk::default(),
            dies_after: None,
            agent: None,
            records: BTreeMap::new(),
            containers: BTreeMap::new(),
            session: 0,
            session_manager: None,
            streams: Vec::new(),
            managers: Vec::new(),
            turn: 0,
            manager_life: 0,
            agent_life: 0,
            executor_life: 0,
        }
    }

    /// This host's own idea of the time.
    pub fn local(&self, now: Instant) -> Instant {
        Instant::from_nanos(now.as_nanos().saturating_add_signed(self.skew))
    }

    pub fn global(&self, local: Instant) -> Instant {
        Instant::from_nanos(local.as_nanos().saturating_add_signed(-self.skew))
    }
}

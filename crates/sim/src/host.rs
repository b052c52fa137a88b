//! One host: perhaps a manager, an agent, and the containers that outlive both.

use std::collections::BTreeMap;

use agent::{Agent, Record, Work};
use manager::{Identity, Manager, StreamId};
use model::Instant;

use crate::disk::Disk;
use crate::world::START;

pub struct Host {
    pub node_id: String,
    pub address: String,
    /// What its clock showed more than it was in the beginning, in nanoseconds.
    pub skew: i64,
    /// What it gains since, in parts of a million.
    pub drift_ppm: i64,
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
    /// Counts the manager's beginnings: a snapshot that an older one asked for is dropped.
    pub manager_begun: u64,
    /// Counts the daemon's lives: stages of an older one are never done.
    pub executor_life: u64,
}

#[derive(Clone)]
pub struct Container {
    pub work: Work,
    pub running: bool,
    /// It was told to stop.
    pub stopped: bool,
    /// It ended by itself, and well.
    pub finished: bool,
}

impl Host {
    pub fn new(node_id: String, address: String, skew: i64, drift_ppm: i64) -> Self {
        Self {
            node_id,
            address,
            skew,
            drift_ppm,
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
            manager_begun: 0,
            executor_life: 0,
        }
    }

    /// This host's own idea of the time.
    pub fn local(&self, now: Instant) -> Instant {
        let passed = now.since(START).as_nanos() as i64;
        let gained = (i128::from(passed) * i128::from(self.drift_ppm) / 1_000_000) as i64;
        Instant::from_nanos(now.as_nanos().saturating_add_signed(self.skew + gained))
    }

    /// When this host's clock shows that time, not earlier.
    pub fn global(&self, local: Instant) -> Instant {
        let start = START.as_nanos().saturating_add_signed(self.skew);
        let passed = i128::from(local.as_nanos().saturating_sub(start));
        let passed = passed * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm)) + 2;
        Instant::from_nanos(START.as_nanos() + passed as u64)
    }
}

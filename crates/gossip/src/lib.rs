//! Who is in the cluster and which rows they announced: memberlist and NetworkDB as one state machine.
//!
//! [`Gossip::step`] takes bytes and deadlines and gives bytes back; sockets belong to the shell.

pub mod event;

pub use event::{Config, DialId, Effect, Event, Key, Member, Row, StreamId};

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::{Instant, NetworkId};

/// Rows about endpoints: names, services, virtual addresses (`wire::networktable::EndpointRecord`).
pub const ENDPOINT_TABLE: &str = "endpoint_table";
/// Rows about where an endpoint's packets go (`wire::networktable::PeerRecord`).
pub const OVERLAY_PEER_TABLE: &str = "overlay_peer_table";
/// The metadata by which skep nodes know each other; Docker Engine nodes announce none.
pub const SKEP_META: &[u8] = b"skep1";

/// One node's gossip.
pub struct Gossip {
    config: Config,
}

impl Gossip {
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Takes one event and says what follows from it.
    #[must_use]
    pub fn step(&mut self, _now: Instant, _event: Event) -> Vec<Effect> {
        Vec::new()
    }

    /// When [`Event::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// This node's name on the gossip.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Every node known to be alive, this one included.
    pub fn members(&self) -> Vec<Member> {
        Vec::new()
    }

    /// The nodes attached to a network, this one included when it is: name and address.
    pub fn peers(&self, _network: &NetworkId) -> Vec<(String, IpAddr)> {
        Vec::new()
    }

    /// The rows of one table of one network, by key.
    pub fn rows(&self, _network: &NetworkId, _table: &str) -> BTreeMap<String, Row> {
        BTreeMap::new()
    }

    /// What was dropped and why, by a fixed name.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }
}

//! Which of this node's rows the other nodes have put to work: before a task is said to run all of
//! them send to it, and before it is told to stop none does any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gossip::{ENDPOINT_TABLE, row_print};
use model::{Instant, NetworkId};
use netplan::view::NodeEngine;

use crate::network::RowKey;
use crate::rows::Rows;

/// A node that is up and says nothing is awaited for so long; one that is cut off is down sooner.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A connection that was made before the last node changed its mind gets so long for its request.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// What was announced, and who follows it.
#[derive(Default)]
pub struct Told {
    /// Other nodes on each network.
    peers: BTreeMap<NetworkId, BTreeSet<String>>,
    /// This node's endpoint rows by their content.
    rows: BTreeMap<u64, Row>,
}

struct Row {
    network: NetworkId,
    announced: Instant,
    /// When the last node said that it follows.
    changed: Instant,
    applied: BTreeSet<String>,
}

impl Told {
    /// The nodes on a network, this one not.
    pub fn peers(&mut self, network: NetworkId, names: BTreeSet<String>) {
        match names.is_empty() {
            true => drop(self.peers.remove(&network)),
            false => drop(self.peers.insert(network, names)),
        }
    }

    /// Whether anybody else is on the network.
    pub fn has_peers(&self, network: &NetworkId) -> bool {
        self.peers.contains_key(network)
    }

    pub fn put(&mut self, now: Instant, (network, table, key): &RowKey, value: &[u8]) {
        if *table == ENDPOINT_TABLE {
            let network = network.clone();
            let print = row_print(&network, key, value);
            let row = Row { network, announced: now, changed: now, applied: BTreeSet::new() };
            self.rows.insert(print, row);
        }
    }

    pub fn gone(&mut self, (network, table, key): &RowKey, value: &[u8]) {
        if *table == ENDPOINT_TABLE {
            self.rows.remove(&row_print(network, key, value));
        }
    }

    pub fn applied(&mut self, now: Instant, by: &str, rows: &[u64]) {
        for print in rows {
            if let Some(row) = self.rows.get_mut(print)
                && row.applied.insert(by.to_owned())
            {
                row.changed = now;
            }
        }
    }

    /// Until when there is reason to wait for others to follow a row. Nodes of the Docker Engine
    /// cannot say that they do: they get `news`, the time in which news reaches everyone. A node
    /// that does not answer is no reason, and nobody is one for longer than [`ANSWER_MAX`].
    pub fn until(
        &self,
        row: (&NetworkId, &str, &[u8]),
        rows: &Rows,
        news: Duration,
    ) -> Option<Instant> {
        let (network, key, value) = row;
        let row = self.rows.get(&row_print(network, key, value))?;
        let mut until = None;
        for peer in self.peers.get(&row.network)?.iter().filter(|peer| rows.is_up(peer)) {
            let at = match rows.engine(peer) {
                NodeEngine::Docker => row.announced + news,
                NodeEngine::Skep if row.applied.contains(peer) => row.changed + IN_FLIGHT,
                NodeEngine::Skep => row.announced + ANSWER_MAX,
            };
            until = until.max(Some(at));
        }
        until
    }
}

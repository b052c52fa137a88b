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
/// What leaves waits so long for a node whose daemon is stopped, restarted or replaced, from the
/// moment that it was missed: until it is back its kernel sends where it was told to last. Not for
/// one of the Docker Engine, whose containers end with their daemon or when the next one starts:
/// what would send there is about to be gone, and a stop would take a minute for nothing.
pub const AWAY_MAX: Duration = Duration::from_secs(60);
/// A node that comes back has another name, and is on its networks a moment later.
const RETURN_MAX: Duration = Duration::from_secs(1);
/// A connection that was made before the last node changed its mind gets so long for its request.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// What was announced, and who follows it.
#[derive(Default)]
pub struct Told {
    peers: BTreeMap<NetworkId, Peers>,
    /// This node's endpoint rows by their content.
    rows: BTreeMap<u64, Row>,
}

/// Other nodes on a network.
#[derive(Default)]
struct Peers {
    /// And since when.
    here: BTreeMap<String, Here>,
    /// Those that failed, and until when they are awaited.
    away: BTreeMap<String, Instant>,
}

#[derive(Clone, Copy)]
struct Here {
    since: Instant,
    /// Known only while the node is up.
    engine: NodeEngine,
}

impl Peers {
    fn change(
        &mut self,
        now: Instant,
        names: BTreeSet<String>,
        failed: BTreeSet<String>,
        rows: &Rows,
    ) {
        let before = std::mem::take(&mut self.here);
        let docker =
            |name: &String| before.get(name).is_some_and(|here| here.engine == NodeEngine::Docker);
        let here = |name: &String| match before.get(name) {
            Some(here) if !rows.is_up(name) => *here,
            here => {
                let since = here.map_or(now, |here| here.since);
                Here { since, engine: rows.engine(name) }
            }
        };
        self.here = names.into_iter().map(|name| (name.clone(), here(&name))).collect();
        self.away.retain(|name, until| {
            if !failed.contains(name) {
                *until = (*until).min(now + RETURN_MAX);
            }
            failed.contains(name) || (*until > now && !self.here.contains_key(name))
        });
        for name in failed {
            let until = if docker(&name) { now } else { now + AWAY_MAX };
            self.away.entry(name).or_insert(until);
        }
    }
}

struct Row {
    network: NetworkId,
    announced: Instant,
    /// When the last node said that it follows.
    changed: Instant,
    applied: BTreeSet<String>,
}

impl Told {
    /// The nodes on a network, this one not, and those that failed.
    pub fn peers(
        &mut self,
        now: Instant,
        network: NetworkId,
        names: BTreeSet<String>,
        failed: BTreeSet<String>,
        rows: &Rows,
    ) {
        self.peers.entry(network).or_default().change(now, names, failed, rows);
        self.peers.retain(|_, peers| !peers.here.is_empty() || !peers.away.is_empty());
    }

    /// Whether anybody else is on the network.
    pub fn has_peers(&self, network: &NetworkId) -> bool {
        self.peers.get(network).is_some_and(|peers| !peers.here.is_empty())
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
    /// that does not answer is no reason, and nobody is one for longer than [`ANSWER_MAX`]; except,
    /// for a row that `leaves`, one that is away while its host lives, which sends on: [`AWAY_MAX`].
    pub fn until(
        &self,
        row: (&NetworkId, &str, &[u8]),
        rows: &Rows,
        news: Duration,
        leaves: bool,
    ) -> Option<Instant> {
        let (network, key, value) = row;
        let row = self.rows.get(&row_print(network, key, value))?;
        let peers = self.peers.get(&row.network)?;
        let here = peers.here.iter().filter(|(peer, _)| rows.is_up(peer)).map(|(peer, here)| {
            let told = row.announced.max(here.since);
            match rows.engine(peer) {
                NodeEngine::Docker => told + news,
                NodeEngine::Skep if row.applied.contains(peer) => row.changed + IN_FLIGHT,
                NodeEngine::Skep => told + ANSWER_MAX,
            }
        });
        let away = peers.away.iter().filter(|(peer, _)| leaves && !rows.is_silent(peer));
        here.chain(away.map(|(_, until)| *until)).max()
    }
}

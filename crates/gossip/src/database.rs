//! NetworkDB: which node is on which network, and the rows they announced there.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{Instant, NetworkId};
use prost::Message as _;
use wire::networkdb as pb;

use crate::event::{Effect, Member};
use crate::io::Io;
use crate::queue::Queue;
use crate::rows::Rows;

/// How long others may still hear of a deleted row (NetworkDB's `reapEntryInterval`).
pub(crate) const TOMBSTONE: Duration = Duration::from_secs(30 * 60);
/// A node's departure from a network is remembered a little longer than its rows' tombstones.
pub(crate) const DEPARTURE: Duration = Duration::from_secs(30 * 60 + 25);
/// A failed node is awaited for a day, as by NetworkDB.
const FAILED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// This long after the start, rows that carry this node's name and that it did not announce are
/// taken for those of an earlier life, and deleted.
pub(crate) const SETTLED: Duration = Duration::from_secs(20);
/// So many questions without an answer, one a second, and a failed node's host is silent: a lost
/// packet is sent again after one second and after three.
const QUESTIONS_MAX: u32 = 5;
/// Of many failed nodes so many are asked at once.
const QUESTIONS_AT_ONCE: usize = 128;
/// Rows that are announced close together share packets.
pub(crate) const FLUSH_DELAY: Duration = Duration::from_millis(5);
/// A clock that leaps further was made up.
const CLOCK_LEAP_MAX: u64 = 1 << 40;
pub(crate) const NETWORKS_MAX: usize = 16_384;
pub(crate) const ROWS_PER_NETWORK_MAX: usize = 200_000;
pub(crate) const VALUE_BYTES_MAX: usize = 60_000;
pub(crate) const KEY_BYTES_MAX: usize = 512;
/// What one node is told again to be applied: 100 packets. The rest is said once.
pub(crate) const APPLIED_AGAIN_MAX: usize = 16_384;
/// Nodes that all joined at once have all there is by then.
pub(crate) const INCOMPLETE_MAX: Duration = Duration::from_secs(5);
/// The bulk syncs that follow each other quickly after something was missed.
pub(crate) const HURRIED_SYNCS: u32 = 5;

pub(crate) const JOIN: i32 = 1;
pub(crate) const LEAVE: i32 = 2;
pub(crate) const CREATE: i32 = 1;
pub(crate) const UPDATE: i32 = 2;
pub(crate) const DELETE: i32 = 3;

/// Another node, for longer than memberlist remembers it.
pub(crate) struct Peer {
    pub member: Arc<Member>,
    pub state: Presence,
    pub ltime: u64,
    changed: Instant,
    /// How often its host was asked, since it failed or its host answered last.
    unanswered: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Active,
    Failed,
    Left,
}

/// That a node is, or was, on a network.
pub(crate) struct Attachment {
    pub ltime: u64,
    pub leaving: bool,
    pub reap_at: Option<Instant>,
}

/// A row and who announced it when.
pub(crate) struct Entry {
    pub owner: String,
    pub ltime: u64,
    pub value: Vec<u8>,
    /// Set once it is deleted: when it may be forgotten.
    pub reap_at: Option<Instant>,
}

pub(crate) type RowKey = (String, String);

/// Push/pulls as they were sent last: a failed node is tried every second, and what it would be
/// told is large and seldom new. By whether it joins, with the versions of nodes and networks.
pub(crate) type Said = BTreeMap<bool, ((u64, u64), Arc<[u8]>)>;

#[derive(Default)]
pub(crate) struct Network {
    pub attachments: BTreeMap<String, Attachment>,
    pub rows: Rows,
    /// Other active nodes that are on it, until that changes.
    pub partners: OnceCell<Vec<Arc<Member>>>,
    /// Present while this node is on the network.
    pub ours: Option<Ours>,
}

/// What a node does for a network that it is on.
#[derive(Default)]
pub(crate) struct Ours {
    /// Rows just announced here, for everyone at once.
    pub fresh: Vec<(String, Arc<[u8]>)>,
    pub flush_at: Option<Instant>,
    /// This node's rows, then what it heard: told to a few at a time.
    pub own: Queue,
    pub heard: Queue,
    pub sync_at: Option<Instant>,
    pub hurried: u32,
    /// Another node's whole table was taken in since this node joined, or there is none to take.
    pub synced: bool,
    pub joined: Instant,
    /// Another node was there at some time since this node joined.
    pub met: bool,
    /// Nodes that came back, to be synced with first.
    pub returned: BTreeSet<String>,
    /// When a row last changed, and how often a partner's digest has differed since it last agreed.
    pub changed: Instant,
    pub differed: u32,
}

impl Ours {
    /// What this node tells of the network may lack something.
    pub fn incomplete(&self, now: Instant) -> bool {
        !self.synced && now.since(self.joined) < INCOMPLETE_MAX
    }

    pub fn hurry(&mut self, now: Instant) {
        self.hurried = HURRIED_SYNCS;
        let soon = now + Duration::from_millis(300);
        self.sync_at = Some(self.sync_at.map_or(soon, |at| at.min(soon)));
    }
}

pub(crate) struct Database {
    pub name: String,
    pub advertise: IpAddr,
    pub began: Instant,
    pub network_clock: u64,
    pub table_clock: u64,
    pub peers: BTreeMap<String, Peer>,
    pub networks: BTreeMap<NetworkId, Network>,
    /// Node and network events for memberlist's queue: subject and message.
    pub events: Vec<(String, Vec<u8>)>,
    /// When everything of this node is to be said again; many reasons close together are one.
    pub reannounce_at: Option<Instant>,
    /// As in [`Ours`], for who is on which network.
    pub changed: Instant,
    pub differed: u32,
    /// Their digest, until they change.
    pub attached: Cell<Option<(u64, u64)>>,
    /// What a push/pull says, until it changes.
    pub said: RefCell<Said>,
    /// Networks whose nodes changed with the message that is being read.
    pub peers_to_tell: BTreeSet<NetworkId>,
    /// What others were told to be applied, to be said once more: a packet may be lost.
    pub applied: BTreeMap<String, Vec<u64>>,
}

impl Database {
    pub fn new(name: String, advertise: IpAddr) -> Self {
        Self {
            name,
            advertise,
            began: Instant::default(),
            network_clock: 0,
            table_clock: 0,
            peers: BTreeMap::new(),
            networks: BTreeMap::new(),
            events: Vec::new(),
            reannounce_at: None,
            changed: Instant::default(),
            differed: 0,
            attached: Cell::new(None),
            said: RefCell::default(),
            peers_to_tell: BTreeSet::new(),
            applied: BTreeMap::new(),
        }
    }

    pub fn begin(&mut self, now: Instant) {
        self.began = now;
        self.announce_node(JOIN);
    }

    // Nodes.

    pub fn node_up(&mut self, io: &mut Io<'_>, member: Member) {
        self.bury_earlier_life(io, &member);
        let known = self.peers.get(&member.name);
        let returned = known.is_some_and(|peer| peer.state != Presence::Active);
        let ltime = known.map_or(0, |peer| peer.ltime);
        let peer = Peer {
            member: Arc::new(member.clone()),
            state: Presence::Active,
            ltime,
            changed: io.now,
            unanswered: 0,
        };
        self.peers.insert(member.name.clone(), peer);
        io.effect(Effect::NodeUp(member.clone()));
        self.peers_changed_with(io, &member.name);
        if returned {
            self.reannounce_soon(io.now);
            self.await_sync_with(io, &member.name);
        }
    }

    pub fn node_updated(&mut self, io: &mut Io<'_>, member: Member) {
        if let Some(peer) = self.peers.get_mut(&member.name) {
            peer.member = Arc::new(member.clone());
            self.networks.values_mut().for_each(|network| drop(network.partners.take()));
        }
        io.effect(Effect::NodeUp(member));
    }

    /// A node that does not answer keeps its rows and its networks: they are still true if only
    /// the link is cut. Managers decide what becomes of its tasks.
    pub fn node_failed(&mut self, io: &mut Io<'_>, name: &str) {
        if self.set_presence(io, name, Presence::Failed) {
            self.peers_changed_with(io, name);
        }
    }

    /// A node that left takes its rows along.
    pub fn node_left(&mut self, io: &mut Io<'_>, name: &str) {
        let with = self.networks_with(name);
        if !self.set_presence(io, name, Presence::Left) {
            return;
        }
        for network in with {
            self.drop_rows_of(io, &network, name);
            if let Some(known) = self.networks.get_mut(&network) {
                known.attachments.remove(name);
                self.said.take();
            }
            self.peers_changed(io, &network);
        }
    }

    /// Whether that is news; says so.
    fn set_presence(&mut self, io: &mut Io<'_>, name: &str, presence: Presence) -> bool {
        let Some(peer) = self.peers.get_mut(name) else { return false };
        if peer.state == presence || peer.state == Presence::Left {
            return false;
        }
        let was_active = peer.state == Presence::Active;
        peer.state = presence;
        peer.changed = io.now;
        if was_active {
            io.effect(Effect::NodeDown(Member::clone(&peer.member)));
        }
        true
    }

    /// The same address under a new name is the same host after a restart: the old name is gone.
    fn bury_earlier_life(&mut self, io: &mut Io<'_>, member: &Member) {
        let same = |peer: &&Peer| {
            peer.member.address == member.address
                && peer.member.name != member.name
                && peer.state != Presence::Left
        };
        let old: Vec<String> =
            self.peers.values().filter(same).map(|peer| peer.member.name.clone()).collect();
        for name in old {
            io.count("reincarnated");
            self.node_left(io, &name);
        }
    }

    pub fn failed(&self) -> impl Iterator<Item = &Member> {
        let failed = |peer: &&Peer| peer.state == Presence::Failed;
        self.peers.values().filter(failed).map(|peer| &*peer.member)
    }

    /// A daemon may be stopped, replaced or too busy while the tasks of its host live on: whoever
    /// has connections to them keeps them for as long as the host itself answers.
    pub fn ask_hosts(&mut self, io: &mut Io<'_>) {
        let open =
            |peer: &&Peer| peer.state == Presence::Failed && peer.unanswered <= QUESTIONS_MAX;
        let names = self.peers.values().filter(open).map(|peer| peer.member.name.clone()).collect();
        for name in io.pick(names, QUESTIONS_AT_ONCE) {
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            peer.unanswered += 1;
            if peer.unanswered <= QUESTIONS_MAX {
                io.effect(Effect::AskHost { name, to: peer.member.address });
            } else {
                io.count("hosts_silent");
                io.effect(Effect::HostSilent(Member::clone(&peer.member)));
            }
        }
    }

    /// One that was silent already comes back with its daemon: what ran there may be gone.
    pub fn host_answered(&mut self, name: &str) {
        if let Some(peer) = self.peers.get_mut(name).filter(|it| it.unanswered <= QUESTIONS_MAX) {
            peer.unanswered = 0;
        }
    }

    pub fn announce_node(&mut self, what: i32) {
        self.network_clock += 1;
        let event = pb::NodeEvent {
            r#type: what,
            l_time: self.network_clock,
            node_name: self.name.clone(),
        };
        let message = envelope(pb::MessageType::NodeEvent, &event);
        self.events.push((format!("node/{}", self.name), message));
    }

    pub fn leave(&mut self) {
        self.announce_node(LEAVE);
    }

    pub fn heard_node_event(&mut self, io: &mut Io<'_>, event: &pb::NodeEvent, spread: bool) {
        if event.node_name == self.name || !self.witness_network(io, event.l_time) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&event.node_name) else { return };
        if peer.ltime >= event.l_time {
            return;
        }
        peer.ltime = event.l_time;
        if event.r#type == LEAVE {
            self.node_left(io, &event.node_name);
        } else if peer.state == Presence::Left {
            let member = Member::clone(&peer.member);
            self.node_up(io, member);
        }
        if spread {
            let message = envelope(pb::MessageType::NodeEvent, event);
            self.events.push((format!("node/{}", event.node_name), message));
        }
    }

    // Clocks and time.

    /// Everything known about who is on which network.
    pub fn attachments(&self) -> pb::NetworkPushPull {
        let networks = self.networks.iter().flat_map(|(id, network)| {
            network.attachments.iter().map(move |(name, attachment)| pb::NetworkEntry {
                network_id: id.to_string(),
                l_time: attachment.ltime,
                node_name: name.clone(),
                leaving: attachment.leaving,
            })
        });
        pb::NetworkPushPull {
            l_time: self.network_clock,
            networks: networks.collect(),
            node_name: self.name.clone(),
        }
    }

    pub fn table_time(&self) -> u64 {
        self.table_clock
    }

    pub fn witness_network(&mut self, io: &mut Io<'_>, time: u64) -> bool {
        witness(io, &mut self.network_clock, time)
    }

    pub fn witness_table(&mut self, io: &mut Io<'_>, time: u64) -> bool {
        witness(io, &mut self.table_clock, time)
    }

    /// Forgets what nobody can bring back any more.
    pub fn reap(&mut self, io: &mut Io<'_>) {
        let now = io.now;
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.said.take();
        for network in self.networks.values_mut() {
            network.rows.reap(now);
            network.attachments.retain(|_, attachment| !due(attachment.reap_at));
        }
        self.networks.retain(|_, it| it.ours.is_some() || !it.attachments.is_empty());
        let gone: Vec<String> = self
            .peers
            .values()
            .filter(|peer| match peer.state {
                Presence::Active => false,
                Presence::Failed => now.since(peer.changed) > FAILED_KEPT,
                Presence::Left => now.since(peer.changed) > DEPARTURE,
            })
            .map(|peer| peer.member.name.clone())
            .collect();
        for name in gone {
            self.peers.remove(&name);
            for id in self.networks_with(&name) {
                self.drop_rows_of(io, &id, &name);
                if let Some(network) = self.networks.get_mut(&id) {
                    network.attachments.remove(&name);
                }
            }
        }
    }
}

/// Advances a Lamport clock; false when the time was made up.
fn witness(io: &mut Io<'_>, clock: &mut u64, time: u64) -> bool {
    if time > clock.saturating_add(CLOCK_LEAP_MAX) {
        io.count("clock_refused");
        return false;
    }
    *clock = (*clock).max(time);
    true
}

/// FNV-1a over parts that cannot run into each other.
pub(crate) fn fnv(parts: &[&[u8]]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| part.iter().fold(step(hash, &0xff), step))
}

/// Makes every bit of a hash depend on all of it, by MurmurHash3's last step. Of FNV-1a the last
/// bytes only shift the number a little: in a sum two rows that were missed cancelled each other out.
pub(crate) fn spread(mut hash: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ hash >> 33).wrapping_mul(factor);
    }
    hash ^ hash >> 33
}

/// A row's content in a number, by which nodes tell each other what they have applied.
pub fn row_print(network: &NetworkId, key: &str, value: &[u8]) -> u64 {
    fnv(&[network.as_bytes(), key.as_bytes(), value])
}

/// A NetworkDB message in its envelope.
pub(crate) fn envelope(kind: pb::MessageType, message: &impl prost::Message) -> Vec<u8> {
    pb::GossipMessage { r#type: kind as i32, data: message.encode_to_vec() }.encode_to_vec()
}

//! NetworkDB: which node is on which network, and the rows they announced there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use model::{Instant, NetworkId};
use prost::Message as _;
use wire::networkdb as pb;

use crate::event::{Effect, Member, Row};
use crate::io::Io;
use crate::queue::Queue;

/// How long others may still hear of a deleted row (NetworkDB's `reapEntryInterval`).
pub(crate) const TOMBSTONE: Duration = Duration::from_secs(30 * 60);
/// A node's departure from a network is remembered a little longer than its rows' tombstones.
const DEPARTURE: Duration = Duration::from_secs(30 * 60 + 25);
/// A failed node is awaited for a day, as by NetworkDB.
const FAILED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// This long after the start, rows that carry this node's name and that it did not announce are
/// taken for those of an earlier life, and deleted.
const SETTLED: Duration = Duration::from_secs(20);
/// Rows that are announced close together share packets.
const FLUSH_DELAY: Duration = Duration::from_millis(5);
/// A clock that leaps further was made up.
const CLOCK_LEAP_MAX: u64 = 1 << 40;
const NETWORKS_MAX: usize = 16_384;
const ROWS_PER_NETWORK_MAX: usize = 200_000;
const VALUE_BYTES_MAX: usize = 60_000;
const KEY_BYTES_MAX: usize = 512;
/// The bulk syncs that follow each other quickly after something was missed.
pub(crate) const HURRIED_SYNCS: u32 = 5;

pub(crate) const JOIN: i32 = 1;
pub(crate) const LEAVE: i32 = 2;
const CREATE: i32 = 1;
const UPDATE: i32 = 2;
const DELETE: i32 = 3;

/// Another node, for longer than memberlist remembers it.
pub(crate) struct Peer {
    pub member: Member,
    pub state: Presence,
    ltime: u64,
    changed: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Active,
    Failed,
    Left,
}

/// That a node is, or was, on a network.
struct Attachment {
    ltime: u64,
    leaving: bool,
    reap_at: Option<Instant>,
}

/// A row and who announced it when.
pub(crate) struct Entry {
    owner: String,
    ltime: u64,
    value: Vec<u8>,
    /// Set once it is deleted: when it may be forgotten.
    reap_at: Option<Instant>,
}

type RowKey = (String, String);

#[derive(Default)]
pub(crate) struct Network {
    attachments: BTreeMap<String, Attachment>,
    rows: BTreeMap<RowKey, Entry>,
    /// Present while this node is on the network.
    pub ours: Option<Ours>,
}

/// What a node does for a network that it is on.
#[derive(Default)]
pub(crate) struct Ours {
    /// Rows just announced here, for everyone at once.
    pub fresh: Vec<(String, Vec<u8>)>,
    pub flush_at: Option<Instant>,
    /// This node's rows, then what it heard: told to a few at a time.
    pub own: Queue,
    pub heard: Queue,
    pub sync_at: Option<Instant>,
    pub hurried: u32,
    /// Nodes that came back, to be synced with first.
    pub returned: BTreeSet<String>,
    /// When a row last changed, and how often a partner's digest has differed since it last agreed.
    pub changed: Instant,
    pub differed: u32,
}

impl Ours {
    pub fn hurry(&mut self, now: Instant) {
        self.hurried = HURRIED_SYNCS;
        let soon = now + Duration::from_millis(300);
        self.sync_at = Some(self.sync_at.map_or(soon, |at| at.min(soon)));
    }
}

pub(crate) struct Database {
    pub name: String,
    advertise: IpAddr,
    began: Instant,
    network_clock: u64,
    table_clock: u64,
    pub peers: BTreeMap<String, Peer>,
    pub networks: BTreeMap<NetworkId, Network>,
    /// Node and network events for memberlist's queue: subject and message.
    pub events: Vec<(String, Vec<u8>)>,
    /// As in [`Ours`], for who is on which network.
    pub changed: Instant,
    pub differed: u32,
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
            changed: Instant::default(),
            differed: 0,
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
        let peer = Peer { member: member.clone(), state: Presence::Active, ltime, changed: io.now };
        self.peers.insert(member.name.clone(), peer);
        io.effect(Effect::NodeUp(member.clone()));
        self.peers_changed_with(io, &member.name);
        if returned {
            self.reannounce(io);
            self.await_sync_with(io, &member.name);
        }
    }

    pub fn node_updated(&mut self, io: &mut Io<'_>, member: Member) {
        if let Some(peer) = self.peers.get_mut(&member.name) {
            peer.member = member.clone();
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
            io.effect(Effect::NodeDown(peer.member.clone()));
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

    pub fn failed(&self) -> Vec<Member> {
        let failed = |peer: &&Peer| peer.state == Presence::Failed;
        self.peers.values().filter(failed).map(|peer| peer.member.clone()).collect()
    }

    fn announce_node(&mut self, what: i32) {
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
            let member = peer.member.clone();
            self.node_up(io, member);
        }
        if spread {
            let message = envelope(pb::MessageType::NodeEvent, event);
            self.events.push((format!("node/{}", event.node_name), message));
        }
    }

    // Networks.

    pub fn join_network(&mut self, io: &mut Io<'_>, id: &NetworkId) {
        if self.networks.get(id).is_some_and(|network| network.ours.is_some()) {
            return;
        }
        let network = self.networks.entry(id.clone()).or_default();
        let mut ours = Ours::default();
        ours.hurry(io.now);
        network.ours = Some(ours);
        self.announce_network(id, JOIN, None);
        self.peers_changed(io, id);
    }

    pub fn leave_network(&mut self, io: &mut Io<'_>, id: &NetworkId) {
        let Some(network) = self.networks.get_mut(id) else { return };
        if network.ours.take().is_none() {
            return;
        }
        let rows = std::mem::take(&mut network.rows);
        for ((table, key), entry) in rows {
            if entry.reap_at.is_none() {
                io.effect(row_changed(id, &table, &key, &entry.owner, Some(entry.value), None));
            }
        }
        self.announce_network(id, LEAVE, Some(io.now + DEPARTURE));
        self.peers_changed(io, id);
    }

    fn announce_network(&mut self, id: &NetworkId, what: i32, reap_at: Option<Instant>) {
        self.network_clock += 1;
        let event = pb::NetworkEvent {
            r#type: what,
            l_time: self.network_clock,
            node_name: self.name.clone(),
            network_id: id.to_string(),
        };
        let message = envelope(pb::MessageType::NetworkEvent, &event);
        self.events.push((format!("network/{id}/{}", self.name), message));
        let attachment = Attachment { ltime: event.l_time, leaving: what == LEAVE, reap_at };
        let network = self.networks.entry(id.clone()).or_default();
        network.attachments.insert(self.name.clone(), attachment);
    }

    /// Says everything about this node again, for those that may have dropped it.
    pub fn reannounce(&mut self, io: &mut Io<'_>) {
        self.announce_node(JOIN);
        for id in self.joined() {
            self.announce_network(&id, JOIN, None);
            let Some(network) = self.networks.get_mut(&id) else { continue };
            let Some(ours) = &mut network.ours else { continue };
            for ((table, key), entry) in &network.rows {
                if entry.owner == self.name && entry.reap_at.is_none() {
                    let event = row_event(io.now, &id, table, key, entry, CREATE);
                    ours.fresh
                        .push((subject(table, key), envelope(pb::MessageType::TableEvent, &event)));
                }
            }
            if !ours.fresh.is_empty() {
                ours.flush_at.get_or_insert(io.now + FLUSH_DELAY);
            }
        }
    }

    pub fn joined(&self) -> Vec<NetworkId> {
        let ours = self.networks.iter().filter(|(_, network)| network.ours.is_some());
        ours.map(|(id, _)| id.clone()).collect()
    }

    pub fn heard_network_event(&mut self, io: &mut Io<'_>, event: &pb::NetworkEvent, spread: bool) {
        if !self.witness_network(io, event.l_time) {
            return;
        }
        let id = NetworkId::new(event.network_id.clone());
        if event.node_name == self.name {
            return self.heard_own_network_event(io, &id, event);
        }
        let known = self.peers.get(&event.node_name);
        if known.is_none_or(|peer| peer.state == Presence::Left) {
            return io.count("network_event_of_stranger");
        }
        let leaving = event.r#type == LEAVE;
        let attached = self.networks.get(&id).and_then(|it| it.attachments.get(&event.node_name));
        match attached {
            Some(attachment) if attachment.ltime >= event.l_time => return,
            None if leaving => return,
            None if id.len() > KEY_BYTES_MAX
                || (!self.networks.contains_key(&id) && self.networks.len() >= NETWORKS_MAX) =>
            {
                return io.count("networks_full");
            }
            _ => {}
        }
        let reap_at = leaving.then_some(io.now + DEPARTURE);
        let attachment = Attachment { ltime: event.l_time, leaving, reap_at };
        let was = self
            .networks
            .entry(id.clone())
            .or_default()
            .attachments
            .insert(event.node_name.clone(), attachment);
        if leaving {
            self.drop_rows_of(io, &id, &event.node_name);
        }
        if was.is_none_or(|was| was.leaving != leaving) {
            self.peers_changed(io, &id);
        }
        if spread {
            let message = envelope(pb::MessageType::NetworkEvent, event);
            self.events.push((format!("network/{id}/{}", event.node_name), message));
        }
    }

    /// What the others believe of this node from an earlier life is corrected.
    fn heard_own_network_event(
        &mut self,
        io: &mut Io<'_>,
        id: &NetworkId,
        event: &pb::NetworkEvent,
    ) {
        let network = self.networks.get(id);
        let attached = network.is_some_and(|network| network.ours.is_some());
        let ltime = network
            .and_then(|network| network.attachments.get(&self.name))
            .map_or(0, |attachment| attachment.ltime);
        let said = event.r#type == JOIN;
        if event.l_time > ltime || (event.l_time == ltime && said != attached) {
            if attached {
                self.announce_network(id, JOIN, None);
            } else if said && io.now.since(self.began) > SETTLED {
                self.announce_network(id, LEAVE, Some(io.now + DEPARTURE));
            }
        }
    }

    fn networks_with(&self, name: &str) -> Vec<NetworkId> {
        let with = |network: &Network| network.attachments.contains_key(name);
        self.networks.iter().filter(|(_, it)| with(it)).map(|(id, _)| id.clone()).collect()
    }

    fn peers_changed_with(&mut self, io: &mut Io<'_>, name: &str) {
        for id in self.networks_with(name) {
            self.peers_changed(io, &id);
        }
    }

    fn peers_changed(&mut self, io: &mut Io<'_>, id: &NetworkId) {
        self.changed = io.now;
        io.effect(Effect::PeersChanged { network: id.clone(), peers: self.peers_of(id) });
    }

    /// Active nodes on a network, this one included when it is there.
    pub fn peers_of(&self, id: &NetworkId) -> Vec<(String, IpAddr)> {
        let Some(network) = self.networks.get(id) else { return Vec::new() };
        let attached = network.attachments.iter().filter(|(_, attachment)| !attachment.leaving);
        attached
            .filter_map(|(name, _)| {
                if *name == self.name {
                    return network.ours.is_some().then(|| (name.clone(), self.advertise));
                }
                let peer = self.peers.get(name)?;
                let active = peer.state == Presence::Active;
                active.then(|| (name.clone(), peer.member.address.ip()))
            })
            .collect()
    }

    /// Other active nodes on a network.
    pub fn partners(&self, id: &NetworkId) -> Vec<Member> {
        let Some(network) = self.networks.get(id) else { return Vec::new() };
        let attached = network.attachments.iter().filter(|(_, attachment)| !attachment.leaving);
        attached
            .filter_map(|(name, _)| self.peers.get(name))
            .filter(|peer| peer.state == Presence::Active)
            .map(|peer| peer.member.clone())
            .collect()
    }

    fn await_sync_with(&mut self, io: &mut Io<'_>, name: &str) {
        for network in self.networks.values_mut() {
            if network.attachments.contains_key(name)
                && let Some(ours) = &mut network.ours
            {
                ours.returned.insert(name.to_owned());
                ours.hurry(io.now);
            }
        }
    }

    // Rows.

    pub fn put_row(&mut self, io: &mut Io<'_>, id: &NetworkId, key: RowKey, value: Vec<u8>) {
        if value.len() > VALUE_BYTES_MAX || key.0.len() + key.1.len() > KEY_BYTES_MAX {
            return io.count("row_too_large");
        }
        let Some(network) = self.networks.get_mut(id) else { return io.count("row_elsewhere") };
        if network.ours.is_none() {
            return io.count("row_elsewhere");
        }
        let old = network.rows.remove(&key);
        let alive = old.as_ref().filter(|entry| entry.reap_at.is_none());
        if alive.is_some_and(|entry| entry.owner == self.name && entry.value == value) {
            network.rows.extend(old.map(|entry| (key, entry)));
            return;
        }
        let what = if alive.is_some() { UPDATE } else { CREATE };
        let before = alive.map(|entry| entry.value.clone());
        let entry = Entry { owner: self.name.clone(), ltime: 0, value, reap_at: None };
        let now = Some(entry.value.clone());
        io.effect(row_changed(id, &key.0, &key.1, &self.name, before, now));
        network.rows.insert(key.clone(), entry);
        self.announce_row(io, id, &key, what);
    }

    pub fn delete_row(&mut self, io: &mut Io<'_>, id: &NetworkId, key: RowKey) {
        let Some(network) = self.networks.get_mut(id) else { return };
        let Some(entry) = network.rows.get_mut(&key) else { return };
        if entry.owner != self.name || entry.reap_at.is_some() {
            return;
        }
        entry.reap_at = Some(io.now + TOMBSTONE);
        let value = entry.value.clone();
        io.effect(row_changed(id, &key.0, &key.1, &self.name, Some(value), None));
        self.announce_row(io, id, &key, DELETE);
    }

    /// Gives one of this node's rows the newest time and tells everyone.
    fn announce_row(&mut self, io: &mut Io<'_>, id: &NetworkId, key: &RowKey, what: i32) {
        self.table_clock += 1;
        let Some(network) = self.networks.get_mut(id) else { return };
        let Some(entry) = network.rows.get_mut(key) else { return };
        entry.ltime = self.table_clock;
        let event = row_event(io.now, id, &key.0, &key.1, entry, what);
        if let Some(ours) = &mut network.ours {
            let message = envelope(pb::MessageType::TableEvent, &event);
            ours.fresh.push((subject(&key.0, &key.1), message));
            ours.flush_at.get_or_insert(io.now + FLUSH_DELAY);
            ours.changed = io.now;
        }
    }

    /// A row of another node, from a packet or out of a bulk sync.
    pub fn heard_row(&mut self, io: &mut Io<'_>, event: pb::TableEvent, bulk: bool) {
        let id = NetworkId::new(event.network_id.clone());
        let Some(network) = self.networks.get(&id) else { return };
        if network.ours.is_none() || !self.witness_table(io, event.l_time) {
            return;
        }
        let key = (event.table_name.clone(), event.key.clone());
        if event.node_name == self.name {
            return self.heard_own_row(io, &id, key, &event);
        }
        let Some(network) = self.networks.get_mut(&id) else { return };
        let owner = network.attachments.get(&event.node_name);
        if owner.is_none_or(|attachment| attachment.leaving) {
            return io.count("row_of_stranger");
        }
        let deleted = event.r#type == DELETE;
        let reap_after = match event.residual_reap_time {
            seconds if seconds > 0 => Duration::from_secs(seconds as u64).min(TOMBSTONE),
            _ => TOMBSTONE,
        };
        match network.rows.get(&key) {
            Some(entry) if entry.owner == self.name && entry.reap_at.is_none() => {
                // Two nodes claim one key: this one is here to say that it is its own.
                if event.l_time >= entry.ltime {
                    self.announce_row(io, &id, &key, UPDATE);
                }
                return;
            }
            Some(entry) if entry.ltime >= event.l_time => return,
            None if deleted && !bulk => return,
            None if network.rows.len() >= ROWS_PER_NETWORK_MAX => return io.count("rows_full"),
            _ => {}
        }
        if event.value.len() > VALUE_BYTES_MAX || key.0.len() + key.1.len() > KEY_BYTES_MAX {
            return io.count("row_too_large");
        }
        let unknown_delete = deleted && !network.rows.contains_key(&key);
        let entry = Entry {
            owner: event.node_name.clone(),
            ltime: event.l_time,
            value: event.value.clone(),
            reap_at: deleted.then_some(io.now + reap_after),
        };
        let new = (!deleted).then(|| event.value.clone());
        let old = network.rows.insert(key.clone(), entry);
        let old = old.filter(|entry| entry.reap_at.is_none()).map(|entry| entry.value);
        if old != new {
            io.effect(row_changed(&id, &key.0, &key.1, &event.node_name, old, new));
        }
        // A deletion that is about to be forgotten would only come back round and round.
        let spread = !unknown_delete || reap_after > TOMBSTONE / 6;
        let Some(ours) = &mut network.ours else { return };
        ours.changed = io.now;
        if spread {
            let message = envelope(pb::MessageType::TableEvent, &event);
            ours.heard.push(subject(&key.0, &key.1), message);
        }
    }

    /// An echo of this node's own row, or a row of its earlier life.
    fn heard_own_row(
        &mut self,
        io: &mut Io<'_>,
        id: &NetworkId,
        key: RowKey,
        event: &pb::TableEvent,
    ) {
        let deleted = event.r#type == DELETE;
        let Some(network) = self.networks.get_mut(id) else { return };
        match network.rows.get(&key) {
            Some(entry) => {
                let same =
                    entry.reap_at.is_some() == deleted && (deleted || entry.value == event.value);
                if event.l_time > entry.ltime || (event.l_time == entry.ltime && !same) {
                    let what = if entry.reap_at.is_some() { DELETE } else { UPDATE };
                    if entry.owner == self.name {
                        self.announce_row(io, id, &key, what);
                    }
                }
            }
            None if !deleted && io.now.since(self.began) > SETTLED => {
                io.count("row_of_earlier_life");
                let entry = Entry {
                    owner: self.name.clone(),
                    ltime: 0,
                    value: event.value.clone(),
                    reap_at: Some(io.now + TOMBSTONE),
                };
                network.rows.insert(key.clone(), entry);
                self.announce_row(io, id, &key, DELETE);
            }
            None => {}
        }
    }

    fn drop_rows_of(&mut self, io: &mut Io<'_>, id: &NetworkId, owner: &str) {
        let Some(network) = self.networks.get_mut(id) else { return };
        let mut gone = Vec::new();
        network.rows.retain(|key, entry| {
            let keep = entry.owner != owner;
            if !keep && entry.reap_at.is_none() {
                gone.push((key.clone(), std::mem::take(&mut entry.value)));
            }
            keep
        });
        for ((table, key), value) in gone {
            io.effect(row_changed(id, &table, &key, owner, Some(value), None));
        }
    }

    /// The live rows of a table.
    pub fn rows(&self, id: &NetworkId, table: &str) -> BTreeMap<String, Row> {
        let Some(network) = self.networks.get(id) else { return BTreeMap::new() };
        let from = (table.to_owned(), String::new());
        network
            .rows
            .range(from..)
            .take_while(|((name, _), _)| name == table)
            .filter(|(_, entry)| entry.reap_at.is_none())
            .map(|((_, key), entry)| {
                let owner_up = entry.owner == self.name
                    || self.peers.get(&entry.owner).is_some_and(|it| it.state == Presence::Active);
                let owner = entry.owner.clone();
                (key.clone(), Row { owner, value: entry.value.clone(), owner_up })
            })
            .collect()
    }

    /// Every row of a network as events, deleted ones included: a bulk sync's payload.
    pub fn row_events(&self, now: Instant, id: &NetworkId) -> Vec<Vec<u8>> {
        let Some(network) = self.networks.get(id).filter(|it| it.ours.is_some()) else {
            return Vec::new();
        };
        let event = |((table, key), entry): (&RowKey, &Entry)| {
            let what = if entry.reap_at.is_some() { DELETE } else { CREATE };
            let event = row_event(now, id, table, key, entry, what);
            envelope(pb::MessageType::TableEvent, &event)
        };
        network.rows.iter().map(event).collect()
    }

    /// How many live rows a network has, and a number that differs when the rows do.
    pub fn rows_digest(&self, id: &NetworkId) -> (u64, u64) {
        let Some(network) = self.networks.get(id) else { return (0, 0) };
        let live = network.rows.iter().filter(|(_, entry)| entry.reap_at.is_none());
        live.fold((0, 0), |(entries, sum), ((table, key), entry)| {
            let hash = fnv(&[table.as_bytes(), key.as_bytes(), &entry.ltime.to_be_bytes()]);
            (entries + 1, u64::wrapping_add(sum, hash))
        })
    }

    /// The same over the active nodes and their networks.
    pub fn attachments_digest(&self) -> (u64, u64) {
        let (mut entries, mut sum) = (0, 0u64);
        for id in self.networks.keys() {
            for (name, _) in self.peers_of(id) {
                entries += 1;
                sum = sum.wrapping_add(fnv(&[id.as_bytes(), name.as_bytes()]));
            }
        }
        (entries, sum)
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
        for network in self.networks.values_mut() {
            network.rows.retain(|_, entry| !due(entry.reap_at));
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
fn fnv(parts: &[&[u8]]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| part.iter().fold(step(hash, &0xff), step))
}

/// A NetworkDB message in its envelope.
pub(crate) fn envelope(kind: pb::MessageType, message: &impl prost::Message) -> Vec<u8> {
    pb::GossipMessage { r#type: kind as i32, data: message.encode_to_vec() }.encode_to_vec()
}

fn subject(table: &str, key: &str) -> String {
    format!("{table}/{key}")
}

fn row_event(
    now: Instant,
    id: &NetworkId,
    table: &str,
    key: &str,
    entry: &Entry,
    what: i32,
) -> pb::TableEvent {
    let residual = entry.reap_at.map_or(0, |at| (at.since(now).as_secs() as i32).max(1));
    pb::TableEvent {
        r#type: what,
        l_time: entry.ltime,
        node_name: entry.owner.clone(),
        network_id: id.to_string(),
        table_name: table.to_owned(),
        key: key.to_owned(),
        value: entry.value.clone(),
        residual_reap_time: residual,
    }
}

fn row_changed(
    id: &NetworkId,
    table: &str,
    key: &str,
    owner: &str,
    old: Option<Vec<u8>>,
    new: Option<Vec<u8>>,
) -> Effect {
    Effect::RowChanged {
        network: id.clone(),
        table: table.to_owned(),
        key: key.to_owned(),
        owner: owner.to_owned(),
        old,
        new,
    }
}

//! NetworkDB's rows: announced by one node, known to all that are on the network.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Instant, NetworkId};

use crate::database::*;
use crate::event::{Effect, Row};
use crate::inplace::Heard;
use crate::io::Io;

impl Database {
    pub fn put_row(&mut self, io: &mut Io<'_>, id: &NetworkId, key: RowKey, value: Vec<u8>) {
        if value.len() > VALUE_BYTES_MAX || key.0.len() + key.1.len() > KEY_BYTES_MAX {
            return io.count("row_too_large");
        }
        let Some(network) = self.networks.get_mut(id) else { return io.count("row_elsewhere") };
        if network.ours.is_none() {
            return io.count("row_elsewhere");
        }
        let alive = network.rows.get(&key.0, &key.1).filter(|entry| entry.reap_at.is_none());
        if alive.is_some_and(|entry| entry.owner == self.name && entry.value == value) {
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
        let own = |entry: &&Entry| entry.owner == self.name && entry.reap_at.is_none();
        let Some(entry) = network.rows.get(&key.0, &key.1).filter(own) else { return };
        let value = entry.value.clone();
        network.rows.change(&key, |entry| entry.reap_at = Some(io.now + TOMBSTONE));
        io.effect(row_changed(id, &key.0, &key.1, &self.name, Some(value), None));
        self.announce_row(io, id, &key, DELETE);
    }

    /// Gives one of this node's rows the newest time and tells everyone.
    fn announce_row(&mut self, io: &mut Io<'_>, id: &NetworkId, key: &RowKey, what: i32) {
        self.table_clock += 1;
        let Some(network) = self.networks.get_mut(id) else { return };
        let time = self.table_clock;
        let Some(entry) = network.rows.change(key, |entry| entry.ltime = time) else { return };
        let message = row_message(io.now, id, &key.0, &key.1, entry, what);
        if let Some(ours) = &mut network.ours {
            ours.fresh.push((subject(&key.0, &key.1), message.into()));
            ours.flush_at.get_or_insert(io.now + FLUSH_DELAY);
            ours.changed = io.now;
        }
    }

    /// A row of another node, from a packet or out of a bulk sync.
    pub fn heard_row(&mut self, io: &mut Io<'_>, event: &Heard<'_>, bulk: bool) {
        let Some(network) = self.networks.get(event.network).filter(|it| it.ours.is_some()) else {
            return;
        };
        let mine = |entry: &Entry| entry.owner == self.name;
        let entry = network.rows.get(event.table, event.key).filter(|entry| !mine(entry));
        if entry.is_some_and(|entry| entry.ltime >= event.ltime) && event.owner != self.name {
            // Most of what is heard is known.
            return;
        }
        if !self.witness_table(io, event.ltime) {
            return;
        }
        let id = NetworkId::from(event.network);
        let key = (event.table.to_owned(), event.key.to_owned());
        if event.owner == self.name {
            return self.heard_own_row(io, &id, key, event);
        }
        let Some(network) = self.networks.get_mut(&id) else { return };
        let owner = network.attachments.get(event.owner);
        if owner.is_none_or(|attachment| attachment.leaving) {
            return io.count("row_of_stranger");
        }
        let deleted = event.kind == DELETE;
        let held = |owner: &String| {
            network.attachments.get(owner).is_some_and(|attachment| !attachment.leaving)
                && is_another(&self.peers, owner, event.owner)
        };
        match network.rows.get(&key.0, &key.1) {
            Some(entry) if entry.owner == self.name && entry.reap_at.is_none() => {
                // Two nodes claim one key: this one is here to say that it is its own.
                if event.ltime >= entry.ltime {
                    self.announce_row(io, &id, &key, UPDATE);
                }
                return;
            }
            Some(entry) if entry.ltime >= event.ltime => return,
            Some(entry) if entry.reap_at.is_none() && held(&entry.owner) => {
                return io.count("row_of_another");
            }
            None if deleted && !bulk => return,
            None if network.rows.len() >= ROWS_PER_NETWORK_MAX => return io.count("rows_full"),
            _ => {}
        }
        if event.value.len() > VALUE_BYTES_MAX || key.0.len() + key.1.len() > KEY_BYTES_MAX {
            return io.count("row_too_large");
        }
        self.take_row(io, &id, key, event);
    }

    /// Takes over a row of another node, and tells it on.
    fn take_row(&mut self, io: &mut Io<'_>, id: &NetworkId, key: RowKey, event: &Heard<'_>) {
        let Some(network) = self.networks.get_mut(id) else { return };
        let deleted = event.kind == DELETE;
        let reap_after = match event.reap_after {
            seconds if seconds > 0 => Duration::from_secs(seconds as u64).min(TOMBSTONE),
            _ => TOMBSTONE,
        };
        let unknown_delete = deleted && network.rows.get(&key.0, &key.1).is_none();
        let entry = Entry {
            owner: event.owner.to_owned(),
            ltime: event.ltime,
            value: event.value.to_vec(),
            reap_at: deleted.then_some(io.now + reap_after),
        };
        // Not the bytes that came: they may hold more than was read.
        let message = row_message(io.now, id, &key.0, &key.1, &entry, event.kind);
        let new = (!deleted).then(|| event.value.to_vec());
        let old = network.rows.insert(key.clone(), entry);
        let old = old.filter(|entry| entry.reap_at.is_none()).map(|entry| entry.value);
        // One that is announced anew is told too: its owner, restarted, asks who follows it.
        if old.is_some() || new.is_some() {
            io.effect(row_changed(id, &key.0, &key.1, event.owner, old, new));
        }
        // A deletion that is about to be forgotten would only come back round and round.
        let spread = !unknown_delete || reap_after > TOMBSTONE / 6;
        let Some(ours) = &mut network.ours else { return };
        ours.changed = io.now;
        if spread {
            ours.heard.push(subject(&key.0, &key.1), message);
        }
    }

    /// An echo of this node's own row, or a row of its earlier life.
    fn heard_own_row(&mut self, io: &mut Io<'_>, id: &NetworkId, key: RowKey, event: &Heard<'_>) {
        let deleted = event.kind == DELETE;
        let Some(network) = self.networks.get_mut(id) else { return };
        match network.rows.get(&key.0, &key.1) {
            Some(entry) => {
                let same =
                    entry.reap_at.is_some() == deleted && (deleted || entry.value == event.value);
                if event.ltime > entry.ltime || (event.ltime == entry.ltime && !same) {
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
                    value: event.value.to_vec(),
                    reap_at: Some(io.now + TOMBSTONE),
                };
                network.rows.insert(key.clone(), entry);
                self.announce_row(io, id, &key, DELETE);
            }
            None => {}
        }
    }

    pub fn drop_rows_of(&mut self, io: &mut Io<'_>, id: &NetworkId, owner: &str) {
        let Some(network) = self.networks.get_mut(id) else { return };
        let gone = network.rows.take(|entry| entry.owner == owner);
        for ((table, key), entry) in gone.into_iter().filter(|(_, it)| it.reap_at.is_none()) {
            io.effect(row_changed(id, &table, &key, owner, Some(entry.value), None));
        }
    }

    /// The live rows of a table.
    pub fn rows(&self, id: &NetworkId, table: &str) -> BTreeMap<String, Row> {
        let Some(network) = self.networks.get(id) else { return BTreeMap::new() };
        network
            .rows
            .of(table)
            .filter(|(_, entry)| entry.reap_at.is_none())
            .map(|(key, entry)| {
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
        let event = |(table, key, entry): (&str, &str, &Entry)| {
            let what = if entry.reap_at.is_some() { DELETE } else { CREATE };
            row_message(now, id, table, key, entry, what)
        };
        network.rows.sorted().map(event).collect()
    }

    /// How many live rows a network has, and a number that differs when the rows do.
    pub fn rows_digest(&self, id: &NetworkId) -> (u64, u64) {
        let digest = self.networks.get(id).map(|network| network.rows.digest());
        digest.map_or((0, 0), |digest| (digest.rows, digest.sum))
    }

    /// The same over the active nodes and their networks.
    pub fn attachments_digest(&self) -> (u64, u64) {
        let digest = self.attached.get().unwrap_or_else(|| self.count_attachments());
        self.attached.set(Some(digest));
        digest
    }

    pub fn count_attachments(&self) -> (u64, u64) {
        let (mut entries, mut sum) = (0, 0u64);
        for id in self.networks.keys() {
            for (name, _) in self.peers_of(id) {
                entries += 1;
                sum = sum.wrapping_add(spread(fnv(&[id.as_bytes(), name.as_bytes()])));
            }
        }
        (entries, sum)
    }
}

pub(crate) fn subject(table: &str, key: &str) -> String {
    format!("{table}/{key}")
}

/// A row as it is told.
pub(crate) fn row_message(
    now: Instant,
    id: &NetworkId,
    table: &str,
    key: &str,
    entry: &Entry,
    what: i32,
) -> Vec<u8> {
    let residual = entry.reap_at.map_or(0, |at| (at.since(now).as_secs() as i32).max(1));
    let (owner, ltime, value) = (&entry.owner, entry.ltime, &entry.value);
    let (network, reap_after) = (id.as_str(), residual);
    Heard { kind: what, ltime, owner, network, table, key, value, reap_after }.message()
}

/// Whether the owner of a row is there and is not the host that now speaks of it, under a new name.
fn is_another(peers: &BTreeMap<String, Peer>, owner: &str, speaker: &str) -> bool {
    let (Some(owner), Some(speaker)) = (peers.get(owner), peers.get(speaker)) else { return false };
    owner.state == Presence::Active && owner.member.address != speaker.member.address
}

pub(crate) fn row_changed(
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

//! NetworkDB's networks: which node is where, as announced by each node itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{Instant, NetworkId};
use wire::memberlist::Message;
use wire::networkdb as pb;

use crate::database::*;
use crate::event::{Effect, Member};
use crate::io::Io;
use crate::row::*;

/// Nodes that come back together, after a cut, are answered together.
const REANNOUNCE_DELAY: Duration = Duration::from_millis(200);
/// The first sync of a network that was just joined; the news of the arrival goes before it.
const FIRST_SYNC_DELAY: Duration = Duration::from_millis(20);
/// Nodes that hear of an arrival at once; the others hear by gossip.
const ARRIVAL_NODES: usize = 64;

impl Database {
    pub fn join_network(&mut self, io: &mut Io<'_>, id: &NetworkId) {
        if self.networks.get(id).is_some_and(|network| network.ours.is_some()) {
            return;
        }
        let network = self.networks.entry(id.clone()).or_default();
        let mut ours = Ours { joined: io.now, ..Ours::default() };
        ours.hurry(io.now);
        // What the others have announced is needed before this node's first task runs.
        ours.sync_at = Some(io.now + FIRST_SYNC_DELAY);
        network.ours = Some(ours);
        self.announce_network(id, JOIN, None);
        self.tell_arrival(io, id);
        self.peers_changed(io, id);
    }

    /// Those on the network hear of the arrival at once: until they have, they refuse its rows.
    fn tell_arrival(&self, io: &mut Io<'_>, id: &NetworkId) {
        let Some((_, event)) = self.events.last() else { return };
        let message: Arc<[u8]> = Message::User(event.clone()).encode().into();
        for partner in io.pick_of(self.partners(id), ARRIVAL_NODES) {
            io.send(partner.address, vec![message.clone()]);
        }
    }

    pub fn leave_network(&mut self, io: &mut Io<'_>, id: &NetworkId) {
        let Some(network) = self.networks.get_mut(id) else { return };
        if network.ours.take().is_none() {
            return;
        }
        let rows = network.rows.take(|_| true);
        for ((table, key), entry) in rows {
            if entry.reap_at.is_none() {
                io.effect(row_changed(id, &table, &key, &entry.owner, Some(entry.value), None));
            }
        }
        self.announce_network(id, LEAVE, Some(io.now + DEPARTURE));
        self.peers_changed(io, id);
    }

    pub fn announce_network(&mut self, id: &NetworkId, what: i32, reap_at: Option<Instant>) {
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
        self.said.take();
    }

    /// Someone may have dropped what this node announced.
    pub fn reannounce_soon(&mut self, now: Instant) {
        self.reannounce_at.get_or_insert(now + REANNOUNCE_DELAY);
    }

    /// Says everything about this node again, for those that may have dropped it.
    pub fn reannounce_due(&mut self, io: &mut Io<'_>) {
        if self.reannounce_at.is_some_and(|at| at <= io.now) {
            self.reannounce_at = None;
            self.reannounce(io);
        }
    }

    fn reannounce(&mut self, io: &mut Io<'_>) {
        self.announce_node(JOIN);
        for id in self.joined() {
            self.announce_network(&id, JOIN, None);
            let Some(network) = self.networks.get_mut(&id) else { continue };
            let Some(ours) = &mut network.ours else { continue };
            for (table, key, entry) in network.rows.sorted() {
                if entry.owner == self.name && entry.reap_at.is_none() {
                    let message = row_message(io.now, &id, table, key, entry, CREATE);
                    ours.fresh.push((subject(table, key), message.into()));
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
        // Of what a push/pull tells, nearly everything is known: one look is enough for that.
        let network = self.networks.get(event.network_id.as_str());
        let attached = network.and_then(|it| it.attachments.get(&event.node_name));
        if attached.is_some_and(|it| it.ltime >= event.l_time) && event.node_name != self.name {
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
        self.said.take();
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

    pub fn networks_with(&self, name: &str) -> Vec<NetworkId> {
        let with = |network: &Network| network.attachments.contains_key(name);
        self.networks.iter().filter(|(_, it)| with(it)).map(|(id, _)| id.clone()).collect()
    }

    pub fn peers_changed_with(&mut self, io: &mut Io<'_>, name: &str) {
        for id in self.networks_with(name) {
            self.peers_changed(io, &id);
        }
    }

    /// Notes the change; [`Database::tell_peers`] says once what many of one message come to.
    pub fn peers_changed(&mut self, io: &mut Io<'_>, id: &NetworkId) {
        self.changed = io.now;
        self.attached.set(None);
        self.networks.get_mut(id).map(|network| network.partners.take());
        self.peers_to_tell.insert(id.clone());
    }

    pub fn tell_peers(&mut self, io: &mut Io<'_>) {
        for network in std::mem::take(&mut self.peers_to_tell) {
            self.sync_with_first_partner(io, &network);
            let peers = self.peers_of(&network);
            let failed = self.failed_of(&network);
            io.effect(Effect::PeersChanged { network, peers, failed });
        }
    }

    /// A node that has just started meets the others only after it joined its networks. Until it
    /// has their tables, what it announces is older to them than what they have of it.
    fn sync_with_first_partner(&mut self, io: &mut Io<'_>, id: &NetworkId) {
        let met = !self.partners(id).is_empty();
        let Some(ours) = self.networks.get_mut(id).and_then(|it| it.ours.as_mut()) else { return };
        if met && !ours.met {
            ours.met = true;
            ours.hurry(io.now);
            ours.sync_at = Some(io.now + FIRST_SYNC_DELAY);
        }
    }

    /// Other nodes on a network in the order of their names. Both lists are in that order: walking
    /// along them is far cheaper than looking every name up.
    fn attached(&self, id: &NetworkId) -> impl Iterator<Item = &Peer> {
        let attached = self.networks.get(id).into_iter().flat_map(|it| &it.attachments);
        let mut names = attached.filter(|(_, it)| !it.leaving).map(|(name, _)| name).peekable();
        self.peers.iter().filter_map(move |(name, peer)| {
            while names.next_if(|other| *other < name).is_some() {}
            names.next_if_eq(&name).map(|_| peer)
        })
    }

    fn failed_of(&self, id: &NetworkId) -> Vec<String> {
        let failed = self.attached(id).filter(|peer| peer.state == Presence::Failed);
        failed.map(|peer| peer.member.name.clone()).collect()
    }

    /// Active nodes on a network, this one included when it is there.
    pub fn peers_of(&self, id: &NetworkId) -> Vec<(String, IpAddr)> {
        let partners = self.partners(id);
        let mut peers = Vec::with_capacity(partners.len() + 1);
        peers.extend(partners.iter().map(|it| (it.name.clone(), it.address.ip())));
        let here = |network: &Network| {
            network.attachments.get(&self.name).is_some_and(|it| !it.leaving)
                && network.ours.is_some()
        };
        if self.networks.get(id).is_some_and(here) {
            let at = peers.partition_point(|(name, _)| *name < self.name);
            peers.insert(at, (self.name.clone(), self.advertise));
        }
        peers
    }

    /// Other active nodes on a network.
    pub fn partners(&self, id: &NetworkId) -> &[Arc<Member>] {
        let Some(network) = self.networks.get(id) else { return &[] };
        network.partners.get_or_init(|| {
            let active = self.attached(id).filter(|peer| peer.state == Presence::Active);
            active.map(|peer| peer.member.clone()).collect()
        })
    }

    pub fn await_sync_with(&mut self, io: &mut Io<'_>, name: &str) {
        for network in self.networks.values_mut() {
            if network.attachments.contains_key(name)
                && let Some(ours) = &mut network.ours
            {
                ours.returned.insert(name.to_owned());
                ours.hurry(io.now);
            }
        }
    }
}

//! Bytes from other nodes: opened, read and given to whom they concern.

use std::net::SocketAddr;
use std::time::Duration;

use model::{Instant, NetworkId};
use prost::Message as _;
use wire::memberlist::{Malformed, Message, StreamMessage, open_frame, open_packet, unpack};
use wire::networkdb as pb;

use crate::Gossip;
use crate::event::{DialId, Effect, StreamId};
use crate::inplace::{Heard, open_compound, open_envelope};
use crate::io::{Io, Out};
use crate::sync::{self, Purpose};

/// Compounds of events hold events only; nothing nests deeper.
const DEPTH_MAX: usize = 3;
/// Strangers are asked who they are no more often.
const MEET_INTERVAL: Duration = Duration::from_millis(200);

impl Gossip {
    pub(crate) fn receive_packet(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Vec<Out>,
    ) {
        let Ok(plain) = open_packet(&self.ciphers, bytes) else {
            return self.counters.add("packet_not_opened", 1);
        };
        let (messages, malformed) = unpack(&plain);
        self.counters.add("malformed", malformed as u64);
        for message in messages {
            self.receive(now, from, message, out);
            self.carry(now, out);
        }
    }

    fn receive(&mut self, now: Instant, from: SocketAddr, message: Message, out: &mut Vec<Out>) {
        let Self { dice, swim, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        match message {
            Message::Ping(ping) => {
                swim.heard_ping(&mut io, from, &ping);
                let source = ping.source.address.filter(|address| address.port() != 0);
                self.meet(now, source.unwrap_or(from), out);
            }
            Message::IndirectPing { seq, target, node, nack, source } => {
                let asker = source.address.filter(|address| address.port() != 0).unwrap_or(from);
                swim.heard_indirect_ping(&mut io, asker, seq, target, node, nack);
            }
            Message::Ack { seq, .. } => self.receive_ack(now, from, seq, out),
            Message::Nack { seq } => swim.heard_nack(seq),
            Message::Suspect(accusation) => swim.heard_suspect(&mut io, accusation),
            Message::Alive(alive) => swim.heard_alive(&mut io, alive),
            Message::Dead(accusation) => swim.heard_dead(&mut io, accusation),
            Message::User(bytes) => self.receive_user(now, &bytes, false, DEPTH_MAX, out),
        }
    }

    fn receive_ack(&mut self, now: Instant, from: SocketAddr, seq: u32, out: &mut Vec<Out>) {
        let Self { dice, swim, counters, paths, .. } = self;
        let mut io = Io { now, dice, out, counters };
        if paths.heard_ack(seq) {
            return;
        }
        // What another node has heard for this one did not come by the direct way.
        let asked = swim.asked(seq).filter(|to| to.ip() != from.ip().to_canonical());
        if let Some(to) = asked {
            paths.doubt(&mut io, to);
        }
        swim.heard_ack(&mut io, seq);
    }

    /// A node that asks and is not known here knows more: this one has just started again.
    fn meet(&mut self, now: Instant, address: SocketAddr, out: &mut Vec<Out>) {
        let known = self.swim.nodes.values().any(|node| node.member.address == address);
        if !known && self.meet_at.is_none_or(|at| at <= now) {
            self.meet_at = Some(now + MEET_INTERVAL);
            self.dial_push_pull(now, address, true, out);
        }
    }

    /// A message of NetworkDB; `bulk` inside a bulk sync.
    fn receive_user(
        &mut self,
        now: Instant,
        bytes: &[u8],
        bulk: bool,
        depth: usize,
        out: &mut Vec<Out>,
    ) {
        let Some(((kind, data), depth)) = open_envelope(bytes).zip(depth.checked_sub(1)) else {
            return self.counters.add("malformed", 1);
        };
        let Self { dice, database, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        let read = match pb::MessageType::try_from(kind) {
            Ok(pb::MessageType::NodeEvent) => pb::NodeEvent::decode(data)
                .map(|event| database.heard_node_event(&mut io, &event, true))
                .map_err(|_| Malformed),
            Ok(pb::MessageType::NetworkEvent) => pb::NetworkEvent::decode(data)
                .map(|event| database.heard_network_event(&mut io, &event, true))
                .map_err(|_| Malformed),
            Ok(pb::MessageType::TableEvent) => Heard::read(data)
                .map(|event| database.heard_row(&mut io, &event, bulk))
                .ok_or(Malformed),
            Ok(pb::MessageType::Compound) => {
                open_compound(data, |part| self.receive_user(now, part, bulk, depth, out))
                    .ok_or(Malformed)
            }
            Ok(pb::MessageType::BulkSync) => pb::BulkSyncMessage::decode(data)
                .map(|sync| self.receive_bulk_sync(now, sync, depth, out))
                .map_err(|_| Malformed),
            Ok(pb::MessageType::Digest) => pb::Digest::decode(data)
                .map(|digest| self.receive_digest(now, &digest, out))
                .map_err(|_| Malformed),
            Ok(pb::MessageType::Applied) => pb::Applied::decode(data)
                .map(|applied| {
                    let by = applied.node_name;
                    match database.peers.contains_key(&by) {
                        true => io.effect(Effect::Applied { by, rows: applied.rows }),
                        false => io.count("applied_by_stranger"),
                    }
                })
                .map_err(|_| Malformed),
            Ok(pb::MessageType::PushPull | pb::MessageType::Invalid) | Err(_) => {
                return self.counters.add("message_unknown", 1);
            }
        };
        if read.is_err() {
            self.counters.add("malformed", 1);
        }
    }

    fn receive_digest(&mut self, now: Instant, digest: &pb::Digest, out: &mut Vec<Out>) {
        let Self { dice, database, dials, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        if let Some(to) = sync::heard_digest(database, dials, &mut io, digest) {
            self.dial_push_pull(now, to, false, out);
        }
    }

    fn receive_bulk_sync(
        &mut self,
        now: Instant,
        message: pb::BulkSyncMessage,
        depth: usize,
        out: &mut Vec<Out>,
    ) {
        if message.node_name == self.swim.name {
            return;
        }
        {
            let Self { dice, database, counters, .. } = self;
            let mut io = Io { now, dice, out, counters };
            if !database.witness_table(&mut io, message.l_time) {
                return;
            }
        }
        let refused = self.counters.of("row_of_stranger");
        self.receive_user(now, &message.payload, true, depth, out);
        if !message.incomplete && self.counters.of("row_of_stranger") == refused {
            self.synced(&message, out);
        }
        if !message.unsolicited {
            return;
        }
        let Self { dice, database, dials, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        let Some(peer) = database.peers.get(&message.node_name) else {
            return io.count("sync_of_stranger");
        };
        let to = peer.member.address;
        for network in message.networks.into_iter().map(NetworkId::new) {
            if database.networks.get(&network).is_some_and(|network| network.ours.is_some()) {
                sync::send_table(database, dials, &mut io, to, &network, false);
            }
        }
    }

    /// The first whole table from a node that is known to be on the network.
    fn synced(&mut self, message: &pb::BulkSyncMessage, out: &mut Vec<Out>) {
        for network in message.networks.iter().map(|id| NetworkId::new(id.clone())) {
            let Some(known) = self.database.networks.get_mut(&network) else { continue };
            let there = known.attachments.get(&message.node_name).is_some_and(|it| !it.leaving);
            if let Some(ours) = known.ours.as_mut().filter(|ours| there && !ours.synced) {
                ours.synced = true;
                out.push(Out::Effect(Effect::Synced { network }));
            }
        }
    }

    pub(crate) fn receive_stream(
        &mut self,
        now: Instant,
        stream: StreamId,
        bytes: &[u8],
        out: &mut Vec<Out>,
    ) {
        let Some(message) = self.open_stream(bytes) else {
            return out.push(Out::Effect(Effect::CloseStream { stream }));
        };
        match message {
            StreamMessage::PushPull { nodes, user, .. } => {
                let message = sync::push_pull(&self.swim, &self.database, false);
                out.push(Out::Reply { stream, message });
                self.merge(now, nodes, &user, out);
            }
            StreamMessage::User(bytes) => {
                out.push(Out::Effect(Effect::CloseStream { stream }));
                self.receive_user(now, &bytes, false, DEPTH_MAX + 1, out);
            }
            StreamMessage::Ping(ping) if ping.node.is_empty() || ping.node == self.swim.name => {
                let message = StreamMessage::Ack { seq: ping.seq }.encode().into();
                out.push(Out::Reply { stream, message });
            }
            StreamMessage::Ping(_) => {
                self.counters.add("ping_for_another", 1);
                out.push(Out::Effect(Effect::CloseStream { stream }));
            }
            StreamMessage::Ack { .. } | StreamMessage::Error(_) => {
                self.counters.add("message_unknown", 1);
                out.push(Out::Effect(Effect::CloseStream { stream }));
            }
        }
    }

    pub(crate) fn receive_reply(
        &mut self,
        now: Instant,
        dial: DialId,
        bytes: &[u8],
        out: &mut Vec<Out>,
    ) {
        let Some((purpose, from)) = self.dials.close(dial) else { return };
        match (self.open_stream(bytes), purpose) {
            (Some(StreamMessage::PushPull { nodes, user, .. }), Purpose::PushPull) => {
                self.merge(now, nodes, &user, out);
            }
            (Some(StreamMessage::Ack { seq }), Purpose::Ping { seq: asked }) if seq == asked => {
                let Self { dice, swim, counters, paths, .. } = self;
                let mut io = Io { now, dice, out, counters };
                io.count("probe_by_tcp");
                paths.doubt(&mut io, from);
                swim.heard_ack(&mut io, seq);
            }
            // A frame that cannot be opened came this way as well.
            (_, Purpose::Try { seq }) => self.paths.heard_tcp(from, seq, true),
            (Some(_), _) => self.counters.add("message_unknown", 1),
            (None, _) => {}
        }
    }

    fn open_stream(&mut self, bytes: &[u8]) -> Option<StreamMessage> {
        let Ok(plain) = open_frame(&self.ciphers, bytes) else {
            self.counters.add("stream_not_opened", 1);
            return None;
        };
        let message = StreamMessage::decode(&plain).ok();
        if message.is_none() {
            self.counters.add("malformed", 1);
        }
        message
    }

    /// Takes over the other side of a push/pull.
    fn merge(
        &mut self,
        now: Instant,
        nodes: Vec<wire::memberlist::NodeState>,
        user: &[u8],
        out: &mut Vec<Out>,
    ) {
        {
            let Self { dice, swim, counters, .. } = self;
            let mut io = Io { now, dice, out, counters };
            swim.merge(&mut io, nodes);
        }
        self.carry(now, out);
        let Self { dice, database, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        sync::merge_networks(database, &mut io, user);
        self.carry(now, out);
    }

    pub(crate) fn stream_failed(&mut self, now: Instant, dial: DialId, out: &mut Vec<Out>) {
        let Some((purpose, to)) = self.dials.close(dial) else { return };
        self.counters.add("stream_failed", 1);
        if let Purpose::Try { seq } = purpose {
            return self.paths.heard_tcp(to, seq, false);
        }
        let Self { dice, counters, paths, .. } = self;
        paths.doubt(&mut Io { now, dice, out, counters }, to);
        if let Purpose::BulkSync { network } = purpose
            && let Some(network) = self.database.networks.get_mut(&network)
            && let Some(ours) = &mut network.ours
        {
            // Another partner is tried soon.
            ours.hurried = ours.hurried.max(1);
            let soon = now + std::time::Duration::from_secs(1);
            ours.sync_at = Some(ours.sync_at.map_or(soon, |at| at.min(soon)));
        }
    }
}

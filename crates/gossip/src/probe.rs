//! memberlist's failure detector: one node a second is asked directly, then through others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use model::Instant;
use rand::seq::SliceRandom;
use wire::memberlist::stream::State;
use wire::memberlist::{Accusation, Message, Ping, Source, StreamMessage};

use crate::event::Member;
use crate::io::Io;
use crate::swim::{PROBE_INTERVAL, Swim};

const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const INDIRECT_CHECKS: usize = 3;
/// Pings that this node makes for others at a time; further requests are dropped.
const RELAYS_MAX: usize = 1_024;

/// The probing of all nodes, one after another.
#[derive(Default)]
pub(crate) struct Prober {
    /// Names in the order in which they are asked.
    pub order: Vec<String>,
    at: usize,
    next_seq: u32,
    current: Option<Probe>,
    relays: BTreeMap<u32, Relay>,
    pub next: Option<Instant>,
}

/// The node that is being asked.
struct Probe {
    member: Member,
    incarnation: u32,
    seq: u32,
    /// When others are asked to ask; `None` once they are.
    indirect_at: Option<Instant>,
    gives_up_at: Instant,
    nacks_wanted: u32,
    nacks: u32,
}

/// A ping on behalf of another node.
struct Relay {
    asker: SocketAddr,
    asker_seq: u32,
    nack: bool,
    until: Instant,
}

/// A last attempt over TCP, for the step to dial.
pub(crate) struct TcpPing {
    pub to: SocketAddr,
    pub seq: u32,
    pub message: StreamMessage,
}

impl Prober {
    pub fn seq(&mut self) -> u32 {
        self.next_seq = self.next_seq.wrapping_add(1);
        self.next_seq
    }

    pub fn deadline(&self) -> Option<Instant> {
        let probe =
            self.current.as_ref().map(|probe| probe.indirect_at.unwrap_or(probe.gives_up_at));
        let relays = self.relays.values().map(|relay| relay.until).min();
        [self.next, probe, relays].into_iter().flatten().min()
    }
}

impl Swim {
    /// Does what is due; a probe that needs TCP comes back.
    pub fn probe(&mut self, io: &mut Io<'_>) -> Option<TcpPing> {
        self.expire_relays(io);
        let mut last_attempt = None;
        match &self.prober.current {
            Some(probe) if probe.gives_up_at <= io.now => self.give_up(io),
            Some(probe) if probe.indirect_at.is_some_and(|at| at <= io.now) => {
                last_attempt = self.ask_others(io);
            }
            _ => {}
        }
        if self.prober.next.is_none_or(|next| next <= io.now) && self.prober.current.is_none() {
            self.prober.next = Some(io.now + PROBE_INTERVAL);
            if !self.is_leaving() {
                self.probe_next(io);
            }
        }
        last_attempt
    }

    fn probe_next(&mut self, io: &mut Io<'_>) {
        for _ in 0..=self.prober.order.len() {
            if self.prober.at >= self.prober.order.len() {
                self.begin_round(io);
            }
            let Some(name) = self.prober.order.get(self.prober.at).cloned() else { return };
            self.prober.at += 1;
            let Some(node) = self.nodes.get(&name) else { continue };
            if matches!(node.state, State::Alive | State::Suspect) {
                return self.ask(io, &name);
            }
        }
    }

    fn begin_round(&mut self, io: &mut Io<'_>) {
        self.forget_dead(io.now);
        self.prober.order = self.nodes.keys().filter(|name| **name != self.name).cloned().collect();
        self.prober.order.shuffle(io.dice);
        self.prober.at = 0;
    }

    fn ask(&mut self, io: &mut Io<'_>, name: &str) {
        let Some(node) = self.nodes.get(name).cloned() else { return };
        let seq = self.prober.seq();
        let source = self.source();
        let ping = Message::Ping(Ping { seq, node: name.to_owned(), source });
        let mut messages = vec![ping.encode()];
        if node.state == State::Suspect {
            // Told at once, so that it can object at once.
            let accusation = Accusation {
                incarnation: node.incarnation,
                node: name.to_owned(),
                from: self.name.clone(),
            };
            messages.push(Message::Suspect(accusation).encode());
        }
        self.send(io, node.member.address, messages);
        let interval = self.scaled(PROBE_INTERVAL);
        self.prober.next = Some(io.now + interval);
        self.prober.current = Some(Probe {
            member: node.member,
            incarnation: node.incarnation,
            seq,
            indirect_at: Some(io.now + PROBE_TIMEOUT.min(interval)),
            gives_up_at: io.now + interval,
            nacks_wanted: 0,
            nacks: 0,
        });
    }

    pub fn source(&self) -> Source {
        Source { address: Some(self.advertise), node: self.name.clone() }
    }

    fn ask_others(&mut self, io: &mut Io<'_>) -> Option<TcpPing> {
        let source = self.source();
        let probe = self.prober.current.as_mut()?;
        probe.indirect_at = None;
        let target = probe.member.clone();
        let seq = probe.seq;
        let others: Vec<SocketAddr> = self
            .nodes
            .values()
            .filter(|node| node.state == State::Alive)
            .map(|node| &node.member)
            .filter(|member| member.name != self.name && member.name != target.name)
            .map(|member| member.address)
            .collect();
        let asked = io.pick(others, INDIRECT_CHECKS);
        probe.nacks_wanted = asked.len() as u32;
        for to in asked {
            let request = Message::IndirectPing {
                seq,
                target: target.address,
                node: target.name.clone(),
                nack: true,
                source: source.clone(),
            };
            self.send(io, to, vec![request.encode()]);
        }
        let message = StreamMessage::Ping(Ping { seq, node: target.name, source });
        Some(TcpPing { to: target.address, seq, message })
    }

    fn give_up(&mut self, io: &mut Io<'_>) {
        let Some(probe) = self.prober.current.take() else { return };
        // Helpers that do not even say that they failed mean that this node's own link is bad.
        let silent = probe.nacks_wanted.saturating_sub(probe.nacks);
        self.feel(if probe.nacks_wanted > 0 { silent as i32 } else { 1 });
        let accusation = Accusation {
            incarnation: probe.incarnation,
            node: probe.member.name,
            from: self.name.clone(),
        };
        self.heard_suspect(io, accusation);
    }

    /// Whom the question was for that is being waited for.
    pub fn asked(&self, seq: u32) -> Option<SocketAddr> {
        let current = self.prober.current.as_ref().filter(|probe| probe.seq == seq);
        current.map(|probe| probe.member.address)
    }

    /// An answer to a ping of this node, its own or on behalf of another.
    pub fn heard_ack(&mut self, io: &mut Io<'_>, seq: u32) {
        if let Some(relay) = self.prober.relays.remove(&seq) {
            let ack = Message::Ack { seq: relay.asker_seq, payload: Vec::new() };
            self.send(io, relay.asker, vec![ack.encode()]);
        } else if self.prober.current.as_ref().is_some_and(|probe| probe.seq == seq) {
            self.prober.current = None;
            self.feel(-1);
        } else {
            io.count("ack_unexpected");
        }
    }

    pub fn heard_nack(&mut self, seq: u32) {
        if let Some(probe) = &mut self.prober.current
            && probe.seq == seq
        {
            probe.nacks += 1;
        }
    }

    pub fn heard_ping(&mut self, io: &mut Io<'_>, from: SocketAddr, ping: &Ping) {
        if !ping.node.is_empty() && ping.node != self.name {
            return io.count("ping_for_another");
        }
        if self.is_leaving() {
            return;
        }
        let to = ping.source.address.filter(|address| address.port() != 0).unwrap_or(from);
        let ack = Message::Ack { seq: ping.seq, payload: Vec::new() };
        self.send(io, to, vec![ack.encode()]);
    }

    /// Another node asks this one to ask a third.
    pub fn heard_indirect_ping(
        &mut self,
        io: &mut Io<'_>,
        asker: SocketAddr,
        asker_seq: u32,
        target: SocketAddr,
        node: String,
        nack: bool,
    ) {
        if self.prober.relays.len() >= RELAYS_MAX {
            return io.count("relays_full");
        }
        let seq = self.prober.seq();
        let until = io.now + PROBE_TIMEOUT;
        self.prober.relays.insert(seq, Relay { asker, asker_seq, nack, until });
        let ping = Message::Ping(Ping { seq, node, source: self.source() });
        self.send(io, target, vec![ping.encode()]);
    }

    fn expire_relays(&mut self, io: &mut Io<'_>) {
        let due: Vec<u32> = self
            .prober
            .relays
            .iter()
            .filter(|(_, relay)| relay.until <= io.now)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in due {
            if let Some(relay) = self.prober.relays.remove(&seq)
                && relay.nack
            {
                let nack = Message::Nack { seq: relay.asker_seq };
                self.send(io, relay.asker, vec![nack.encode()]);
            }
        }
    }
}

//! memberlist: who is there. Every change of a node's state goes through one of four functions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::Instant;
use model::agenda::Agenda;
use wire::memberlist::stream::State;
use wire::memberlist::{Accusation, Alive, Message, NodeState, VSN};

use crate::event::{Config, Member};
use crate::io::Io;
use crate::probe::Prober;
use crate::queue::Queue;
use crate::suspicion::Suspicion;

pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const GOSSIP_NODES: usize = 3;
/// Packets for each of them and tick, while something was not told to as many yet.
const PACKETS_PER_TICK: usize = 16;
/// So many nodes are looked at to find a few of a kind.
const PICKED_FROM: usize = 24;
/// Failed nodes still hear what is said about them for so long, so that they can object.
const GOSSIP_TO_DEAD: Duration = Duration::from_secs(30);
const PUSH_PULL_INTERVAL: Duration = Duration::from_secs(30);
/// Up to so many nodes the push/pull interval is not stretched.
const PUSH_PULL_NODES: f64 = 32.0;
/// Beyond this no new node is taken in: far more than one swarm's gossip can carry.
const NODES_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 128;
/// memberlist's own bound.
const META_BYTES_MAX: usize = 512;
/// An incarnation that leaps further was made up.
const INCARNATION_LEAP_MAX: u32 = 1 << 24;
/// memberlist's `AwarenessMaxMultiplier`.
const AWARENESS_MAX: u32 = 8;
/// Around every message in a compound.
const PART_OVERHEAD: usize = 2;
/// Around a compound: kind and count; and a checksum and the seal.
const PACKET_OVERHEAD: usize = 2 + 5 + wire::memberlist::seal::OVERHEAD_BYTES;

/// A node as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub member: Member,
    pub incarnation: u32,
    pub state: State,
    pub changed: Instant,
    pub vsn: Vec<u8>,
    pub suspicion: Option<Suspicion>,
}

/// What the layer above hears.
#[derive(Debug)]
pub(crate) enum Notice {
    Up(Member),
    Updated(Member),
    Failed(String),
    Left(String),
    /// Others took this node for failed: what it announced may be gone there.
    Accused,
}

pub(crate) struct Swim {
    pub name: String,
    pub advertise: SocketAddr,
    meta: Vec<u8>,
    packet_bytes_max: usize,
    incarnation: u32,
    pub nodes: BTreeMap<String, Node>,
    /// Those of them that are suspected, and when their respite is over.
    suspects: Agenda,
    /// Counts the changes of what is known of nodes.
    pub version: u64,
    /// Everything that is told around, the layer above's events included.
    pub queue: Queue,
    pub prober: Prober,
    pub notices: Vec<Notice>,
    leaving: bool,
    /// How badly this node itself does: it gives the others more time.
    awareness: u32,
}

impl Swim {
    pub fn new(config: &Config) -> Self {
        Self {
            name: config.name.clone(),
            advertise: config.advertise,
            meta: config.meta.clone(),
            packet_bytes_max: config.packet_bytes_max,
            incarnation: 0,
            nodes: BTreeMap::new(),
            suspects: Agenda::default(),
            version: 0,
            queue: Queue::default(),
            prober: Prober::default(),
            notices: Vec::new(),
            leaving: false,
            awareness: 0,
        }
    }

    /// Takes this node in as the first one.
    pub fn begin(&mut self, now: Instant) {
        self.incarnation = 1;
        let me =
            Member { name: self.name.clone(), address: self.advertise, meta: self.meta.clone() };
        let node = Node {
            member: me,
            incarnation: self.incarnation,
            state: State::Alive,
            changed: now,
            vsn: VSN.to_vec(),
            suspicion: None,
        };
        self.nodes.insert(self.name.clone(), node);
        self.announce();
    }

    /// The name of the node at an address, as far as one is known.
    pub fn name_at(&self, address: SocketAddr) -> Option<String> {
        let found = self.alive().find(|node| node.member.address == address);
        found.map(|node| node.member.name.clone())
    }

    /// The nodes that count as there: alive or suspected.
    pub fn alive(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| matches!(node.state, State::Alive | State::Suspect))
    }

    /// Up to so many other nodes that are there, at random.
    pub fn pick_alive(&self, io: &mut Io<'_>, count: usize) -> Vec<&Member> {
        let there = |node: &Node| matches!(node.state, State::Alive | State::Suspect);
        self.pick(io, count, there)
    }

    /// Another node of ours.
    pub fn pick_skep(&self, io: &mut Io<'_>) -> Option<&Member> {
        let there = |node: &Node| {
            matches!(node.state, State::Alive | State::Suspect) && node.member.is_skep()
        };
        self.pick(io, 1, there).into_iter().next()
    }

    /// Up to `count` other nodes of a kind. All are looked at only where most are of another kind.
    fn pick(&self, io: &mut Io<'_>, count: usize, kind: impl Fn(&Node) -> bool) -> Vec<&Member> {
        let other = |node: &&Node| node.member.name != self.name && kind(node);
        let names = io.pick_of(&self.prober.order, PICKED_FROM);
        let nodes = names.into_iter().filter_map(|name| self.nodes.get(name));
        let picked: Vec<&Member> =
            nodes.filter(other).take(count).map(|node| &node.member).collect();
        if picked.len() == count || self.nodes.len() <= PICKED_FROM {
            return picked;
        }
        io.pick(self.nodes.values().filter(other).map(|node| &node.member).collect(), count)
    }

    fn announce(&mut self) {
        self.version += 1;
        let alive = Message::Alive(Alive {
            incarnation: self.incarnation,
            node: self.name.clone(),
            address: self.advertise,
            meta: self.meta.clone(),
            vsn: VSN,
        });
        self.queue.push(self.name.as_str(), alive.encode());
    }

    /// A node says that it is there, or another says so of it.
    pub fn heard_alive(&mut self, io: &mut Io<'_>, alive: Alive) {
        if alive.node == self.name {
            return self.heard_own_alive(io, &alive);
        }
        if alive.node.is_empty()
            || alive.node.len() > NAME_BYTES_MAX
            || alive.meta.len() > META_BYTES_MAX
            || alive.address.port() == 0
            || alive.address.ip().is_unspecified()
        {
            return io.count("node_refused");
        }
        let known = self.nodes.get(&alive.node);
        match known {
            Some(node) if alive.incarnation <= node.incarnation => return,
            Some(node)
                if node.member.address != alive.address
                    && !matches!(node.state, State::Dead | State::Left) =>
            {
                return io.count("node_conflict");
            }
            Some(node) if alive.incarnation - node.incarnation > INCARNATION_LEAP_MAX => {
                return io.count("node_refused");
            }
            None if self.nodes.len() >= NODES_MAX => return io.count("nodes_full"),
            _ => {}
        }
        let member =
            Member { name: alive.node.clone(), address: alive.address, meta: alive.meta.clone() };
        let was_there =
            known.is_some_and(|node| matches!(node.state, State::Alive | State::Suspect));
        let same_meta = known.is_some_and(|node| node.member.meta == alive.meta);
        let changed = match known {
            Some(node) if node.state == State::Alive => node.changed,
            _ => io.now,
        };
        let node = Node {
            member: member.clone(),
            incarnation: alive.incarnation,
            state: State::Alive,
            changed,
            vsn: alive.vsn.to_vec(),
            suspicion: None,
        };
        self.suspects.remove(&alive.node);
        let fresh = self.nodes.insert(alive.node.clone(), node).is_none();
        if fresh {
            let at = io.below(self.prober.order.len() + 1);
            self.prober.order.insert(at, alive.node.clone());
        }
        self.version += 1;
        let subject = alive.node.clone();
        self.queue.push(subject, Message::Alive(alive).encode());
        match (was_there, same_meta) {
            (false, _) => self.notices.push(Notice::Up(member)),
            (true, false) => self.notices.push(Notice::Updated(member)),
            (true, true) => {}
        }
    }

    /// Someone else speaks in this node's name: an older life of it, or a lie.
    fn heard_own_alive(&mut self, io: &mut Io<'_>, alive: &Alive) {
        let same = alive.meta == self.meta && alive.address == self.advertise;
        if alive.incarnation > self.incarnation || (alive.incarnation == self.incarnation && !same)
        {
            self.refute(io, alive.incarnation);
        }
    }

    /// A node does not answer somebody.
    pub fn heard_suspect(&mut self, io: &mut Io<'_>, accusation: Accusation) {
        if accusation.node == self.name {
            if accusation.incarnation >= self.incarnation {
                self.refute(io, accusation.incarnation);
            }
            return;
        }
        let count = self.nodes.len();
        let Some(node) = self.nodes.get_mut(&accusation.node) else { return };
        if accusation.incarnation < node.incarnation {
            return;
        }
        if let Some(suspicion) = &mut node.suspicion {
            if suspicion.confirm(accusation.from.clone()) {
                self.suspects.set(accusation.node.as_str(), suspicion.deadline());
                let subject = accusation.node.clone();
                self.queue.push(subject, Message::Suspect(accusation).encode());
            }
            return;
        }
        if node.state != State::Alive {
            return;
        }
        io.count("suspected");
        node.state = State::Suspect;
        node.incarnation = accusation.incarnation;
        node.changed = io.now;
        let suspicion = Suspicion::new(io.now, accusation.from.clone(), count, PROBE_INTERVAL);
        self.suspects.set(accusation.node.as_str(), suspicion.deadline());
        node.suspicion = Some(suspicion);
        self.version += 1;
        let subject = accusation.node.clone();
        self.queue.push(subject, Message::Suspect(accusation).encode());
    }

    /// A node failed, or left when it says so itself.
    pub fn heard_dead(&mut self, io: &mut Io<'_>, accusation: Accusation) {
        if accusation.node == self.name && !self.leaving {
            if accusation.incarnation >= self.incarnation {
                self.refute(io, accusation.incarnation);
                self.notices.push(Notice::Accused);
            }
            return;
        }
        let Some(node) = self.nodes.get_mut(&accusation.node) else { return };
        if accusation.incarnation < node.incarnation
            || matches!(node.state, State::Dead | State::Left)
        {
            return;
        }
        let left = accusation.node == accusation.from;
        node.suspicion = None;
        self.suspects.remove(&accusation.node);
        self.version += 1;
        node.incarnation = accusation.incarnation;
        node.state = if left { State::Left } else { State::Dead };
        node.changed = io.now;
        let name = accusation.node.clone();
        self.queue.push(name.clone(), Message::Dead(accusation).encode());
        if name != self.name {
            io.count(if left { "left" } else { "failed" });
            self.notices.push(if left { Notice::Left(name) } else { Notice::Failed(name) });
        }
    }

    /// Says louder than the accusation that this node is there.
    fn refute(&mut self, io: &mut Io<'_>, accused: u32) {
        if accused.saturating_sub(self.incarnation) > INCARNATION_LEAP_MAX {
            return io.count("accusation_refused");
        }
        io.count("refuted");
        self.incarnation = accused.saturating_add(1);
        if let Some(me) = self.nodes.get_mut(&self.name) {
            me.incarnation = self.incarnation;
        }
        self.feel(1);
        self.announce();
    }

    /// A failing probe makes this node doubt itself, a good one heals it.
    pub fn feel(&mut self, delta: i32) {
        self.awareness = self.awareness.saturating_add_signed(delta).min(AWARENESS_MAX - 1);
    }

    pub fn scaled(&self, time: Duration) -> Duration {
        time * (self.awareness + 1)
    }

    /// This node goes; the others are told.
    pub fn leave(&mut self, io: &mut Io<'_>) {
        self.leaving = true;
        let goodbye = Accusation {
            incarnation: self.incarnation,
            node: self.name.clone(),
            from: self.name.clone(),
        };
        self.heard_dead(io, goodbye);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// What this node knows, for a push/pull.
    pub fn states(&self) -> Vec<NodeState> {
        let state = |node: &Node| NodeState {
            name: node.member.name.clone(),
            address: node.member.address,
            meta: node.member.meta.clone(),
            incarnation: node.incarnation,
            state: node.state,
            vsn: node.vsn.clone(),
        };
        self.nodes.values().map(state).collect()
    }

    /// Takes over what another node knows. Its dead are only suspects here: they may object.
    pub fn merge(&mut self, io: &mut Io<'_>, remote: Vec<NodeState>) {
        for node in remote {
            let from = self.name.clone();
            let accusation =
                Accusation { incarnation: node.incarnation, node: node.name.clone(), from };
            match node.state {
                State::Alive => {
                    let vsn = node.vsn.as_slice().try_into().unwrap_or(VSN);
                    self.heard_alive(
                        io,
                        Alive {
                            incarnation: node.incarnation,
                            node: node.name,
                            address: node.address,
                            meta: node.meta,
                            vsn,
                        },
                    );
                }
                State::Left => {
                    let from = node.name;
                    self.heard_dead(io, Accusation { from, ..accusation });
                }
                State::Dead | State::Suspect => {
                    let accused = node.state == State::Dead && accusation.node == self.name;
                    if accused && accusation.incarnation >= self.incarnation {
                        self.notices.push(Notice::Accused);
                    }
                    self.heard_suspect(io, accusation);
                }
            }
        }
    }

    /// Fails the suspects whose respite is over.
    pub fn expire_suspects(&mut self, io: &mut Io<'_>) {
        for name in self.suspects.take_due(io.now) {
            let Some(node) = self.nodes.get(&name) else { continue };
            let incarnation = node.incarnation;
            let from = self.name.clone();
            self.heard_dead(io, Accusation { incarnation, node: name, from });
        }
    }

    pub fn next_suspect(&self) -> Option<Instant> {
        self.suspects.first()
    }

    /// Tells a few nodes what is new.
    pub fn gossip(&mut self, io: &mut Io<'_>) {
        if self.queue.is_empty() {
            return;
        }
        let now = io.now;
        let hears = |node: &Node| {
            matches!(node.state, State::Alive | State::Suspect)
                || now.since(node.changed) < GOSSIP_TO_DEAD
        };
        for _ in 0..PACKETS_PER_TICK {
            let hearers = self.pick(io, GOSSIP_NODES, hears);
            let hearers: Vec<SocketAddr> = hearers.into_iter().map(|it| it.address).collect();
            for to in &hearers {
                let messages = self.take(0);
                if messages.is_empty() {
                    return;
                }
                io.send(*to, messages);
            }
            // After a cut between many nodes each has hundreds of things to say. What is new is told
            // to several nodes at once even so: who objects to be taken for dead must not wait for
            // a dozen seconds.
            if !self.queue.has_told_less(hearers.len()) {
                return;
            }
        }
    }

    /// Queued messages for the room that a packet has beside `used` bytes.
    fn take(&mut self, used: usize) -> Vec<Arc<[u8]>> {
        let room = self.packet_bytes_max.saturating_sub(PACKET_OVERHEAD + used);
        self.queue.take(room, PART_OVERHEAD, self.nodes.len())
    }

    /// Sends messages, and what is queued in the room that is left.
    pub fn send(&mut self, io: &mut Io<'_>, to: SocketAddr, messages: Vec<Vec<u8>>) {
        let mut messages: Vec<Arc<[u8]>> = messages.into_iter().map(Arc::from).collect();
        let used: usize = messages.iter().map(|message| message.len() + PART_OVERHEAD).sum();
        let room = self.packet_bytes_max.saturating_sub(PACKET_OVERHEAD + used);
        let extra = self.take(used);
        let size: usize = extra.iter().map(|message| message.len() + PART_OVERHEAD).sum();
        if size <= room && messages.len() + extra.len() <= wire::memberlist::packet::PARTS_MAX {
            messages.extend(extra);
        } else if !extra.is_empty() {
            // A message that needs a packet of its own must not endanger the ping.
            io.send(to, extra);
        }
        io.send(to, messages);
    }

    /// How many bytes of the layer above fit one packet.
    pub fn user_room(&self) -> usize {
        self.packet_bytes_max.saturating_sub(PACKET_OVERHEAD + 1)
    }

    /// How long until the next push/pull: longer in large clusters.
    pub fn push_pull_interval(&self) -> Duration {
        let nodes = self.nodes.len() as f64;
        if nodes <= PUSH_PULL_NODES {
            return PUSH_PULL_INTERVAL;
        }
        let stretch = (nodes.log2() - PUSH_PULL_NODES.log2()).ceil() + 1.0;
        PUSH_PULL_INTERVAL.mul_f64(stretch)
    }

    /// Forgets those that are gone for long enough that nobody speaks of them any more.
    pub fn forget_dead(&mut self, now: Instant) {
        let gone = |node: &Node| {
            matches!(node.state, State::Dead | State::Left)
                && now.since(node.changed) > GOSSIP_TO_DEAD
        };
        let name = self.name.clone();
        let before = self.nodes.len();
        self.nodes.retain(|_, node| node.member.name == name || !gone(node));
        self.version += u64::from(self.nodes.len() != before);
    }
}

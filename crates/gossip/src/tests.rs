//! Many nodes in virtual time: what they agree on after cuts, restarts, rotations and forgeries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use model::{Instant, NetworkId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wire::memberlist::{Cipher, Message, StreamMessage, seal_frame, seal_packet};
use wire::networkdb as pb;

use crate::database::envelope;
use crate::*;

mod answers;
mod forged;
mod long;
mod many;
mod overlays;
mod paths;
mod silent;
mod truth;

const TABLE: &str = ENDPOINT_TABLE;

fn key(lamport: u64) -> Key {
    Key { lamport, secret: [lamport as u8; 16] }
}

fn net() -> NetworkId {
    NetworkId::new("net1")
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, (node >> 8) as u8, node as u8)), 7946)
}

fn seconds(count: f64) -> Duration {
    Duration::from_secs_f64(count)
}

/// Nodes, the links between them, and what is under way.
struct World {
    now: Instant,
    dice: ChaCha8Rng,
    nodes: Vec<Option<Gossip>>,
    /// When each node is due next, and the same in order.
    due: Vec<Option<Instant>>,
    timers: BTreeSet<(Instant, usize)>,
    /// Pairs that do not hear each other.
    cut: BTreeSet<(usize, usize)>,
    /// Nodes inside and outside do not hear each other.
    split: std::ops::Range<usize>,
    /// Whose packets do not reach whom, and who cannot connect to whom.
    no_udp: BTreeSet<(usize, usize)>,
    no_tcp: BTreeSet<(usize, usize)>,
    /// Connections that are not let through are refused at once rather than swallowed.
    refusing: bool,
    loss: f64,
    under_way: BTreeMap<(Instant, u64), (usize, Event)>,
    count: u64,
    /// Who waits for the reply of an accepted stream.
    streams: BTreeMap<StreamId, (usize, DialId, bool)>,
    effects: Vec<(Instant, usize, Effect)>,
    /// Of hundreds of nodes nobody but their agents wants to see every effect.
    posts: Vec<overlays::Post>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now: Instant::from_nanos(1_000_000_000_000),
            dice: ChaCha8Rng::seed_from_u64(seed),
            nodes: Vec::new(),
            due: Vec::new(),
            timers: BTreeSet::new(),
            cut: BTreeSet::new(),
            split: 0..0,
            no_udp: BTreeSet::new(),
            no_tcp: BTreeSet::new(),
            refusing: false,
            loss: 0.0,
            under_way: BTreeMap::new(),
            count: 0,
            streams: BTreeMap::new(),
            effects: Vec::new(),
            posts: Vec::new(),
        }
    }

    /// So many nodes that have found each other through the first one and are on the network.
    fn joined(seed: u64, nodes: usize) -> Self {
        let mut world = Self::new(seed);
        for node in 0..nodes {
            world.start(node, &format!("{node:012x}"));
            world.give(node, Event::JoinNetwork { network: net() });
        }
        world.run(seconds(5.0));
        world
    }

    fn start(&mut self, node: usize, name: &str) {
        self.start_without_keys(node, name);
        self.give(node, Event::SetKeys(vec![key(1), key(2), key(3)]));
        self.give(node, Event::Join { addresses: vec![address(0)] });
    }

    fn start_without_keys(&mut self, node: usize, name: &str) {
        if self.nodes.len() <= node {
            self.nodes.resize_with(node + 1, || None);
            self.due.resize(node + 1, None);
        }
        let config = Config::new(name, address(node), self.dice.random());
        self.nodes[node] = Some(Gossip::new(config));
    }

    fn stop(&mut self, node: usize) {
        self.nodes[node] = None;
        self.mark_due(node, None);
        self.under_way.retain(|_, (to, _)| *to != node);
    }

    fn node(&self, node: usize) -> &Gossip {
        self.nodes[node].as_ref().unwrap()
    }

    fn give(&mut self, node: usize, event: Event) {
        let Some(gossip) = &mut self.nodes[node] else { return };
        let effects = gossip.step(self.now, event);
        let due = gossip.deadline();
        self.mark_due(node, due);
        for effect in effects {
            self.carry_out(node, effect);
        }
    }

    fn mark_due(&mut self, node: usize, due: Option<Instant>) {
        let before = std::mem::replace(&mut self.due[node], due);
        if before != due {
            before.map(|at| self.timers.remove(&(at, node)));
            due.map(|at| self.timers.insert((at, node)));
        }
    }

    fn later(&mut self, delay: Duration, node: usize, event: Event) {
        self.count += 1;
        self.under_way.insert((self.now + delay, self.count), (node, event));
    }

    fn hears(&self, from: usize, to: usize) -> bool {
        let apart = self.split.contains(&from) != self.split.contains(&to);
        !apart && !self.cut.contains(&(from.min(to), from.max(to)))
    }

    fn at(&self, address: SocketAddr) -> Option<usize> {
        let IpAddr::V4(ip) = address.ip() else { return None };
        let [_, _, high, low] = ip.octets();
        let node = usize::from(high) << 8 | usize::from(low);
        (node < self.nodes.len() && self::address(node) == address).then_some(node)
    }

    fn carry_out(&mut self, from: usize, effect: Effect) {
        let delay = Duration::from_micros(self.dice.random_range(200..2_000));
        match effect {
            Effect::SendPacket { to, bytes } => {
                let Some(to) = self.at(to) else { return };
                let open = self.hears(from, to) && !self.no_udp.contains(&(from, to));
                if open && !self.dice.random_bool(self.loss) {
                    self.later(delay, to, Event::Packet { from: address(from), bytes });
                }
            }
            Effect::OpenStream { dial, to, bytes, reply } => {
                let Some(to) = self.at(to) else { return };
                let shut = self.no_tcp.contains(&(from, to));
                if !self.hears(from, to) || shut && !self.refusing {
                    return self.later(seconds(10.0), from, Event::StreamFailed { dial });
                }
                if self.nodes[to].is_none() || shut {
                    return self.later(delay, from, Event::StreamFailed { dial });
                }
                self.count += 1;
                let stream = StreamId(self.count);
                self.streams.insert(stream, (from, dial, reply));
                self.later(delay, to, Event::StreamRequest { stream, from: address(from), bytes });
                if !reply {
                    self.later(delay, from, Event::StreamSent { dial });
                }
            }
            Effect::ReplyStream { stream, bytes } => {
                let Some((to, dial, _)) = self.streams.remove(&stream) else { return };
                let event = if self.hears(from, to) {
                    Event::StreamReply { dial, bytes }
                } else {
                    Event::StreamFailed { dial }
                };
                self.later(delay, to, event);
            }
            Effect::CloseStream { stream } => {
                if let Some((to, dial, true)) = self.streams.remove(&stream) {
                    self.later(delay, to, Event::StreamFailed { dial });
                }
            }
            // A host refuses where no daemon listens.
            Effect::AskHost { name, to } => {
                if self.at(to).is_some_and(|to| self.hears(from, to)) {
                    self.later(delay, from, Event::HostAnswered { name });
                }
            }
            effect => match self.posts.get_mut(from) {
                Some(post) => {
                    let said = post.hear(&effect);
                    self.say(from, said);
                }
                None => self.effects.push((self.now, from, effect)),
            },
        }
    }

    /// What a node's agent wants of its gossip.
    fn say(&mut self, node: usize, events: Vec<Event>) {
        for event in events {
            self.give(node, event);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = self.timers.first().copied();
            let delivery = self.under_way.keys().next().copied();
            match (timer, delivery) {
                (Some((at, node)), next) if at <= end && next.is_none_or(|(then, _)| at < then) => {
                    self.now = self.now + at.since(self.now);
                    self.give(node, Event::Deadline);
                }
                (_, Some(next)) if next.0 <= end => {
                    self.now = next.0;
                    let (node, event) = self.under_way.remove(&next).unwrap();
                    self.give(node, event);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn put(&mut self, node: usize, key: &str, value: &str) {
        let (table, key, value) = (TABLE.to_owned(), key.to_owned(), value.as_bytes().to_vec());
        self.give(node, Event::PutRow { network: net(), table, key, value });
    }

    fn delete(&mut self, node: usize, key: &str) {
        let (table, key) = (TABLE.to_owned(), key.to_owned());
        self.give(node, Event::DeleteRow { network: net(), table, key });
    }

    /// What a node would tell its containers: key, value, whether the owner answers.
    fn table(&self, node: usize) -> Vec<(String, String, bool)> {
        let rows = self.node(node).rows(&net(), TABLE).into_iter();
        rows.map(|(key, row)| (key, String::from_utf8(row.value).unwrap(), row.owner_up)).collect()
    }

    fn living(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_some()).collect()
    }

    /// All living nodes have the same rows, the expected ones, and see each other on the network.
    fn check_agreed(&self, expected: &BTreeMap<String, String>, what: &str) {
        let living = self.living();
        let expected: Vec<(String, String, bool)> =
            expected.iter().map(|(key, value)| (key.clone(), value.clone(), true)).collect();
        for node in &living {
            assert_eq!(self.node(*node).members().len(), living.len(), "{what}: members of {node}");
            assert_eq!(
                self.node(*node).peers(&net()).len(),
                living.len(),
                "{what}: peers of {node}"
            );
            let database = &self.node(*node).database;
            let counted = database.count_attachments();
            assert_eq!(database.attachments_digest(), counted, "{what}: digest of {node}");
            let table = self.table(*node);
            let lacking = expected.iter().filter(|row| !table.contains(row)).take(3);
            let lacking: Vec<_> = if table == expected { Vec::new() } else { lacking.collect() };
            assert!(
                table == expected,
                "{what}: node {node} has {} rows of {}, and lacks {lacking:?}",
                table.len(),
                expected.len()
            );
        }
    }

    fn counter(&self, node: usize, name: &str) -> u64 {
        self.node(node).counters().get(name).copied().unwrap_or_default()
    }
}

fn expected(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
    rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn rows_reach_every_node_within_milliseconds_and_go_as_fast() {
    let mut world = World::joined(1, 8);
    world.put(3, "a", "1");
    world.run(Duration::from_millis(20));
    world.check_agreed(&expected(&[("a", "1")]), "put");
    world.put(3, "a", "2");
    world.put(5, "b", "3");
    world.run(Duration::from_millis(20));
    world.check_agreed(&expected(&[("a", "2"), ("b", "3")]), "changed");
    world.delete(3, "a");
    world.run(Duration::from_millis(20));
    world.check_agreed(&expected(&[("b", "3")]), "deleted");
}

#[test]
fn a_thousand_rows_on_a_lossy_link_arrive() {
    let mut world = World::joined(2, 4);
    world.loss = 0.1;
    let mut rows = BTreeMap::new();
    for number in 0..1_000 {
        let (key, value) = (format!("{number:064x}"), "x".repeat(100));
        world.put(number % 4, &key, &value);
        rows.insert(key, value);
    }
    world.run(seconds(5.0));
    world.check_agreed(&rows, "thousand");
}

#[test]
fn a_node_that_joins_later_gets_what_was_said_before() {
    let mut world = World::joined(3, 4);
    world.put(1, "a", "1");
    world.put(2, "gone", "1");
    world.delete(2, "gone");
    world.run(seconds(60.0));
    world.start(4, "00000000000f");
    world.give(4, Event::JoinNetwork { network: net() });
    world.run(seconds(2.0));
    world.check_agreed(&expected(&[("a", "1")]), "late");
    world.give(4, Event::LeaveNetwork { network: net() });
    world.run(seconds(1.0));
    assert_eq!(world.node(0).peers(&net()).len(), 4);
    assert!(world.table(4).is_empty());
}

/// Cuts the nodes in two, changes rows on both sides, heals, and wants agreement in 10 seconds.
fn cut_and_heal(seed: u64, nodes: usize, length: f64) {
    let mut world = World::joined(seed, nodes);
    let mut rows = BTreeMap::new();
    for node in 0..nodes {
        world.put(node, &format!("old{node}"), "1");
        world.put(node, &format!("goes{node}"), "1");
        rows.insert(format!("old{node}"), "1".to_owned());
    }
    world.run(seconds(3.0));
    let split = 1 + world.dice.random_range(0..nodes - 1);
    world.cut = (0..split).flat_map(|a| (split..nodes).map(move |b| (a, b))).collect();
    let steps = 5;
    for step in 0..steps {
        world.run(seconds(length / f64::from(steps)));
        for node in 0..nodes {
            let (key, value) = (format!("new{node}"), format!("{step}"));
            world.put(node, &key, &value);
            rows.insert(key, value);
            world.delete(node, &format!("goes{node}"));
        }
    }
    world.cut.clear();
    world.run(seconds(10.0));
    world.check_agreed(&rows, &format!("seed {seed}, {nodes} nodes, cut for {length} s"));
}

#[test]
fn a_cut_link_leaves_no_trace_ten_seconds_after_it_is_mended() {
    for (seed, length) in [1.0, 10.0, 30.0, 120.0].into_iter().enumerate() {
        cut_and_heal(seed as u64, 2, length);
        cut_and_heal(seed as u64 + 10, 3, length);
        cut_and_heal(seed as u64 + 20, 12, length);
    }
}

#[test]
fn a_cut_between_thirty_nodes_leaves_no_trace() {
    cut_and_heal(5, 30, 60.0);
}

#[test]
fn a_silent_node_keeps_its_rows_marked_and_its_restart_changes_nothing() {
    let mut world = World::joined(6, 5);
    world.put(4, "a", "1");
    world.put(4, "b", "1");
    world.run(seconds(1.0));
    world.stop(4);
    world.run(seconds(40.0));
    assert_eq!(world.table(0), [("a".into(), "1".into(), false), ("b".into(), "1".into(), false)]);
    assert_eq!(world.node(0).peers(&net()).len(), 4);

    world.effects.clear();
    world.start(4, "000000000004");
    world.give(4, Event::JoinNetwork { network: net() });
    world.put(4, "a", "1");
    world.run(seconds(10.0));
    let removed = world.effects.iter().any(|(_, node, effect)| {
        *node != 4 && matches!(effect, Effect::RowChanged { new: None, .. })
    });
    assert!(!removed, "a restart under the same name removes nothing");
    // What the new life does not announce is taken back once it has settled.
    world.run(seconds(60.0));
    world.check_agreed(&expected(&[("a", "1")]), "settled");
}

#[test]
fn a_quick_restart_is_not_even_noticed() {
    let mut world = World::joined(7, 3);
    world.put(2, "a", "1");
    world.run(seconds(1.0));
    world.effects.clear();
    world.stop(2);
    world.run(seconds(2.0));
    world.start(2, "000000000002");
    world.give(2, Event::JoinNetwork { network: net() });
    world.put(2, "a", "1");
    world.run(seconds(30.0));
    world.check_agreed(&expected(&[("a", "1")]), "restarted");
    world.put(2, "a", "2");
    world.run(Duration::from_millis(300));
    world.check_agreed(&expected(&[("a", "2")]), "changed");
    let noticed = world.effects.iter().any(|(_, node, effect)| {
        *node != 2 && matches!(effect, Effect::RowChanged { new: None, .. } | Effect::NodeDown(_))
    });
    assert!(!noticed);
}

#[test]
fn a_new_name_on_an_address_buries_the_old_one() {
    let mut world = World::joined(8, 3);
    world.put(2, "old", "1");
    world.run(seconds(1.0));
    world.stop(2);
    world.start(2, "aaaaaaaaaaaa");
    world.give(2, Event::JoinNetwork { network: net() });
    world.put(2, "new", "1");
    world.run(seconds(10.0));
    for node in [0, 1] {
        assert_eq!(world.table(node), [("new".into(), "1".into(), true)]);
        assert_eq!(world.node(node).peers(&net()).len(), 3);
    }
}

#[test]
fn a_node_that_leaves_takes_its_rows_along_at_once() {
    let mut world = World::joined(9, 4);
    world.put(3, "a", "1");
    world.run(seconds(1.0));
    world.give(3, Event::LeaveCluster);
    world.run(seconds(1.0));
    world.stop(3);
    world.check_agreed(&BTreeMap::new(), "left");
    assert!(world.effects.iter().any(|(_, node, effect)| *node == 0
        && matches!(effect, Effect::NodeDown(member) if member.name == "000000000003")));
}

#[test]
fn a_manager_that_starts_later_is_found() {
    let mut world = World::new(10);
    for node in [1, 2, 0] {
        world.start(node, &format!("{node:012x}"));
        world.give(node, Event::JoinNetwork { network: net() });
        world.run(seconds(7.0));
    }
    world.check_agreed(&BTreeMap::new(), "found");
}

#[test]
fn keys_rotate_while_rows_flow() {
    let mut world = World::joined(11, 4);
    let mut rows = BTreeMap::new();
    for round in 1..5u64 {
        for node in 0..4 {
            let keys = (round + 1..round + 4).map(key).collect();
            world.give(node, Event::SetKeys(keys));
            let (name, value) = (format!("{node}"), format!("{round}"));
            world.put(node, &name, &value);
            rows.insert(name, value);
            // The others have not heard of the new keys yet.
            world.run(seconds(2.0));
        }
    }
    world.check_agreed(&rows, "rotated");
    for node in 0..4 {
        assert_eq!(world.counter(node, "packet_not_opened"), 0);
    }
}

#[test]
fn nothing_is_said_without_a_key() {
    let mut gossip = Gossip::new(Config::new("000000000000", address(0), [1; 32]));
    let mut now = Instant::from_nanos(1);
    let mut effects = gossip.step(now, Event::Join { addresses: vec![address(1)] });
    for _ in 0..100 {
        now = gossip.deadline().unwrap();
        effects.extend(gossip.step(now, Event::Deadline));
    }
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::SendPacket { .. } | Effect::OpenStream { .. }))
    );
}

fn row(owner: &str, key: &str, ltime: u64) -> Vec<u8> {
    let event = pb::TableEvent {
        r#type: 1,
        l_time: ltime,
        node_name: owner.into(),
        network_id: "net1".into(),
        table_name: TABLE.into(),
        key: key.into(),
        value: b"forged".to_vec(),
        residual_reap_time: 0,
    };
    Message::User(envelope(pb::MessageType::TableEvent, &event)).encode()
}

#[test]
fn garbage_wrong_keys_and_forged_rows_are_dropped_and_counted() {
    let mut world = World::joined(12, 3);
    world.put(0, "mine", "1");
    world.run(seconds(1.0));
    let (ours, theirs) = (Cipher::new(&[2; 16]).unwrap(), Cipher::new(&[9; 16]).unwrap());
    let from = address(1);
    let packet = |bytes| Event::Packet { from, bytes };
    for bytes in [vec![], vec![0; 40], seal_packet(&theirs, [0; 12], &row("000000000001", "x", 9))]
    {
        world.give(0, packet(bytes));
    }
    assert_eq!(world.counter(0, "packet_not_opened"), 3);
    for plain in [vec![], vec![77], vec![8, 0xff], vec![7, 9]] {
        world.give(0, packet(seal_packet(&ours, [0; 12], &plain)));
    }
    assert_eq!(world.counter(0, "malformed"), 4);
    world.give(0, packet(seal_packet(&ours, [0; 12], &row("ffffffffffff", "x", 9))));
    assert_eq!(world.counter(0, "row_of_stranger"), 1);
    world.give(0, packet(seal_packet(&ours, [0; 12], &row("000000000001", "x", u64::MAX))));
    assert_eq!(world.counter(0, "clock_refused"), 1);
    // Another node claims this node's row: the claim is answered, not believed.
    world.give(0, packet(seal_packet(&ours, [0; 12], &row("000000000001", "mine", 1_000))));
    world.run(seconds(1.0));
    world.check_agreed(&expected(&[("mine", "1")]), "forged");
    // A replayed packet changes nothing.
    let replayed = seal_packet(&ours, [0; 12], &row("000000000001", "mine", 1));
    world.give(2, packet(replayed.clone()));
    world.give(2, packet(replayed));
    world.check_agreed(&expected(&[("mine", "1")]), "replayed");
    let stream = StreamId(0);
    for bytes in [vec![], vec![10, 0, 0, 0, 1, 1], seal_frame(&theirs, [0; 12], &[0])] {
        world.give(0, Event::StreamRequest { stream, from, bytes });
    }
    assert_eq!(world.counter(0, "stream_not_opened"), 3);
}

#[test]
fn a_false_accusation_is_refuted() {
    let mut world = World::joined(13, 3);
    let cipher = Cipher::new(&[2; 16]).unwrap();
    let dead = Message::Dead(wire::memberlist::Accusation {
        incarnation: 1,
        node: "000000000001".into(),
        from: "000000000002".into(),
    });
    let bytes = seal_packet(&cipher, [0; 12], &dead.encode());
    world.give(0, Event::Packet { from: address(2), bytes });
    assert_eq!(world.node(0).members().len(), 2);
    world.run(seconds(5.0));
    world.check_agreed(&BTreeMap::new(), "refuted");
}

//! Paths on which one of the gossip's two protocols is blocked: who is told, when, and who is not.

use super::*;

/// What a node was told of the way to another.
fn told(world: &World, node: usize, to: usize) -> Vec<(Instant, PathState)> {
    let told = world.effects.iter().filter_map(|(at, by, effect)| match effect {
        Effect::Path { to: there, state } if *by == node && *there == address(to) => {
            Some((*at, *state))
        }
        _ => None,
    });
    told.collect()
}

fn states(world: &World, node: usize, to: usize) -> Vec<PathState> {
    told(world, node, to).into_iter().map(|(_, state)| state).collect()
}

fn nobody_told(world: &World) {
    let told = world.effects.iter().find(|(.., effect)| matches!(effect, Effect::Path { .. }));
    assert_eq!(told, None);
}

const UDP: PathState = PathState::Blocked { udp: true, tcp: false };
const TCP: PathState = PathState::Blocked { udp: false, tcp: true };
const BOTH: PathState = PathState::Blocked { udp: true, tcp: true };

/// Blocks a path for two minutes, and wants it named in time, once, and withdrawn in time.
fn named(nodes: usize, refusing: bool, expected: PathState) {
    let (here, there) = (nodes - 2, nodes - 1);
    let mut world = World::joined(3, nodes);
    world.refusing = refusing;
    let PathState::Blocked { udp, tcp } = expected else { panic!("{expected:?}") };
    if udp {
        world.no_udp = BTreeSet::from([(here, there)]);
    }
    if tcp {
        world.no_tcp = BTreeSet::from([(here, there)]);
    }
    // An answer by UDP is lost as a question is: neither end hears the other.
    let who = &[(here, there), (there, here)][..1 + usize::from(udp)];
    let begun = world.now;
    world.run(seconds(120.0));
    for (node, to) in who {
        let told = told(&world, *node, *to);
        let [(at, state)] = told[..] else { panic!("{nodes} nodes, {node} to {to}: {told:?}") };
        let after = at.since(begun);
        assert_eq!(state, expected, "{nodes} nodes");
        assert!(after >= seconds(15.0) && after < seconds(60.0), "{nodes} nodes: {after:?}");
    }
    assert_eq!(world.node(here).members().len(), nodes, "who is there is not changed by that");
    world.no_udp.clear();
    world.no_tcp.clear();
    let mended = world.now;
    world.run(seconds(60.0));
    for (node, to) in who {
        let told = told(&world, *node, *to);
        let [_, (at, PathState::Open)] = told[..] else { panic!("{node} to {to}: {told:?}") };
        assert!(at.since(mended) < seconds(20.0), "{:?}", at.since(mended));
    }
    let paths = world.effects.iter().filter(|(.., effect)| matches!(effect, Effect::Path { .. }));
    assert_eq!(paths.count(), who.len() * 2, "nobody else is told anything");
}

#[test]
fn a_path_without_udp_is_named_at_both_ends() {
    for nodes in [2, 3, 8] {
        named(nodes, false, UDP);
    }
}

#[test]
fn a_path_without_tcp_is_named_by_the_end_that_cannot_connect() {
    for nodes in [2, 3, 8] {
        named(nodes, false, TCP);
        named(nodes, true, TCP);
    }
}

#[test]
fn two_nodes_that_only_others_connect_are_named() {
    let mut world = World::joined(4, 4);
    world.cut = BTreeSet::from([(1, 2)]);
    world.run(seconds(90.0));
    assert_eq!(states(&world, 1, 2), [BOTH]);
    assert_eq!(states(&world, 2, 1), [BOTH]);
    world.cut.clear();
    world.run(seconds(30.0));
    assert_eq!(states(&world, 1, 2), [BOTH, PathState::Open]);
}

#[test]
fn nodes_that_are_down_restart_or_come_back_are_no_blocked_path() {
    let mut world = World::joined(5, 4);
    for round in 0..6 {
        world.stop(2);
        world.run(seconds(f64::from(round) * 4.0 + 0.5));
        world.start(2, &format!("00000000100{round}"));
        world.give(2, Event::JoinNetwork { network: net() });
        world.run(seconds(7.0));
    }
    world.stop(3);
    world.run(seconds(120.0));
    nobody_told(&world);
}

#[test]
fn lost_packets_are_no_blocked_path() {
    for seed in 0..4 {
        let mut world = World::joined(seed, 5);
        world.loss = 0.2;
        world.run(seconds(900.0));
        nobody_told(&world);
    }
}

#[test]
fn cuts_of_any_length_are_no_blocked_path() {
    for length in [1.0, 5.0, 10.0, 20.0, 60.0] {
        let mut world = World::joined(7, 5);
        for _ in 0..4 {
            world.split = 3..5;
            world.run(seconds(length));
            world.split = 0..0;
            world.run(seconds(15.0));
        }
        nobody_told(&world);
    }
}

/// They cannot exchange what they know, and meet because an answer carries news.
#[test]
fn a_manager_that_cannot_be_joined_by_tcp_is_named() {
    let mut world = World::new(8);
    world.no_tcp = BTreeSet::from([(1, 0), (0, 1)]);
    world.start(0, "000000000000");
    world.start(1, "000000000001");
    world.run(seconds(60.0));
    assert_eq!(world.node(1).members().len(), 2);
    assert_eq!(states(&world, 1, 0), [TCP]);
    world.no_tcp.clear();
    world.run(seconds(30.0));
    assert_eq!(states(&world, 1, 0), [TCP, PathState::Open]);
}

#[test]
fn what_was_known_of_a_path_goes_with_the_node() {
    let mut world = World::joined(9, 4);
    world.no_udp = BTreeSet::from([(1, 2)]);
    world.run(seconds(60.0));
    assert_eq!(states(&world, 1, 2), [UDP]);
    world.stop(2);
    world.run(seconds(60.0));
    assert_eq!(states(&world, 1, 2), [UDP, PathState::Unknown]);
    assert_eq!(world.counter(1, "path_blocked_udp"), 1);
    assert_eq!(world.counter(1, "path_unknown"), 1);
}

#[test]
fn a_node_reached_by_one_path_only_is_not_suspected_to_death() {
    let mut world = World::joined(14, 5);
    world.cut.insert((0, 4));
    world.effects.clear();
    world.run(seconds(120.0));
    let failed = world.effects.iter().any(|(_, _, effect)| matches!(effect, Effect::NodeDown(_)));
    assert!(!failed, "others can still reach it");
}

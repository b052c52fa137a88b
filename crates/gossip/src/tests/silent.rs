//! A failed node whose host lives, and one whose host does not.

use super::*;

/// When a node learned that the host of another is silent.
fn told_silent(world: &World, node: usize) -> Option<Instant> {
    let mut told = world.effects.iter();
    told.find(|(_, at, effect)| *at == node && matches!(effect, Effect::HostSilent(_)))
        .map(|(at, ..)| *at)
}

#[test]
fn a_host_is_silent_only_when_more_than_its_daemon_is_gone() {
    let mut world = World::joined(11, 3);
    world.stop(2);
    world.run(seconds(60.0));
    assert_eq!(world.node(0).members().len(), 2, "it failed");
    assert_eq!(told_silent(&world, 0), None, "its host refuses connections, so it lives");
    let off = world.now;
    world.cut = BTreeSet::from([(0, 2), (1, 2)]);
    world.run(seconds(20.0));
    for node in [0, 1] {
        let after = told_silent(&world, node).expect("the host is off").since(off);
        assert!(after > seconds(4.0) && after < seconds(8.0), "{after:?}");
    }
    let said = |effect: &Effect| matches!(effect, Effect::HostSilent(_));
    assert_eq!(world.effects.iter().filter(|(.., effect)| said(effect)).count(), 2, "once each");
}

#[test]
fn a_short_cut_makes_nobody_silent_and_a_long_one_does() {
    for (length, silent) in [(3.0, false), (30.0, true)] {
        let mut world = World::joined(12, 3);
        world.cut = BTreeSet::from([(0, 2), (1, 2)]);
        world.run(seconds(length));
        world.cut.clear();
        world.run(seconds(20.0));
        assert_eq!(told_silent(&world, 0).is_some(), silent, "{length} s");
        let up = world.effects.iter().rposition(|(_, node, effect)| {
            *node == 0 && matches!(effect, Effect::NodeUp(member) if member.name == "000000000002")
        });
        let told = world
            .effects
            .iter()
            .rposition(|(_, node, effect)| *node == 0 && matches!(effect, Effect::HostSilent(_)));
        assert!(
            told.is_none_or(|told| up.is_some_and(|up| up > told)),
            "{length} s: it is up again"
        );
    }
}

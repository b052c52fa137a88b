//! Cuts that last longer than nodes remember: deleted rows half an hour, failed nodes a day.

use super::*;

/// Two nodes on one side and three on the other. What has to be done in time happens in the first and
/// the last minute; in between nobody does anything, as on hosts that sleep.
fn cut_for(hours: f64) -> (World, BTreeMap<String, String>) {
    let mut world = World::joined(31, 5);
    for node in 0..5 {
        world.put(node, &format!("old{node}"), "1");
        world.put(node, &format!("goes{node}"), "1");
    }
    world.give(4, Event::JoinNetwork { network: NetworkId::new("left") });
    world.run(seconds(3.0));
    world.cut = (0..2).flat_map(|a| (2..5).map(move |b| (a, b))).collect();
    for node in 0..5 {
        world.delete(node, &format!("goes{node}"));
        world.put(node, &format!("new{node}"), "1");
    }
    world.give(4, Event::LeaveNetwork { network: NetworkId::new("left") });
    world.run(seconds(60.0));
    sleep(&mut world, seconds(hours * 3_600.0));
    world.run(seconds(60.0));
    let keys = (0..5).flat_map(|node| [format!("old{node}"), format!("new{node}")]);
    (world, keys.map(|key| (key, "1".to_owned())).collect())
}

/// What is under way arrives afterwards.
fn sleep(world: &mut World, time: Duration) {
    world.now = world.now + time;
    let late = std::mem::take(&mut world.under_way).into_iter();
    world.under_way = late.map(|((at, count), event)| ((at + time, count), event)).collect();
}

fn heal(world: &mut World, rows: &BTreeMap<String, String>, what: &str) {
    world.cut.clear();
    world.run(seconds(10.0));
    world.check_agreed(rows, what);
    for node in 0..4 {
        let there = world.node(node).peers(&NetworkId::new("left"));
        assert!(there.is_empty(), "{what}: node {node} takes one that left for there: {there:?}");
    }
}

#[test]
fn a_cut_that_outlasts_deleted_rows_brings_none_of_them_back() {
    let (mut world, rows) = cut_for(1.0);
    let there = |world: &World| {
        let goes = |(key, ..): &(String, String, bool)| key.starts_with("goes");
        world.table(0).iter().filter(|row| goes(row)).count()
    };
    assert_eq!(there(&world), 3, "the other side's are known as they were");
    heal(&mut world, &rows, "an hour");
}

#[test]
fn a_cut_that_outlasts_failed_nodes_ends_as_if_they_had_just_come() {
    let (mut world, rows) = cut_for(25.0);
    let owners = |world: &World, node: usize| world.table(node).len();
    assert_eq!((owners(&world, 0), owners(&world, 4)), (4, 6), "each side knows its own");
    heal(&mut world, &rows, "25 hours");
}

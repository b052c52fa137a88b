//! A node whose daemon is away sends on to what it knew last: what leaves waits for it, for a while.

use super::*;

/// A task that runs beside another node, whose daemon is then missed.
fn missed() -> World {
    missed_beside(true)
}

fn missed_beside(skep: bool) -> World {
    let mut world = beside(skep);
    let started = world.staged(Stage::Start);
    if skep {
        let _ = applied(&mut world, &started);
    }
    let _ = world.pass(Duration::from_secs(5));
    let _ = world.step(Event::MemberDown { name: "bbbbbbbbbbbb".into() });
    peers(&mut world, &[], &["bbbbbbbbbbbb"]);
    world
}

fn peers(world: &mut World, names: &[&str], failed: &[&str]) {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    for network in ["web", "ingress"] {
        let (names, failed) = (set(names), set(failed));
        let _ = world.step(Event::Peers { network: network.into(), names, failed });
    }
}

fn leaves(world: &mut World, within: Duration) -> bool {
    short(&world.pass(within)).contains(&"shutdown".into())
}

#[test]
fn what_leaves_waits_for_a_node_that_is_away_for_less_than_a_minute() {
    let mut world = missed();
    let _ = world.pass(Duration::from_secs(20));
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(!leaves(&mut world, Duration::from_millis(39_999)));
    assert!(leaves(&mut world, Duration::from_millis(1)));
    let mut world = missed();
    let _ = world.pass(Duration::from_secs(60));
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(leaves(&mut world, Duration::from_millis(200)), "nobody is awaited for ever");
}

#[test]
fn a_silent_host_is_not_awaited() {
    let mut world = missed();
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(!leaves(&mut world, Duration::from_secs(5)));
    let silent = world.step(Event::HostSilent { name: "bbbbbbbbbbbb".into() });
    assert!(short(&silent).contains(&"shutdown".into()));
}

#[test]
fn a_node_of_the_docker_engine_whose_containers_end_with_its_daemon_is_not_awaited() {
    let mut world = missed_beside(false);
    // Gossip speaks of a failed node again whenever another one comes or goes.
    peers(&mut world, &[], &["bbbbbbbbbbbb"]);
    let _ = world.pass(Duration::from_secs(1));
    peers(&mut world, &["cccccccccccc"], &["bbbbbbbbbbbb"]);
    peers(&mut world, &[], &["bbbbbbbbbbbb"]);
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(leaves(&mut world, Duration::from_secs(1)));
}

#[test]
fn a_node_that_comes_back_under_another_name_is_asked_anew() {
    let mut world = missed();
    let stopping = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    let _ = world.pass(Duration::from_secs(20));
    let (name, address) = ("cccccccccccc".to_owned(), "192.0.2.2".parse().unwrap());
    let _ = world.step(Event::MemberUp { name, address, skep: true });
    peers(&mut world, &[], &[]);
    assert!(!leaves(&mut world, Duration::from_millis(500)), "it is about to be on its networks");
    peers(&mut world, &["cccccccccccc"], &[]);
    assert!(!leaves(&mut world, Duration::from_secs(3)), "its kernel is as it was");
    let rows = world.announced();
    let _ = world.step(Event::Applied { by: "cccccccccccc".into(), rows });
    assert!(leaves(&mut world, Duration::from_millis(100)), "{:?}", short(&stopping));
}

#[test]
fn a_node_that_has_left_is_not_awaited_for_long() {
    let mut world = missed();
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    peers(&mut world, &[], &[]);
    assert!(leaves(&mut world, Duration::from_secs(1)));
}

#[test]
fn what_enters_does_not_wait_for_a_node_that_is_away() {
    let mut world = beside(true);
    let _ = world.step(Event::MemberDown { name: "bbbbbbbbbbbb".into() });
    peers(&mut world, &[], &["bbbbbbbbbbbb"]);
    let started = world.staged(Stage::Start);
    assert!(short(&started).contains(&"report Running".into()));
}

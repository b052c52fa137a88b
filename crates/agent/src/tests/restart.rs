//! A daemon that is killed in the middle of a task's coming or going does not lose what it waited for.

use super::*;

/// A daemon that begins again with the record of the one before, and the other node as yet unknown.
fn again(record: Record) -> World {
    let mut world = World::new(vec![record]);
    let _ = world.connect();
    world
}

/// The other node is met, and its tables are here.
fn meet(world: &mut World) -> Vec<Effect> {
    let name = "bbbbbbbbbbbb".to_owned();
    let address = "192.0.2.2".parse().unwrap();
    let mut effects = world.step(Event::MemberUp { name: name.clone(), address, skep: true });
    for network in ["web", "ingress"] {
        let names = [name.clone(), OWN.to_owned()].into();
        let peers = Event::Peers { network: network.into(), names, failed: [].into() };
        effects.extend(world.step(peers));
    }
    for network in ["web", "ingress"] {
        effects.extend(world.step(Event::Synced { network: network.into() }));
    }
    effects
}

fn says(effects: &[Effect], what: &str) -> bool {
    short(effects).contains(&what.to_owned())
}

#[test]
fn a_task_that_was_drained_when_the_daemon_died_is_drained_by_the_next_one() {
    let mut world = beside(true);
    let started = world.staged(Stage::Start);
    let _ = applied(&mut world, &started);
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    let mut world = again(world.agent.lives["t1"].record());
    let told = world.assign("", "1", vec![task(TaskState::Shutdown)]);
    let waited = world.pass(Duration::from_secs(1));
    assert!(!says(&told, "shutdown") && !says(&waited, "shutdown"), "nobody is known yet");
    // From here on this node's own tables send elsewhere, too.
    let met = meet(&mut world);
    assert!(overlays(&met).is_some() && !says(&met, "shutdown"));
    let waited = world.pass(Duration::from_secs(2));
    assert!(!says(&waited, "shutdown"), "the other node may still send to it");
    let rows = world.announced();
    let _ = world.step(Event::Applied { by: "bbbbbbbbbbbb".into(), rows });
    assert!(says(&world.pass(Duration::from_millis(100)), "shutdown"));
}

#[test]
fn a_task_that_had_just_begun_to_run_is_said_to_run_once_others_send_to_it() {
    let mut world = beside(true);
    let started = world.staged(Stage::Start);
    assert!(!says(&started, "report Running"));
    let record = world.agent.lives["t1"].record();
    assert_eq!(record.status.state(), TaskState::Running);
    let mut world = again(record);
    let told = world.assign("", "1", vec![task(TaskState::Running)]);
    assert!(!says(&told, "report Running"), "nobody is known yet");
    let met = meet(&mut world);
    assert!(!says(&met, "report Running"), "the other node does not send to it yet");
    let rows = world.announced();
    let _ = world.step(Event::Applied { by: "bbbbbbbbbbbb".into(), rows });
    assert!(says(&world.pass(Duration::from_millis(100)), "report Running"));
}

#[test]
fn networks_that_led_to_other_nodes_wait_for_what_these_announce() {
    for had_peers in [false, true] {
        let mut world = World::new(Vec::new());
        world.run();
        let record = world.agent.lives["t1"].record();
        world.agent = Agent::new(Config { had_peers, ..config() }, vec![record]);
        let _ = world.connect();
        let waited = world.pass(Duration::from_secs(5));
        assert_eq!(overlays(&waited).is_some(), !had_peers, "nobody is there, or is slow to come");
        let met = meet(&mut world);
        assert!(overlays(&met).is_some() || !had_peers);
    }
}

/// Its managers are away, and the gossip brings nobody.
#[test]
fn networks_that_led_to_other_nodes_stay_while_nobody_is_heard() {
    for had_peers in [false, true] {
        let mut world = World::new(Vec::new());
        world.run();
        let node = world.agent.node.clone();
        let record = world.agent.lives["t1"].record();
        world.agent = Agent::new(Config { had_peers, node, ..config() }, vec![record]);
        let mut alone = world.step(Event::Deadline);
        alone.extend(world.pass(Duration::from_secs(600)));
        assert_eq!(overlays(&alone).is_some(), !had_peers);
        assert_eq!(zone(&alone, "web").is_some(), !had_peers);
        let met = meet(&mut world);
        assert!(overlays(&met).is_some() || !had_peers, "without any manager");
    }
}

/// The ports of the mesh in the kernel, where anything is to be changed there.
fn mesh_ports(effects: &[Effect]) -> Option<usize> {
    Some(overlays(effects)?.overlays["ingress"].ingress.as_ref()?.ports.len())
}

#[test]
fn a_host_that_has_come_up_again_opens_the_mesh_when_the_others_know_where_it_is() {
    let mut world = World::new(vec![]);
    let node = world.connect().into_iter().find_map(|effect| match effect {
        Effect::Node(node) => Some(*node),
        _ => None,
    });
    for mesh_open in [true, false] {
        let config = Config { node: node.clone(), mesh_open, ..config() };
        world.agent = Agent::new(config, vec![]);
        let _ = world.connect();
        let port = PortConfig { published_port: 8080, target_port: 80, ..Default::default() };
        let record = EndpointRecord {
            name: "shop-web.1.t9".into(),
            endpoint_ip: "10.0.0.6".into(),
            ingress_ports: vec![port],
            ..Default::default()
        };
        world.row("ingress", ENDPOINT_TABLE, "e2", "bbbbbbbbbbbb", record.encode_to_vec());
        let met = meet(&mut world);
        assert_eq!(mesh_ports(&met), Some(usize::from(mesh_open)));
        assert_eq!(mesh_ports(&world.pass(Duration::from_secs(1))), None);
        let rows = world.announced();
        let mut known = world.step(Event::Applied { by: "bbbbbbbbbbbb".into(), rows });
        known.extend(world.pass(Duration::from_millis(100)));
        assert_eq!(mesh_ports(&known), (!mesh_open).then_some(1));
    }
}

#[test]
fn a_new_session_does_not_say_what_the_last_one_was_not_to_say_yet() {
    let mut world = beside(true);
    let _ = world.staged(Stage::Start);
    let _ = world.step(Event::SessionLost { reason: "the leader is gone".into() });
    let opened = world.pass(Duration::from_secs(2));
    assert!(opened.iter().any(|effect| matches!(effect, Effect::OpenSession(_))));
    let told = world.step(Event::Session(Box::new(pb::SessionMessage {
        session_id: "s2".into(),
        ..Default::default()
    })));
    assert!(!says(&told, "report Running"));
}

#[test]
fn a_task_that_is_waited_for_wakes_nobody_while_the_networks_settle() {
    let mut world = beside(true);
    let _ = world.staged(Stage::Start);
    let mut world = again(world.agent.lives["t1"].record());
    let _ = world.assign("", "1", vec![task(TaskState::Running)]);
    // The other node follows already what is announced here; its tables are still on their way.
    let name = "bbbbbbbbbbbb".to_owned();
    let address = "192.0.2.2".parse().unwrap();
    let _ = world.step(Event::MemberUp { name: name.clone(), address, skep: true });
    for network in ["web", "ingress"] {
        let names = [name.clone(), OWN.to_owned()].into();
        let _ = world.step(Event::Peers { network: network.into(), names, failed: [].into() });
    }
    let rows = world.announced();
    assert!(!rows.is_empty());
    let _ = world.step(Event::Applied { by: name, rows });
    world.now = world.now + Duration::from_millis(200);
    let _ = world.step(Event::Deadline);
    let next = world.agent.deadline();
    assert!(next.is_some_and(|at| at > world.now), "it would be woken again at once, for seconds");
}

#[test]
fn a_task_that_is_assigned_again_is_sent_to_again() {
    let mut world = World::new(Vec::new());
    world.run();
    let _ = world.assign("", "2", Vec::new());
    assert!(!world.agent.lives["t1"].is_ready(), "it is drained");
    let _ = world.assign("", "3", vec![task(TaskState::Running)]);
    assert!(world.agent.lives["t1"].is_ready());
    assert!(!says(&world.pass(Duration::from_secs(1)), "shutdown"));
}

//! What follows from the rows of another node, while it answers and when it no longer does.

use super::*;

const OTHER: &str = "bbbbbbbbbbbb";

/// A world with one task that runs, and another of the same service on a node of the Docker Engine.
fn beside_dockers() -> World {
    let mut world = World::new(vec![]);
    world.run();
    let _ = world.step(other_up());
    let peer = |ip: &str| {
        let record = PeerRecord {
            endpoint_ip: ip.into(),
            endpoint_mac: "02:42:0a:00:01:06".into(),
            tunnel_endpoint_ip: "192.0.2.2".into(),
        };
        record.encode_to_vec()
    };
    let port = PortConfig { published_port: 8080, target_port: 80, ..Default::default() };
    let endpoint = |ip: &str, vip: &str, ports: Vec<PortConfig>| {
        let record = EndpointRecord {
            name: "shop-web.1.t9".into(),
            service_name: "shop-web".into(),
            service_id: "svc".into(),
            virtual_ip: vip.into(),
            endpoint_ip: ip.into(),
            ingress_ports: ports,
            ..Default::default()
        };
        record.encode_to_vec()
    };
    world.row("web", OVERLAY_PEER_TABLE, "e1", OTHER, peer("10.0.1.6/24"));
    world.row("web", ENDPOINT_TABLE, "e1", OTHER, endpoint("10.0.1.6", "10.0.1.4", vec![]));
    world.row("ingress", ENDPOINT_TABLE, "e2", OTHER, endpoint("10.0.0.6", "10.0.0.4", vec![port]));
    let lb = EndpointRecord {
        name: "ingress-endpoint".into(),
        virtual_ip: "<nil>".into(),
        endpoint_ip: "10.0.0.3".into(),
        ..Default::default()
    };
    world.row("ingress", ENDPOINT_TABLE, "e3", OTHER, lb.encode_to_vec());
    world.row("web", ENDPOINT_TABLE, "e4", OTHER, vec![1, 2, 3]);
    world
}

fn other_up() -> Event {
    Event::MemberUp { name: OTHER.into(), address: "192.0.2.2".parse().unwrap(), skep: false }
}

#[test]
fn rows_of_others_become_peers_backends_ports_and_names() {
    let mut world = beside_dockers();
    let shown = world.pass(Duration::from_millis(10));
    assert_eq!(world.agent.rows_dropped(), 1);
    let state = overlays(&shown).unwrap();
    let web = &state.overlays["web"];
    assert_eq!(web.peers[&"10.0.1.6".parse().unwrap()].vtep.to_string(), "192.0.2.2");
    let backends: Vec<String> =
        web.services[0].backends.iter().map(|b| format!("{} {}", b.address, b.ready)).collect();
    assert_eq!(backends, ["10.0.1.5 true", "10.0.1.6 true"]);
    let mesh = state.overlays["ingress"].ingress.as_ref().unwrap();
    let engines: Vec<NodeEngine> = mesh.ports[0].backends.iter().map(|b| b.engine).collect();
    assert_eq!(engines, [NodeEngine::Skep, NodeEngine::Docker]);
    assert_eq!(mesh.nodes.len(), 2);
    assert_eq!(zone(&shown, "web").unwrap().names["tasks.shop-web"].len(), 2);
}

/// The tasks on the web network and on port 8080, and whether new connections go there.
fn led_to(shown: &[Effect]) -> (Vec<bool>, usize) {
    let overlays = &overlays(shown).unwrap().overlays;
    let ready = overlays["web"].services[0].backends.iter().map(|backend| backend.ready);
    let entered = overlays["ingress"].ingress.as_ref().unwrap().ports[0].backends.len();
    (ready.collect(), entered)
}

#[test]
fn a_failed_node_gets_nothing_new_and_a_silent_host_answers_for_nothing() {
    let mut world = beside_dockers();
    assert_eq!(led_to(&world.pass(Duration::from_millis(10))), (vec![true, true], 2));
    let _ = world.step(Event::MemberDown { name: OTHER.into() });
    assert_eq!(led_to(&world.pass(Duration::from_millis(10))), (vec![true, false], 2));
    let _ = world.step(Event::HostSilent { name: OTHER.into() });
    let shown = world.pass(Duration::from_millis(10));
    assert_eq!(led_to(&shown), (vec![true], 1));
    let peers = &overlays(&shown).unwrap().overlays["web"].peers;
    assert!(peers.contains_key(&"10.0.1.6".parse().unwrap()), "the way there stays");
    let _ = world.step(other_up());
    assert_eq!(led_to(&world.pass(Duration::from_millis(10))), (vec![true, true], 2));
}

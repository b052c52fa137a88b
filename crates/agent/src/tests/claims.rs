//! Rows of other nodes that claim what they may not.

use super::*;

/// `web` as two other nodes announce it: a peer's row and an endpoint's row by key.
fn claim(world: &mut World, key: &str, owner: &str, ip: &str, service: &str, vip: &str) {
    let vtep = if owner == "bbbbbbbbbbbb" { "192.0.2.2" } else { "192.0.2.3" };
    let peer = PeerRecord {
        endpoint_ip: format!("{ip}/24"),
        endpoint_mac: netplan::addr::Mac::for_ip(ip.parse().unwrap()).to_string(),
        tunnel_endpoint_ip: vtep.into(),
    };
    let endpoint = EndpointRecord {
        name: format!("{service}.1.{key}"),
        service_name: service.into(),
        service_id: service.into(),
        virtual_ip: vip.into(),
        endpoint_ip: ip.into(),
        ..Default::default()
    };
    world.row("web", OVERLAY_PEER_TABLE, key, owner, peer.encode_to_vec());
    world.row("web", ENDPOINT_TABLE, key, owner, endpoint.encode_to_vec());
}

fn among(others: [&str; 2]) -> World {
    let mut world = World::new(vec![]);
    world.run();
    for (name, address) in others.into_iter().zip(["192.0.2.2", "192.0.2.3"]) {
        let address = address.parse().unwrap();
        let _ = world.step(Event::MemberUp { name: name.into(), address, skep: true });
    }
    world
}

#[test]
fn what_is_another_s_or_nobody_s_cannot_be_claimed() {
    let (good, bad) = ("bbbbbbbbbbbb", "000000000bad");
    let mut world = among([good, bad]);
    claim(&mut world, "e6", good, "10.0.1.6", "svc", "10.0.1.4");
    claim(&mut world, "e7", good, "10.0.1.7", "shop", "10.0.1.8");
    let _ = world.pass(Duration::from_millis(10));
    assert_eq!(world.agent.claims_refused(), 0);
    let before = (world.agent.shown.state.clone(), world.agent.shown.zones.clone());
    let mut refused = 0;
    for (key, ip, service, vip, what, rows) in [
        ("a0", "10.0.1.5", "x", "", "the address of a task that is here", 2),
        ("a1", "10.0.1.9", "x", "", "this node's own address", 2),
        ("a2", "10.0.1.1", "x", "", "the gateway", 2),
        ("a3", "10.0.1.6", "x", "", "the address of another node's task", 2),
        ("a4", "172.16.0.1", "x", "", "an address of no subnet", 2),
        ("a5", "10.0.1.4", "x", "", "the virtual address of a service that is here", 2),
    ] {
        claim(&mut world, key, bad, ip, service, vip);
        let _ = world.pass(Duration::from_millis(10));
        refused += rows;
        assert_eq!(world.agent.claims_refused(), refused, "{what}");
        let shown = &world.agent.shown;
        assert!((&shown.state, &shown.zones) == (&before.0, &before.1), "{what} was believed");
    }
    // With an address of its own it is somewhere, but it is nobody's service.
    for (key, ip, service, vip, what) in [
        ("b0", "10.0.1.20", "x", "10.0.1.4", "the virtual address of a service that is here"),
        ("b1", "10.0.1.21", "x", "10.0.1.8", "the virtual address of a service that is not"),
        ("b2", "10.0.1.22", "x", "10.0.1.6", "a task's address for a virtual one"),
    ] {
        claim(&mut world, key, bad, ip, service, vip);
        let _ = world.pass(Duration::from_millis(10));
        refused += 1;
        assert_eq!(world.agent.claims_refused(), refused, "{what}");
        assert!(world.agent.shown.zones == before.1, "{what} was believed");
        assert!(
            world.agent.shown.state.overlays["web"].services == before.0.overlays["web"].services,
            "{what} was believed"
        );
    }
    // That the tunnel to another's task ends here.
    let here = PeerRecord {
        endpoint_ip: "10.0.1.30/24".into(),
        endpoint_mac: "02:42:0a:00:01:1e".into(),
        tunnel_endpoint_ip: "192.0.2.1".into(),
    };
    world.row("web", OVERLAY_PEER_TABLE, "c0", bad, here.encode_to_vec());
    for (mac, vtep) in [("01:42:0a:00:01:06", "192.0.2.3"), ("02:42:0a:00:01:06", "224.0.0.1")] {
        let record = PeerRecord {
            endpoint_mac: mac.into(),
            tunnel_endpoint_ip: vtep.into(),
            ..here.clone()
        };
        world.row("web", OVERLAY_PEER_TABLE, "c1", bad, record.encode_to_vec());
    }
    let _ = world.pass(Duration::from_millis(10));
    assert_eq!(world.agent.claims_refused(), refused + 1);
    assert_eq!(world.agent.rows_dropped(), 2);
    // When the first owner goes, the address is the other's.
    let _ = world.step(Event::MemberDown { name: good.into() });
    let _ = world.pass(Duration::from_millis(10));
    let web = &world.agent.shown.state.overlays["web"];
    assert_eq!(web.peers[&"10.0.1.6".parse().unwrap()].vtep.to_string(), "192.0.2.3");
}

/// Frames are led by the link alone, whatever address its row tells of.
#[test]
fn a_link_that_another_has_cannot_be_claimed() {
    let (good, bad) = ("bbbbbbbbbbbb", "000000000bad");
    let mut world = among([good, bad]);
    claim(&mut world, "e6", good, "10.0.1.6", "svc", "10.0.1.4");
    let _ = world.pass(Duration::from_millis(10));
    let places = world.agent.shown.state.overlays["web"].peers.clone();
    for (refused, last, whose) in [
        (1, "06", "another node's"),
        (2, "05", "a task's that is here"),
        (3, "01", "the gateway's"),
    ] {
        let record = PeerRecord {
            endpoint_ip: "10.0.1.31/24".into(),
            endpoint_mac: format!("02:42:0a:00:01:{last}"),
            tunnel_endpoint_ip: "192.0.2.3".into(),
        };
        world.row("web", OVERLAY_PEER_TABLE, last, bad, record.encode_to_vec());
        let _ = world.pass(Duration::from_millis(10));
        assert_eq!(world.agent.claims_refused(), refused, "{whose}");
        assert!(world.agent.shown.state.overlays["web"].peers == places, "{whose}");
    }
}

#[test]
fn a_refused_row_is_not_answered_until_it_is_believed() {
    let (old, new) = ("bbbbbbbbbbbb", "cccccccccccc");
    let mut world = among([old, new]);
    let answered = |effects: &[Effect], to: &str| {
        let of = |effect: &Effect| match effect {
            Effect::Applied { to: owner, rows } if owner == to => rows.len(),
            _ => 0,
        };
        effects.iter().map(of).sum::<usize>()
    };
    claim(&mut world, "e6", old, "10.0.1.6", "svc", "10.0.1.4");
    assert_eq!(answered(&world.pass(Duration::from_millis(10)), old), 1);
    claim(&mut world, "e7", new, "10.0.1.6", "svc", "10.0.1.4");
    claim(&mut world, "e8", new, "10.0.1.8", "svc", "10.0.1.4");
    assert_eq!(answered(&world.pass(Duration::from_millis(10)), new), 1, "one has its address");
    for table in [OVERLAY_PEER_TABLE, ENDPOINT_TABLE] {
        let _ = world.step(Event::Row {
            network: "web".into(),
            table: table.into(),
            key: "e6".into(),
            owner: old.into(),
            value: None,
        });
    }
    let shown = world.pass(Duration::from_millis(10));
    assert_eq!(answered(&shown, new), 1, "the address is the new one's now");
    assert_eq!(answered(&shown, old), 0);
}

//! Plans as text: what a view comes to, in the words of `ip`, `bridge` and `nft`.
//! `UPDATE_EXPECT=1` writes the files anew.

use std::path::Path;

use netplan::table::Match;
use netplan::{
    Backend, Bridge, Cidr, Ingress, IngressBackend, IngressNode, IngressPort, IngressTarget, Link,
    LinkKind, Mac, Namespace, NodeEngine, Overlay, OverlaySubnet, Peer, Proto, PublishedPort,
    ResolverPorts, Sandbox, SandboxId, Service, View, World, desired, diff,
};

fn check(name: &str, from: &View, to: &View) {
    let before = if *from == View::default() { World::new() } else { desired(from) };
    let text: String = diff(&before, &desired(to)).iter().map(|step| format!("{step}\n")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} differs:\n{text}");
    let wanted = desired(to);
    assert!(diff(&wanted, &wanted).is_empty(), "what is reached needs no step");
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn link(network: &str, ifname: &str, address: &str, gateway: Option<&str>) -> Link {
    Link {
        network: network.into(),
        ifname: ifname.into(),
        peer: format!("veth-{ifname}"),
        mac: Mac::for_ip(cidr(address).addr),
        addresses: vec![cidr(address)],
        gateways: gateway.into_iter().map(|text| text.parse().unwrap()).collect(),
        routes: vec![],
    }
}

fn bridge(ifname: &str, address: &str) -> Bridge {
    Bridge {
        ifname: ifname.into(),
        addresses: vec![cidr(address)],
        mtu: 1500,
        internal: false,
        icc: true,
        masquerade: true,
        foreign: false,
    }
}

fn one_container() -> View {
    let mut view = View::default();
    view.bridges.insert("b".into(), bridge("docker0", "172.17.0.1/16"));
    let published = PublishedPort {
        proto: Proto::Tcp,
        host_ip: "0.0.0.0".parse().unwrap(),
        host_port: 8080,
        address: "172.17.0.2".parse().unwrap(),
        port: 80,
    };
    let sandbox = Sandbox {
        links: vec![link("b", "eth0", "172.17.0.2/16", Some("172.17.0.1"))],
        resolver: Some(ResolverPorts { udp: 40_000, tcp: 40_001 }),
        published: vec![published],
        ingress: vec![],
    };
    view.sandboxes.insert(SandboxId("c0ffee".into()), sandbox);
    view
}

fn subnet(third: u8, vni: u32) -> OverlaySubnet {
    OverlaySubnet {
        subnet: cidr(&format!("10.0.{third}.0/24")),
        gateway: Some(format!("10.0.{third}.1").parse().unwrap()),
        vni,
    }
}

fn web() -> Overlay {
    let far = "10.0.1.9".parse().unwrap();
    let peer = Peer { mac: Mac::for_ip(far), vtep: "192.0.2.2".parse().unwrap() };
    let backend = |text: &str, ready| Backend { address: text.parse().unwrap(), ready };
    let service = |name: &str, vip: &str, backends| Service {
        name: name.into(),
        vips: vec![vip.parse().unwrap()],
        backends,
    };
    Overlay {
        subnets: vec![subnet(1, 4097)],
        peers: [(far, peer)].into(),
        services: vec![
            service("web", "10.0.1.2", vec![backend("10.0.1.5", true), backend("10.0.1.9", true)]),
            service("gone", "10.0.1.3", vec![backend("10.0.1.8", false)]),
        ],
        ..Overlay::default()
    }
}

fn ingress() -> Overlay {
    let node = |text: &str, engine| IngressNode { address: text.parse().unwrap(), engine };
    let task =
        |text: &str, engine| IngressBackend { address: text.parse().unwrap(), ready: true, engine };
    Overlay {
        subnets: vec![subnet(0, 4096)],
        lb_address: Some(cidr("10.0.0.2/24")),
        ingress: Some(Ingress {
            ports: vec![IngressPort {
                proto: Proto::Tcp,
                published: 80,
                backends: vec![
                    task("10.0.0.5", NodeEngine::Skep),
                    task("10.0.0.9", NodeEngine::Docker),
                ],
            }],
            nodes: vec![node("10.0.0.2", NodeEngine::Skep), node("10.0.0.3", NodeEngine::Docker)],
        }),
        ..Overlay::default()
    }
}

fn one_task() -> View {
    let mut view = View::default();
    view.host.bridge_hooks = true;
    view.host.flow_zones = true;
    view.host.data_path = Some("192.0.2.1".parse().unwrap());
    view.bridges.insert("g".into(), bridge("docker_gwbridge", "172.18.0.1/16"));
    view.overlays.insert("webwebwebwebweb".into(), web());
    view.overlays.insert("ingressingress".into(), ingress());
    let task = Sandbox {
        links: vec![
            link("ingressingress", "eth0", "10.0.0.5/24", None),
            link("webwebwebwebweb", "eth1", "10.0.1.5/24", None),
            link("g", "eth2", "172.18.0.3/16", Some("172.18.0.1")),
        ],
        resolver: None,
        published: vec![],
        ingress: vec![IngressTarget { proto: Proto::Tcp, published: 80, target: 8080 }],
    };
    let mut router = Sandbox {
        links: vec![
            link("ingressingress", "eth0", "10.0.0.2/24", None),
            link("g", "eth1", "172.18.0.2/16", Some("172.18.0.1")),
        ],
        resolver: None,
        published: vec![],
        ingress: vec![],
    };
    for (n, link) in router.links.iter_mut().enumerate() {
        link.peer = format!("vethingr{n}");
    }
    view.sandboxes.insert(SandboxId("task1".into()), task);
    view.sandboxes.insert(SandboxId::ingress(), router);
    view
}

#[test]
fn a_container_on_a_bridge() {
    check("container.txt", &View::default(), &one_container());
}

/// `--iptables=false` and `--ip6tables=false` leave a family to the user.
#[test]
fn a_family_without_the_daemons_rules_has_none() {
    let mut view = one_container();
    for bridge in view.bridges.values_mut() {
        bridge.addresses.push(cidr("fd00:17::1/64"));
    }
    let rules = |view: &View| -> Vec<String> {
        let host = &desired(view)[&netplan::Namespace::Host];
        let text = host.table.as_ref().map(|table| table.to_string()).unwrap_or_default();
        let lines =
            text.lines().filter(|line| line.starts_with("\t\t") && !line.contains("policy"));
        lines.map(str::to_owned).collect()
    };
    let of_v6 = |rule: &String| rule.contains("nfproto ipv6") || rule.contains("ip6 ");
    let both = rules(&view);
    assert!(both.iter().any(of_v6) && !both.iter().all(of_v6));
    view.host.firewall = false;
    let six = rules(&view);
    assert!(!six.is_empty() && six.iter().all(of_v6), "{six:?}");
    (view.host.firewall, view.host.firewall6) = (true, false);
    let four = rules(&view);
    assert!(!four.is_empty() && !four.iter().any(of_v6), "{four:?}");
    (view.host.firewall, view.host.firewall6) = (false, false);
    assert!(rules(&view).is_empty());
}

#[test]
fn a_container_that_ends() {
    let mut after = one_container();
    after.sandboxes.clear();
    check("container-ends.txt", &one_container(), &after);
}

#[test]
fn a_task_on_an_overlay_and_the_mesh() {
    check("task.txt", &View::default(), &one_task());
}

#[test]
fn the_mesh_over_ipv6() {
    let mut after = one_task();
    after.host.ipv6 = true;
    after.host.advertised = ["uplink".to_owned()].into();
    let far: std::net::IpAddr = "10.0.0.3".parse().unwrap();
    let ingress = after.overlays.get_mut("ingressingress").unwrap();
    let peer = Peer { mac: Mac::for_ip(far), vtep: "192.0.2.2".parse().unwrap() };
    ingress.peers.insert(far, peer);
    let mut before = after.clone();
    before.host.ipv6 = false;
    check("mesh6.txt", &before, &after);
    // A link that is too small for IPv6 has none, and nothing is planned for it.
    before.host.uplink_mtu = 1280;
    after.host.uplink_mtu = 1280;
    assert_eq!(desired(&before), desired(&after));
}

#[test]
fn a_task_serves_a_udp_port_of_the_mesh() {
    let mut before = one_task();
    before.host.ipv6 = true;
    let gateway = before.bridges.get_mut("g").unwrap();
    gateway.addresses.push(cidr("fd00:18::1/64"));
    let task = before.sandboxes.get_mut(&SandboxId("task1".into())).unwrap();
    task.links[2].addresses.push(cidr("fd00:18::3/64"));
    task.links[2].gateways.push("fd00:18::1".parse().unwrap());
    let mut after = before.clone();
    let task = after.sandboxes.get_mut(&SandboxId("task1".into())).unwrap();
    task.ingress.push(IngressTarget { proto: Proto::Udp, published: 53, target: 5353 });
    check("mesh-udp.txt", &before, &after);
}

/// No kernel that is tested on has the protocol, so that the plan is all there is to see.
#[test]
fn sctp_is_published_as_the_others_are() {
    let mut view = one_task();
    view.bridges.extend(one_container().bridges);
    view.sandboxes.extend(one_container().sandboxes);
    let before = view.clone();
    let container = view.sandboxes.get_mut(&SandboxId("c0ffee".into())).unwrap();
    container.published[0].proto = Proto::Sctp;
    let task = view.sandboxes.get_mut(&SandboxId("task1".into())).unwrap();
    task.ingress[0].proto = Proto::Sctp;
    let ingress = view.overlays.get_mut("ingressingress").unwrap();
    ingress.ingress.as_mut().unwrap().ports[0].proto = Proto::Sctp;
    check("sctp.txt", &before, &view);
}

#[test]
fn a_far_task_that_moves_to_another_host_and_one_that_dies() {
    let mut after = one_task();
    let web = after.overlays.get_mut("webwebwebwebweb").unwrap();
    web.peers.values_mut().for_each(|peer| peer.vtep = "192.0.2.7".parse().unwrap());
    web.services[0].backends.truncate(1);
    check("task-moves.txt", &one_task(), &after);
}

/// A task that is stopped leaves the table first, and its flows when it is gone.
#[test]
fn what_a_drained_task_held_ends_with_it() {
    let drained = |view: &mut View, gone: bool| {
        let web = view.overlays.get_mut("webwebwebwebweb").unwrap();
        let backends = &mut web.services[0].backends;
        assert!(backends.len() > 1);
        backends[0].ready = false;
        backends.drain(..usize::from(gone));
    };
    let (mut draining, mut after) = (one_task(), one_task());
    drained(&mut draining, false);
    drained(&mut after, true);
    let steps = diff(&desired(&draining), &desired(&after));
    let settles = |step: &netplan::Step| matches!(step, netplan::Step::SettleFlows(..));
    assert!(!steps.is_empty() && steps.iter().all(settles), "{steps:#?}");
    let back = diff(&desired(&after), &desired(&draining));
    assert!(back.is_empty(), "one that comes takes nothing from anybody: {back:#?}");
}

/// One of another kind, or of another segment, has its place.
#[test]
fn a_link_made_anew_gets_back_all_that_hung_on_it() {
    let wanted = netplan::desired(&one_task());
    let space = Namespace::Overlay("webwebwebwebweb".into());
    let mut found = wanted.clone();
    let objects = found.get_mut(&space).unwrap();
    objects.links.get_mut("vxlan0").unwrap().kind = LinkKind::Other("veth".into());
    objects.lost = true;
    let steps = netplan::diff(&found, &wanted);
    let text: Vec<String> = steps.iter().map(ToString::to_string).collect();
    let count = |word: &str| text.iter().filter(|step| step.contains(word)).count();
    let objects = &wanted[&space];
    assert_eq!((count("link del vxlan0"), count("link add vxlan0")), (1, 1), "{text:#?}");
    assert_eq!(count("neigh replace"), objects.neighbours.len(), "{text:#?}");
    assert_eq!(count("fdb replace"), objects.fdb.len(), "{text:#?}");
    assert_eq!(text[1], format!("ip netns attach {space}"), "{text:#?}");
}

/// What is published is led on to its container; from an internal bridge not even that.
#[test]
fn no_published_port_leads_out_of_an_internal_bridge() {
    let mut view = one_container();
    let inside = Bridge { internal: true, ..bridge("br-in", "172.18.0.1/16") };
    view.bridges.insert("in".into(), inside);
    let table = desired(&view)[&Namespace::Host].table.clone().unwrap();
    let forward = table.chains.iter().find(|chain| chain.name == "forward").unwrap();
    let place = |part: &Match| forward.rules.iter().position(|rule| rule.matches.contains(part));
    let out = place(&Match::IifName("br-in".into())).unwrap();
    assert!(out < place(&Match::Translated).unwrap(), "{:?}", forward.rules);
}

#[test]
fn every_path_leaves_what_the_uplink_leaves() {
    for (uplink, data_path, own, mtu) in [
        (1500, "192.0.2.1", 0, 1450),
        (9000, "192.0.2.1", 0, 8950),
        (1280, "192.0.2.1", 0, 1230),
        (1500, "2001:db8::1", 0, 1430),
        (1500, "192.0.2.1", 1400, 1400),
    ] {
        let mut view = one_task();
        view.host.uplink_mtu = uplink;
        view.host.data_path = Some(data_path.parse().unwrap());
        let overlay = view.overlays.get_mut("webwebwebwebweb").unwrap();
        overlay.mtu = own;
        assert_eq!(netplan::overlay_mtu(&view.host, overlay), mtu, "{uplink} {data_path} {own}");
        let six = OverlaySubnet { subnet: cidr("fd00:9::/64"), gateway: None, vni: 4097 };
        overlay.subnets.push(six);
        let least = netplan::overlay_mtu(&view.host, overlay);
        assert_eq!(least, mtu.max(1280), "IPv6 has a least: {uplink} {data_path} {own}");
    }
}

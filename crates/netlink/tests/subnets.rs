//! A network of several subnets of both families: two hosts, real packets.

mod support;

use netplan::{Cidr, Link, Mac, Overlay, OverlaySubnet, Peer, Sandbox, SandboxId, View};
use support::{Host, stdout};

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// Host 1 or 2; the task of each has an address in its own IPv4 subnet, and one in the subnet of IPv6.
fn view(n: u8) -> View {
    let address = |n: u8| (format!("10.0.{n}.11"), format!("fd00:1::{n}1"));
    let other = 3 - n;
    let (here, there) = (address(n), address(other));
    let subnet = |subnet: &str, gateway: &str, vni| OverlaySubnet {
        subnet: cidr(subnet),
        gateway: Some(ip(gateway)),
        vni,
    };
    let peer = Peer { mac: Mac::for_ip(ip(&there.0)), vtep: ip(&format!("192.0.2.{other}")) };
    let overlay = Overlay {
        subnets: vec![
            subnet("10.0.1.0/24", "10.0.1.1", 4097),
            subnet("fd00:1::/64", "fd00:1::1", 4097),
            subnet("10.0.2.0/24", "10.0.2.1", 4098),
        ],
        peers: [ip(&there.0), ip(&there.1)].map(|addr| (addr, peer)).into(),
        ..Overlay::default()
    };
    let link = Link {
        network: "web".into(),
        ifname: "eth0".into(),
        peer: "vethw".into(),
        mac: Mac::for_ip(ip(&here.0)),
        addresses: vec![cidr(&format!("{}/24", here.0)), cidr(&format!("{}/64", here.1))],
        gateways: vec![],
        routes: vec![(cidr(&format!("10.0.{other}.0/24")), Some(ip(&format!("10.0.{n}.1"))))],
    };
    let task = Sandbox { links: vec![link], resolver: None, published: vec![], ingress: vec![] };
    let mut view = View::default();
    view.host.data_path = Some(ip(&format!("192.0.2.{n}")));
    view.host.uplink_mtu = 1500;
    view.overlays.insert("web".into(), overlay);
    view.sandboxes.insert(SandboxId("task".into()), task);
    view
}

#[test]
fn a_subnet_of_ipv6_reaches_over_all_of_a_networks_ipv4_subnets() {
    let (one, two) = Host::pair();
    one.apply(&view(1));
    two.apply(&view(2));
    for (host, to) in [
        (&one, "10.0.2.11"),
        (&one, "fd00:1::21"),
        (&one, "fd00:1::1"),
        (&two, "10.0.1.11"),
        (&two, "fd00:1::11"),
        (&two, "fd00:1::1"),
    ] {
        let ping = host.exec_in("task", &format!("ping -c1 -W5 {to}"));
        assert!(ping.status.success(), "{to}: {ping:?}");
    }
}

/// While news of an address that was given to another host is on its way.
#[test]
fn a_frame_for_nobody_does_not_go_round_between_two_hosts() {
    let (one, two) = Host::pair();
    for (host, n) in [(&one, 1), (&two, 2)] {
        let mut view = view(n);
        let lost =
            Peer { mac: Mac::for_ip(ip("10.0.1.99")), vtep: ip(&format!("192.0.2.{}", 3 - n)) };
        for web in view.overlays.values_mut() {
            web.peers.insert(ip("10.0.1.99"), lost);
        }
        host.apply(&view);
    }
    let ping = one.exec_in("task", "ping -c1 -W1 10.0.1.99");
    assert!(!ping.status.success(), "{ping:?}");
    let sent = || {
        stdout(&one.exec("awk '/eth0:/ {print $11}' /proc/net/dev")).trim().parse::<u64>().unwrap()
    };
    let before = sent();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let after = sent();
    assert!(after - before < 100, "{before} {after}");
}

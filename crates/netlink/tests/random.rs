//! Random plans in a real namespace: after applying, there is nothing left to do.

mod support;

use netplan::{
    Backend, Bridge, Cidr, Link, Mac, Overlay, OverlaySubnet, Peer, Proto, PublishedPort, Sandbox,
    SandboxId, Service, View, World, desired, diff,
};
use proptest::prelude::*;
use support::{Host, text};

#[derive(Debug, Clone)]
struct Choice {
    bridges: Vec<(bool, bool, u32)>,
    /// Peers and backends of each overlay, and whether it has a second subnet, and one of IPv6.
    overlays: Vec<(u8, u8, bool, bool)>,
    /// For each sandbox, which networks it is on, and a port.
    sandboxes: Vec<(Vec<bool>, Option<u16>)>,
}

fn choices() -> impl Strategy<Value = Choice> {
    let bridges = prop::collection::vec((any::<bool>(), any::<bool>(), 1280u32..1501), 1..3);
    let overlays = (0u8..5, 0u8..4, any::<bool>(), any::<bool>());
    let overlays = prop::collection::vec(overlays, 0..3);
    let on = prop::collection::vec(any::<bool>(), 4);
    let sandboxes = prop::collection::vec((on, prop::option::of(2000u16..2010)), 0..4);
    (bridges, overlays, sandboxes).prop_map(|(bridges, overlays, sandboxes)| Choice {
        bridges,
        overlays,
        sandboxes,
    })
}

fn cidr(text: String) -> Cidr {
    text.parse().unwrap()
}

fn view(choice: &Choice) -> View {
    let mut view = View::default();
    view.host.data_path = Some("127.0.0.1".parse().unwrap());
    for (n, (internal, icc, mtu)) in choice.bridges.iter().enumerate() {
        let bridge = Bridge {
            ifname: format!("br{n}"),
            addresses: vec![cidr(format!("172.2{n}.0.1/16")), cidr(format!("fd00:{n}::1/64"))],
            mtu: *mtu,
            internal: *internal,
            icc: *icc,
            masquerade: true,
            foreign: false,
        };
        view.bridges.insert(format!("bridge{n}").into(), bridge);
    }
    for (n, choice) in choice.overlays.iter().enumerate() {
        view.overlays.insert(format!("overlay{n}").into(), overlay(n, *choice));
    }
    for (n, (on, port)) in choice.sandboxes.iter().enumerate() {
        add_sandbox(&mut view, n, on, *port);
    }
    view
}

fn overlay(n: usize, (peers, backends, second, six): (u8, u8, bool, bool)) -> Overlay {
    let subnet = |text: String, vni| {
        let subnet = cidr(text);
        OverlaySubnet { subnet, gateway: subnet.nth(1), vni }
    };
    let vni = 5000 + 2 * n as u32;
    let mut subnets = vec![subnet(format!("10.0.{n}.0/24"), vni)];
    subnets.extend(second.then(|| subnet(format!("10.1.{n}.0/24"), vni + 1)));
    subnets.extend(six.then(|| subnet(format!("fd01:{n}::/64"), vni)));
    let peers = (0..peers).flat_map(|p| {
        let third = u8::from(second && p % 2 == 1);
        let addr = format!("10.{third}.{n}.{}", 100 + p).parse().unwrap();
        let vtep = format!("192.0.2.{}", p + 1).parse().unwrap();
        let peer = Peer { mac: Mac::for_ip(addr), vtep };
        let further = six.then(|| (format!("fd01:{n}::{}", 100 + p).parse().unwrap(), peer));
        std::iter::once((addr, peer)).chain(further)
    });
    let backends = (0..backends).map(|b| Backend {
        address: format!("10.0.{n}.{}", 100 + b).parse().unwrap(),
        ready: b % 2 == 0,
    });
    Overlay {
        subnets,
        peers: peers.collect(),
        services: vec![Service {
            name: "s".into(),
            vips: vec![format!("10.0.{n}.50").parse().unwrap()],
            backends: backends.collect(),
        }],
        ..Overlay::default()
    }
}

fn add_sandbox(view: &mut View, n: usize, on: &[bool], port: Option<u16>) {
    let mut links: Vec<Link> = Vec::new();
    let names = ["bridge0", "bridge1", "overlay0", "overlay1"];
    for (slot, name) in names.iter().enumerate().filter(|(slot, _)| on[*slot]) {
        let host = 10 + n;
        let (addresses, gateway) = match slot {
            0 | 1 => (
                vec![format!("172.2{slot}.0.{host}/16"), format!("fd00:{slot}::{host}/64")],
                Some(format!("172.2{slot}.0.1")),
            ),
            _ => (vec![format!("10.0.{}.{host}/24", slot - 2)], None),
        };
        let addresses: Vec<Cidr> = addresses.into_iter().map(cidr).collect();
        let first = links.iter().all(|link| link.gateways.is_empty());
        links.push(Link {
            network: (*name).into(),
            ifname: format!("eth{}", links.len()),
            peer: format!("veth{n}{slot}"),
            mac: Mac::for_ip(addresses[0].addr),
            addresses,
            gateways: gateway.filter(|_| first).map(|g| g.parse().unwrap()).into_iter().collect(),
            routes: vec![],
        });
    }
    // A gateway can be used only where its network is.
    for link in &mut links {
        if !view.bridges.contains_key(&link.network) {
            link.gateways.clear();
        }
    }
    let published = port.map(|host_port| PublishedPort {
        proto: Proto::Udp,
        host_ip: "0.0.0.0".parse().unwrap(),
        host_port: host_port + n as u16,
        address: format!("172.20.0.{}", 10 + n).parse().unwrap(),
        port: 80,
    });
    let sandbox = Sandbox {
        links,
        resolver: None,
        published: published.into_iter().collect(),
        ingress: vec![],
    };
    view.sandboxes.insert(SandboxId(format!("sandbox{n}")), sandbox);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..Default::default() })]

    /// A walk through random views: by what we know, by what we see, and both agree.
    #[test]
    fn after_applying_there_is_nothing_left_to_do(walk in prop::collection::vec(choices(), 3)) {
        let host = Host::new("random");
        host.with(|kernel| {
            let mut known = World::new();
            for choice in &walk {
                let wanted = desired(&view(choice));
                let failures = kernel.apply(&diff(&known, &wanted));
                let named: Vec<_> = failures.iter().map(ToString::to_string).collect();
                assert!(named.is_empty(), "{named:#?}");
                let rest = diff(&kernel.observe(&wanted), &wanted);
                assert!(kernel.unreadable.is_empty(), "{:?}", kernel.unreadable);
                assert!(rest.is_empty(), "left to do:\n{}", text(&rest));
                known = wanted;
            }
        });
    }
}

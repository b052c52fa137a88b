//! The controller on a real kernel: each test is a host of its own, a network namespace.

use std::path::PathBuf;
use std::process::{Command, Output};

use model::ContainerId;

use super::*;

/// Runs `work` with a controller in a network namespace of its own.
fn on_a_host<F: Future<Output = ()>>(work: impl FnOnce(Network, PathBuf) -> F + Send) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    let keep = path.join("host");
    let config = config(&path);
    netlink::namespace::create(&keep, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let network = Network::open(config).await.unwrap();
            work(network, path).await;
        });
        Ok(())
    })
    .unwrap();
    for entry in std::fs::read_dir(root.path().join("exec/netns")).into_iter().flatten().flatten() {
        netlink::namespace::remove(&entry.path()).unwrap();
    }
    netlink::namespace::remove(&keep).unwrap();
}

fn config(root: &std::path::Path) -> NetworkConfig {
    NetworkConfig {
        data_root: root.join("data"),
        exec_root: root.join("exec"),
        bridge: None,
        bip: None,
        fixed_cidr: None,
        ipv6: false,
        fixed_cidr_v6: None,
        gateways: Vec::new(),
        pools: Vec::new(),
        firewall: true,
        firewall6: true,
        ip_forward: true,
        ip_masq: true,
        icc: true,
        default_host_ip: None,
        mtu: 0,
        // The process that relays is this program, which is no skep.
        userland_proxy: false,
    }
}

fn container(n: u8) -> ContainerId {
    ContainerId::new(format!("{n:064x}").chars().rev().collect::<String>())
}

fn spec(n: u8, network: &str) -> SandboxSpec {
    SandboxSpec {
        container: container(n),
        container_name: format!("c{n}"),
        mode: SandboxMode::Own,
        endpoints: vec![EndpointSpec { network: network.to_owned(), ..Default::default() }],
        ports: Vec::new(),
        ingress: Vec::new(),
        dns: Vec::new(),
        dns_search: Vec::new(),
        dns_options: Vec::new(),
        links: Vec::new(),
    }
}

fn port(host: (u16, u16)) -> PortSpec {
    PortSpec { proto: Proto::Tcp, port: 80, host_ip: None, host_ports: host }
}

fn inside(state: &SandboxState, line: &str) -> Output {
    let netns = state.netns.as_ref().unwrap();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).args(["sh", "-c", line]);
    command.output().unwrap()
}

#[test]
fn containers_on_the_default_bridge_get_addresses_and_reach_each_other() {
    on_a_host(|network, _| async move {
        let one = network.start(spec(1, BRIDGE)).await.unwrap();
        let two = network.start(spec(2, BRIDGE)).await.unwrap();
        let address = |state: &SandboxState| state.endpoints[BRIDGE].addresses[0].to_string();
        assert_eq!(address(&one), "172.17.0.2/16");
        assert_eq!(address(&two), "172.17.0.3/16");
        assert!(inside(&one, "ping -c1 -W2 172.17.0.3").status.success());
        assert!(inside(&one, "ping -c1 -W2 172.17.0.1").status.success());
        network.stop(&container(1)).await.unwrap();
        let again = network.start(spec(3, BRIDGE)).await.unwrap();
        assert_eq!(address(&again), "172.17.0.2/16", "what is free is given again");
        assert_eq!(network.counters().steps_failed, 0);
    });
}

#[test]
fn ports_conflict_in_dockers_words_and_change_nothing() {
    on_a_host(|network, _| async move {
        let mut first = spec(1, BRIDGE);
        first.ports = vec![port((8080, 8080)), port((0, 0))];
        let state = network.start(first).await.unwrap();
        assert_eq!(state.ports.len(), 2);
        let mut second = spec(2, BRIDGE);
        second.ports = vec![port((8080, 8080))];
        let error = network.start(second.clone()).await.unwrap_err().to_string();
        assert!(
            error.ends_with("Bind for 0.0.0.0:8080 failed: port is already allocated"),
            "{error}"
        );
        assert!(network.sandbox(&container(2)).is_none());
        network.stop(&container(1)).await.unwrap();
        network.start(second).await.unwrap();
    });
}

#[test]
fn a_connect_that_is_undone_gives_its_ports_back() {
    on_a_host(|network, root| async move {
        let mut first = spec(1, BRIDGE);
        first.endpoints.clear();
        first.ports = vec![port((8080, 8080))];
        assert!(network.start(first).await.unwrap().ports.is_empty(), "there is no way out");
        // The record of it cannot be written.
        let in_the_way = root.join("exec/network/sandboxes.new");
        std::fs::create_dir(&in_the_way).unwrap();
        let out = EndpointSpec { network: BRIDGE.to_owned(), ..Default::default() };
        network.connect(&container(1), out.clone()).await.unwrap_err();
        std::fs::remove_dir(&in_the_way).unwrap();
        let mut second = spec(2, BRIDGE);
        second.ports = vec![port((8080, 8080))];
        network.start(second).await.unwrap();
        let error = network.connect(&container(1), out).await.unwrap_err().to_string();
        assert!(error.ends_with("port is already allocated"), "{error}");
    });
}

#[test]
fn a_controller_that_was_killed_is_followed_by_one_that_changes_nothing() {
    on_a_host(|network, root| async move {
        let mut first = spec(1, BRIDGE);
        first.ports = vec![port((8080, 8080))];
        let state = network.start(first).await.unwrap();
        let bridge = network.find(BRIDGE).unwrap();
        // A namespace that a crash has left behind.
        let orphan = root.join("exec/netns/orphan");
        netlink::namespace::create(&orphan, || Ok(())).unwrap();
        drop(network);
        let network = Network::open(config(&root)).await.unwrap();
        assert_eq!(network.sandbox(&container(1)).unwrap(), state);
        assert_eq!(network.find(BRIDGE).unwrap(), bridge);
        assert!(!orphan.exists());
        assert!(inside(&state, "ping -c1 -W2 172.17.0.1").status.success());
        network.retain(Vec::new()).await.unwrap();
        assert!(network.sandboxes().is_empty());
        assert!(!state.netns.unwrap().exists());
    });
}

#[test]
fn networks_are_checked_made_and_removed() {
    on_a_host(|network, _| async move {
        let spec_of = |name: &str, subnet: Option<&str>, gateway: Option<&str>| NetworkSpec {
            name: name.to_owned(),
            driver: Driver::Bridge,
            internal: false,
            attachable: false,
            ipv6: false,
            ipam_driver: "default".to_owned(),
            ipam_options: Default::default(),
            pools: vec![IpamPool {
                subnet: subnet.map(|text| text.parse().unwrap()),
                gateway: gateway.map(|text| text.parse().unwrap()),
                ..Default::default()
            }],
            options: Default::default(),
            labels: Default::default(),
        };
        let made = network.create(spec_of("own", None, None)).await.unwrap();
        assert_eq!(made.pools[0].subnet.unwrap().to_string(), "172.18.0.0/16");
        for (spec, text) in [
            (spec_of("own", None, None), "network with name own already exists"),
            (
                spec_of("b", Some("172.18.5.0/24"), None),
                "Pool overlaps with other one on this address space",
            ),
            (
                spec_of("c", Some("10.9.0.0/24"), Some("10.8.0.1")),
                "no matching subnet for gateway 10.8.0.1",
            ),
        ] {
            assert_eq!(network.create(spec).await.unwrap_err().to_string(), text);
        }
        let error = network.remove(&network.find(BRIDGE).unwrap().id).await.unwrap_err();
        assert_eq!(error.to_string(), "bridge is a pre-defined network and cannot be removed");
        network.remove(&made.id).await.unwrap();
        assert!(network.find("own").is_err());
    });
}

fn here(line: &str) {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The sweep looks every two seconds.
async fn until_warned(network: &Network, wanted: Option<&str>) {
    let fits = |warnings: &[String]| match wanted {
        Some(text) => warnings.iter().any(|warning| warning.contains(text)),
        None => warnings.is_empty(),
    };
    for _ in 0..200 {
        if fits(&network.warnings()) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("wanted {wanted:?}: {:?}", network.warnings());
}

/// A host in a swarm, with the routing mesh on segment 4097.
fn overlays() -> OverlayState {
    let id = model::NetworkId::new("o".repeat(25));
    let subnet = OverlaySubnet {
        subnet: "10.0.1.0/24".parse().unwrap(),
        gateway: Some("10.0.1.1".parse().unwrap()),
        vni: 4097,
    };
    let overlay = Overlay {
        subnets: vec![subnet],
        ingress: Some(Ingress::default()),
        lb_address: Some("10.0.1.2/24".parse().unwrap()),
        ..Default::default()
    };
    OverlayState {
        overlays: [(id.clone(), overlay)].into(),
        names: [(id, "ingress".to_owned())].into(),
        data_path: Some("192.0.2.1".parse().unwrap()),
        vxlan_port: 4789,
        in_swarm: true,
    }
}

const UPLINK: &str = "ip link set lo up; ip addr add 192.0.2.1/24 dev lo";

#[test]
fn a_segment_or_port_that_somebody_else_has_is_named() {
    on_a_host(|network, _| async move {
        here(UPLINK);
        here("ip link add fx0 type vxlan id 4097 dstport 4789 dev lo && ip link set fx0 up");
        let error = network.set_overlays(overlays()).await.unwrap_err().to_string();
        let taken = "VXLAN id 4097 of network ingress is taken by link fx0 on this host";
        assert!(error.starts_with(taken), "{error}");
        until_warned(&network, Some(taken)).await;
        here("ip link del fx0");
        until_warned(&network, None).await;
        network.set_overlays(OverlayState::default()).await.unwrap();
        let port = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
        let error = network.set_overlays(overlays()).await.unwrap_err().to_string();
        assert!(
            error.starts_with("UDP port 4789, which overlay networks use, is taken"),
            "{error}"
        );
        drop(port);
        until_warned(&network, None).await;
    });
}

#[test]
fn an_uplink_without_its_address_is_named() {
    on_a_host(|network, _| async move {
        here(UPLINK);
        network.set_overlays(overlays()).await.unwrap();
        here("ip addr del 192.0.2.1/24 dev lo");
        until_warned(&network, Some("address 192.0.2.1, at which the other nodes reach this one"))
            .await;
        here("ip addr add 192.0.2.1/24 dev lo");
        until_warned(&network, None).await;
    });
}

#[test]
fn a_firewall_that_drops_what_containers_send_is_named_with_what_opens_it() {
    on_a_host(|network, _| async move {
        here(
            "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'",
        );
        network.start(spec(1, BRIDGE)).await.unwrap();
        until_warned(&network, Some("firewall chain ip filter FORWARD")).await;
        let warnings = network.warnings();
        let (_, advice) = warnings[0].split_once("accept it (").unwrap();
        here(advice.trim_end_matches(')'));
        until_warned(&network, None).await;
    });
}

#[test]
fn what_an_overlay_hides_of_the_hosts_networks_is_named() {
    on_a_host(|network, _| async move {
        here(UPLINK);
        network.set_overlays(overlays()).await.unwrap();
        here("ip route add 10.0.1.128/25 dev lo");
        until_warned(&network, Some("subnet 10.0.1.0/24 of network ingress hides 10.0.1.128/25"))
            .await;
        here("ip route del 10.0.1.128/25 dev lo");
        until_warned(&network, None).await;
    });
}

#[test]
fn overlays_follow_the_mtu_of_the_uplink() {
    on_a_host(|network, root| async move {
        here("ip link set lo up; ip link add up0 type veth peer up1; ip link set up0 up");
        here("ip addr add 192.0.2.1/24 dev up0");
        network.set_overlays(overlays()).await.unwrap();
        let netns = root.join("exec/netns").join(format!("1-{}", "o".repeat(10)));
        let link = || {
            let mut ip = Command::new("nsenter");
            ip.arg(format!("--net={}", netns.display())).args(["ip", "-o", "link", "show"]);
            String::from_utf8(ip.output().unwrap().stdout).unwrap()
        };
        for (uplink, left) in [(1500, 1450), (1400, 1350), (9000, 8950)] {
            here(&format!("ip link set up0 mtu {uplink}"));
            let followed = || {
                let links = link();
                let wanted = format!(" mtu {left} ");
                links.lines().filter(|one| one.contains("vxlan0") || one.contains("br0:")).count()
                    >= 2
                    && links.lines().all(|one| one.contains(": lo:") || one.contains(&wanted))
            };
            let begun = std::time::Instant::now();
            while !followed() {
                let waited = begun.elapsed() < std::time::Duration::from_secs(10);
                assert!(waited, "{uplink}: {}", link());
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    });
}

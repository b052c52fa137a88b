//! Local networks from views alone: real namespaces, real packets.

mod support;

use std::path::Path;

use netlink::Kernel;
use netplan::{Bridge, Link, Proto, PublishedPort, Sandbox, SandboxId, View, World};
use support::{Host, run, stdout};

fn view() -> View {
    let mut view = View::default();
    view.bridges.insert("net1".into(), bridge("docker0", "172.17.0.1/16"));
    view.sandboxes.insert(SandboxId("one".into()), sandbox("net1", 2));
    view.sandboxes.insert(SandboxId("two".into()), sandbox("net1", 3));
    view
}

fn bridge(ifname: &str, address: &str) -> Bridge {
    Bridge {
        ifname: ifname.into(),
        addresses: vec![address.parse().unwrap()],
        mtu: 1500,
        internal: false,
        icc: true,
        masquerade: true,
        foreign: false,
    }
}

fn sandbox(network: &str, n: u8) -> Sandbox {
    let address: netplan::Cidr = format!("172.17.0.{n}/16").parse().unwrap();
    Sandbox {
        links: vec![Link {
            network: network.into(),
            ifname: "eth0".into(),
            peer: format!("veth{n}"),
            mac: netplan::Mac::for_ip(address.addr),
            addresses: vec![address],
            gateways: vec!["172.17.0.1".parse().unwrap()],
            routes: vec![],
        }],
        resolver: None,
        published: vec![],
        ingress: vec![],
    }
}

fn publish(host_ip: &str, host_port: u16, address: &str, port: u16) -> PublishedPort {
    PublishedPort {
        proto: Proto::Tcp,
        host_ip: host_ip.parse().unwrap(),
        host_port,
        address: address.parse().unwrap(),
        port,
    }
}

#[test]
fn containers_reach_each_other_the_host_and_the_outside() {
    let (a, b) = Host::pair();
    a.apply(&view());
    for target in ["172.17.0.3", "172.17.0.1", "192.0.2.1", "192.0.2.2"] {
        let output = a.exec_in("one", &format!("ping -c 1 -W 2 {target}"));
        assert!(output.status.success(), "{target}: {output:?}");
    }
    drop(b);
}

#[test]
fn published_ports_answer_from_outside_from_the_host_and_from_containers() {
    let (a, b) = Host::pair();
    let mut view = view();
    let one = view.sandboxes.get_mut(&SandboxId("one".into())).unwrap();
    one.published = vec![
        publish("0.0.0.0", 8080, "172.17.0.2", 80),
        publish("127.0.0.1", 8081, "172.17.0.2", 80),
    ];
    a.apply(&view);
    let www = tempfile::tempdir().unwrap();
    std::fs::write(www.path().join("hi"), "hello").unwrap();
    let _server = a.spawn_in("one", &format!("busybox httpd -f -p 80 -h {}", www.path().display()));
    let get = |output: std::process::Output| stdout(&output);
    let ask = "curl -s -m 3 http://";
    for _ in 0..50 {
        if get(a.exec_in("one", &format!("{ask}172.17.0.2/hi"))) == "hello" {
            break;
        }
    }
    assert_eq!(get(b.exec(&format!("{ask}192.0.2.1:8080/hi"))), "hello", "from outside");
    assert_eq!(get(a.exec(&format!("{ask}192.0.2.1:8080/hi"))), "hello", "from the host");
    assert_eq!(get(a.exec(&format!("{ask}127.0.0.1:8080/hi"))), "hello", "by the loopback");
    assert_eq!(get(a.exec(&format!("{ask}127.0.0.1:8081/hi"))), "hello", "loopback only");
    assert_eq!(get(b.exec(&format!("{ask}192.0.2.1:8081/hi"))), "", "loopback only, outside");
    assert_eq!(get(a.exec_in("two", &format!("{ask}192.0.2.1:8080/hi"))), "hello", "a neighbour");
    assert_eq!(get(a.exec_in("one", &format!("{ask}192.0.2.1:8080/hi"))), "hello", "itself");
    let sneak = b
        .exec("ip route add 172.17.0.0/16 via 192.0.2.1; busybox nc -w 1 172.17.0.2 80 </dev/null");
    assert!(!sneak.status.success(), "an unpublished way in");
}

/// A host with a container that has a published port, and what that comes to.
fn with_a_published_port() -> (Host, World) {
    let mut view = view();
    view.sandboxes.get_mut(&SandboxId("one".into())).unwrap().published =
        vec![publish("0.0.0.0", 8080, "172.17.0.2", 80)];
    (Host::new("repair"), netplan::desired(&view))
}

/// Each damage is seen at the first look, and nothing is left of it after the third.
fn put_right(kernel: &mut Kernel, wanted: &World, what: &str, damage: impl FnOnce()) {
    // A first look, as the sweep takes it, knows the table from then on.
    assert!(netplan::diff(&kernel.observe(wanted), wanted).is_empty(), "before {what}");
    damage();
    for round in 0..3 {
        let steps = netplan::diff(&kernel.observe(wanted), wanted);
        assert!(round > 0 || !steps.is_empty(), "{what}: not seen");
        let failures = kernel.apply(&steps);
        assert!(failures.is_empty(), "{what}: {failures:#?}");
    }
    let steps = netplan::diff(&kernel.observe(wanted), wanted);
    assert!(steps.is_empty(), "{what}: {}", support::text(&steps));
}

fn at(namespace: &Path, line: &str) {
    run("nsenter", &[&format!("--net={}", namespace.display()), "sh", "-c", line]);
}

#[test]
fn what_is_altered_or_deleted_on_the_host_is_put_right() {
    let (host, wanted) = with_a_published_port();
    let path = host.path();
    host.with(|kernel| {
        support::settle(kernel, &wanted);
        for line in [
            "ip link del docker0",
            "ip link set docker0 down",
            "ip addr flush dev docker0",
            "ip link del veth2",
            "ip link set veth2 nomaster",
            "sysctl -qw net.ipv4.ip_forward=0",
            "nft 'add table inet skep { flags dormant; }'",
            "nft delete table inet skep",
            "nft flush table inet skep",
            "nft add rule inet skep forward drop",
        ] {
            put_right(kernel, &wanted, line, || at(&path, line));
        }
        at(&path, "nft add table inet other");
        let steps = netplan::diff(&kernel.observe(&wanted), &wanted);
        assert!(steps.is_empty(), "somebody else's table is not ours: {}", support::text(&steps));
    });
}

#[test]
fn what_is_altered_or_deleted_in_a_container_is_put_right() {
    let (host, wanted) = with_a_published_port();
    let one = host.directory.join("one");
    host.with(|kernel| {
        support::settle(kernel, &wanted);
        for line in [
            "ip link set eth0 down",
            "ip addr flush dev eth0",
            "ip route del default",
            "ip route del 172.17.0.0/16 dev eth0",
            "ip link set eth0 mtu 1000",
            "ip link set lo down",
        ] {
            put_right(kernel, &wanted, line, || at(&one, line));
        }
        put_right(kernel, &wanted, "file of the namespace", || {
            run("umount", &[&one.display().to_string()]);
        });
        put_right(kernel, &wanted, "namespace gone", || netlink::namespace::remove(&one).unwrap());
    });
}

#[test]
fn questions_on_port_53_reach_the_resolver_s_own_ports_and_leave_no_flow() {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    let host = Host::new("names");
    let mut view = view();
    let task = view.sandboxes.get_mut(&SandboxId("one".into())).unwrap();
    task.resolver = Some(netplan::ResolverPorts { udp: 40_000, tcp: 40_001 });
    host.apply(&view);
    let wait = Some(std::time::Duration::from_secs(3));
    let asked = netlink::namespace::visit(&host.directory.join("one"), || {
        let resolver: SocketAddr = "127.0.0.11:53".parse().unwrap();
        let server = UdpSocket::bind("127.0.0.11:40000").unwrap();
        // The container may have a server of its own on that port.
        let own = UdpSocket::bind("0.0.0.0:53").unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&server, &own, &asker] {
            socket.set_read_timeout(wait).unwrap();
        }
        let mut buffer = [0u8; 16];
        asker.send_to(b"question", resolver).unwrap();
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"question"[..], asker.local_addr().unwrap()));
        server.send_to(b"answer", from).unwrap();
        assert_eq!(asker.recv_from(&mut buffer).unwrap(), (6, resolver));
        asker.send_to(b"own", "127.0.0.1:53").unwrap();
        assert_eq!(own.recv_from(&mut buffer).unwrap().0, 3);

        let listener = TcpListener::bind("127.0.0.11:40001").unwrap();
        let mut asker = TcpStream::connect(resolver).unwrap();
        asker.write_all(b"question").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.read_exact(&mut buffer[..8]).unwrap();
        server.write_all(b"answer").unwrap();
        asker.read_exact(&mut buffer[..6]).unwrap();
        assert_eq!((asker.peer_addr().unwrap(), &buffer[..6]), (resolver, &b"answer"[..]));
        Ok(())
    });
    asked.unwrap();
    let flows = host.exec_in("one", "conntrack -L 2>/dev/null | grep -c 127.0.0.11");
    assert_eq!(stdout(&flows).trim(), "0", "a question left a flow behind");
}

#[test]
fn a_namespace_s_flows_are_counted_before_they_are_listed() {
    use netlink::socket::{Family, Socket};
    use netlink::{conntrack, namespace};
    let (idle, busy) = (Host::new("idle"), Host::new("busy"));
    // Tracking begins with the first rule that asks for it.
    let rules = "add table ip t; add chain ip t c { type filter hook output priority 0; }; \
                 add rule ip t c ct state new accept";
    for host in [&idle, &busy] {
        assert!(host.exec(&format!("nft '{rules}'")).status.success(), "nft in {}", host.name);
    }
    let asked = namespace::visit(&busy.path(), || {
        std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"question", "127.0.0.1:4000")
    });
    asked.expect("a datagram");
    let seen = |host: &Host| {
        let look = || {
            let mut socket = Socket::open(Family::Netfilter)?;
            let counted = conntrack::count(&mut socket)?;
            let listed = conntrack::dump(&mut socket)?;
            Ok((counted, listed.iter().map(|flow| flow.original.dst_port).collect::<Vec<_>>()))
        };
        namespace::visit(&host.path(), look).expect("a look at the flows")
    };
    assert_eq!(seen(&idle), (Some(0), vec![]));
    assert_eq!(seen(&busy), (Some(1), vec![4000]));
}

#[test]
fn a_flow_that_took_the_place_of_a_listed_one_is_not_forgotten() {
    use std::net::TcpListener;

    use netlink::socket::{Family, Socket};
    use netlink::{conntrack, namespace};
    let host = Host::new("again");
    let leads_to = |address: &str| {
        let rules = format!(
            "add table ip t; delete table ip t; add table ip t; add chain ip t c {{ type nat hook output priority -100; }}; \
             add rule ip t c ip daddr 127.0.0.9 tcp dport 80 dnat to {address}"
        );
        assert!(host.exec(&format!("nft '{rules}'")).status.success(), "nft in {}", host.name);
    };
    // A connection from port 40000, told which of the two servers it has reached and closed by that one.
    let connect = || {
        namespace::visit(&host.path(), || {
            let servers = ["127.0.0.2:80", "127.0.0.3:80"].map(|at| TcpListener::bind(at).unwrap());
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                None,
            )?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            let own: std::net::SocketAddr = "127.0.0.1:40000".parse().unwrap();
            rustix::net::bind(&socket, &own)?;
            let to: std::net::SocketAddr = "127.0.0.9:80".parse().unwrap();
            rustix::net::connect(&socket, &to)?;
            for server in &servers {
                server.set_nonblocking(true)?;
            }
            let reached = servers.iter().position(|server| server.accept().is_ok());
            Ok(reached.expect("one of them was reached"))
        })
        .expect("a connection")
    };
    let with = |look: &(dyn Fn(&mut Socket) -> std::io::Result<Vec<conntrack::Flow>> + Sync)| {
        namespace::visit(&host.path(), || look(&mut Socket::open(Family::Netfilter)?)).unwrap()
    };
    leads_to("127.0.0.2:80");
    assert_eq!(connect(), 0);
    let listed = with(&conntrack::dump);
    assert_eq!(listed.len(), 1);
    leads_to("127.0.0.3:80");
    assert_eq!(connect(), 1, "the same port, and another server");
    let left = with(&|socket| {
        conntrack::forget(socket, &listed.iter().collect::<Vec<_>>())?;
        conntrack::dump(socket)
    });
    assert_eq!(left.len(), 1, "the new connection's flow is there");
    let left = with(&|socket| {
        conntrack::forget(socket, &left.iter().collect::<Vec<_>>())?;
        conntrack::dump(socket)
    });
    assert!(left.is_empty(), "what is listed is forgotten");
}

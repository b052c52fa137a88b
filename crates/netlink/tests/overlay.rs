//! Overlays, virtual addresses and the routing mesh from views alone: two hosts, real packets.

mod support;

use netlink::conntrack;
use netlink::socket::{Family, Socket};
use netplan::{
    Backend, Bridge, Cidr, Ingress, IngressBackend, IngressNode, IngressPort, IngressTarget, Link,
    Mac, NodeEngine, Overlay, OverlaySubnet, Peer, Proto, Sandbox, SandboxId, Service, View,
};
use support::{Host, stdout};

const WEB: &str = "webnetworkid00000000000001";
const INGRESS: &str = "ingressnetworkid0000000001";
const GATEWAY: &str = "gwbridge";
/// Published ports of the tasks, and where they lead.
const PORTS: [(Proto, u16, u16); 4] =
    [(Proto::Tcp, 8080, 80), (Proto::Tcp, 90, 90), (Proto::Udp, 53, 5353), (Proto::Udp, 90, 90)];

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// Host 1 or 2; each has a task: 10.0.1.11 / .12 on `web`, 10.0.0.11 / .12 on the ingress network.
fn view(n: u8, engines: [NodeEngine; 2]) -> View {
    let mut view = View::default();
    view.host.data_path = Some(ip(&format!("192.0.2.{n}")));
    view.host.uplink_mtu = 1500;
    view.host.bridge_netfilter = true;
    view.host.flow_zones = true;
    view.host.bridge_hooks = std::path::Path::new("/proc/sys/net/bridge").exists();
    view.overlays.insert(WEB.into(), web(n));
    view.overlays.insert(INGRESS.into(), ingress(n, engines));
    let gateway = Bridge {
        ifname: "docker_gwbridge".into(),
        addresses: vec![cidr("172.18.0.1/16")],
        mtu: 1500,
        internal: false,
        icc: false,
        masquerade: true,
        foreign: false,
    };
    view.bridges.insert(GATEWAY.into(), gateway);
    view.sandboxes.insert(SandboxId("task".into()), task(n));
    view.sandboxes.insert(SandboxId::ingress(), router(n));
    view
}

/// With the other host's task and node as peers.
fn overlay(n: u8, third: u8, vni: u32) -> Overlay {
    let other = 3 - n;
    let peer = |last: u8| {
        let addr = ip(&format!("10.0.{third}.{last}"));
        (addr, Peer { mac: Mac::for_ip(addr), vtep: ip(&format!("192.0.2.{other}")) })
    };
    Overlay {
        subnets: vec![OverlaySubnet {
            subnet: cidr(&format!("10.0.{third}.0/24")),
            gateway: Some(ip(&format!("10.0.{third}.1"))),
            vni,
        }],
        peers: [10 + other, 2 + other].map(peer).into(),
        ..Overlay::default()
    }
}

fn web(n: u8) -> Overlay {
    let ready = |address: &str| Backend { address: ip(address), ready: true };
    let service = |name: &str, vip: &str, backends| Service {
        name: name.into(),
        vips: vec![ip(vip)],
        backends,
    };
    let mut web = overlay(n, 1, 4097);
    web.services = vec![
        service("web", "10.0.1.100", vec![ready("10.0.1.11"), ready("10.0.1.12")]),
        service("none", "10.0.1.101", vec![]),
    ];
    web
}

fn ingress(n: u8, engines: [NodeEngine; 2]) -> Overlay {
    let engine = |n: u8| engines[usize::from(n) - 1];
    let task = |n: u8| IngressBackend {
        address: ip(&format!("10.0.0.{}", 10 + n)),
        ready: true,
        engine: engine(n),
    };
    let node = |n: u8| IngressNode { address: ip(&format!("10.0.0.{}", 2 + n)), engine: engine(n) };
    let ports = PORTS.map(|(proto, published, _)| IngressPort {
        proto,
        published,
        backends: vec![task(1), task(2)],
    });
    let mut ingress = overlay(n, 0, 4096);
    ingress.lb_address = Some(cidr(&format!("10.0.0.{}/24", 2 + n)));
    ingress.ingress = Some(Ingress { ports: ports.into(), nodes: vec![node(1), node(2)] });
    ingress
}

fn link(network: &str, ifname: &str, peer: &str, address: &str) -> Link {
    let out = (network == GATEWAY).then(|| ip("172.18.0.1"));
    Link {
        network: network.into(),
        ifname: ifname.into(),
        peer: peer.into(),
        mac: Mac::for_ip(cidr(address).addr),
        addresses: vec![cidr(address)],
        gateways: out.into_iter().collect(),
        routes: vec![],
    }
}

fn task(n: u8) -> Sandbox {
    Sandbox {
        links: vec![
            link(WEB, "eth0", "vethw", &format!("10.0.1.{}/24", 10 + n)),
            link(INGRESS, "eth1", "vethi", &format!("10.0.0.{}/24", 10 + n)),
            link(GATEWAY, "eth2", "vethg", "172.18.0.3/16"),
        ],
        resolver: None,
        published: vec![],
        ingress: PORTS
            .map(|(proto, published, target)| IngressTarget { proto, published, target })
            .into(),
    }
}

fn router(n: u8) -> Sandbox {
    Sandbox {
        links: vec![
            link(INGRESS, "eth0", "vethingr0", &format!("10.0.0.{}/24", 2 + n)),
            link(GATEWAY, "eth1", "vethingr1", "172.18.0.2/16"),
        ],
        resolver: None,
        published: vec![],
        ingress: vec![],
    }
}

/// A third host on the same switch as two others, for clients from outside.
fn hosts() -> ([Host; 3], Host) {
    let names = ["one", "two", "client"];
    let switch = Host::new("switch");
    switch.ip("link add br0 type bridge");
    switch.ip("link set br0 up");
    let hosts = names.map(Host::new);
    for (n, host) in hosts.iter().enumerate() {
        switch.ip(&format!("link add p{n} type veth peer eth0 netns {}", host.name));
        switch.ip(&format!("link set p{n} master br0 up"));
        host.ip(&format!("addr add 192.0.2.{}/24 dev eth0", n + 1));
        host.ip("link set eth0 up");
    }
    (hosts, switch)
}

/// Answers each request with `<client's address> <name>`.
fn serve(host: &Host, name: &str) -> (support::Running, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("cgi-bin")).unwrap();
    let script = root.path().join("cgi-bin/addr");
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s {name}' \"$REMOTE_ADDR\"\n"
        ),
    )
    .unwrap();
    support::run("chmod", &["755", script.to_str().unwrap()]);
    let server =
        host.spawn_in("task", &format!("busybox httpd -f -p 80 -h {}", root.path().display()));
    for _ in 0..200 {
        if ask(host, Some("task"), "127.0.0.1:80").ends_with(name) {
            break;
        }
    }
    (server, root)
}

fn ask(host: &Host, sandbox: Option<&str>, at: &str) -> String {
    let line = format!("curl -s -m 3 http://{at}/cgi-bin/addr");
    let answer = stdout(&match sandbox {
        Some(sandbox) => host.exec_in(sandbox, &line),
        None => host.exec(&line),
    });
    answer.replace("[::ffff:", "").replace("] ", " ")
}

#[test]
fn overlay_virtual_address_and_mesh() {
    let ([one, two, client], _switch) = hosts();
    let skep = [NodeEngine::Skep, NodeEngine::Skep];
    one.apply(&view(1, skep));
    two.apply(&view(2, skep));
    let ping = |host: &Host, to: &str| host.exec_in("task", &format!("ping -c1 -W2 {to}"));
    assert!(ping(&one, "10.0.1.12").status.success(), "overlay 1 -> 2");
    assert!(ping(&two, "10.0.1.11").status.success(), "overlay 2 -> 1");
    assert!(ping(&one, "10.0.1.1").status.success(), "gateway of the overlay");
    assert!(ping(&one, "192.0.2.3").status.success(), "the way out");
    let big = one.exec_in("task", "ping -c1 -W2 -M do -s 1422 10.0.1.12");
    assert!(big.status.success(), "1450 bytes fit: {big:?}");

    let (_one, _a) = serve(&one, "one");
    let (_two, _b) = serve(&two, "two");
    // The virtual address: both tasks answer, one of them the caller itself; the caller is seen.
    let answers: Vec<_> = (0..4).map(|_| ask(&one, Some("task"), "10.0.1.100")).collect();
    assert!(answers.contains(&"10.0.1.11 one".to_owned()), "{answers:?}");
    assert!(answers.contains(&"10.0.1.11 two".to_owned()), "{answers:?}");
    assert!(ping(&one, "10.0.1.100").status.success(), "virtual address and ICMP");
    let refused = one.exec_in("task", "curl -s -m 3 http://10.0.1.101/");
    assert_eq!(refused.status.code(), Some(7), "no backend is refused at once: {refused:?}");

    // The mesh: every node answers with every task, and the task sees the client.
    for at in ["192.0.2.1:8080", "192.0.2.2:8080"] {
        let answers: Vec<_> = (0..4).map(|_| ask(&client, None, at)).collect();
        assert!(answers.contains(&"192.0.2.3 one".to_owned()), "{at}: {answers:?}");
        assert!(answers.contains(&"192.0.2.3 two".to_owned()), "{at}: {answers:?}");
    }
    for (from, at) in
        [(None, "192.0.2.1:8080"), (None, "127.0.0.1:8080"), (Some("task"), "192.0.2.1:8080")]
    {
        let answers: Vec<_> = (0..4).map(|_| ask(&one, from, at)).collect();
        assert!(answers.iter().any(|a| a.ends_with("one")), "{from:?} {at}: {answers:?}");
        assert!(answers.iter().any(|a| a.ends_with("two")), "{from:?} {at}: {answers:?}");
    }
    let same = inside(&two, || std::net::TcpListener::bind("0.0.0.0:90"));
    let under_its_own_number =
        (0..2).any(|_| client.exec("timeout 2 bash -c '</dev/tcp/192.0.2.1/90'").status.success());
    assert!(under_its_own_number, "a port published under its own number");
    drop(same);
    let sneak = one.exec_in("ingress_sbox", "curl -s -m 1 http://10.0.0.11:80/");
    assert!(!sneak.status.success(), "only published ports are open on the ingress network");
}

#[test]
fn towards_a_docker_engine_node_the_source_is_the_receiving_node() {
    let ([one, two, client], _switch) = hosts();
    let engines = [NodeEngine::Skep, NodeEngine::Docker];
    one.apply(&view(1, engines));
    two.apply(&view(2, engines));
    let (_one, _a) = serve(&one, "one");
    let (_two, _b) = serve(&two, "two");
    let answers: Vec<_> = (0..4).map(|_| ask(&client, None, "192.0.2.1:8080")).collect();
    assert!(answers.contains(&"192.0.2.3 one".to_owned()), "{answers:?}");
    assert!(answers.contains(&"10.0.0.3 two".to_owned()), "{answers:?}");
}

/// Opens a socket inside a sandbox of the host; it stays there.
fn inside<T: Send>(host: &Host, open: impl FnOnce() -> std::io::Result<T> + Send) -> T {
    netlink::namespace::visit(&host.directory.join("task"), open).expect("a socket in the sandbox")
}

fn with_backends(n: u8, backends: &[(&str, bool)]) -> View {
    let mut view = view(n, [NodeEngine::Skep, NodeEngine::Skep]);
    let web = view.overlays.get_mut(WEB).unwrap();
    web.services[0].backends = backends
        .iter()
        .map(|(address, ready)| Backend { address: ip(address), ready: *ready })
        .collect();
    view
}

/// The server is bound to every address, as most are: which one it answers from is the kernel's choice.
#[test]
fn udp_answers_come_from_where_they_were_asked() {
    use std::net::{SocketAddr, UdpSocket};
    let ([one, two, client], _switch) = hosts();
    let skep = [NodeEngine::Skep; 2];
    let mixed = [NodeEngine::Skep, NodeEngine::Docker];
    let mut views = [view(1, skep), view(2, skep), view(1, mixed)];
    for view in &mut views {
        let ingress = view.overlays.get_mut(INGRESS).unwrap().ingress.as_mut().unwrap();
        ingress
            .ports
            .iter_mut()
            .for_each(|port| port.backends.retain(|b| b.address == ip("10.0.0.12")));
    }
    one.apply(&views[0]);
    two.apply(&views[1]);
    let wait = Some(std::time::Duration::from_secs(5));
    let open = |any: &str| {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(wait)?;
        Ok(socket)
    };
    let outside = |host: &Host| {
        netlink::namespace::visit(&host.path(), || open("0.0.0.0:0")).expect("a client")
    };
    // Larger than a link takes at once: what is sent is cut for the way that it really takes.
    let long = [7u8; 4000];
    let ask = |asker: &UdpSocket, at: &str, server: &UdpSocket, source: Option<&str>| {
        let mut buffer = [0u8; 5000];
        asker.send_to(b"question", at).unwrap();
        let (_, from) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{at}: {e}"));
        if let Some(source) = source {
            assert_eq!(from.ip(), ip(source), "{at}");
        }
        for answer in [&b"answer"[..], &long] {
            server.send_to(answer, from).unwrap();
            let (length, by) = asker.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{at}: {e}"));
            assert_eq!((by, length), (at.parse::<SocketAddr>().unwrap(), answer.len()), "{at}");
        }
        from
    };
    for (published, bound) in [(53, "0.0.0.0:5353"), (90, "0.0.0.0:90")] {
        let server = inside(&two, || open(bound));
        for at in [format!("192.0.2.1:{published}"), format!("192.0.2.2:{published}")] {
            ask(&outside(&client), &at, &server, Some("192.0.2.3"));
        }
        for at in [format!("127.0.0.1:{published}"), format!("192.0.2.2:{published}")] {
            ask(&outside(&two), &at, &server, None);
        }
        ask(&inside(&two, || open("0.0.0.0:0")), &format!("192.0.2.1:{published}"), &server, None);
        // A receiving node that puts its own ingress address in the client's place.
        one.apply(&views[2]);
        let seen = ask(&outside(&client), &format!("192.0.2.1:{published}"), &server, None);
        assert_eq!(seen.ip(), ip("10.0.0.3"));
        one.apply(&views[0]);
        // What the server sends on its own account from the same port leaves by the way out.
        let far = outside(&client);
        let to = SocketAddr::new(ip("192.0.2.3"), far.local_addr().unwrap().port());
        server.send_to(b"hello", to).unwrap();
        let mut buffer = [0u8; 16];
        let (_, from) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip(), ip("192.0.2.2"));
        far.send_to(b"back", from).unwrap();
        server.recv_from(&mut buffer).unwrap();
    }
}

#[test]
fn connections_of_a_dead_backend_are_reset_and_datagrams_move() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;
    let ([one, two, _client], _switch) = hosts();
    one.apply(&with_backends(1, &[("10.0.1.12", true)]));
    two.apply(&with_backends(2, &[("10.0.1.12", true)]));
    let wait = Some(Duration::from_secs(3));
    let listener = inside(&two, || TcpListener::bind("0.0.0.0:90"));
    let far = inside(&two, || UdpSocket::bind("0.0.0.0:91"));
    let near = inside(&one, || UdpSocket::bind("0.0.0.0:91"));
    far.set_read_timeout(wait).unwrap();
    near.set_read_timeout(wait).unwrap();
    let mut stream = inside(&one, || TcpStream::connect("10.0.1.100:90"));
    let (mut server, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), ip("10.0.1.11"), "the callee sees the caller");
    let caller = inside(&one, || UdpSocket::bind("0.0.0.0:9999"));
    let mut buffer = [0u8; 16];
    caller.send_to(b"a", "10.0.1.100:91").unwrap();
    far.recv_from(&mut buffer).unwrap();

    // Draining: what is connected stays connected, what is new goes elsewhere.
    let draining = [("10.0.1.12", false), ("10.0.1.11", true)];
    one.apply(&with_backends(1, &draining));
    stream.write_all(b"still").unwrap();
    server.read_exact(&mut buffer[..5]).unwrap();
    caller.send_to(b"b", "10.0.1.100:91").unwrap();
    far.recv_from(&mut buffer).unwrap();

    // Gone: the connection is reset although nobody sends, the datagrams' fixed port moves.
    stream.set_read_timeout(wait).unwrap();
    one.apply(&with_backends(1, &[("10.0.1.11", true)]));
    let error = stream.read(&mut buffer).unwrap_err();
    let ended = [std::io::ErrorKind::ConnectionAborted, std::io::ErrorKind::ConnectionReset];
    assert!(ended.contains(&error.kind()), "{error:?}");
    caller.send_to(b"c", "10.0.1.100:91").unwrap();
    near.recv_from(&mut buffer).expect("the datagram moved to the live backend");

    // Nobody has answered yet: the next attempt of the same connection is led to one that lives.
    one.apply(&with_backends(1, &[("10.0.1.12", true)]));
    two.ip("link set eth0 down");
    let _near = inside(&one, || TcpListener::bind("0.0.0.0:92"));
    let to = "10.0.1.100:92".parse().unwrap();
    let patience = Duration::from_secs(3);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| inside(&one, || TcpStream::connect_timeout(&to, patience)));
        std::thread::sleep(Duration::from_millis(200));
        one.apply(&with_backends(1, &[("10.0.1.11", true)]));
        asking.join().expect("a connection in the making is not ended");
    });
}

/// A host whose mesh leads its ports to these tasks.
fn with_mesh(n: u8, tasks: &[&str]) -> View {
    let mut view = view(n, [NodeEngine::Skep, NodeEngine::Skep]);
    let ingress = view.overlays.get_mut(INGRESS).unwrap().ingress.as_mut().unwrap();
    for port in &mut ingress.ports {
        port.backends.retain(|backend| tasks.iter().any(|task| ip(task) == backend.address));
    }
    view
}

#[test]
fn a_client_outside_that_only_listens_hears_that_its_backend_is_gone() {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;
    let ([one, two, client], _switch) = hosts();
    two.apply(&view(2, [NodeEngine::Skep, NodeEngine::Skep]));
    let listener = inside(&two, || TcpListener::bind("0.0.0.0:90"));
    let connect = |host: &Host| {
        let to = "192.0.2.1:90";
        netlink::namespace::visit(&host.path(), || TcpStream::connect(to)).expect("a connection")
    };
    let mut kept = Vec::new();
    // The others stay, or nobody does; the client is elsewhere, or on the host itself.
    for left in [&["10.0.0.11"][..], &[]] {
        one.apply(&with_mesh(1, &["10.0.0.12"]));
        let mut held = [&client, &one].map(connect);
        for stream in &mut held {
            let (mut server, _) = listener.accept().unwrap();
            stream.write_all(b"a").unwrap();
            server.read_exact(&mut [0]).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            kept.push(server);
        }
        two.ip("link set eth0 down");
        one.apply(&with_mesh(1, left));
        for stream in &mut held {
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{stream:?}, left {left:?}");
        }
        two.ip("link set eth0 up");
    }
}

/// A connection from a port of the client's own.
fn connect_from(client: &Host, port: u16, to: &str) -> std::io::Result<std::net::TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    netlink::namespace::visit(&client.path(), || {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
        bind(&socket, &std::net::SocketAddr::from(([0; 4], port)))?;
        let to: std::net::SocketAddr = to.parse().expect("an address");
        let begun = std::time::Instant::now();
        // The last acknowledgement of the connection before may still be on its way.
        while let Err(error) = connect(&socket, &to) {
            if error != rustix::io::Errno::ADDRNOTAVAIL || begun.elapsed() > PATIENCE {
                return Err(error.into());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

#[test]
fn one_port_of_a_client_through_two_hosts_is_two_flows() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, UdpSocket};
    let ([one, two, client], _switch) = hosts();
    one.apply(&with_mesh(1, &["10.0.0.12"]));
    two.apply(&with_mesh(2, &["10.0.0.12"]));
    let listener = inside(&two, || TcpListener::bind("0.0.0.0:80"));
    // The second time the task's kernel remembers the first: by the clock of another connection.
    for order in [["192.0.2.1:8080", "192.0.2.2:8080"], ["192.0.2.2:8080", "192.0.2.1:8080"]] {
        let mut held = Vec::new();
        for to in order {
            let mut stream = connect_from(&client, 40_000, to).expect(to);
            let (mut server, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), ip("192.0.2.3"), "the task sees the client");
            stream.write_all(to.as_bytes()).unwrap();
            let mut said = [0; 14];
            server.read_exact(&mut said).unwrap();
            assert_eq!(said, to.as_bytes());
            held.push((to, stream, server));
        }
        for (to, mut stream, mut server) in held {
            server.write_all(to.as_bytes()).unwrap();
            drop(server);
            let mut heard = String::new();
            stream.read_to_string(&mut heard).expect(to);
            assert_eq!(heard, to);
        }
    }

    let server = inside(&two, || UdpSocket::bind("0.0.0.0:90"));
    let asker =
        netlink::namespace::visit(&client.path(), || UdpSocket::bind("0.0.0.0:40000")).unwrap();
    for socket in [&server, &asker] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut said = [0; 32];
    for to in ["192.0.2.1:90", "192.0.2.2:90"] {
        asker.send_to(to.as_bytes(), to).unwrap();
        let (length, from) = server.recv_from(&mut said).expect(to);
        server.send_to(&said[..length], from).unwrap();
        let (_, from) = asker.recv_from(&mut said).expect(to);
        assert_eq!(from.to_string(), to, "answered by the host that was asked");
    }

    let (found, ended) = inside(&two, || {
        let mut kernel = Socket::open(Family::Netfilter)?;
        let mut flows = conntrack::dump(&mut kernel)?;
        flows.retain(|flow| flow.original.src == ip("192.0.2.3") && flow.original.dst_port == 90);
        let ended = conntrack::forget(&mut kernel, &flows.iter().collect::<Vec<_>>())?.len();
        Ok((flows.len(), ended))
    });
    assert_eq!((found, ended), (2, 2), "they can be ended as any other");
}

#[test]
fn two_vxlan_devices_of_one_network_never_meet_file_exists() {
    let host = Host::new("leftover");
    host.ip("link add eth0 type veth peer far");
    host.ip("addr add 192.0.2.1/24 dev eth0");
    host.ip("link set eth0 up");
    let view = view(1, [NodeEngine::Skep, NodeEngine::Skep]);
    host.apply(&view);
    // A crash took the file away; the namespace and its device live on in an open descriptor.
    let path = host.directory.join("1-webnetwork");
    let held = std::fs::File::open(&path).unwrap();
    netlink::namespace::remove(&path).unwrap();
    let wanted = netplan::desired(&view);
    host.with(|kernel| {
        let steps = netplan::diff(&kernel.observe(&wanted), &wanted);
        let failures = kernel.apply(&steps);
        assert!(!failures.is_empty(), "the segment is still taken while somebody holds it");
        drop(held);
        for _ in 0..200 {
            let steps = netplan::diff(&kernel.observe(&wanted), &wanted);
            if steps.is_empty() {
                return;
            }
            kernel.apply(&steps);
        }
        panic!("the leftover was never replaced");
    });
}

/// The view with IPv6 on `web` as well; its task's addresses end in the same number.
fn with_ipv6(n: u8) -> View {
    let mut view = view(n, [NodeEngine::Skep, NodeEngine::Skep]);
    let web = view.overlays.get_mut(WEB).unwrap();
    web.subnets.push(OverlaySubnet {
        subnet: cidr("fd00:1::/64"),
        gateway: Some(ip("fd00:1::1")),
        vni: 4097,
    });
    let there = ip(&format!("10.0.1.{}", 13 - n));
    let peer = web.peers[&there];
    web.peers.insert(ip(&format!("fd00:1::{}", 13 - n)), peer);
    let task = view.sandboxes.get_mut(&SandboxId("task".into())).unwrap();
    task.links[0].addresses.push(cidr(&format!("fd00:1::{}/64", 10 + n)));
    view
}

#[test]
fn a_container_that_asked_before_its_peer_was_there_need_not_ask_again() {
    let (one, two) = Host::pair();
    let whole = with_ipv6(1);
    let mut alone = whole.clone();
    alone.overlays.get_mut(WEB).unwrap().peers.clear();
    one.apply(&alone);
    two.apply(&with_ipv6(2));
    // By itself the kernel asks again after a second: here only long after the test.
    for family in ["ipv4", "ipv6"] {
        let line = format!("echo 60000 > /proc/sys/net/{family}/neigh/eth0/retrans_time_ms");
        assert!(one.exec_in("task", &line).status.success());
    }
    std::thread::scope(|scope| {
        let asked = ["10.0.1.12", "fd00:1::12"];
        let pings = asked.map(|to| {
            let line = format!("ping -c1 -w20 {to}");
            let one = &one;
            scope.spawn(move || one.exec_in("task", &line).status.success())
        });
        let asks = |to: &str| {
            let seen = stdout(&one.exec_in("task", &format!("ip neigh show {to}")));
            seen.contains("INCOMPLETE")
        };
        while !asked.iter().all(|to| asks(to)) {}
        one.apply(&whole);
        for (ping, to) in pings.into_iter().zip(asked) {
            assert!(ping.join().unwrap(), "{to}");
        }
    });
}

//! The resolver process in real namespaces: what is answered, and what survives its death.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use dns::Upstream;
use resolver::{Client, Ports, Sandbox};
use rustix::process::Signal;
use support::*;

#[test]
fn names_are_answered_over_both_carriers_and_follow_the_tables() {
    let (process, namespace) = (Process::start(), Namespace::new("carriers"));
    let ports = process.client.set_sandbox("one", &sandbox(&namespace)).unwrap();
    // Nothing is known yet and nobody may be asked.
    assert_eq!(ask(&namespace, ports.udp, &question("web", 1))[3] & 15, 2);

    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    let reply = ask(&namespace, ports.udp, &question("web", 1));
    assert_eq!(
        (&reply[..2], last_address(&reply)),
        (&[0xab, 0xcd][..], "10.0.1.5".parse().unwrap())
    );
    let reply = ask_tcp(&namespace, ports.tcp, &question("WEB.front", 1));
    assert_eq!(last_address(&reply), "10.0.1.5".parse::<IpAddr>().unwrap());

    process.client.set_zone("net1", &zone("10.0.1.6")).unwrap();
    let reply = ask(&namespace, ports.udp, &question("web", 1));
    assert_eq!(last_address(&reply), "10.0.1.6".parse::<IpAddr>().unwrap());

    // The same sandbox again keeps its ports; its removal closes them.
    assert_eq!(process.client.set_sandbox("one", &sandbox(&namespace)).unwrap(), ports);
    process.client.remove_sandbox("one").unwrap();
    assert!(process.client.sandboxes().unwrap().is_empty());
    let refused = namespace.inside(|| TcpStream::connect(("127.0.0.11", ports.tcp)).is_err());
    assert!(refused);
}

#[test]
fn a_killed_process_comes_back_with_the_same_ports_and_names() {
    let (process, namespace) = (Process::start(), Namespace::new("killed"));
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    let ports = process.client.set_sandbox("one", &sandbox(&namespace)).unwrap();
    process.until_written("10.0.1.5");
    process.kill();
    process.client.ensure().unwrap();
    let expected: std::collections::BTreeMap<String, Ports> = [("one".into(), ports)].into();
    assert_eq!(process.client.sandboxes().unwrap(), expected);
    let reply = ask(&namespace, ports.udp, &question("web", 1));
    assert_eq!(last_address(&reply), "10.0.1.5".parse::<IpAddr>().unwrap());
}

#[test]
fn zones_of_networks_that_were_removed_while_no_daemon_ran_are_dropped() {
    let (process, namespace) = (Process::start(), Namespace::new("zones"));
    for network in ["net1", "net2", "net3"] {
        process.client.set_zone(network, &zone("10.0.1.5")).unwrap();
    }
    let seen = |name: &str| Sandbox { zones: vec![name.into()], ..sandbox(&namespace) };
    let answers = |client: &Client, name: &str| {
        let ports = client.set_sandbox("two", &seen(name)).unwrap();
        let answered = ask(&namespace, ports.udp, &question("web", 1))[3] & 15 == 0;
        client.remove_sandbox("two").unwrap();
        answered
    };
    process.client.set_sandbox("one", &seen("net1")).unwrap();
    // The next daemon knows the second network, and that the first one's sandbox is there.
    let next = Client::new(&program(), process.root.path());
    next.set_zone("net2", &zone("10.0.1.5")).unwrap();
    assert!(answers(&next, "net3"), "it is still there");
    next.drop_old_zones().unwrap();
    assert_eq!(["net1", "net2", "net3"].map(|name| answers(&next, name)), [true, true, false]);
    next.remove_sandbox("one").unwrap();
    next.drop_old_zones().unwrap();
    assert!(!answers(&next, "net1"), "nothing sees it any more");
}

#[test]
fn a_process_that_another_client_has_replaced_is_waited_for() {
    let process = Process::start();
    let dead = process.id().unwrap();
    process.kill();
    let other = Client::new(&program(), process.root.path());
    other.ensure().unwrap();
    process.client.ensure().unwrap();
    assert!(!Path::new("/proc").join(dead).exists(), "it stays as a zombie");
}

#[test]
fn a_process_that_hangs_is_replaced() {
    let (process, namespace) = (Process::start(), Namespace::new("hangs"));
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    let ports = process.client.set_sandbox("one", &sandbox(&namespace)).unwrap();
    let hanging = process.id().unwrap();
    process.until_written("10.0.1.5");
    process.signal(Signal::STOP);
    let next = Client::new(&program(), process.root.path());
    let next = next.with_patience(Duration::from_secs(2));
    assert!(next.ensure().is_err(), "it stands still");
    process.signal(Signal::CONT);
    next.ensure().unwrap();
    assert_eq!(process.id().unwrap(), hanging, "it only was slow");
    process.signal(Signal::STOP);
    let silent = (0..3).map(|_| next.ensure().is_err()).collect::<Vec<_>>();
    assert_eq!(silent, [true, true, false]);
    assert_ne!(process.id().unwrap(), hanging);
    assert_eq!(next.set_sandbox("one", &sandbox(&namespace)).unwrap(), ports);
    next.set_zone("net1", &zone("10.0.1.6")).unwrap();
    let reply = ask(&namespace, ports.udp, &question("web", 1));
    assert_eq!(last_address(&reply), "10.0.1.6".parse::<IpAddr>().unwrap());
}

#[test]
fn other_names_go_to_the_servers_of_the_sandbox_and_nobody_else_may_answer() {
    let (process, namespace) = (Process::start(), Namespace::new("forward"));
    let server = namespace.inside(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let dead: SocketAddr =
        namespace.inside(|| UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let address = server.local_addr().unwrap();
    let upstream = |address| Upstream { address, from_host: false };
    let sandbox =
        Sandbox { upstreams: vec![upstream(dead), upstream(address)], ..sandbox(&namespace) };
    let ports = process.client.set_sandbox("one", &sandbox).unwrap();
    let serving = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        let mut reply = buffer[..length].to_vec();
        reply[2] |= 0x80;
        let mut forged = reply.clone();
        forged[0] ^= 0xff;
        forged.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 6, 6, 6, 6]);
        server.send_to(&forged, from).unwrap();
        let mut renamed = reply.clone();
        renamed[13] ^= 1;
        server.send_to(&renamed, from).unwrap();
        reply[7] = 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
        server.send_to(&reply, from).unwrap();
    });
    let reply = ask(&namespace, ports.udp, &question("example.org", 1));
    serving.join().unwrap();
    assert_eq!(&reply[..2], &[0xab, 0xcd]);
    assert_eq!(last_address(&reply), "192.0.2.7".parse::<IpAddr>().unwrap());
    let counters = process.client.counters().unwrap();
    assert_eq!((counters["forwarded"], counters["upstream_failed"]), (1, 1));
}

#[test]
fn garbage_is_counted_and_harms_nothing() {
    let (process, namespace) = (Process::start(), Namespace::new("garbage"));
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    let ports = process.client.set_sandbox("one", &sandbox(&namespace)).unwrap();
    namespace.inside(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for length in 0..40usize {
            socket.send_to(&vec![0xff; length], ("127.0.0.11", ports.udp)).unwrap();
        }
        let mut stream = TcpStream::connect(("127.0.0.11", ports.tcp)).unwrap();
        stream.write_all(&[0, 3, 1, 2, 3]).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    });
    let reply = ask(&namespace, ports.udp, &question("web", 1));
    assert_eq!(last_address(&reply), "10.0.1.5".parse::<IpAddr>().unwrap());
    assert_eq!(process.client.counters().unwrap()["garbage"], 41);
}

/// A port of loopback that nobody has.
fn free_port(udp: bool) -> u16 {
    let any: SocketAddr = "[::1]:0".parse().unwrap();
    let at = match udp {
        true => UdpSocket::bind(any).unwrap().local_addr(),
        false => std::net::TcpListener::bind(any).unwrap().local_addr(),
    };
    at.unwrap().port()
}

#[test]
fn a_port_of_the_other_family_is_relayed_with_its_ends() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = SocketAddr::new("::1".parse().unwrap(), free_port(false));
    let relay = resolver::Relay { udp: false, listen, to: server.local_addr().unwrap() };
    let process = Process::start();
    assert_eq!(process.client.set_relays(&[relay].into()).unwrap(), []);
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut text = String::new();
        // To its end: the client's half-close has to come through.
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let mut client = TcpStream::connect(listen).unwrap();
    client.write_all(b"half").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "HALF");
    echo.join().unwrap();
    assert_eq!(process.client.set_relays(&[].into()).unwrap(), []);
    assert!(TcpStream::connect(listen).is_err(), "a relay that is not wanted any more listens");
}

#[test]
fn packets_are_relayed_for_each_client_and_taken_ports_are_named() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = SocketAddr::new("::1".parse().unwrap(), free_port(true));
    let relay = resolver::Relay { udp: true, listen, to: server.local_addr().unwrap() };
    let process = Process::start();
    assert_eq!(process.client.set_relays(&[relay].into()).unwrap(), []);
    std::thread::spawn(move || {
        let mut packet = [0; 100];
        while let Ok((length, from)) = server.recv_from(&mut packet) {
            server.send_to(&packet[..length], from).unwrap();
        }
    });
    let clients = [(); 2].map(|()| UdpSocket::bind("[::1]:0").unwrap());
    for (number, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client.send_to(&[number as u8], listen).unwrap();
    }
    for (number, client) in clients.iter().enumerate() {
        let mut packet = [9; 1];
        let (_, from) = client.recv_from(&mut packet).unwrap();
        assert_eq!((packet[0], from), (number as u8, listen));
    }
    let taken = UdpSocket::bind("[::1]:0").unwrap();
    let second = resolver::Relay { listen: taken.local_addr().unwrap(), ..relay };
    let refused = process.client.set_relays(&[relay, second].into()).unwrap();
    assert_eq!(refused, [(second, "address already in use".to_owned())]);
}

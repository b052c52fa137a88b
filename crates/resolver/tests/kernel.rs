//! Names that the kernel answers: the same bytes as the resolver's, and never from names that are gone.

mod support;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use resolver::Sandbox;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support::*;

const WAIT: Duration = Duration::from_secs(20);
/// More questions than a sandbox asks before it gets a cache.
const OFTEN: usize = 200;

/// An asker of port 53, as every program in a container is one.
fn asker(namespace: &Namespace) -> UdpSocket {
    namespace.inside(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.connect("127.0.0.11:53").unwrap();
        socket
    })
}

fn exchange(asker: &UdpSocket, packet: &[u8]) -> Vec<u8> {
    asker.send(packet).unwrap();
    let mut reply = vec![0; 4_096];
    let length = asker.recv(&mut reply).unwrap();
    reply.truncate(length);
    reply
}

/// Gives the port on which the process itself hears.
fn served(process: &Process, namespace: &Namespace, id: &str, zone: &str) -> u16 {
    let sandbox =
        Sandbox { netns: namespace.path(), zones: vec![zone.into()], ..Sandbox::default() };
    let ports = process.client.set_sandbox(id, &sandbox).unwrap();
    namespace.redirect(ports);
    ports.udp
}

/// Whether a question reaches neither a socket nor a filter that would answer.
fn is_refused(namespace: &Namespace, port: u16, packet: &[u8]) -> bool {
    namespace.inside(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.connect(("127.0.0.11", port)).unwrap();
        socket.send(packet).unwrap();
        let heard = socket.recv(&mut [0; 512]);
        heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}

/// Asks until the filter is there and knows the answer.
fn warm(namespace: &Namespace, asker: &UdpSocket, packet: &[u8]) {
    let begun = Instant::now();
    while !is_filtered(namespace) {
        assert!(begun.elapsed() < WAIT, "no filter came");
        for _ in 0..OFTEN {
            exchange(asker, packet);
        }
    }
    // The process's own cache first, then the kernel's.
    for _ in 0..3 {
        exchange(asker, packet);
    }
}

fn is_filtered(namespace: &Namespace) -> bool {
    namespace.says(&["tc", "filter", "show", "dev", "lo", "ingress"]).contains("skep-names")
}

/// Does something while the process stands still: whatever is answered, the kernel answers.
fn stopped<T>(process: &Process, act: impl FnOnce() -> T) -> T {
    process.signal(Signal::STOP);
    let result = act();
    process.signal(Signal::CONT);
    result
}

#[test]
fn a_question_asked_often_is_answered_without_the_process_and_is_counted() {
    let (process, namespace) = (Process::start(), Namespace::with_room("often"));
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    served(&process, &namespace, "one", "net1");
    let asker = asker(&namespace);
    let expected = exchange(&asker, &question("web", 1));
    warm(&namespace, &asker, &question("web", 1));
    let before = process.client.counters().unwrap()["answered"];
    stopped(&process, || {
        for _ in 0..OFTEN {
            assert_eq!(exchange(&asker, &question("web", 1)), expected);
        }
    });
    assert_eq!(process.client.counters().unwrap()["answered"], before + OFTEN as u64);
}

#[test]
fn older_kernels_let_the_process_have_as_many_caches_as_they_may() {
    // As usual there.
    let before = getrlimit(Resource::Memlock);
    let usual = Rlimit { current: Some(64 << 10), maximum: before.maximum };
    setrlimit(Resource::Memlock, usual).unwrap();
    let process = Process::start();
    setrlimit(Resource::Memlock, before).unwrap();
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    let limits = format!("/proc/{}/limits", process.id().unwrap());
    let limits = std::fs::read_to_string(limits).unwrap();
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    let words: Vec<&str> = locked.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{locked}");
}

#[test]
fn a_server_of_the_container_s_own_gets_its_questions_and_only_they_are_tracked() {
    let (process, namespace) = (Process::start(), Namespace::with_room("own"));
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    let port = served(&process, &namespace, "one", "net1");
    // Tracking begins with the first rule that asks for it.
    let tracked = "add table ip t; add chain ip t c { type filter hook output priority 0; }; \
                   add rule ip t c ct state new accept";
    namespace.says(&["nft", tracked]);
    let asker = asker(&namespace);
    warm(&namespace, &asker, &question("web", 1));
    namespace.inside(|| {
        let own = UdpSocket::bind(("127.0.0.12", port)).unwrap();
        own.set_read_timeout(Some(WAIT)).unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        let asked = question("web", 1);
        asker.send_to(&asked, ("127.0.0.12", port)).unwrap();
        let mut packet = [0; 512];
        let (length, from) = own.recv_from(&mut packet).unwrap();
        assert_eq!((&packet[..length], from), (&asked[..], asker.local_addr().unwrap()));
    });
    stopped(&process, || drop(exchange(&asker, &question("web", 1))));
    let flows = namespace.says(&["conntrack", "-L"]);
    assert!(flows.contains("127.0.0.12"), "nothing is tracked here: {flows}");
    assert!(!flows.contains("127.0.0.11"), "a question left a flow behind: {flows}");
}

#[test]
fn a_question_asked_after_a_change_was_confirmed_gets_the_new_answer() {
    let (process, namespace) = (Process::start(), Namespace::with_room("change"));
    process.client.set_zone("net1", &zone("10.0.1.0")).unwrap();
    served(&process, &namespace, "one", "net1");
    let first = asker(&namespace);
    warm(&namespace, &first, &question("web", 1));
    // What is confirmed; askers read it before they ask.
    let confirmed = AtomicU32::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let asker = asker(&namespace);
                while !over.load(Ordering::SeqCst) {
                    let least = confirmed.load(Ordering::SeqCst);
                    let reply = exchange(&asker, &question("web", 1));
                    let got =
                        u32::from(reply[reply.len() - 1]) + 256 * u32::from(reply[reply.len() - 2]);
                    assert!(got >= 256 + least, "{got} after {least} was confirmed");
                }
            });
        }
        for number in 1..=250 {
            process.client.set_zone("net1", &zone(&format!("10.0.1.{number}"))).unwrap();
            confirmed.store(number, Ordering::SeqCst);
        }
        over.store(true, Ordering::SeqCst);
    });
    warm(&namespace, &first, &question("web", 1));
    let last = stopped(&process, || exchange(&first, &question("web", 1)));
    assert_eq!(last_address(&last).to_string(), "10.0.1.250");
}

#[test]
fn a_filter_that_somebody_deleted_comes_back() {
    let (process, namespace) = (Process::start(), Namespace::with_room("deleted"));
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    served(&process, &namespace, "one", "net1");
    let asker = asker(&namespace);
    warm(&namespace, &asker, &question("web", 1));
    namespace.says(&["tc", "filter", "delete", "dev", "lo", "ingress"]);
    assert!(!is_filtered(&namespace));
    warm(&namespace, &asker, &question("web", 1));
    let reply = stopped(&process, || exchange(&asker, &question("web", 1)));
    assert_eq!(last_address(&reply).to_string(), "10.0.1.5");
    // Without its place nothing is lost but speed.
    namespace.says(&["tc", "qdisc", "delete", "dev", "lo", "clsact"]);
    for _ in 0..OFTEN {
        assert_eq!(exchange(&asker, &question("web", 1)), reply);
    }
}

#[test]
fn a_dead_process_s_filter_says_nothing_and_its_successor_has_one_of_its_own() {
    let (process, namespace) = (Process::start(), Namespace::with_room("dead"));
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    let port = served(&process, &namespace, "one", "net1");
    process.until_written("10.0.1.5");
    let asker = asker(&namespace);
    warm(&namespace, &asker, &question("web", 1));
    process.kill();
    assert!(is_filtered(&namespace));
    assert!(is_refused(&namespace, port, &question("web", 1)), "a dead process answers");
    // It is the successor who hears of the change.
    process.client.ensure().unwrap();
    process.client.set_zone("net1", &zone("10.0.1.6")).unwrap();
    let reply = exchange(&asker, &question("web", 1));
    assert_eq!(last_address(&reply).to_string(), "10.0.1.6");
    let begun = Instant::now();
    // The filter is there from before: what shows the new one is an answer without the process.
    let answered = || {
        stopped(&process, || {
            asker.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            asker.send(&question("web", 1)).unwrap();
            let reply = asker.recv(&mut [0; 512]);
            asker.set_read_timeout(Some(WAIT)).unwrap();
            reply.is_ok()
        })
    };
    while !answered() {
        // The one that was not answered is by now.
        asker.recv(&mut [0; 512]).unwrap();
        assert!(begun.elapsed() < WAIT, "the successor has no filter");
        for _ in 0..OFTEN {
            assert_eq!(exchange(&asker, &question("web", 1)), reply);
        }
    }
}

#[test]
fn two_sandboxes_have_their_own_answers_and_one_that_is_removed_has_none() {
    let process = Process::start();
    let [one, two] = ["first", "second"].map(Namespace::with_room);
    process.client.set_zone("net1", &zone("10.0.1.5")).unwrap();
    process.client.set_zone("net2", &zone("10.0.2.5")).unwrap();
    let port = served(&process, &one, "one", "net1");
    served(&process, &two, "two", "net2");
    let askers = [&one, &two].map(asker);
    let question = question("web", 1);
    warm(&one, &askers[0], &question);
    warm(&two, &askers[1], &question);
    let replies = stopped(&process, || askers.each_ref().map(|asker| exchange(asker, &question)));
    let addresses = replies.each_ref().map(|reply| last_address(reply).to_string());
    assert_eq!(addresses, ["10.0.1.5", "10.0.2.5"]);
    process.client.remove_sandbox("one").unwrap();
    assert!(is_refused(&one, port, &question), "a sandbox that is gone answers");
    assert_eq!(exchange(&askers[1], &question), replies[1]);
}

#[test]
fn ever_new_spellings_are_answered_all_the_same() {
    let (process, namespace) = (Process::start(), Namespace::with_room("spelt"));
    let name = "abcdefghijkl";
    let mut zone = dns::Zone::new("front");
    zone.add(name, "10.0.1.5".parse().unwrap());
    process.client.set_zone("net1", &zone).unwrap();
    served(&process, &namespace, "one", "net1");
    let asker = asker(&namespace);
    warm(&namespace, &asker, &question(name, 1));
    // Three times as many as the kernel keeps.
    for spelling in 0..768u32 {
        let letters = name.chars().enumerate().map(|(at, letter)| match spelling >> at & 1 {
            0 => letter,
            _ => letter.to_ascii_uppercase(),
        });
        let question = question(&letters.collect::<String>(), 1);
        for _ in 0..3 {
            let reply = exchange(&asker, &question);
            assert_eq!(reply[12..question.len()], question[12..], "another spelling came back");
            assert_eq!(last_address(&reply).to_string(), "10.0.1.5");
        }
    }
}

/// A packet that is no usual question, and how it is sent.
#[derive(Clone, Debug)]
struct Probe {
    bytes: Vec<u8>,
    way: Way,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    /// From another address of the loopback network.
    FromElsewhere,
    Service(u8),
    /// A UDP header of the test's own making: its length and its checksum, as differences from the right ones.
    Raw {
        length: i8,
        checksum: u16,
    },
    RawWithoutChecksum,
}

/// Two namespaces with the same names: one whose kernel answers, one where the process is alone.
struct Twins {
    process: Process,
    namespaces: [Namespace; 2],
}

impl Twins {
    fn start() -> Self {
        let process = Process::start();
        let namespaces = [Namespace::with_room("kernel"), Namespace::new("alone")];
        let mut zone = dns::Zone::new("front");
        zone.add("web", "10.0.1.5".parse().unwrap());
        zone.add("six", "fd00::5".parse().unwrap());
        zone.add("two", "10.0.1.7".parse().unwrap());
        zone.add("two", "fd00::7".parse().unwrap());
        zone.point("10.0.1.5".parse().unwrap(), "web");
        process.client.set_zone("net1", &zone).unwrap();
        for (id, namespace) in ["one", "two"].into_iter().zip(&namespaces) {
            served(&process, namespace, id, "net1");
            let asker = asker(namespace);
            for packet in usual() {
                for _ in 0..OFTEN {
                    exchange(&asker, &packet);
                }
            }
        }
        let asker = asker(&namespaces[0]);
        for packet in usual() {
            warm(&namespaces[0], &asker, &packet);
        }
        stopped(&process, || usual().iter().for_each(|packet| drop(exchange(&asker, packet))));
        assert!(!is_filtered(&namespaces[1]));
        Self { process, namespaces }
    }

    /// The reply in each, or none.
    fn ask(&self, probe: &Probe) -> [Option<Vec<u8>>; 2] {
        self.namespaces.each_ref().map(|namespace| namespace.inside(|| ask_oddly(probe)))
    }
}

/// Questions whose answers the kernel knows.
fn usual() -> Vec<Vec<u8>> {
    let mut questions: Vec<Vec<u8>> =
        [("web", 1), ("web", 28), ("six", 28), ("two", 1), ("web.front", 1)]
            .into_iter()
            .chain([("5.1.0.10.in-addr.arpa", 12), ("WeB", 1), ("web", 15)])
            .map(|(name, kind)| question(name, kind))
            .collect();
    let mut edns = question("web", 1);
    edns[11] = 1;
    edns.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    questions.push(edns);
    let mut without_recursion = question("web", 1);
    without_recursion[2] = 0;
    questions.push(without_recursion);
    questions
}

/// What a probe gets. A question of which the kernel never knows the answer is sent behind it: once
/// that is answered, the process has seen the probe as well.
fn ask_oddly(probe: &Probe) -> Option<Vec<u8>> {
    const LAST: [u8; 2] = [0x7a, 0x7a];
    let from = if matches!(probe.way, Way::FromElsewhere) { "127.3.2.1:0" } else { "127.0.0.1:0" };
    let socket = UdpSocket::bind(from).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    match probe.way {
        Way::Plain | Way::FromElsewhere => {}
        Way::Service(service) => {
            rustix::net::sockopt::set_ip_tos(&socket, service).unwrap();
        }
        Way::Raw { length, checksum } => send_raw(&socket, &probe.bytes, length, Some(checksum)),
        Way::RawWithoutChecksum => send_raw(&socket, &probe.bytes, 0, None),
    }
    if !matches!(probe.way, Way::Raw { .. } | Way::RawWithoutChecksum) {
        socket.send_to(&probe.bytes, "127.0.0.11:53").unwrap();
    }
    let mut last = question("nobody.knows", 1);
    last[..2].copy_from_slice(&LAST);
    socket.send_to(&last, "127.0.0.11:53").unwrap();
    let mut replies = Vec::new();
    loop {
        let mut reply = vec![0; 4_096];
        let (length, sender) = socket.recv_from(&mut reply).unwrap();
        reply.truncate(length);
        assert_eq!(sender.to_string(), "127.0.0.11:53");
        if reply[..2] == LAST && reply.len() == last.len() {
            break;
        }
        replies.push(reply);
    }
    assert!(replies.len() < 2, "{} replies to one probe", replies.len());
    replies.pop()
}

/// Sends a packet as the socket would, with a header from here.
fn send_raw(socket: &UdpSocket, bytes: &[u8], length: i8, checksum: Option<u16>) {
    let raw =
        rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::UDP)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let right = (8 + bytes.len()) as u16;
    let said = right.saturating_add_signed(i16::from(length));
    let mut packet = [port.to_be_bytes(), 53u16.to_be_bytes(), said.to_be_bytes(), [0; 2]].concat();
    packet.extend_from_slice(bytes);
    if let Some(wrong) = checksum {
        let mut summed =
            [&[127, 0, 0, 1, 127, 0, 0, 11, 0, 17][..], &said.to_be_bytes(), &packet].concat();
        summed.resize(summed.len().next_multiple_of(2), 0);
        let sum = netlink::message::checksum(&summed).wrapping_add(wrong);
        packet[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    let to = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 0);
    rustix::net::sendto(&raw, &packet, SendFlags::empty(), &to).unwrap();
}

fn probes() -> impl Strategy<Value = Probe> {
    let usual = prop::sample::select(usual());
    let changed = (
        usual,
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        any::<prop::sample::Index>(),
        prop_oneof![4 => Just(0usize), 1 => 1usize..12],
        prop_oneof![3 => Just(false), 1 => Just(true)],
        prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..40),
        any::<[u8; 2]>(),
    );
    let bytes = changed.prop_map(|(mut bytes, flips, at, mode, cut, tail, id)| {
        for (place, flip) in flips {
            // Mostly what stays a message, often the same one.
            let place = place.index(bytes.len());
            bytes[place] ^= if mode == 0 { flip & 0x21 } else { flip };
        }
        bytes[..2].copy_from_slice(&id);
        if cut {
            bytes.truncate(at.index(bytes.len()));
        }
        if mode > 6 {
            bytes.extend_from_slice(&tail);
        }
        bytes
    });
    let way = prop_oneof![
        6 => Just(Way::Plain),
        1 => Just(Way::FromElsewhere),
        1 => prop::sample::select(vec![0u8, 8, 16, 0xb8]).prop_map(Way::Service),
        2 => (prop_oneof![Just(0i8), -9i8..9], prop_oneof![Just(0u16), any::<u16>()])
            .prop_map(|(length, checksum)| Way::Raw { length, checksum }),
        1 => Just(Way::RawWithoutChecksum),
    ];
    (bytes, way).prop_map(|(bytes, way)| Probe { bytes, way })
}

#[test]
fn odd_and_usual_questions_get_the_same_bytes_from_the_kernel_as_from_the_process() {
    let twins = Twins::start();
    let cases = std::env::var("PROBES").map_or(2_000, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&probes(), |probe| {
        let [kernel, alone] = twins.ask(&probe);
        prop_assert_eq!(kernel, alone);
        Ok(())
    });
    outcome.unwrap();
    // The filter took part to the end.
    let asker = asker(&twins.namespaces[0]);
    stopped(&twins.process, || usual().iter().for_each(|packet| drop(exchange(&asker, packet))));
}

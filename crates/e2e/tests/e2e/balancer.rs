//! Virtual addresses and published ports, connection by connection: silent ones live, those of a dead
//! task end at once, datagrams move on, no source port is led to a task that is gone, and a task that
//! starts is asked nothing until it is ready.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::load::{until_running, virtual_address};
use e2e::{cases, hosts_with_caller, task_on};
use lab::host::{wait_until, within};
use lab::{Host, Lab};
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

const CREATE: &str = "service create -q --no-resolve-image --detach --network web";
/// A connection or an answer, on a busy machine.
const PROMPT: Duration = Duration::from_secs(4);
/// Until the others know that a host is off: what the members' gossip takes, and the change.
const HOST_LOST_MAX: Duration = Duration::from_secs(30);

#[test]
fn connections_through_the_balancer() -> Result<()> {
    let lab = hosts_with_caller(3)?;
    let host = lab.host(1);
    host.dk(&format!(
        "{CREATE} --name app --replicas 3 --replicas-max-per-node 1 -p 8080:80 -p 8053:80/udp load"
    ))?;
    until_running(host, "app", 3)?;
    for way in ways(&lab)? {
        until_all_answer(&way, 3)?;
    }
    cases(
        &lab,
        &[
            ("a silent connection lives on", a_silent_connection_lives_on),
            ("a starting task waits until it is ready", a_starting_task_waits_until_it_is_ready),
            ("a task is asked once it listens", a_task_is_asked_once_it_listens),
            ("a killed task's clients move on", |lab| a_task_goes(lab, 20_100, kill_a_task)),
            ("a drained task's clients move on", |lab| a_task_goes(lab, 20_200, drain_a_task)),
            ("a short cut ends nothing", a_short_cut_ends_nothing),
            ("a silent host's clients move on", |lab| a_task_goes(lab, 20_300, silence_a_host)),
            (
                "a host without daemon keeps its connections",
                a_host_without_daemon_keeps_its_connections,
            ),
        ],
    )?;
    lab.down()
}

/// From a container to the virtual address, or from outside to a host's published port.
struct Way {
    netns: String,
    tcp: SocketAddr,
    udp: SocketAddr,
}

fn ways(lab: &Lab) -> Result<[Way; 2]> {
    let host = lab.host(1);
    let vip: Ipv4Addr = virtual_address(host, "app", "web")?.parse()?;
    let caller = host.netns_of("caller")?;
    let mesh: Ipv4Addr = host.address.parse()?;
    Ok([
        Way {
            netns: format!("/proc/{}/root{caller}", host.init_pid()),
            tcp: (vip, 80).into(),
            udp: (vip, 80).into(),
        },
        Way {
            netns: format!("/run/netns/{}", lab.router),
            tcp: (mesh, 8080).into(),
            udp: (mesh, 8053).into(),
        },
    ])
}

/// From a chosen source port, or with 0 from any.
fn dial(netns: &str, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let stream = within(netns, || {
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        set_socket_reuseaddr(&fd, true)?;
        set_socket_timeout(&fd, Timeout::Send, Some(PROMPT))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(PROMPT))?;
        bind(&fd, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        connect(&fd, &to).with_context(|| format!("{to} from port {port}"))?;
        Ok(TcpStream::from(fd))
    })?;
    Ok(stream)
}

/// One more request on a connection: the name of who answers.
fn ask(stream: &mut TcpStream, last: bool) -> Result<String> {
    let connection = if last { "close" } else { "keep-alive" };
    write!(stream, "GET / HTTP/1.1\r\nHost: app\r\nConnection: {connection}\r\n\r\n")?;
    let mut text = String::new();
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "the end, after {text:?}");
        text += &String::from_utf8_lossy(&buffer[..length]);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let wanted = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            if wanted.is_some_and(|wanted| wanted == body.len().to_string()) {
                let body = body.to_owned();
                // The other side closes first: the port is free at once.
                let closed = !last || stream.read(&mut buffer).is_ok_and(|length| length == 0);
                ensure!(closed, "the server does not close");
                return Ok(body);
            }
        }
    }
}

fn asked(way: &Way, port: u16) -> Result<String> {
    ask(&mut dial(&way.netns, port, way.tcp)?, true)
}

fn until_all_answer(way: &Way, count: usize) -> Result<BTreeSet<String>> {
    let mut by = BTreeSet::new();
    wait_until(Duration::from_secs(30), || {
        by = (0..2 * count).filter_map(|_| asked(way, 0).ok()).collect();
        Ok(by.len() == count)
    })
    .with_context(|| format!("{}: {by:?}, not {count}", way.tcp))?;
    Ok(by)
}

fn in_netns(host: &Host, netns: &str, line: &str) -> Result<String> {
    host.exec(&["nsenter", &format!("--net={netns}"), "sh", "-c", line])
}

const ESTABLISHED: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";

/// The tracked connection in a namespace: how many seconds it has left.
fn left(host: &Host, netns: &str) -> Result<u64> {
    let line = in_netns(host, netns, "grep ESTABLISHED /proc/net/nf_conntrack | grep port=9000")?;
    let mut words = line.lines().next().unwrap_or_default().split_whitespace();
    // ipv4 2 tcp 6 SECONDS ESTABLISHED ...
    let seconds: Option<&str> = words.nth(4);
    Ok(seconds.with_context(|| line.clone())?.parse()?)
}

/// Nothing is said for longer than a host's own setting lets it track a connection; then the server
/// speaks first. What a namespace of skep's tracks is not forgotten within any wait.
fn a_silent_connection_lives_on(lab: &Lab) -> Result<()> {
    const WEEKS: u64 = 3 * 7 * 24 * 3600;
    let (host, far) = (lab.host(1), lab.host(2));
    host.dk(&format!(
        "{CREATE} --name sink --constraint node.hostname==sathish-vm2 -p 9000:9000 httpd"
    ))?;
    until_running(host, "sink", 1)?;
    let task = far.netns_of(&task_on(far, "sink")?)?;
    let listener = far.within(&task, || Ok(TcpListener::bind("0.0.0.0:9000")?))?;
    let [mut vip, mut mesh] = ways(lab)?;
    vip.tcp.set_ip(virtual_address(host, "sink", "web")?.parse()?);
    vip.tcp.set_port(9000);
    mesh.tcp.set_port(9000);
    let caller = host.netns_of("caller")?;
    in_netns(host, &caller, &format!("echo 1 > {ESTABLISHED}"))?;
    wait_until(Duration::from_secs(10), || {
        Ok(in_netns(host, &caller, &format!("cat {ESTABLISHED}"))? == "2000000")
    })
    .context("a limit that somebody lowered")?;
    for at in &lab.hosts {
        at.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=1")?;
    }
    let ingress = format!("{}/exec/netns/ingress_sbox", host.folder.display());
    for (way, namespaces) in [
        (&vip, vec![(host, caller.as_str())]),
        (&mesh, vec![(host, ingress.as_str()), (far, task.as_str())]),
    ] {
        let mut connected = Err(anyhow::anyhow!("not tried"));
        wait_until(Duration::from_secs(20), || {
            connected = dial(&way.netns, 0, way.tcp);
            Ok(connected.is_ok())
        })?;
        let mut client = connected?;
        let (mut server, _) = listener.accept()?;
        for (at, netns) in namespaces {
            let seconds = left(at, netns)?;
            ensure!(seconds > WEEKS, "{netns} of {} forgets in {seconds} s", at.name);
        }
        std::thread::sleep(Duration::from_secs(3));
        let mut byte = [0];
        server.write_all(b"a")?;
        client.read_exact(&mut byte).with_context(|| format!("{}: server first", way.tcp))?;
        std::thread::sleep(Duration::from_secs(3));
        client.write_all(b"b")?;
        server.set_read_timeout(Some(PROMPT))?;
        server.read_exact(&mut byte).with_context(|| format!("{}: client first", way.tcp))?;
    }
    for at in &lab.hosts {
        at.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=432000")?;
    }
    host.dk("service rm sink").map(drop)
}

fn a_starting_task_waits_until_it_is_ready(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.docker(&[
        "service",
        "create",
        "-q",
        "--no-resolve-image",
        "--detach",
        "--network",
        "web",
        "--name",
        "slow",
        "--replicas",
        "2",
        "--replicas-max-per-node",
        "1",
        "-p",
        "8081:80",
        "--health-cmd",
        "test -e /tmp/up",
        "--health-interval",
        "300ms",
        "--health-retries",
        "200",
        "load",
    ])?;
    let [mut vip, mut mesh] = ways(lab)?;
    vip.tcp.set_ip(virtual_address(host, "slow", "web")?.parse()?);
    mesh.tcp.set_port(8081);
    let mut tasks = Vec::new();
    wait_until(Duration::from_secs(30), || {
        tasks = lab.hosts.iter().filter_map(|at| Some((at, task_on(at, "slow").ok()?))).collect();
        Ok(tasks.len() == 2)
    })?;
    let up = |number: usize| -> Result<String> {
        let (at, task): &(&Host, String) = &tasks[number];
        at.docker(&["exec", task, "touch", "/tmp/up"])?;
        at.docker(&["exec", task, "hostname"])
    };
    for way in [&vip, &mesh] {
        ensure!(asked(way, 0).is_err(), "{} answers, and no task is ready", way.tcp);
    }
    let first = up(0)?;
    for way in [&vip, &mesh] {
        until_all_answer(way, 1)?;
        for _ in 0..40 {
            let by = asked(way, 0)?;
            ensure!(by == first, "{}: {by} was asked before it was ready", way.tcp);
        }
    }
    let second = up(1)?;
    for way in [&vip, &mesh] {
        let by = until_all_answer(way, 2)?;
        ensure!(by.contains(&second), "{by:?}");
    }
    host.dk("service rm slow").map(drop)
}

/// Without a health check what a task listens on tells that it is ready.
fn a_task_is_asked_once_it_listens(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let create = format!("{CREATE} --name late -p 8082:80 load sh -c");
    let mut words: Vec<&str> = create.split(' ').collect();
    words.push("sleep 0.3; exec load serve 80");
    host.docker(&words)?;
    until_running(host, "late", 1)?;
    let [mut vip, mut mesh] = ways(lab)?;
    vip.tcp.set_ip(virtual_address(host, "late", "web")?.parse()?);
    mesh.tcp.set_port(8082);
    for (way, count) in [(&vip, 2), (&mesh, 3)] {
        until_all_answer(way, count - 1)?;
        host.dk(&format!("service scale -d late={count}"))?;
        let mut by = BTreeSet::new();
        wait_until(Duration::from_secs(30), || {
            by.insert(asked(way, 0).context("one was asked that does not listen yet")?);
            Ok(by.len() == count)
        })
        .with_context(|| format!("{}: {by:?}", way.tcp))?;
    }
    host.dk("service rm late").map(drop)
}

/// A client that asks from the same ports all the time.
struct Regular<'a> {
    way: &'a Way,
    ports: Vec<u16>,
    udp: Vec<UdpSocket>,
}

impl<'a> Regular<'a> {
    fn new(way: &'a Way, base: u16) -> Result<Self> {
        let ports: Vec<u16> = (base..base + 9).collect();
        let open = |port: &u16| {
            let udp = within(&way.netns, || Ok(UdpSocket::bind(("0.0.0.0", *port))?))?;
            udp.set_read_timeout(Some(Duration::from_millis(300)))?;
            udp.connect(way.udp)?;
            Ok(udp)
        };
        let udp = ports.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { way, ports, udp })
    }

    /// Who answers each port; all have to, at once.
    fn tcp(&self) -> Result<BTreeSet<String>> {
        self.ports.iter().map(|port| asked(self.way, *port)).collect()
    }

    /// The same for datagrams, each of which may be lost once in a while.
    fn datagrams(&self, limit: Duration) -> Result<BTreeSet<String>> {
        let mut by = BTreeSet::new();
        for socket in &self.udp {
            let mut buffer = [0; 256];
            let start = Instant::now();
            loop {
                // An earlier one was refused: told here.
                let _ = socket.send(b"who");
                if let Ok(length) = socket.recv(&mut buffer) {
                    by.insert(String::from_utf8_lossy(&buffer[..length]).into_owned());
                    break;
                }
                ensure!(start.elapsed() < limit, "{}: no answer to {socket:?}", self.way.udp);
            }
        }
        Ok(by)
    }
}

/// The host of the task that went, and its hostname.
type Gone = (usize, String);

fn kill_a_task(lab: &Lab) -> Result<Gone> {
    let host = lab.host(3);
    let task = task_on(host, "app")?;
    let name = host.docker(&["exec", &task, "hostname"])?;
    host.docker(&["rm", "-f", &task])?;
    Ok((3, name))
}

fn drain_a_task(lab: &Lab) -> Result<Gone> {
    let host = lab.host(3);
    let name = host.docker(&["exec", &task_on(host, "app")?, "hostname"])?;
    lab.host(1).dk(&format!("node update --availability drain {}", host.name))?;
    wait_until(Duration::from_secs(30), || Ok(task_on(host, "app").is_err()))?;
    Ok((3, name))
}

/// Tracked flows of an earlier case lead its ports where they led: each has ports of its own.
fn a_task_goes(lab: &Lab, base: u16, go: fn(&Lab) -> Result<Gone>) -> Result<()> {
    let ways = ways(lab)?;
    let clients = [Regular::new(&ways[0], base)?, Regular::new(&ways[1], base)?];
    for client in &clients {
        until_all_answer(client.way, 3)?;
        let by = (client.tcp()?, client.datagrams(PROMPT).context("before")?);
        ensure!(by.0.len() == 3 && by.1.len() == 3, "each is led to its next port: {by:?}");
    }
    // Asked once, then silent: its end tells it.
    let mut held = Vec::new();
    for client in &clients {
        let mut streams = (0..6).map(|_| dial(&client.way.netns, 0, client.way.tcp));
        streams.try_for_each(|stream| {
            let mut stream = stream?;
            let by = ask(&mut stream, false)?;
            held.push((by, stream));
            anyhow::Ok(())
        })?;
    }
    let (number, gone) = go(lab)?;
    for (by, mut stream) in held {
        if by == gone {
            until_ended(&mut stream, HOST_LOST_MAX)?;
        } else {
            ensure!(ask(&mut stream, true)? == by, "a connection of another task");
        }
    }
    for client in &clients {
        // Every port is led elsewhere, none to a task that is no longer there.
        let by = client.tcp().context("from a port that had been led to the task")?;
        ensure!(!by.contains(&gone), "{gone} is gone: {by:?}");
        let by = client.datagrams(Duration::from_secs(5)).context("afterwards")?;
        ensure!(!by.contains(&gone), "{gone} is gone: {by:?}");
    }
    lab.host(number).heal()?;
    let host = lab.host(1);
    host.dk(&format!("node update --availability active {}", lab.host(number).name))?;
    until_running(host, "app", 3)
}

/// The end of the stream or a reset, before the limit.
fn until_ended(stream: &mut TcpStream, limit: Duration) -> Result<()> {
    stream.set_read_timeout(Some(limit))?;
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("{stream:?} hangs for {} s", limit.as_secs());
            }
            Err(_) => return Ok(()),
        }
    }
}

/// A connection of each way to the third host's task.
fn held_by_the_third(lab: &Lab) -> Result<Vec<(String, TcpStream)>> {
    let there = lab.host(3).docker(&["exec", &task_on(lab.host(3), "app")?, "hostname"])?;
    let mut held = Vec::new();
    for way in &ways(lab)? {
        until_all_answer(way, 3)?;
        for _ in 0..3 {
            let mut stream = dial(&way.netns, 0, way.tcp)?;
            held.push((ask(&mut stream, false)?, stream));
        }
    }
    held.retain(|(by, _)| *by == there);
    ensure!(held.len() == 2, "one of three each way: {}", held.len());
    Ok(held)
}

fn still_answered(held: Vec<(String, TcpStream)>) -> Result<()> {
    for (by, mut stream) in held {
        stream.set_read_timeout(Some(HOST_LOST_MAX))?;
        let answer = ask(&mut stream, true).with_context(|| format!("{stream:?}"))?;
        ensure!(answer == by, "{stream:?}: {answer}, before {by}");
    }
    Ok(())
}

fn a_short_cut_ends_nothing(lab: &Lab) -> Result<()> {
    for seconds in [1, 3] {
        let held = held_by_the_third(lab)?;
        lab.host(3).cut()?;
        std::thread::sleep(Duration::from_secs(seconds));
        lab.host(3).heal()?;
        still_answered(held).with_context(|| format!("a cut of {seconds} s"))?;
    }
    Ok(())
}

/// A host whose daemon is dead counts as failed, too, but its tasks live: nobody new is led there, and
/// whoever is connected stays so.
fn a_host_without_daemon_keeps_its_connections(lab: &Lab) -> Result<()> {
    let held = held_by_the_third(lab)?;
    let gone = held[0].0.clone();
    lab.host(3).kill()?;
    let others = |way: &Way| -> Result<bool> {
        let by: Result<Vec<String>> = (0..6).map(|_| asked(way, 0)).collect();
        Ok(by.is_ok_and(|by| !by.contains(&gone)))
    };
    for way in &ways(lab)? {
        wait_until(HOST_LOST_MAX, || others(way)).with_context(|| format!("{}", way.tcp))?;
    }
    // Longer than the others ask whether the host lives.
    std::thread::sleep(Duration::from_secs(10));
    still_answered(held)?;
    lab.host(3).start()?;
    until_running(lab.host(1), "app", 3)
}

/// Nobody says goodbye, and nothing comes back.
fn silence_a_host(lab: &Lab) -> Result<Gone> {
    let host = lab.host(3);
    let name = host.docker(&["exec", &task_on(host, "app")?, "hostname"])?;
    host.cut()?;
    Ok((3, name))
}

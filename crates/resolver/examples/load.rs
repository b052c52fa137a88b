//! Questions a second of one resolver process: `load <process example> <namespace file> <seconds> <askers>
//! <under way> <names>`: so many askers with so many questions each under way. Prints the rate and delays.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dns::Zone;
use resolver::{Client, Ports, Sandbox};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, netns, seconds, askers, under_way, names] = arguments.as_slice() else {
        return Err("process example, namespace file, seconds, askers, under way, names".into());
    };
    let (askers, under_way): (usize, u16) = (askers.parse()?, under_way.parse()?);
    let names: u32 = names.parse()?;
    let root = tempfile::tempdir()?;
    let client = Client::new(Path::new(program), root.path());
    let mut zone = Zone::new("load");
    for number in 0..names {
        zone.add(&format!("name{number}"), IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)));
    }
    client.set_zone("load", &zone)?;
    let sandbox =
        Sandbox { netns: PathBuf::from(netns), zones: vec!["load".into()], ..Sandbox::default() };
    redirect(netns, client.set_sandbox("load", &sandbox)?)?;
    let time = Duration::from_secs(seconds.parse()?);
    let askers: Vec<_> = (0..askers)
        .map(|_| {
            let netns = netns.clone();
            std::thread::spawn(move || {
                ask(&netns, under_way, names, time).map_err(|error| error.to_string())
            })
        })
        .collect();
    let mut delays = Vec::new();
    for asker in askers {
        delays.extend(asker.join().map_err(|_| "an asker panicked")??);
    }
    delays.sort_unstable();
    let rate = delays.len() as f64 / time.as_secs_f64();
    let at = |part: f64| delays[(delays.len() as f64 * part) as usize].as_micros();
    println!("{rate:.0} questions/s, p50 {} us, p99 {} us", at(0.5), at(0.99));
    println!("{:?}", client.counters()?);
    println!("root {}: read the process's CPU time now", root.path().display());
    std::io::stdin().read_line(&mut String::new())?;
    Ok(end(root.path())?)
}

/// A resolver outlives whoever started it, and would keep the namespace.
fn end(root: &Path) -> std::io::Result<()> {
    let root = root.display().to_string();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let Some(pid) = rustix::process::Pid::from_raw(pid) else { continue };
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.split(|byte| *byte == 0).any(|word| word == root.as_bytes()) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
    }
    Ok(())
}

fn enter(netns: &str) -> std::io::Result<()> {
    let file = std::fs::File::open(netns)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// As in a container: port 53 leads to the resolver's own.
fn redirect(netns: &str, ports: Ports) -> Result<(), Box<dyn std::error::Error>> {
    let ports = netplan::ResolverPorts { udp: ports.udp, tcp: ports.tcp };
    let mut table = netplan::Table::default();
    table.chains.push(netplan::desired::sandbox::redirect_names(ports));
    let netns = netns.to_owned();
    let done = std::thread::spawn(move || {
        enter(&netns)?;
        let mut socket = netlink::socket::Socket::open(netlink::socket::Family::Netfilter)?;
        socket.transaction(netlink::nft::replace(Some(&table)))
    });
    Ok(done.join().map_err(|_| "the thread panicked")??)
}

fn ask(netns: &str, under_way: u16, names: u32, time: Duration) -> std::io::Result<Vec<Duration>> {
    enter(netns)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.11", 53))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let begun = Instant::now();
    let mut sent = vec![begun; usize::from(u16::MAX) + 1];
    let mut delays = Vec::new();
    let mut next = 0u16;
    let mut send = |sent: &mut Vec<Instant>| -> std::io::Result<()> {
        next = next.wrapping_add(1);
        sent[usize::from(next)] = Instant::now();
        socket.send(&question(next, u32::from(next) % names)).map(drop)
    };
    for _ in 0..under_way {
        send(&mut sent)?;
    }
    let mut buffer = [0; 512];
    while begun.elapsed() < time {
        socket.recv(&mut buffer)?;
        let id = u16::from_be_bytes([buffer[0], buffer[1]]);
        delays.push(sent[usize::from(id)].elapsed());
        send(&mut sent)?;
    }
    Ok(delays)
}

fn question(id: u16, name: u32) -> Vec<u8> {
    let name = format!("name{name}");
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.push(name.len() as u8);
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

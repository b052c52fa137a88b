//! Questions a second of one resolver process: `load <process example> <namespace file> <seconds>`.
//! Two askers with 16 questions each under way, 1,000 names; prints the rate, delays and CPU time per question.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dns::Zone;
use resolver::{Client, Sandbox};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const ASKERS: usize = 2;
const UNDER_WAY: u16 = 16;
const NAMES: u32 = 1_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, netns, seconds] = arguments.as_slice() else {
        return Err("process example, namespace file, seconds".into());
    };
    let root = tempfile::tempdir()?;
    let client = Client::new(Path::new(program), root.path());
    let mut zone = Zone::new("load");
    for number in 0..NAMES {
        zone.add(&format!("name{number}"), IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)));
    }
    client.set_zone("load", &zone)?;
    let sandbox =
        Sandbox { netns: PathBuf::from(netns), zones: vec!["load".into()], ..Sandbox::default() };
    let port = client.set_sandbox("load", &sandbox)?.udp;
    let time = Duration::from_secs(seconds.parse()?);
    let askers: Vec<_> = (0..ASKERS)
        .map(|_| {
            let netns = netns.clone();
            std::thread::spawn(move || ask(&netns, port, time).map_err(|error| error.to_string()))
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
    Ok(())
}

fn ask(netns: &str, port: u16, time: Duration) -> std::io::Result<Vec<Duration>> {
    let file = std::fs::File::open(netns)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.11", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let begun = Instant::now();
    let mut sent = vec![begun; usize::from(u16::MAX) + 1];
    let mut delays = Vec::new();
    let mut next = 0u16;
    let mut send = |sent: &mut Vec<Instant>| -> std::io::Result<()> {
        next = next.wrapping_add(1);
        sent[usize::from(next)] = Instant::now();
        socket.send(&question(next, u32::from(next) % NAMES)).map(drop)
    };
    for _ in 0..UNDER_WAY {
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

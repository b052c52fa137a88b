//! Questions to a container's resolver, byte by byte (RFC 1035, RFC 6891).

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::Host;

const RESOLVER: &str = "127.0.0.11:53";
const WAIT: Duration = Duration::from_secs(10);
/// A name has 255 bytes at most.
const JUMPS_AND_LABELS_MAX: usize = 256;
const ID: [u8; 2] = [0x5a, 0x17];

pub const A: u16 = 1;
pub const PTR: u16 = 12;
pub const AAAA: u16 = 28;
pub const ANY: u16 = 255;
const OPT: u16 = 41;

/// How a question is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Udp,
    /// With an OPT record that allows so many bytes.
    Edns(u16),
    Tcp,
}

/// A reply, read.
#[derive(Debug, Default)]
pub struct Reply {
    pub code: u8,
    pub truncated: bool,
    pub bytes: usize,
    pub addresses: Vec<IpAddr>,
    pub names: Vec<String>,
    pub ttls: Vec<u32>,
    pub edns: bool,
}

/// Asks from within a container's network namespace.
pub fn ask(host: &Host, netns: &str, name: &str, kind: u16, by: By) -> Result<Reply> {
    let question = question(name, kind, by);
    let reply = host.within(netns, || exchange(&question, by));
    let reply = reply.with_context(|| format!("{name} {kind} {by:?}"))?;
    ensure!(reply.starts_with(&ID), "the reply to another question");
    read(&reply).with_context(|| format!("{name} {kind} {by:?}: {reply:02x?}"))
}

/// The name that asks for an address's own name.
pub fn reversed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev();
            let text: String = nibbles.map(|it| format!("{:x}.{:x}.", it & 15, it >> 4)).collect();
            format!("{text}ip6.arpa")
        }
    }
}

fn question(name: &str, kind: u16, by: By) -> Vec<u8> {
    let mut bytes = ID.to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(matches!(by, By::Edns(_)))]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    if let By::Edns(size) = by {
        bytes.push(0);
        bytes.extend(OPT.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend([0; 6]);
    }
    bytes
}

fn exchange(question: &[u8], by: By) -> Result<Vec<u8>> {
    if by == By::Tcp {
        let mut stream = TcpStream::connect(RESOLVER)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.write_all(&(question.len() as u16).to_be_bytes())?;
        stream.write_all(question)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        return Ok(reply);
    }
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(WAIT))?;
    socket.connect(RESOLVER)?;
    socket.send(question)?;
    let mut reply = vec![0; 65_535];
    let length = socket.recv(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

fn read(bytes: &[u8]) -> Result<Reply> {
    ensure!(bytes.len() >= 12 && bytes[2] & 0x80 != 0, "no reply");
    let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let mut reply = Reply {
        code: bytes[3] & 15,
        truncated: bytes[2] & 2 != 0,
        bytes: bytes.len(),
        ..Reply::default()
    };
    let mut at = 12;
    for _ in 0..count(4) {
        at = name_at(bytes, at)?.1 + 4;
    }
    for _ in 0..count(6) + count(8) + count(10) {
        at = read_record(bytes, at, &mut reply)?;
    }
    Ok(reply)
}

fn read_record(bytes: &[u8], at: usize, reply: &mut Reply) -> Result<usize> {
    let (_, at) = name_at(bytes, at)?;
    let fixed = bytes.get(at..at + 10).context("half a record")?;
    let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let data = bytes.get(at + 10..at + 10 + length).context("half of a record's data")?;
    let ttl = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    match u16::from_be_bytes([fixed[0], fixed[1]]) {
        A => reply.addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data)?).into()),
        AAAA => reply.addresses.push(Ipv6Addr::from(<[u8; 16]>::try_from(data)?).into()),
        PTR => reply.names.push(name_at(bytes, at + 10)?.0),
        OPT => {
            reply.edns = true;
            return Ok(at + 10 + length);
        }
        _ => {}
    }
    reply.ttls.push(ttl);
    Ok(at + 10 + length)
}

/// A name, and where what follows it begins.
fn name_at(bytes: &[u8], mut at: usize) -> Result<(String, usize)> {
    let mut labels = Vec::new();
    let mut end = None;
    for _ in 0..JUMPS_AND_LABELS_MAX {
        let length = usize::from(*bytes.get(at).context("half a name")?);
        at += 1;
        if length == 0 {
            return Ok((labels.join("."), end.unwrap_or(at)));
        }
        if length & 0xc0 == 0xc0 {
            end.get_or_insert(at + 1);
            at = (length & 0x3f) << 8 | usize::from(*bytes.get(at).context("half a pointer")?);
            continue;
        }
        let label = bytes.get(at..at + length).context("half a label")?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        at += length;
    }
    bail!("a name that goes round")
}

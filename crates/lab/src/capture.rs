//! Packets on a host's cable, decoded down to the inner frame of VXLAN (RFC 7348).

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::sh;
use crate::host::{Host, wait_until};

/// How long after the wire tcpdump may write a packet.
const LATE_MAX: Duration = Duration::from_secs(20);

/// A capture that runs.
pub struct Capture {
    process: Child,
    file: PathBuf,
}

/// One VXLAN packet, whole or its first fragment, with an IP packet inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encapsulated {
    pub outer_source: IpAddr,
    pub outer_target: IpAddr,
    /// Bytes of the outer IP packet as the cable carried it.
    pub outer_length: usize,
    /// More of it is in further packets.
    pub fragmented: bool,
    pub udp_source: u16,
    pub udp_target: u16,
    pub vni: u32,
    pub inner_source: IpAddr,
    pub inner_target: IpAddr,
    /// 1 is ICMP, 6 TCP, 17 UDP, 58 ICMP for IPv6.
    pub inner_protocol: u8,
    /// The first bytes after the inner IP header: of ICMP the type (8 asks for an echo, 0 is the
    /// echo), of TCP and UDP the two ports.
    pub inner_first: u8,
    pub inner_ports: (u16, u16),
}

impl Capture {
    /// Starts to capture VXLAN on the host's cable.
    pub fn start(host: &Host) -> Result<Capture> {
        Self::start_on_port(host, 4789)
    }

    /// The same for a swarm with another `--data-path-port`.
    pub fn start_on_port(host: &Host, port: u16) -> Result<Capture> {
        Self::start_on(host, "eth0", port)
    }

    /// The same on another of the host's links.
    pub fn start_on(host: &Host, link: &str, port: u16) -> Result<Capture> {
        let file = host.folder.join("capture.pcap");
        let said = host.folder.join("capture.log");
        let path = file.display().to_string();
        let process = host
            .inside(&[
                "tcpdump",
                "--immediate-mode",
                "-Z",
                "root",
                "-U",
                "-i",
                link,
                "-w",
                &path,
                "udp",
                "port",
                &port.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?)
            .spawn()
            .context("cannot start tcpdump")?;
        wait_until(Duration::from_secs(10), || {
            Ok(fs::read_to_string(&said)?.contains("listening on"))
        })
        .context("tcpdump does not listen")?;
        Ok(Capture { process, file })
    }

    /// Ends the capture once it holds `count` of the wanted packets, or after a while, and gives
    /// these: tcpdump reads a packet a little after the wire has carried it.
    pub fn finish(
        mut self,
        wanted: impl Fn(&Encapsulated) -> bool,
        count: usize,
    ) -> Result<Vec<Encapsulated>> {
        let start = Instant::now();
        let held = || -> Result<Vec<Encapsulated>> {
            let mut packets = decode_file(&fs::read(&self.file)?);
            packets.retain(&wanted);
            Ok(packets)
        };
        while held()?.len() < count && start.elapsed() < LATE_MAX {
            std::thread::sleep(Duration::from_millis(50));
        }
        let outer = self.process.id();
        // nsenter waits for the program that it forked into the host's process namespace.
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
        for child in children.split_whitespace() {
            sh(&format!("kill -INT {child}"))?;
        }
        self.process.wait()?;
        held()
    }
}

/// The packets of a pcap file with Ethernet frames (little-endian, microseconds).
fn decode_file(file: &[u8]) -> Vec<Encapsulated> {
    let mut found = Vec::new();
    let mut at = 24;
    while let Some(length) =
        file.get(at + 8..at + 12).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
    {
        let start = at + 16;
        at = start + length as usize;
        found.extend(file.get(start..at).and_then(decode_frame));
    }
    found
}

struct Ip<'a> {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    length: usize,
    more_fragments: bool,
    payload: &'a [u8],
}

fn decode_frame(frame: &[u8]) -> Option<Encapsulated> {
    let outer = decode_ethernet(frame)?;
    let (udp, vxlan) = outer.payload.split_at_checked(8)?;
    let (header, inner) = vxlan.split_at_checked(8)?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    let inner = decode_ethernet(inner)?;
    Some(Encapsulated {
        outer_source: outer.source,
        outer_target: outer.target,
        outer_length: outer.length,
        fragmented: outer.more_fragments,
        udp_source: number(udp, 0)?,
        udp_target: number(udp, 2)?,
        vni,
        inner_source: inner.source,
        inner_target: inner.target,
        inner_protocol: inner.protocol,
        inner_first: *inner.payload.first()?,
        inner_ports: (number(inner.payload, 0)?, number(inner.payload, 2)?),
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

fn decode_ethernet(frame: &[u8]) -> Option<Ip<'_>> {
    let packet = frame.get(14..)?;
    match number(frame, 12)? {
        0x0800 => decode_ipv4(packet),
        0x86dd => decode_ipv6(packet),
        _ => None,
    }
}

/// RFC 791 section 3.1; a later fragment has no header to decode.
fn decode_ipv4(packet: &[u8]) -> Option<Ip<'_>> {
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;
    let header = usize::from(packet.first()? & 15) * 4;
    let address = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
    let fragment = number(packet, 6)?;
    Some(Ip {
        source: address(12)?.into(),
        target: address(16)?.into(),
        protocol: packet[9],
        length: usize::from(number(packet, 2)?),
        more_fragments: fragment & MORE != 0,
        payload: packet.get(header..).filter(|_| fragment & OFFSET == 0)?,
    })
}

/// RFC 8200 sections 3 and 4.5.
fn decode_ipv6(packet: &[u8]) -> Option<Ip<'_>> {
    const FRAGMENT: u8 = 44;
    let address = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok();
    let mut ip = Ip {
        source: address(8)?.into(),
        target: address(24)?.into(),
        protocol: *packet.get(6)?,
        length: usize::from(number(packet, 4)?) + 40,
        more_fragments: false,
        payload: packet.get(40..)?,
    };
    if ip.protocol == FRAGMENT {
        let place = number(ip.payload, 2)?;
        ip.more_fragments = place & 1 != 0;
        ip.protocol = ip.payload[0];
        ip.payload = ip.payload.get(8..).filter(|_| place >> 3 == 0)?;
    }
    Some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(protocol: u8, source: [u8; 4], target: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((payload.len() as u16 + 20).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(target);
        frame.extend(payload);
        frame
    }

    fn ip6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        for last in [1, 2] {
            frame.extend([0xfd, 0, 0, 0x68, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        frame.extend(payload);
        frame
    }

    fn vxlan(inner: &[u8]) -> Vec<u8> {
        let mut udp = vec![0x80, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0x10, 1, 0];
        udp.extend(inner);
        udp
    }

    fn file(frame: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 32];
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
        file
    }

    #[test]
    fn a_ping_in_vxlan_is_decoded_down_to_the_inner_addresses() {
        let inner = ip(1, [10, 0, 1, 3], [10, 0, 1, 4], &[8, 0, 1, 2]);
        let file = file(&ip(17, [192, 168, 68, 109], [192, 168, 68, 110], &vxlan(&inner)));
        let packet = decode_file(&file).pop().expect("one packet");
        assert_eq!(packet.udp_source, 0x8000);
        assert_eq!((packet.udp_target, packet.vni, packet.inner_protocol), (4789, 4097, 1));
        assert_eq!((packet.inner_first, packet.outer_length), (8, 20 + 8 + 8 + 14 + 24));
        assert_eq!(packet.inner_target, IpAddr::from([10, 0, 1, 4]));
        assert_eq!(decode_file(&file[..60]), []);
    }

    #[test]
    fn both_families_are_decoded_outside_and_inside() {
        let segment = [0x1f, 0x90, 0, 80];
        let inner = ip6(6, &segment);
        let packet = decode_frame(&ip6(17, &vxlan(&inner))).expect("a packet");
        assert_eq!(packet.outer_source.to_string(), "fd00:68::1");
        assert_eq!(packet.outer_length, 40 + 8 + 8 + 14 + 40 + 4);
        assert_eq!((packet.inner_protocol, packet.inner_ports), (6, (8080, 80)));
        assert!(!packet.fragmented);
    }

    #[test]
    fn the_first_fragment_is_told_and_a_later_one_left_out() {
        let inner = ip(1, [10, 0, 1, 3], [10, 0, 1, 4], &[8, 0, 1, 2]);
        let mut frame = ip(17, [192, 168, 68, 109], [192, 168, 68, 110], &vxlan(&inner));
        frame[20] = 0x20;
        assert!(decode_frame(&frame).expect("the first").fragmented);
        frame[21] = 1;
        assert_eq!(decode_frame(&frame), None);
        let mut piece = vec![17, 0, 0, 1, 0, 0, 0, 0];
        piece.extend(vxlan(&inner));
        assert!(decode_frame(&ip6(44, &piece)).expect("the first").fragmented);
        piece[3] = 9;
        assert_eq!(decode_frame(&ip6(44, &piece)), None);
    }
}

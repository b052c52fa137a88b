//! Packets on a host's cable, decoded down to the inner frame of VXLAN (RFC 7348).

use std::fs;
use std::net::Ipv4Addr;
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

/// One VXLAN packet with an IPv4 packet inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encapsulated {
    pub outer_source: Ipv4Addr,
    pub outer_target: Ipv4Addr,
    pub udp_target: u16,
    pub vni: u32,
    pub inner_source: Ipv4Addr,
    pub inner_target: Ipv4Addr,
    /// 1 is ICMP, 6 TCP, 17 UDP.
    pub inner_protocol: u8,
    /// The first byte after the inner IP header; of ICMP its type: 8 asks for an echo, 0 is the echo.
    pub inner_first: u8,
}

impl Capture {
    /// Starts to capture VXLAN on the host's cable.
    pub fn start(host: &Host) -> Result<Capture> {
        Self::start_on_port(host, 4789)
    }

    /// The same for a swarm with another `--data-path-port`.
    pub fn start_on_port(host: &Host, port: u16) -> Result<Capture> {
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
                "eth0",
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
    source: Ipv4Addr,
    target: Ipv4Addr,
    protocol: u8,
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
        udp_target: u16::from_be_bytes([udp[2], udp[3]]),
        vni,
        inner_source: inner.source,
        inner_target: inner.target,
        inner_protocol: inner.protocol,
        inner_first: *inner.payload.first()?,
    })
}

fn decode_ethernet(frame: &[u8]) -> Option<Ip<'_>> {
    const IPV4: [u8; 2] = [8, 0];
    let packet = frame.get(14..).filter(|_| frame[12..14] == IPV4)?;
    let header = usize::from(packet.first()? & 15) * 4;
    let address = |at: usize| packet.get(at..at + 4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
    Some(Ip {
        source: address(12)?,
        target: address(16)?,
        protocol: packet[9],
        payload: packet.get(header..)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(protocol: u8, source: [u8; 4], target: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(target);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_ping_in_vxlan_is_decoded_down_to_the_inner_addresses() {
        let inner = ip(1, [10, 0, 1, 3], [10, 0, 1, 4], &[8, 0]);
        let mut udp = vec![0x80, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0x10, 1, 0];
        udp.extend(inner);
        let frame = ip(17, [192, 168, 68, 109], [192, 168, 68, 110], &udp);
        let mut file = vec![0; 24];
        file.extend([0; 8]);
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(&frame);
        let packet = decode_file(&file).pop().expect("one packet");
        assert_eq!((packet.udp_target, packet.vni, packet.inner_protocol), (4789, 4097, 1));
        assert_eq!(packet.inner_first, 8);
        assert_eq!(packet.inner_target, Ipv4Addr::new(10, 0, 1, 4));
        assert_eq!(decode_file(&file[..60]), []);
    }
}

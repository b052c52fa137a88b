//! Frames that tell a bridge who has an address: ARP announcements (RFC 5227 section 3) and
//! unsolicited neighbour advertisements (RFC 4861 section 7.2.6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use netplan::Mac;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::message::checksum;

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ARP_REPLY: u16 = 2;
const EVERYONE: [u8; 6] = [0xff; 6];
/// All nodes on the link, and the frame address that goes with it (RFC 2464 section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_ADDRESS: u8 = 2;

/// The frame that says `addr` is at `mac`. Only those that ask for the address take note of it.
pub fn frame(addr: IpAddr, mac: Mac) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => arp(addr, mac),
        IpAddr::V6(addr) => neighbour(addr, mac),
    }
}

fn ethernet(to: [u8; 6], from: Mac, kind: u16) -> Vec<u8> {
    [&to[..], &from.0, &kind.to_be_bytes()].concat()
}

fn arp(addr: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = ethernet(EVERYONE, mac, ARP);
    // Ethernet and IPv4, with addresses of 6 and 4 bytes.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(ARP_REPLY.to_be_bytes());
    for holder in [mac.0, EVERYONE] {
        frame.extend(holder);
        frame.extend(addr.octets());
    }
    frame
}

fn neighbour(addr: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut body = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    body.extend(addr.octets());
    body.extend([TARGET_LINK_ADDRESS, 1]);
    body.extend(mac.0);
    let length = body.len() as u16;
    let mut pseudo = [addr.octets(), ALL_NODES.octets()].concat();
    pseudo.extend(u32::from(length).to_be_bytes());
    pseudo.extend(u32::from(ICMPV6).to_be_bytes());
    pseudo.extend(&body);
    body[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut frame = ethernet(ALL_NODES_MAC, mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // A hop limit of 255 shows that nobody forwarded it.
    frame.extend([ICMPV6, 255]);
    frame.extend(addr.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(body);
    frame
}

/// Sends each frame out of the link of that index, in the calling thread's namespace.
pub fn send(frames: &[(u32, Vec<u8>)]) -> io::Result<()> {
    // Protocol 0: it receives nothing.
    let socket = rustix::net::socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for (index, frame) in frames {
        // SAFETY: an address of zeros is a valid one; its fields are set below.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = *index as i32;
        // SAFETY: both pointers are to live memory of the lengths that are given.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_of_arp_is_a_reply_to_everyone() {
        let mac = Mac([2, 0x42, 10, 0, 1, 4]);
        let expected = [
            &[0xff; 6][..],
            &[2, 0x42, 10, 0, 1, 4, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &[2, 0x42, 10, 0, 1, 4, 10, 0, 1, 4],
            &[0xff; 6],
            &[10, 0, 1, 4],
        ];
        assert_eq!(frame("10.0.1.4".parse().unwrap(), mac), expected.concat());
    }

    #[test]
    fn an_advertisement_has_a_checksum_that_comes_out_even() {
        let frame = frame("fd00::4".parse().unwrap(), Mac([2, 0x42, 0, 0, 0, 4]));
        let (header, body) = frame.split_at(14 + 40);
        let mut pseudo = header[14 + 8..].to_vec();
        pseudo.extend((body.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, ICMPV6]);
        pseudo.extend(body);
        assert_eq!(checksum(&pseudo), 0);
    }
}

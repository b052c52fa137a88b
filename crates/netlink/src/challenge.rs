//! Clients elsewhere whose connections ended here learn of it at once, also those that only listen.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::conntrack::Tuple;
use crate::message::{checksum, ip_bytes};

const SYN_AND_ACK: u8 = 0x12;
const HEADER_WORDS: u8 = 5;

/// A reset that a client believes carries the number that it expects next, which nobody here knows. A
/// SYN within a connection is answered with that number whatever its own is (RFC 5961, section 4),
/// and the answer belongs to no connection any more: it earns the reset. With the ACK it passes
/// those who track the connection on the way.
///
/// Says it in the name of each flow's first destination, in the namespace that has this address.
pub fn send(flows: &[Tuple]) -> io::Result<()> {
    let mut by_source: BTreeMap<IpAddr, Vec<&Tuple>> = BTreeMap::new();
    for flow in flows {
        by_source.entry(flow.dst).or_default().push(flow);
    }
    for (source, flows) in by_source {
        let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let tcp = Some(rustix::net::ipproto::TCP);
        let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, tcp)?;
        rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
        for flow in flows {
            let to = SocketAddr::new(flow.src, 0);
            // A client that cannot be reached now hears it when it speaks.
            let _ = rustix::net::sendto(&socket, &segment(flow), SendFlags::DONTWAIT, &to);
        }
    }
    Ok(())
}

/// From where the flow went to where it came from.
fn segment(flow: &Tuple) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[0..2].copy_from_slice(&flow.dst_port.to_be_bytes());
    bytes[2..4].copy_from_slice(&flow.src_port.to_be_bytes());
    bytes[12] = HEADER_WORDS << 4;
    bytes[13] = SYN_AND_ACK;
    let mut covered = ip_bytes(flow.dst);
    covered.extend(ip_bytes(flow.src));
    covered.extend((bytes.len() as u32).to_be_bytes());
    covered.extend(u32::from(flow.protocol).to_be_bytes());
    covered.extend(bytes);
    bytes[16..18].copy_from_slice(&checksum(&covered).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_what_its_receiver_sums_up_to_nothing() {
        for (src, dst) in [("192.0.2.7", "172.18.0.2"), ("2001:db8::7", "fd00::2")] {
            let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
            let flow = Tuple { src, dst, protocol: 6, src_port: 40_000, dst_port: 8080 };
            let bytes = segment(&flow);
            assert_eq!(bytes[..4], [0x1f, 0x90, 0x9c, 0x40]);
            let mut covered = [ip_bytes(dst), ip_bytes(src)].concat();
            covered.extend([0, 0, 0, 20, 0, 0, 0, 6]);
            covered.extend(bytes);
            assert_eq!(checksum(&covered), 0);
        }
    }
}

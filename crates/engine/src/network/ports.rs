//! Host ports: who has which, held by a bound socket so that no other process takes it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::api::Proto;

/// The kernel's own range where it cannot be read.
const DYNAMIC_DEFAULT: (u16, u16) = (32_768, 60_999);

type Key = (Proto, IpAddr, u16);

#[derive(Default)]
pub struct Ports {
    /// None where the kernel has no socket of that protocol.
    held: BTreeMap<Key, Option<OwnedFd>>,
    next: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// By a container or a service of this engine.
    Allocated,
    /// By another process.
    InUse(Errno),
}

impl Ports {
    /// Takes one port on all the addresses, or none.
    pub fn take(
        &mut self,
        proto: Proto,
        addresses: &[IpAddr],
        port: u16,
    ) -> Result<(), (IpAddr, Taken)> {
        if let Some(addr) = addresses.iter().find(|addr| self.conflicts(proto, **addr, port)) {
            return Err((*addr, Taken::Allocated));
        }
        let mut sockets = Vec::new();
        for addr in addresses {
            let socket = hold(proto, *addr, port).map_err(|errno| (*addr, Taken::InUse(errno)))?;
            sockets.push(((proto, *addr, port), socket));
        }
        self.held.extend(sockets);
        Ok(())
    }

    /// Takes the first port of the range that is free; (0, 0) is the dynamic range.
    pub fn take_one_of(
        &mut self,
        proto: Proto,
        addresses: &[IpAddr],
        range: (u16, u16),
    ) -> Result<u16, (IpAddr, Taken)> {
        let first = addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut last = (first, Taken::Allocated);
        if range != (0, 0) {
            for port in range.0..=range.1.max(range.0) {
                match self.take(proto, addresses, port) {
                    Ok(()) => return Ok(port),
                    Err(taken) => last = taken,
                }
            }
            return Err(last);
        }
        let (lowest, highest) = dynamic_range();
        let count = u32::from(highest - lowest) + 1;
        let start = u32::from(self.next.clamp(lowest, highest) - lowest);
        for step in 0..count {
            let port = lowest + ((start + step) % count) as u16;
            match self.take(proto, addresses, port) {
                Ok(()) => {
                    self.next = if port == highest { lowest } else { port + 1 };
                    return Ok(port);
                }
                Err(taken) => last = taken,
            }
        }
        Err(last)
    }

    /// Keeps what an earlier daemon had given away, held or not.
    pub fn adopt(&mut self, proto: Proto, addr: IpAddr, port: u16) {
        let socket = hold(proto, addr, port).ok().flatten();
        self.held.insert((proto, addr, port), socket);
    }

    /// It stays given away, and somebody else holds it.
    pub fn let_go(&mut self, proto: Proto, addr: IpAddr, port: u16) {
        self.held.insert((proto, addr, port), None);
    }

    pub fn release(&mut self, proto: Proto, addr: IpAddr, port: u16) {
        self.held.remove(&(proto, addr, port));
    }

    /// An unspecified address is every address of its family.
    fn conflicts(&self, proto: Proto, addr: IpAddr, port: u16) -> bool {
        self.held.keys().any(|(p, other, n)| {
            let same = *p == proto && *n == port && other.is_ipv4() == addr.is_ipv4();
            same && (*other == addr || other.is_unspecified() || addr.is_unspecified())
        })
    }
}

fn dynamic_range() -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) if first <= last && first > 0 => (first, last),
        _ => DYNAMIC_DEFAULT,
    }
}

/// A socket that is bound and never listens: packets are translated before they reach it.
fn hold(proto: Proto, addr: IpAddr, port: u16) -> Result<Option<OwnedFd>, Errno> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match proto {
        Proto::Tcp => (SocketType::STREAM, rustix::net::ipproto::TCP),
        Proto::Udp => (SocketType::DGRAM, rustix::net::ipproto::UDP),
        Proto::Sctp => (SocketType::STREAM, rustix::net::ipproto::SCTP),
    };
    let made = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol));
    let socket = match made {
        Ok(socket) => socket,
        // Translation needs no socket of the protocol.
        Err(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::SOCKTNOSUPPORT) => return Ok(None),
        Err(error) => return Err(error),
    };
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if proto == Proto::Udp {
        // What is not translated is not kept.
        sockopt::set_socket_recv_buffer_size(&socket, 0)?;
    }
    let at = SocketAddr::new(addr, port);
    match rustix::net::bind(&socket, &at) {
        // Connections that ended a moment ago do not keep the port; a listener does.
        Err(Errno::ADDRINUSE) if proto == Proto::Tcp => {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &at)?;
        }
        other => other?,
    }
    Ok(Some(socket))
}

/// The addresses a port is published on when none is named.
pub fn every_address(v4: bool, v6: bool) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    if v4 {
        addresses.push(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    }
    if v6 {
        addresses.push(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_port_is_given_once_and_again_when_released() {
        let mut ports = Ports::default();
        let port = ports.take_one_of(Proto::Tcp, &[ANY], (0, 0)).unwrap();
        assert_eq!(ports.take(Proto::Tcp, &[LOCAL], port), Err((LOCAL, Taken::Allocated)));
        assert_eq!(ports.take(Proto::Udp, &[LOCAL], port), Ok(()), "another protocol");
        ports.release(Proto::Tcp, ANY, port);
        assert_eq!(ports.take(Proto::Tcp, &[LOCAL], port), Ok(()));
    }

    #[test]
    fn a_port_of_another_process_is_named_so() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut ports = Ports::default();
        let taken = ports.take(Proto::Tcp, &[LOCAL], port);
        assert_eq!(taken, Err((LOCAL, Taken::InUse(Errno::ADDRINUSE))));
    }
}

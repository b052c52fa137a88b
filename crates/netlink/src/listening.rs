//! What listens in a network namespace. `/proc/net/tcp` would do, and takes milliseconds of the
//! kernel's time: it goes through the connections of the whole machine.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::message::{Message, Received};
use crate::namespace;
use crate::socket::{Family, Socket};

/// sock_diag(7).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// TCP_LISTEN, in include/net/tcp_states.h of the kernel.
const LISTEN: u8 = 10;
/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and the socket's
/// identity, which is left open.
const REQUEST_LENGTH: usize = 56;

/// A question that can be asked again and again.
pub struct Listening(Socket);

impl Listening {
    /// In the namespace that a file stands for.
    pub fn open(namespace: &Path) -> io::Result<Self> {
        namespace::visit(namespace, || Socket::open(Family::SockDiag)).map(Self)
    }

    /// The TCP ports that are listened on, by either family, at whatever address.
    pub fn tcp_ports(&mut self) -> io::Result<BTreeSet<u16>> {
        let mut ports = BTreeSet::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            match self.0.dump(question(family as u8)) {
                Ok(sockets) => ports.extend(sockets.iter().filter_map(port)),
                // A kernel without IPv6.
                Err(_) if family == libc::AF_INET6 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ports)
    }
}

fn question(family: u8) -> Message {
    let mut body = [0; REQUEST_LENGTH];
    (body[0], body[1]) = (family, libc::IPPROTO_TCP as u8);
    body[4..8].copy_from_slice(&(1_u32 << LISTEN).to_ne_bytes());
    Message::new(SOCK_DIAG_BY_FAMILY, 0).body(&body)
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, and the socket's identity, whose
/// first field is its own port.
fn port(socket: &Received) -> Option<u16> {
    let message = socket.body(6).filter(|_| socket.kind == SOCK_DIAG_BY_FAMILY)?;
    (message[1] == LISTEN).then_some(u16::from_be_bytes([message[4], message[5]]))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_port_listens_from_its_socket_on_and_not_for_a_connection_alone() {
        let mut listening = Listening::open(Path::new("/proc/self/ns/net")).expect("a socket");
        let mut listens = |port: u16| listening.tcp_ports().expect("asked").contains(&port);
        let bind = |address: &str| TcpListener::bind(address).expect("a socket");
        let port = |socket: &TcpListener| socket.local_addr().expect("bound").port();
        let (one, other) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        assert!(listens(port(&one)) && listens(port(&other)));
        let held = TcpStream::connect(other.local_addr().expect("bound")).expect("connected");
        let (_accepted, gone) = (other.accept().expect("accepted"), port(&other));
        drop(other);
        assert!(!listens(gone), "{held:?} is a connection");
        if let Ok(six) = TcpListener::bind("[::1]:0") {
            assert!(listens(port(&six)));
        }
    }
}

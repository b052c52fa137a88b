//! Published ports that the kernel cannot translate: an IPv6 address of the host led to a container that has IPv4
//! only, and `::1`, which no packet may leave the host from. Here they are carried from socket to socket.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};

use crate::message::Relay;

/// Connections, or UDP clients, of one port at once; more are turned away.
const CLIENTS_MAX: usize = 1_024;
/// A container that does not take a connection within this does not listen.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A UDP client that is silent for so long is forgotten (as long as Docker's proxy waits).
const UDP_IDLE_MAX: Duration = Duration::from_secs(90);
const DATAGRAM_BYTES_MAX: usize = 65_535;
const WAITING_MAX: i32 = 128;

/// The relays that run.
#[derive(Default)]
pub(crate) struct Relays(BTreeMap<Relay, AbortHandle>);

impl Relays {
    /// Makes these and no others run. What cannot be opened is named with its reason.
    pub async fn set(&mut self, wanted: &BTreeSet<Relay>) -> Vec<(Relay, String)> {
        self.0.retain(|relay, task| {
            let kept = wanted.contains(relay) && !task.is_finished();
            if !kept {
                task.abort();
            }
            kept
        });
        // The aborted tasks let go of their sockets when the loop next turns to them.
        tokio::task::yield_now().await;
        let mut refused = Vec::new();
        for relay in wanted.iter().filter(|relay| !self.0.contains_key(relay)).collect::<Vec<_>>() {
            match open(*relay) {
                Ok(task) => drop(self.0.insert(*relay, task)),
                Err(error) => refused.push((*relay, reason(&error))),
            }
        }
        refused
    }
}

/// As Go words it: `address already in use`.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn open(relay: Relay) -> io::Result<AbortHandle> {
    let socket = bind(relay)?;
    if relay.udp {
        let socket = tokio::net::UdpSocket::from_std(UdpSocket::from(socket))?;
        return Ok(
            tokio::task::spawn_local(carry_packets(Rc::new(socket), relay.to)).abort_handle()
        );
    }
    rustix::net::listen(&socket, WAITING_MAX)?;
    let listener = tokio::net::TcpListener::from_std(TcpListener::from(socket))?;
    Ok(tokio::task::spawn_local(carry_connections(listener, relay.to)).abort_handle())
}

/// Never both families at once: the other one's port is somebody else's.
fn bind(relay: Relay) -> io::Result<OwnedFd> {
    let family = if relay.listen.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if relay.udp { SocketType::DGRAM } else { SocketType::STREAM };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if relay.listen.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if !relay.udp {
        // Connections that ended a moment ago do not keep the port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &relay.listen)?;
    Ok(socket)
}

async fn carry_connections(listener: tokio::net::TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((client, _)) if connections.len() < CLIENTS_MAX => {
                connections.spawn_local(carry_connection(client, to));
            }
            // Closed: the asker sees at once that there is no room.
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Both directions until both have ended; one may end before the other.
async fn carry_connection(mut client: TcpStream, to: SocketAddr) {
    if let Ok(Ok(mut server)) = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(to)).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn carry_packets(socket: Rc<tokio::net::UdpSocket>, to: SocketAddr) {
    let clients = Rc::new(RefCell::new(BTreeMap::<SocketAddr, Rc<tokio::net::UdpSocket>>::new()));
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let received = socket.recv_from(&mut buffer).await;
        while answers.try_join_next().is_some() {}
        let Ok((length, from)) = received else { continue };
        let known = clients.borrow().get(&from).cloned();
        let server = match known {
            Some(server) => server,
            None if clients.borrow().len() >= CLIENTS_MAX => continue,
            None => {
                let Ok(server) = dial(to).await else { continue };
                clients.borrow_mut().insert(from, server.clone());
                let (back, asked, clients) = (socket.clone(), server.clone(), clients.clone());
                answers.spawn_local(async move {
                    carry_answers(&back, &asked, from).await;
                    clients.borrow_mut().remove(&from);
                });
                server
            }
        };
        // What nobody takes is lost, as on any network.
        let _ = server.send(&buffer[..length]).await;
    }
}

async fn dial(to: SocketAddr) -> io::Result<Rc<tokio::net::UdpSocket>> {
    let any: SocketAddr = if to.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = tokio::net::UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    Ok(Rc::new(socket))
}

async fn carry_answers(
    socket: &tokio::net::UdpSocket,
    server: &tokio::net::UdpSocket,
    to: SocketAddr,
) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        match tokio::time::timeout(UDP_IDLE_MAX, server.recv(&mut buffer)).await {
            Ok(Ok(length)) => drop(socket.send_to(&buffer[..length], to).await),
            // Nobody listened for the last packet; the next one may find somebody.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            _ => return,
        }
    }
}

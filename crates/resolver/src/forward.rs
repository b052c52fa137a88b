//! Asking the upstream servers, for one sandbox: bounded, with ids and ports that cannot be guessed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dns::{Carrier, Code, Names, Query, Upstream};
use tokio::net::{TcpStream, UdpSocket};

use crate::netns;
use crate::server::{Live, count, read_framed, write_framed};

/// Questions on the way for one sandbox; the next one gets a failure at once.
const QUESTIONS_PER_SANDBOX_MAX: usize = 256;
/// As many servers as the C library asks.
const SERVERS_MAX: usize = 3;
/// How long one server may take. Below the C library's 5 seconds, so that the second server's
/// answer still finds its asker.
const SERVER_WAIT_MAX: Duration = Duration::from_secs(2);
/// Sockets kept towards one server for the next questions.
const SOCKETS_IDLE_MAX: usize = 8;
/// Questions over one socket before its port is given up.
const QUESTIONS_PER_SOCKET_MAX: u32 = 64;
const REPLY_BYTES_MAX: usize = 65_535;
const HEADER: usize = 12;

/// The way out of one sandbox.
pub(crate) struct Servers {
    netns: Arc<OwnedFd>,
    in_flight: Cell<usize>,
    idle: RefCell<BTreeMap<(std::net::SocketAddr, bool), Vec<Idle>>>,
}

/// A connected socket between two questions.
struct Idle {
    socket: UdpSocket,
    questions: u32,
}

impl Servers {
    pub fn new(netns: Arc<OwnedFd>) -> Self {
        Self { netns, in_flight: Cell::new(0), idle: RefCell::default() }
    }

    pub fn has_room(&self) -> bool {
        self.in_flight.get() < QUESTIONS_PER_SANDBOX_MAX
    }

    fn namespace(&self, server: Upstream) -> Option<Arc<OwnedFd>> {
        (!server.from_host).then(|| self.netns.clone())
    }

    async fn socket(&self, server: Upstream) -> io::Result<Idle> {
        let kept =
            self.idle.borrow_mut().get_mut(&(server.address, server.from_host)).and_then(Vec::pop);
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let socket = netns::dial_udp(self.namespace(server), server.address).await?;
        Ok(Idle { socket: UdpSocket::from_std(socket)?, questions: 0 })
    }

    fn keep(&self, server: Upstream, mut used: Idle) {
        used.questions += 1;
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry((server.address, server.from_host)).or_default();
        if used.questions < QUESTIONS_PER_SOCKET_MAX && kept.len() < SOCKETS_IDLE_MAX {
            kept.push(used);
        }
    }
}

/// Counts a question as on the way for as long as it lives.
struct InFlight(Rc<Live>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let in_flight = &self.0.servers.in_flight;
        in_flight.set(in_flight.get().saturating_sub(1));
    }
}

/// The servers' reply, under the asker's own id; a failure if none has one.
pub(crate) async fn ask(
    live: &Rc<Live>,
    names: &Names,
    query: &Query,
    packet: &[u8],
    carrier: Carrier,
) -> Vec<u8> {
    live.servers.in_flight.set(live.servers.in_flight.get() + 1);
    let _in_flight = InFlight(live.clone());
    count(&live.counters.forwarded);
    let mut last = None;
    for server in names.upstreams.iter().take(SERVERS_MAX) {
        let asked = ask_one(&live.servers, *server, query, packet, carrier);
        match tokio::time::timeout(SERVER_WAIT_MAX, asked).await {
            // A server that cannot say is no better than one that is silent, while there are others.
            Ok(Ok(reply)) if matches!(reply[3] & 0x0f, 2 | 5) => last = Some(reply),
            Ok(Ok(reply)) => {
                last = Some(reply);
                break;
            }
            Ok(Err(_)) | Err(_) => count(&live.counters.upstream_failed),
        }
    }
    match last {
        Some(mut reply) => {
            reply[..2].copy_from_slice(&query.id.to_be_bytes());
            reply
        }
        None => query.reply(Code::ServerFailure),
    }
}

async fn ask_one(
    servers: &Servers,
    server: Upstream,
    query: &Query,
    packet: &[u8],
    carrier: Carrier,
) -> io::Result<Vec<u8>> {
    let id: [u8; 2] = rand::random();
    let mut question = packet.to_vec();
    question[..2].copy_from_slice(&id);
    if carrier == Carrier::Tcp {
        let stream =
            netns::dial_tcp(servers.namespace(server), server.address, SERVER_WAIT_MAX).await?;
        let mut stream = TcpStream::from_std(stream)?;
        write_framed(&mut stream, &question).await?;
        let reply = read_framed(&mut stream).await?;
        let ours = is_reply(&reply, id, query);
        return ours.then_some(reply).ok_or(io::ErrorKind::InvalidData.into());
    }
    let used = servers.socket(server).await?;
    used.socket.send(&question).await?;
    let mut buffer = vec![0; REPLY_BYTES_MAX];
    loop {
        let length = used.socket.recv(&mut buffer).await?;
        if is_reply(&buffer[..length], id, query) {
            buffer.truncate(length);
            servers.keep(server, used);
            return Ok(buffer);
        }
    }
}

/// Whether the bytes answer the question that was sent: its id, and its words as they were spelt.
fn is_reply(reply: &[u8], id: [u8; 2], query: &Query) -> bool {
    reply.len() >= HEADER
        && reply[..2] == id
        && reply[2] & 0x80 != 0
        // A server that cannot read the question may leave it out.
        && (reply[HEADER..].starts_with(query.asked()) || (reply[4..6] == [0, 0] && reply[3] & 0x0f != 0))
}

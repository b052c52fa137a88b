//! The gossip's sockets: UDP and TCP 7946, and the loop that feeds the state machine.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::gossip::{Config, DialId, Effect, Event, Gossip, Row, StreamId};
use model::{Instant, NetworkId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use wire::memberlist::seal::{FRAME_HEADER_BYTES, frame_length};

/// memberlist's TCP timeout: for a whole exchange.
const STREAM_TIME_MAX: Duration = Duration::from_secs(10);
/// Accepted connections at a time; further ones are closed at once and tried again by their makers.
const CONNECTIONS_MAX: usize = 64;
/// How long a port may be in use before that is an error.
const PORT_WAIT_MAX: Duration = Duration::from_secs(2);
const EVENTS_WAITING_MAX: usize = 1_024;
/// Packets taken before timers and events have their turn.
const PACKETS_AT_ONCE: usize = 64;
/// While the reader of the effects is this far behind, packets wait in the kernel.
const EFFECTS_WAITING_MAX: usize = 65_536;
const PACKET_BYTES_MAX: usize = 65_536;

/// A running gossip. The last handle that is dropped ends it.
#[derive(Clone)]
pub struct Handle {
    name: Arc<str>,
    orders: mpsc::Sender<Order>,
    peers: Arc<Peers>,
}

type Peers = RwLock<BTreeMap<NetworkId, Vec<(String, IpAddr)>>>;

enum Order {
    Event(Event),
    Rows { network: NetworkId, table: String, reply: oneshot::Sender<BTreeMap<String, Row>> },
    Counters { reply: oneshot::Sender<BTreeMap<&'static str, u64>> },
}

impl Handle {
    /// This node's name on the gossip.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits while the loop is busy; nothing happens once it has ended.
    pub async fn send(&self, event: Event) {
        let _ = self.orders.send(Order::Event(event)).await;
    }

    /// The nodes on a network, this one included when it is there.
    pub fn peers(&self, network: &NetworkId) -> Vec<(String, IpAddr)> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(network).cloned().unwrap_or_default()
    }

    /// The rows of a table of a network, by key.
    pub async fn rows(&self, network: &NetworkId, table: &str) -> BTreeMap<String, Row> {
        let (reply, rows) = oneshot::channel();
        let (network, table) = (network.clone(), table.to_owned());
        let _ = self.orders.send(Order::Rows { network, table, reply }).await;
        rows.await.unwrap_or_default()
    }

    /// What was dropped and why.
    pub async fn counters(&self) -> BTreeMap<&'static str, u64> {
        let (reply, counters) = oneshot::channel();
        let _ = self.orders.send(Order::Counters { reply }).await;
        counters.await.unwrap_or_default()
    }
}

/// Opens the sockets and starts the loop. Only effects about rows, peers and nodes come out.
pub async fn start(
    config: Config,
    listen: SocketAddr,
    out: mpsc::Sender<Effect>,
) -> io::Result<Handle> {
    let (udp, tcp) = bind(listen).await?;
    let (orders, ordered) = mpsc::channel(EVENTS_WAITING_MAX);
    let (streams, streamed) = mpsc::channel(EVENTS_WAITING_MAX);
    let peers = Arc::new(Peers::default());
    let handle = Handle { name: config.name.as_str().into(), orders, peers: peers.clone() };
    let runner = Runner {
        gossip: Gossip::new(config),
        clock: Clock::new(),
        udp,
        out,
        waiting: VecDeque::new(),
        peers,
        streams,
        replies: BTreeMap::new(),
        next_stream: 0,
        tasks: JoinSet::new(),
    };
    tokio::spawn(runner.run(tcp, ordered, streamed));
    Ok(handle)
}

/// A gossip that was just ended may hold the port for another moment.
async fn bind(listen: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let begun = std::time::Instant::now();
    loop {
        let bound = match UdpSocket::bind(listen).await {
            Ok(udp) => TcpListener::bind(listen).await.map(|tcp| (udp, tcp)),
            Err(error) => Err(error),
        };
        match bound {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PORT_WAIT_MAX =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            bound => return bound,
        }
    }
}

/// The wall clock at the start, advanced by the monotonic one.
struct Clock {
    began: std::time::Instant,
    wall: Instant,
}

impl Clock {
    fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: std::time::Instant::now(), wall: Instant::from_nanos(0) + wall }
    }

    fn now(&self) -> Instant {
        self.wall + self.began.elapsed()
    }
}

/// What a connection's task reports.
enum Streamed {
    Request { from: SocketAddr, bytes: Vec<u8>, reply: oneshot::Sender<Vec<u8>> },
    Dialled(Event),
}

struct Runner {
    gossip: Gossip,
    clock: Clock,
    udp: UdpSocket,
    out: mpsc::Sender<Effect>,
    waiting: VecDeque<Effect>,
    peers: Arc<Peers>,
    streams: mpsc::Sender<Streamed>,
    replies: BTreeMap<StreamId, oneshot::Sender<Vec<u8>>>,
    next_stream: u64,
    tasks: JoinSet<()>,
}

impl Runner {
    async fn run(
        mut self,
        tcp: TcpListener,
        mut ordered: mpsc::Receiver<Order>,
        mut streamed: mpsc::Receiver<Streamed>,
    ) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let out = self.out.clone();
        // Begins the timers.
        self.step(Event::Deadline);
        loop {
            let wait = self.gossip.deadline().map(|at| at.since(self.clock.now()));
            let room = self.waiting.len() < EFFECTS_WAITING_MAX;
            tokio::select! {
                order = ordered.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                Some(streamed) = streamed.recv() => self.streamed(streamed),
                _ = self.udp.readable(), if room => self.receive(&mut buffer),
                accepted = tcp.accept() => self.accepted(accepted).await,
                () = sleep(wait) => self.step(Event::Deadline),
                permit = out.reserve(), if !self.waiting.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(effect) = self.waiting.pop_front() {
                            permit.send(effect);
                        }
                    }
                    Err(_) => return,
                },
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {}
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Event(event) => self.step(event),
            Order::Rows { network, table, reply } => {
                let _ = reply.send(self.gossip.rows(&network, &table));
            }
            Order::Counters { reply } => {
                let _ = reply.send(self.gossip.counters());
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        for _ in 0..PACKETS_AT_ONCE {
            // Errors are those of packets sent earlier (nobody listens there); none is fatal.
            match self.udp.try_recv_from(buffer) {
                Ok((length, from)) => {
                    self.step(Event::Packet { from, bytes: buffer[..length].to_vec() });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    fn streamed(&mut self, streamed: Streamed) {
        match streamed {
            Streamed::Dialled(event) => self.step(event),
            Streamed::Request { from, bytes, reply } => {
                self.next_stream += 1;
                let stream = StreamId(self.next_stream);
                self.replies.insert(stream, reply);
                self.step(Event::StreamRequest { stream, from, bytes });
            }
        }
    }

    async fn accepted(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, from)) if self.tasks.len() < CONNECTIONS_MAX * 3 => {
                let streams = self.streams.clone();
                self.tasks.spawn(async move {
                    // Who is too slow is cut off.
                    let _ =
                        tokio::time::timeout(STREAM_TIME_MAX, serve(stream, from, streams)).await;
                });
            }
            Ok(_) => {}
            // Out of descriptors: a pause lets some be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }

    fn step(&mut self, event: Event) {
        for effect in self.gossip.step(self.clock.now(), event) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            // A full buffer loses a packet as any network may.
            Effect::SendPacket { to, bytes } => drop(self.udp.try_send_to(&bytes, to)),
            Effect::OpenStream { dial, to, bytes, reply } => {
                let streams = self.streams.clone();
                self.tasks.spawn(async move {
                    let exchange = exchange(to, bytes, reply, dial);
                    let event = match tokio::time::timeout(STREAM_TIME_MAX, exchange).await {
                        Ok(Ok(event)) => event,
                        Ok(Err(_)) | Err(_) => Event::StreamFailed { dial },
                    };
                    let _ = streams.send(Streamed::Dialled(event)).await;
                });
            }
            Effect::ReplyStream { stream, bytes } => {
                if let Some(reply) = self.replies.remove(&stream) {
                    let _ = reply.send(bytes);
                }
            }
            Effect::CloseStream { stream } => drop(self.replies.remove(&stream)),
            Effect::PeersChanged { network, peers } => {
                let mut all = self.peers.write().unwrap_or_else(PoisonError::into_inner);
                all.insert(network.clone(), peers.clone());
                all.retain(|_, peers| !peers.is_empty());
                self.waiting.push_back(Effect::PeersChanged { network, peers });
            }
            effect => self.waiting.push_back(effect),
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// One frame of an accepted connection, and its answer if there is one.
async fn serve(
    mut stream: TcpStream,
    from: SocketAddr,
    streams: mpsc::Sender<Streamed>,
) -> io::Result<()> {
    let bytes = read_frame(&mut stream).await?;
    let (reply, answer) = oneshot::channel();
    let _ = streams.send(Streamed::Request { from, bytes, reply }).await;
    if let Ok(bytes) = answer.await {
        stream.write_all(&bytes).await?;
    }
    stream.shutdown().await
}

async fn exchange(to: SocketAddr, bytes: Vec<u8>, reply: bool, dial: DialId) -> io::Result<Event> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&bytes).await?;
    if reply {
        let bytes = read_frame(&mut stream).await?;
        return Ok(Event::StreamReply { dial, bytes });
    }
    stream.shutdown().await?;
    Ok(Event::StreamSent { dial })
}

/// A frame with its header; memory grows only with what really arrives.
async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let length = frame_length(&header).map_err(io::Error::other)?;
    let mut frame = header.to_vec();
    stream.take(length as u64).read_to_end(&mut frame).await?;
    if frame.len() == FRAME_HEADER_BYTES + length {
        Ok(frame)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::gossip::{ENDPOINT_TABLE, Key};

    async fn node(number: u8) -> (Handle, mpsc::Receiver<Effect>) {
        // Loopback addresses of this test process alone.
        let process = std::process::id();
        let [_, _, high, low] = process.to_be_bytes();
        let address: SocketAddr = ([127, 64 | (high & 63), low, number], 7_946).into();
        let (out, effects) = mpsc::channel(64);
        let config = Config::new(format!("{number:012x}"), address, [number; 32]);
        let handle = start(config, address, out).await.unwrap();
        let keys = (1..4).map(|lamport| Key { lamport, secret: [lamport as u8; 16] }).collect();
        handle.send(Event::SetKeys(keys)).await;
        handle.send(Event::JoinNetwork { network: NetworkId::new("net1") }).await;
        let first = SocketAddr::from(([127, 64 | (high & 63), low, 1], 7_946));
        handle.send(Event::Join { addresses: vec![first] }).await;
        (handle, effects)
    }

    #[tokio::test]
    async fn rows_travel_over_real_sockets() {
        let network = NetworkId::new("net1");
        let (first, mut heard) = node(1).await;
        let (second, _effects) = node(2).await;
        let (table, key, value) = (ENDPOINT_TABLE.to_owned(), "a".to_owned(), b"1".to_vec());
        second.send(Event::PutRow { network: network.clone(), table, key, value }).await;
        let row = async {
            while let Some(effect) = heard.recv().await {
                if let Effect::RowChanged { owner, new: Some(value), .. } = effect {
                    return (owner, value);
                }
            }
            panic!("the first node ended");
        };
        let (owner, value) = tokio::time::timeout(Duration::from_secs(20), row).await.unwrap();
        assert_eq!((owner.as_str(), value.as_slice()), (second.name(), &b"1"[..]));
        assert_eq!(first.peers(&network).len(), 2);
        assert_eq!(first.rows(&network, ENDPOINT_TABLE).await.len(), 1);
        assert_eq!(first.counters().await.get("packet_not_opened"), None);
    }
}

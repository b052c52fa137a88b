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
/// For the host of a failed node to accept or refuse a connection.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(3);
/// Accepted connections at a time; further ones are closed at once and tried again by their makers.
const CONNECTIONS_MAX: usize = 256;
/// Of one host: it needs one at a time, and cannot keep the others out.
const CONNECTIONS_PER_HOST_MAX: usize = 16;
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
    start_with(config, listen, out, STREAM_TIME_MAX).await
}

async fn start_with(
    config: Config,
    listen: SocketAddr,
    out: mpsc::Sender<Effect>,
    stream_time_max: Duration,
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
        stream_time_max,
        accepted: BTreeMap::new(),
        counters: BTreeMap::new(),
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
    tasks: JoinSet<Ended>,
    stream_time_max: Duration,
    /// Accepted connections that are open, by the host at their other end.
    accepted: BTreeMap<IpAddr, usize>,
    /// What was dropped before the state machine saw it.
    counters: BTreeMap<&'static str, u64>,
}

/// A connection's task that is over.
enum Ended {
    Dialled,
    /// By the host at the other end, with what was wrong.
    Served(IpAddr, Option<&'static str>),
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
                incoming = tcp.accept() => self.incoming(incoming).await,
                () = sleep(wait) => self.step(Event::Deadline),
                permit = out.reserve(), if !self.waiting.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(effect) = self.waiting.pop_front() {
                            permit.send(effect);
                        }
                    }
                    Err(_) => return,
                },
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.ended(ended),
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
                let mut counters = self.gossip.counters();
                counters.extend(&self.counters);
                let _ = reply.send(counters);
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

    async fn incoming(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        // Out of descriptors: a pause lets some be closed.
        let Ok((stream, from)) = accepted else {
            return tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let open: usize = self.accepted.values().sum();
        let of_host = self.accepted.get(&from.ip()).copied().unwrap_or_default();
        if open >= CONNECTIONS_MAX || of_host >= CONNECTIONS_PER_HOST_MAX {
            return self.count("stream_refused");
        }
        self.accepted.insert(from.ip(), of_host + 1);
        let (streams, time) = (self.streams.clone(), self.stream_time_max);
        self.tasks.spawn(async move {
            let served = tokio::time::timeout(time, serve(stream, from, streams));
            let wrong = match served.await {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some("stream_broken"),
                // Who is too slow is cut off.
                Err(_) => Some("stream_slow"),
            };
            Ended::Served(from.ip(), wrong)
        });
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok(Ended::Served(host, wrong)) = ended else { return };
        if let Some(count) = self.accepted.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.accepted.remove(&host);
            }
        }
        if let Some(wrong) = wrong {
            self.count(wrong);
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
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
                let (streams, time) = (self.streams.clone(), self.stream_time_max);
                self.tasks.spawn(async move {
                    let exchange = exchange(to, bytes, reply, dial);
                    let event = match tokio::time::timeout(time, exchange).await {
                        Ok(Ok(event)) => event,
                        Ok(Err(_)) | Err(_) => Event::StreamFailed { dial },
                    };
                    let _ = streams.send(Streamed::Dialled(event)).await;
                    Ended::Dialled
                });
            }
            Effect::AskHost { name, to } => {
                let streams = self.streams.clone();
                self.tasks.spawn(async move {
                    let asked = tokio::time::timeout(QUESTION_TIME_MAX, TcpStream::connect(to));
                    if asked.await.is_ok_and(is_answer) {
                        let event = Event::HostAnswered { name };
                        let _ = streams.send(Streamed::Dialled(event)).await;
                    }
                    Ended::Dialled
                });
            }
            Effect::ReplyStream { stream, bytes } => {
                if let Some(reply) = self.replies.remove(&stream) {
                    let _ = reply.send(bytes);
                }
            }
            Effect::CloseStream { stream } => drop(self.replies.remove(&stream)),
            Effect::PeersChanged { network, peers, failed } => {
                let mut all = self.peers.write().unwrap_or_else(PoisonError::into_inner);
                all.insert(network.clone(), peers.clone());
                all.retain(|_, peers| !peers.is_empty());
                self.waiting.push_back(Effect::PeersChanged { network, peers, failed });
            }
            effect => self.waiting.push_back(effect),
        }
    }
}

/// A port that nobody listens on is refused by the host itself.
fn is_answer(connected: io::Result<TcpStream>) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset};
    match connected {
        Ok(_) => true,
        Err(error) => matches!(error.kind(), ConnectionRefused | ConnectionReset),
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

    /// Loopback addresses of this test process alone.
    fn at(number: u8) -> SocketAddr {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        SocketAddr::from(([127, 64 | (high & 63), low, number], 7_946))
    }

    /// A second is as good as ten to find a stream slow.
    const SLOW: Duration = Duration::from_secs(1);

    async fn node(number: u8, first: u8) -> (Handle, mpsc::Receiver<Effect>) {
        let (out, effects) = mpsc::channel(64);
        let config = Config::new(format!("{number:012x}"), at(number), [number; 32]);
        let handle = start_with(config, at(number), out, SLOW).await.unwrap();
        let keys = (1..4).map(|lamport| Key { lamport, secret: [lamport as u8; 16] }).collect();
        handle.send(Event::SetKeys(keys)).await;
        handle.send(Event::JoinNetwork { network: NetworkId::new("net1") }).await;
        handle.send(Event::Join { addresses: vec![at(first)] }).await;
        (handle, effects)
    }

    /// Waits until a counter stands at `value`.
    async fn until_counted(node: &Handle, what: &str, value: u64) {
        let counted = async {
            while node.counters().await.get(what) != Some(&value) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(STREAM_TIME_MAX, counted).await;
        assert!(waited.is_ok(), "{what}: {:?}", node.counters().await);
    }

    #[tokio::test]
    async fn one_host_cannot_hold_every_stream_and_garbage_is_counted() {
        let (first, _effects) = node(11, 11).await;
        let from = |number: u8| async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(at(number).ip(), 0)).unwrap();
            socket.connect(at(11)).await.unwrap()
        };
        // A header of 10 that takes its time, as often as one host may, and once more.
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS_PER_HOST_MAX {
            let mut stream = from(12).await;
            stream.write_all(&[10, 0, 0]).await.unwrap();
            slow.push(stream);
        }
        let mut more = from(12).await;
        until_counted(&first, "stream_refused", 1).await;
        assert_eq!(more.read(&mut [0; 1]).await.unwrap_or_default(), 0, "closed at once");
        // Others are served meanwhile: a frame that is none is told so by the end.
        let mut garbage = from(13).await;
        garbage.write_all(&[0xff; 64]).await.unwrap();
        let mut huge = from(13).await;
        huge.write_all(&[10, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        until_counted(&first, "stream_broken", 2).await;
        let packet = UdpSocket::bind(SocketAddr::new(at(13).ip(), 0)).await.unwrap();
        packet.send_to(&[7; 60_000], at(11)).await.unwrap();
        until_counted(&first, "packet_not_opened", 1).await;
        // Whoever is cut off makes room.
        until_counted(&first, "stream_slow", CONNECTIONS_PER_HOST_MAX as u64).await;
        drop(slow);
        let _again = from(12).await;
        until_counted(&first, "stream_refused", 1).await;
    }

    #[tokio::test]
    async fn rows_travel_over_real_sockets() {
        let network = NetworkId::new("net1");
        let (first, mut heard) = node(1, 1).await;
        let (second, _effects) = node(2, 1).await;
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

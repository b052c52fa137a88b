//! The loop that answers: one thread, a task per socket.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dns::kernel::Caches;
use dns::{Answer, Carrier, Code, Names, Prebuilt, Query, Reply};
use rand::Rng;
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet, LocalSet};

use crate::forward::{self, Servers};
use crate::kernel::{Kernel, Shortcut};
use crate::message::Relay;
use crate::netns::Listeners;
use crate::relay::Relays;

/// The longest question: a name of 255 bytes and a few EDNS options.
const QUESTION_BYTES_MAX: usize = 4_096;
/// Questions taken from one socket before the others have their turn.
const QUESTIONS_AT_ONCE: usize = 64;
const CONNECTIONS_PER_SANDBOX_MAX: usize = 64;
const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(10);

/// What the control side wants of the loop.
pub(crate) enum Command {
    Open {
        id: String,
        names: Names,
        listeners: Listeners,
        netns: OwnedFd,
    },
    /// Confirmed when no question is answered from the names before any more.
    Names {
        id: String,
        names: Names,
        reply: oneshot::Sender<()>,
    },
    Close {
        id: String,
        reply: oneshot::Sender<()>,
    },
    Relays {
        relays: BTreeSet<Relay>,
        reply: oneshot::Sender<Vec<(Relay, String)>>,
    },
    Counters {
        reply: oneshot::Sender<BTreeMap<String, u64>>,
    },
}

/// What happened since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub answered: Cell<u64>,
    pub forwarded: Cell<u64>,
    pub refused: Cell<u64>,
    pub garbage: Cell<u64>,
    pub overload: Cell<u64>,
    pub upstream_failed: Cell<u64>,
}

pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get().wrapping_add(1));
}

impl Counters {
    fn table(&self, in_kernel: u64) -> BTreeMap<String, u64> {
        let answered = Cell::new(self.answered.get().wrapping_add(in_kernel));
        [
            ("answered", &answered),
            ("forwarded", &self.forwarded),
            ("refused", &self.refused),
            ("garbage", &self.garbage),
            ("overload", &self.overload),
            ("upstream_failed", &self.upstream_failed),
        ]
        .into_iter()
        .map(|(name, counter)| (name.to_owned(), counter.get()))
        .collect()
    }
}

/// One sandbox while it is served.
pub(crate) struct Live {
    names: RefCell<Rc<Names>>,
    /// Replies over UDP that these names gave.
    prebuilt: RefCell<Prebuilt>,
    shortcut: Rc<Shortcut>,
    pub servers: Servers,
    pub counters: Rc<Counters>,
}

/// Everything the loop serves; a sandbox that is dropped takes its tasks along.
struct Served {
    live: Rc<Live>,
    tasks: [AbortHandle; 2],
}

impl Drop for Served {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Live {
    /// The kernel's cache first: nothing of the old names may be answered once this returns.
    fn set_names(&self, names: Names) {
        self.shortcut.clear();
        *self.names.borrow_mut() = Rc::new(names);
        self.prebuilt.borrow_mut().clear();
    }
}

/// Runs the loop until the control side is gone.
pub(crate) fn serve(commands: mpsc::Receiver<Command>, caches: Arc<dyn Caches>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, obey(commands, caches));
    Ok(())
}

async fn obey(mut commands: mpsc::Receiver<Command>, caches: Arc<dyn Caches>) {
    let kernel = Kernel::new(caches);
    let counters = Rc::new(Counters::default());
    let mut sandboxes: BTreeMap<String, Served> = BTreeMap::new();
    let mut running = Relays::default();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Open { id, names, listeners, netns } => {
                sandboxes.remove(&id);
                match open(names, listeners, netns, counters.clone(), kernel.clone()) {
                    Ok(served) => drop(sandboxes.insert(id, served)),
                    Err(error) => tracing::error!(%id, %error, "sandbox not served"),
                }
            }
            Command::Names { id, names, reply } => {
                if let Some(served) = sandboxes.get(&id) {
                    served.live.set_names(names);
                }
                let _ = reply.send(());
            }
            Command::Close { id, reply } => {
                if let Some(served) = sandboxes.remove(&id) {
                    let live = served.live.clone();
                    drop(served);
                    live.shortcut.close().await;
                }
                // The aborted tasks let go of their sockets when the loop next turns to them.
                tokio::task::yield_now().await;
                let _ = reply.send(());
            }
            Command::Relays { relays, reply } => {
                let _ = reply.send(running.set(&relays).await);
            }
            Command::Counters { reply } => {
                let _ = reply.send(counters.table(kernel.answered()));
            }
        }
    }
}

fn open(
    names: Names,
    listeners: Listeners,
    netns: OwnedFd,
    counters: Rc<Counters>,
    kernel: Rc<Kernel>,
) -> io::Result<Served> {
    let netns = Arc::new(netns);
    let udp = Rc::new(UdpSocket::from_std(listeners.udp)?);
    let tcp = TcpListener::from_std(listeners.tcp)?;
    let live = Rc::new(Live {
        names: RefCell::new(Rc::new(names)),
        prebuilt: RefCell::default(),
        shortcut: Shortcut::new(kernel, netns.clone(), listeners.ports.udp, &udp),
        servers: Servers::new(netns),
        counters,
    });
    let tasks = [
        tokio::task::spawn_local(answer_packets(live.clone(), udp)).abort_handle(),
        tokio::task::spawn_local(answer_connections(live.clone(), tcp)).abort_handle(),
    ];
    Ok(Served { live, tasks })
}

async fn answer_packets(live: Rc<Live>, socket: Rc<UdpSocket>) {
    let mut buffer = vec![0u8; QUESTION_BYTES_MAX];
    let mut forwards = JoinSet::new();
    loop {
        // A socket that fails for good would make this a busy loop; the wait keeps it a slow one.
        if socket.readable().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        while forwards.try_join_next().is_some() {}
        for _ in 0..QUESTIONS_AT_ONCE {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    take_packet(&live, &socket, &mut forwards, &buffer[..length], from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An asker that went away before its reply arrived.
                Err(_) => {}
            }
        }
    }
}

fn take_packet(
    live: &Rc<Live>,
    socket: &Rc<UdpSocket>,
    forwards: &mut JoinSet<()>,
    packet: &[u8],
    from: SocketAddr,
) {
    // A full send buffer loses a reply as any network may; the asker asks again.
    let send = |reply: &[u8]| drop(socket.try_send_to(reply, from));
    if let Some(reply) = live.prebuilt.borrow_mut().get(packet) {
        count(&live.counters.answered);
        shuffle(reply);
        send(&reply.bytes);
        return live.shortcut.offer(packet, reply);
    }
    match decide(live, packet, Carrier::Udp) {
        Decision::Drop => {}
        Decision::Answer(reply) => {
            send(&reply.bytes);
            live.prebuilt.borrow_mut().keep(packet, reply);
        }
        Decision::Reply(reply) => send(&reply),
        Decision::Forward(query) => {
            let (live, socket, packet) = (live.clone(), socket.clone(), packet.to_vec());
            let names = live.names.borrow().clone();
            forwards.spawn_local(async move {
                let reply = forward::ask(&live, &names, &query, &packet, Carrier::Udp).await;
                let _ = socket.send_to(&reply, from).await;
            });
        }
    }
}

fn shuffle(reply: &mut Reply) {
    let mut dice = rand::rng();
    reply.shuffle(|bound| dice.random_range(0..bound));
}

/// What becomes of a packet.
enum Decision {
    /// The names' own answer: the same for everyone in the sandbox until they change.
    Answer(Reply),
    Reply(Vec<u8>),
    Forward(Query),
    Drop,
}

fn decide(live: &Live, packet: &[u8], carrier: Carrier) -> Decision {
    let query = match dns::message::parse(packet) {
        Ok(query) => query,
        Err(reject) => {
            count(&live.counters.garbage);
            return reject.reply().map_or(Decision::Drop, Decision::Reply);
        }
    };
    let answer = dns::answer(&live.names.borrow(), &query.question);
    match answer {
        Answer::Addresses(mut addresses) => {
            count(&live.counters.answered);
            // Before they are cut to what fits: each has the same chance.
            addresses.shuffle(&mut rand::rng());
            Decision::Answer(query.reply_addresses(&addresses, carrier))
        }
        Answer::Pointers(names) => {
            count(&live.counters.answered);
            Decision::Answer(query.reply_pointers(&names, carrier))
        }
        Answer::Refuse => {
            count(&live.counters.refused);
            Decision::Reply(query.reply(Code::ServerFailure))
        }
        Answer::Forward if live.servers.has_room() => Decision::Forward(query),
        Answer::Forward => {
            count(&live.counters.overload);
            Decision::Reply(query.reply(Code::ServerFailure))
        }
    }
}

async fn answer_connections(live: Rc<Live>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) if connections.len() < CONNECTIONS_PER_SANDBOX_MAX => {
                connections.spawn_local(converse(live.clone(), stream));
            }
            Ok(_) => count(&live.counters.overload),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Answers the questions of one connection, one after another, until it is idle or broken.
async fn converse(live: Rc<Live>, mut stream: TcpStream) {
    while let Ok(Ok(packet)) =
        tokio::time::timeout(CONNECTION_IDLE_MAX, read_framed(&mut stream)).await
    {
        let reply = match decide(&live, &packet, Carrier::Tcp) {
            Decision::Drop => return,
            Decision::Answer(reply) => reply.bytes,
            Decision::Reply(reply) => reply,
            Decision::Forward(query) => {
                let names = live.names.borrow().clone();
                forward::ask(&live, &names, &query, &packet, Carrier::Tcp).await
            }
        };
        let write = write_framed(&mut stream, &reply);
        if !matches!(tokio::time::timeout(CONNECTION_IDLE_MAX, write).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// A message with its length before it (RFC 1035 section 4.2.2).
pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

pub(crate) async fn write_framed(stream: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(packet.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await
}

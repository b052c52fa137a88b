//! What reaches the gossip and what it wants done.

use std::net::{IpAddr, SocketAddr};

use model::NetworkId;

/// What a node is on the gossip, for the life of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// 12 hex digits, new at every start.
    pub name: String,
    /// Where the others reach this node; the port is 7946.
    pub advertise: SocketAddr,
    /// What this node says about itself, see [`crate::SKEP_META`].
    pub meta: Vec<u8>,
    /// Feeds every random choice and every nonce: 32 bytes from the operating system.
    pub seed: [u8; 32],
    /// The largest UDP payload sent: 1400, less where the control plane's MTU is small.
    pub packet_bytes_max: usize,
}

impl Config {
    pub fn new(name: impl Into<String>, advertise: SocketAddr, seed: [u8; 32]) -> Self {
        Self {
            name: name.into(),
            advertise,
            meta: crate::SKEP_META.to_vec(),
            seed,
            packet_bytes_max: 1_400,
        }
    }
}

/// One of the managers' `networking:gossip` keys. Not `Debug`: keys are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub lamport: u64,
    pub secret: [u8; 16],
}

/// A connection that this node asked for in [`Effect::OpenStream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// A connection that was accepted; numbered by whoever runs the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What happened. Every frame of a stream is whole: its 5 header bytes and its body.
#[derive(Clone)]
pub enum Event {
    /// [`crate::Gossip::deadline`] has come.
    Deadline,
    Packet {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    /// The first frame on an accepted connection.
    StreamRequest {
        stream: StreamId,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    /// The answer on a connection opened with `reply: true`.
    StreamReply {
        dial: DialId,
        bytes: Vec<u8>,
    },
    /// The frame of a connection opened with `reply: false` was sent.
    StreamSent {
        dial: DialId,
    },
    /// Refused, broken or out of time.
    StreamFailed {
        dial: DialId,
    },
    /// The host of [`Effect::AskHost`] lives: it accepted the connection or refused it.
    HostAnswered {
        name: String,
    },
    /// The managers' addresses: whom to join first and to rejoin when they are missing. The whole set.
    Join {
        addresses: Vec<SocketAddr>,
    },
    /// All keys in force; the second-oldest encrypts. Without keys nothing is sent or accepted.
    SetKeys(Vec<Key>),
    JoinNetwork {
        network: NetworkId,
    },
    LeaveNetwork {
        network: NetworkId,
    },
    /// Announces a row of this node, or its new value.
    PutRow {
        network: NetworkId,
        table: String,
        key: String,
        value: Vec<u8>,
    },
    DeleteRow {
        network: NetworkId,
        table: String,
        key: String,
    },
    /// Rows of the node `to` now guide this node's kernel: it is told, by their [`crate::row_print`].
    Applied {
        to: String,
        rows: Vec<u64>,
    },
    /// Tells everyone that this node goes; stop a second later.
    LeaveCluster,
}

/// What to do. Order matters only within one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    SendPacket {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// Connect, send the frame and, when `reply`, wait for one frame: 10 seconds in all.
    OpenStream {
        dial: DialId,
        to: SocketAddr,
        bytes: Vec<u8>,
        reply: bool,
    },
    /// Send the frame, then close.
    ReplyStream {
        stream: StreamId,
        bytes: Vec<u8>,
    },
    CloseStream {
        stream: StreamId,
    },
    /// A row of any node, this one's own included. `None` is "no such row".
    RowChanged {
        network: NetworkId,
        table: String,
        key: String,
        owner: String,
        old: Option<Vec<u8>>,
        new: Option<Vec<u8>>,
    },
    /// The nodes attached to a network changed: all of them, sorted by name.
    PeersChanged {
        network: NetworkId,
        peers: Vec<(String, IpAddr)>,
        /// Nodes on it that failed.
        failed: Vec<String>,
    },
    /// The rows of a network that this node joined are here as another node on it knows them.
    Synced {
        network: NetworkId,
    },
    /// Rows of this node that the node `by` has put to work.
    Applied {
        by: String,
        rows: Vec<u64>,
    },
    /// A node appeared, came back or changed its metadata.
    NodeUp(Member),
    /// A node failed (its rows stay, see [`Row::owner_up`]) or left (its rows are gone).
    NodeDown(Member),
    /// Find out whether the host of a failed node lives: connect to it, for 3 seconds.
    AskHost {
        name: String,
        to: SocketAddr,
    },
    /// The host of a failed node does not answer either: nothing on it can be reached. Over when
    /// the node is up again.
    HostSilent(Member),
    /// What became known of the way to a node, which is open as long as nothing else is said.
    Path {
        to: SocketAddr,
        state: PathState,
    },
}

/// Whether both protocols of the gossip lead to a node that lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathState {
    #[default]
    Open,
    /// The node lives, for it answers by the other protocol or to other nodes, and not by these.
    Blocked { udp: bool, tcp: bool },
    /// It was blocked, and now the node does not answer anybody.
    Unknown,
}

/// A node on the gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub address: SocketAddr,
    pub meta: Vec<u8>,
}

impl Member {
    /// Whether the node is one of ours, which hold the return path of published ports.
    pub fn is_skep(&self) -> bool {
        self.meta.starts_with(b"skep")
    }
}

/// A row as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The name of the node that announced it.
    pub owner: String,
    pub value: Vec<u8>,
    /// False while the owner does not answer: where two rows claim one address, the live owner's holds.
    pub owner_up: bool,
}

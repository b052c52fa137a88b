//! What can happen to a manager, and what it wants done about it.
//!
//! Effects are carried out in the order in which they stand. [`Effect::Persist`] is done (written
//! and synchronised) before the next one begins; when it fails, nothing after it may be done and
//! this manager's life is over: it starts again from what the disk holds.

use std::net::IpAddr;

use wire::raftpb;
use wire::swarmkit as pb;

pub use consensus::Write;

/// One unary call, numbered by the shell; no two open calls share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One open stream of answers, numbered by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Who calls: read from the verified certificate, or from a forwarding manager's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The certificate's common name; empty without a certificate.
    pub node_id: String,
    /// The certificate's organization: the cluster's id.
    pub organization: String,
    /// The certificate's organizational units: `swarm-worker`, `swarm-manager`.
    pub units: Vec<String>,
    pub address: Option<IpAddr>,
    /// The manager that forwarded the call, when one did.
    pub forwarded_by: Option<String>,
}

impl Caller {
    pub fn is_manager(&self) -> bool {
        self.units.iter().any(|unit| unit == ca::MANAGER_UNIT)
    }

    pub fn is_member(&self) -> bool {
        self.is_manager() || self.units.iter().any(|unit| unit == ca::WORKER_UNIT)
    }
}

/// gRPC's codes, by their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// Why a call failed, in SwarmKit's code and words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

pub enum Event {
    /// The time that [`crate::Manager::deadline`] named has come.
    Deadline,
    /// A message from another member, whole (the pieces of a snapshot put together).
    Raft(Box<raftpb::Message>),
    /// A message could not be delivered to this member.
    RaftUnreachable { raft_id: u64 },
    /// A snapshot was delivered to this member, or was not.
    RaftSnapshotSent { raft_id: u64, delivered: bool },
    /// A peer answered that this member was removed from the cluster.
    RaftRemoved,
    /// What [`Effect::Snapshot`] came to.
    Snapshot(Box<raftpb::Snapshot>),
    /// The answer to [`Effect::Probe`].
    Probed { ticket: Ticket, healthy: bool },
    /// A unary call.
    Call { ticket: Ticket, caller: Caller, call: Box<Call> },
    /// The caller of a unary call went away. Only one who waits for a certificate is forgotten: what
    /// else was asked for goes on, and who asks again finds it done.
    Cancelled { ticket: Ticket },
    /// A call that is answered by a stream.
    Open { stream: StreamId, caller: Caller, open: Open },
    /// The other side of a stream went away.
    Closed { stream: StreamId },
    /// Networks that this manager's host reaches or is on, as `10.1.0.0/16`: all of them.
    HostNetworks(Vec<String>),
    /// This manager is about to end: another should lead.
    HandOver,
}

/// Unary calls. `Control` and `UnlockKey` come from the local Engine API too, with this node as caller.
#[derive(Clone, PartialEq)]
pub enum Call {
    Control(wire::control::Request),
    GetRootCaCertificate(pb::GetRootCaCertificateRequest),
    GetUnlockKey(pb::GetUnlockKeyRequest),
    IssueNodeCertificate(pb::IssueNodeCertificateRequest),
    NodeCertificateStatus(pb::NodeCertificateStatusRequest),
    Heartbeat(pb::HeartbeatRequest),
    UpdateTaskStatus(pb::UpdateTaskStatusRequest),
    UpdateVolumeStatus(pb::UpdateVolumeStatusRequest),
    Join(pb::JoinRequest),
    Leave(pb::LeaveRequest),
    ResolveAddress(pb::ResolveAddressRequest),
    Health(pb::HealthCheckRequest),
    AttachNetwork(pb::AttachNetworkRequest),
    DetachNetwork(pb::DetachNetworkRequest),
    /// One message of a client stream; each is answered, the stream's end is an answer to the last.
    PublishLogs(pb::PublishLogsMessage),
}

/// Calls answered by a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Open {
    Session(pb::SessionRequest),
    Tasks(pb::TasksRequest),
    Assignments(pb::AssignmentsRequest),
    ListenSubscriptions(pb::ListenSubscriptionsRequest),
    SubscribeLogs(pb::SubscribeLogsRequest),
    Watch(pb::WatchRequest),
}

pub type Reply = Result<Answer, Failure>;

/// Answers to unary calls, each of its call's name.
#[derive(Clone, PartialEq)]
pub enum Answer {
    Control(wire::control::Response),
    GetRootCaCertificate(pb::GetRootCaCertificateResponse),
    GetUnlockKey(pb::GetUnlockKeyResponse),
    IssueNodeCertificate(pb::IssueNodeCertificateResponse),
    NodeCertificateStatus(pb::NodeCertificateStatusResponse),
    Heartbeat(pb::HeartbeatResponse),
    UpdateTaskStatus(pb::UpdateTaskStatusResponse),
    UpdateVolumeStatus(pb::UpdateVolumeStatusResponse),
    Join(pb::JoinResponse),
    Leave(pb::LeaveResponse),
    ResolveAddress(pb::ResolveAddressResponse),
    Health(pb::HealthCheckResponse),
    AttachNetwork(pb::AttachNetworkResponse),
    DetachNetwork(pb::DetachNetworkResponse),
    PublishLogs(pb::PublishLogsResponse),
}

/// Messages on streams, each of its call's name.
#[derive(Clone, PartialEq)]
pub enum Message {
    Session(pb::SessionMessage),
    Tasks(pb::TasksMessage),
    Assignments(pb::AssignmentsMessage),
    Subscription(pb::SubscriptionMessage),
    Logs(pb::SubscribeLogsMessage),
    Watch(pb::WatchMessage),
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leader {
    pub raft_id: u64,
    pub node_id: String,
    pub address: String,
    /// This manager itself.
    pub here: bool,
}

/// The cluster at one moment. It shares its objects with the store, which goes on meanwhile.
pub struct Snapshot {
    pub(crate) mark: consensus::Mark,
    pub(crate) store: store::Frozen,
}

impl Snapshot {
    /// As it goes to the disk and to late managers. Takes as long as the cluster is large: nobody
    /// should wait for it.
    pub fn encode(self) -> raftpb::Snapshot {
        let store = self.store;
        self.mark.snapshot(store.encoded_len(), |bytes| store.encode(bytes))
    }
}

pub enum Effect {
    Persist(Box<Write>),
    /// May be lost; [`Event::RaftUnreachable`] tells so. Snapshots are sent in pieces.
    Send {
        raft_id: u64,
        address: String,
        message: Box<raftpb::Message>,
    },
    /// Ask the Health service at this address for `Raft`, at most five seconds; answer with [`Event::Probed`].
    Probe {
        ticket: Ticket,
        address: String,
    },
    Reply {
        ticket: Ticket,
        reply: Reply,
    },
    Message {
        stream: StreamId,
        message: Box<Message>,
    },
    /// No more messages: the end (`Ok`), or the reason.
    Close {
        stream: StreamId,
        end: Result<(), Failure>,
    },
    /// Encode it, at leisure, and give it back by [`Event::Snapshot`].
    Snapshot(Box<Snapshot>),
    /// Objects that a committed entry changed, on every manager.
    Touched(Vec<store::Touched>),
    /// The members of the manager set, whenever they or their addresses change.
    Members(Vec<pb::RaftMember>),
    /// Another leader, or none.
    Leader(Option<Leader>),
    /// What an operator has to know and no object can show.
    Complaint(String),
    /// This manager was removed from the set: the log and the snapshots are worthless.
    Removed,
}

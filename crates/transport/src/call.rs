//! What other nodes ask of this manager, as values with a way to answer.

use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use wire::control;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::gate::Peer;

/// Calls that may wait for the manager's loop; further ones are refused.
pub const CALLS_WAITING_MAX: usize = 1_024;
/// Messages that may wait for a slow reader of a stream.
pub const STREAM_WAITING_MAX: usize = 64;

pub type Reply<T> = oneshot::Sender<Result<T, Status>>;
/// The far end is gone when it is closed.
pub type Stream<T> = mpsc::Sender<Result<T, Status>>;

/// One admitted call. Dropping its reply answers "unavailable".
pub enum Call {
    RootCertificate {
        reply: Reply<pb::GetRootCaCertificateResponse>,
    },
    UnlockKey {
        peer: Peer,
        reply: Reply<pb::GetUnlockKeyResponse>,
    },
    IssueCertificate {
        peer: Peer,
        request: pb::IssueNodeCertificateRequest,
        reply: Reply<pb::IssueNodeCertificateResponse>,
    },
    CertificateStatus {
        peer: Peer,
        request: pb::NodeCertificateStatusRequest,
        reply: Reply<pb::NodeCertificateStatusResponse>,
    },
    Session {
        peer: Peer,
        request: pb::SessionRequest,
        stream: Stream<pb::SessionMessage>,
    },
    Heartbeat {
        peer: Peer,
        request: pb::HeartbeatRequest,
        reply: Reply<pb::HeartbeatResponse>,
    },
    TaskStatus {
        peer: Peer,
        request: pb::UpdateTaskStatusRequest,
        reply: Reply<pb::UpdateTaskStatusResponse>,
    },
    VolumeStatus {
        peer: Peer,
        request: pb::UpdateVolumeStatusRequest,
        reply: Reply<pb::UpdateVolumeStatusResponse>,
    },
    Tasks {
        peer: Peer,
        request: pb::TasksRequest,
        stream: Stream<pb::TasksMessage>,
    },
    Assignments {
        peer: Peer,
        request: pb::AssignmentsRequest,
        stream: Stream<pb::AssignmentsMessage>,
    },
    RaftMessage {
        peer: Peer,
        message: raftpb::Message,
        reply: Reply<()>,
    },
    ResolveAddress {
        peer: Peer,
        request: pb::ResolveAddressRequest,
        reply: Reply<pb::ResolveAddressResponse>,
    },
    MemberJoin {
        peer: Peer,
        request: pb::JoinRequest,
        reply: Reply<pb::JoinResponse>,
    },
    MemberLeave {
        peer: Peer,
        request: pb::LeaveRequest,
        reply: Reply<pb::LeaveResponse>,
    },
    AttachNetwork {
        peer: Peer,
        request: pb::AttachNetworkRequest,
        reply: Reply<pb::AttachNetworkResponse>,
    },
    DetachNetwork {
        peer: Peer,
        request: pb::DetachNetworkRequest,
        reply: Reply<pb::DetachNetworkResponse>,
    },
    Health {
        request: pb::HealthCheckRequest,
        reply: Reply<pb::HealthCheckResponse>,
    },
    SubscribeLogs {
        peer: Peer,
        request: pb::SubscribeLogsRequest,
        stream: Stream<pb::SubscribeLogsMessage>,
    },
    ListenSubscriptions {
        peer: Peer,
        stream: Stream<pb::SubscriptionMessage>,
    },
    /// `None` when the publisher's stream broke off without `close`.
    PublishLogs {
        peer: Peer,
        messages: mpsc::Receiver<pb::PublishLogsMessage>,
        reply: Reply<pb::PublishLogsResponse>,
    },
    Watch {
        peer: Peer,
        request: pb::WatchRequest,
        stream: Stream<pb::WatchMessage>,
    },
    Control {
        peer: Peer,
        request: control::Request,
        reply: Reply<control::Response>,
    },
}

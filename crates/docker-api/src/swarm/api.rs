//! What the Engine API asks of the swarm: one object-safe trait, and its answer when there is no swarm.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use wire::control::{Call, Request, Response};
use wire::swarmkit as pb;

/// gRPC's codes as far as the Control service uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlCode {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    FailedPrecondition,
    Aborted,
    Unimplemented,
    Internal,
    Unavailable,
    DeadlineExceeded,
    ResourceExhausted,
    Unknown,
    /// This node is in no swarm, or is no manager, or is locked: Docker's status 503.
    NotManager,
    /// This node is part of a swarm already: Docker's status 503.
    AlreadyInSwarm,
    /// Wants `--force`: Docker's status 503.
    Refused,
    /// Said by this node itself rather than by a manager, hence without gRPC's words: Docker's 400.
    BadParameter,
    /// The same, 409: unlocking what is not locked.
    Conflict,
    /// The same, 401: another unlock key than this one.
    Unauthorized,
    /// The same, 500.
    Failed,
}

/// Why a call to the swarm failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    pub code: ControlCode,
    pub message: String,
}

impl ControlError {
    pub fn new(code: ControlCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// dockerd's words on a node that is in no swarm.
    pub fn no_swarm() -> Self {
        Self::new(ControlCode::NotManager, NO_SWARM)
    }

    /// dockerd's words on a worker.
    pub fn worker() -> Self {
        Self::new(ControlCode::NotManager, WORKER)
    }
}

pub const NO_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
pub const WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.";
pub const LOCKED_LEAVE: &str = "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.";
pub const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";

/// `POST /swarm/init`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InitRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub data_path_port: u32,
    pub default_addr_pool: Vec<String>,
    pub subnet_size: u32,
    pub force_new_cluster: bool,
    pub spec: pb::ClusterSpec,
    pub availability: pb::node_spec::Availability,
}

/// `POST /swarm/join`.
#[derive(Clone, Default, PartialEq)]
pub struct JoinRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub remote_addrs: Vec<String>,
    pub join_token: String,
    pub availability: pb::node_spec::Availability,
}

/// dockerd's `LocalNodeState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalNodeState {
    #[default]
    Inactive,
    Pending,
    Active,
    Error,
    Locked,
}

impl LocalNodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error => "error",
            Self::Locked => "locked",
        }
    }
}

/// The `Swarm` block of `GET /info`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeInfo {
    pub node_id: String,
    pub node_addr: String,
    pub state: LocalNodeState,
    pub control_available: bool,
    pub error: String,
    /// Known managers: node id and address with port.
    pub remote_managers: Vec<(String, String)>,
    pub nodes: u64,
    pub managers: u64,
    /// Only on managers.
    pub cluster: Option<pb::Cluster>,
    pub warnings: Vec<String>,
}

/// What this node knows of an overlay network it takes part in (`GET /networks/{id}` on any node).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalOverlay {
    pub network: pb::Network,
    /// `lb-<network>` or `ingress-sbox`: this node's own endpoint.
    pub lb_address: Option<String>,
    pub lb_mac: Option<String>,
    pub lb_endpoint_id: Option<String>,
    pub containers: Vec<LocalEndpoint>,
    /// 12 hex digits of the gossip name, and the address.
    pub peers: Vec<(String, String)>,
    pub services: BTreeMap<String, VerboseService>,
    pub created_unix_nanos: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalEndpoint {
    pub container_id: String,
    pub name: String,
    pub endpoint_id: String,
    pub mac: String,
    /// With the prefix length; empty when it has none of the family.
    pub ipv4: String,
    pub ipv6: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerboseService {
    pub vip: String,
    pub ports: Vec<String>,
    pub local_lb_index: u32,
    pub tasks: Vec<VerboseTask>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerboseTask {
    pub name: String,
    pub endpoint_id: String,
    pub endpoint_ip: String,
    pub host_ip: String,
}

/// A container that was attached to an attachable overlay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachment {
    /// The task that stands for it in the swarm.
    pub id: String,
    pub networks: Vec<pb::NetworkAttachment>,
}

pub type Answer<'a, T> = BoxFuture<'a, Result<T, ControlError>>;

/// The swarm as this node reaches it.
pub trait ClusterApi: Send + Sync + 'static {
    /// A call of the Control service, answered by the leader wherever it is.
    fn control(&self, request: Request) -> Answer<'_, Response>;
    /// The new node's id.
    fn init(&self, request: InitRequest) -> Answer<'_, String>;
    fn join(&self, request: JoinRequest) -> Answer<'_, ()>;
    fn leave(&self, force: bool) -> Answer<'_, ()>;
    fn unlock(&self, key: String) -> Answer<'_, ()>;
    /// Empty when autolock is off.
    fn unlock_key(&self) -> Answer<'_, String>;
    fn node_info(&self) -> BoxFuture<'_, NodeInfo>;
    fn subscribe_logs(
        &self,
        request: pb::SubscribeLogsRequest,
    ) -> Answer<'_, BoxStream<'static, Result<pb::LogMessage, ControlError>>>;
    /// The overlays that this node takes part in, by id.
    fn local_overlays(&self) -> BoxFuture<'_, BTreeMap<String, LocalOverlay>>;
    /// What the gossip saw and dropped, by a fixed name; nothing where there is no swarm.
    fn gossip_counters(&self) -> BoxFuture<'_, BTreeMap<&'static str, u64>> {
        Box::pin(std::future::ready(BTreeMap::new()))
    }
    /// `docker run --network <attachable overlay>`: waits until addresses are known.
    fn attach_network(
        &self,
        target: String,
        container_id: String,
        aliases: Vec<String>,
        addresses: Vec<String>,
    ) -> Answer<'_, Attachment>;
    fn detach_network(&self, attachment_id: String) -> Answer<'_, ()>;
}

impl dyn ClusterApi {
    /// A call whose answer has its own type.
    pub async fn call<C: Call>(&self, request: C) -> Result<C::Answer, ControlError> {
        let response = self.control(request.into()).await?;
        C::answer(response).ok_or_else(|| {
            ControlError::new(
                ControlCode::Internal,
                "the swarm answered another call than was asked",
            )
        })
    }
}

/// A node that is in no swarm.
#[derive(Default)]
pub struct Inactive;

fn refuse<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(std::future::ready(Err(ControlError::no_swarm())))
}

impl ClusterApi for Inactive {
    fn control(&self, _: Request) -> Answer<'_, Response> {
        refuse()
    }
    fn init(&self, _: InitRequest) -> Answer<'_, String> {
        refuse()
    }
    fn join(&self, _: JoinRequest) -> Answer<'_, ()> {
        refuse()
    }
    fn leave(&self, _: bool) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Err(ControlError::new(
            ControlCode::NotManager,
            "This node is not part of a swarm",
        ))))
    }
    fn unlock(&self, _: String) -> Answer<'_, ()> {
        refuse()
    }
    fn unlock_key(&self) -> Answer<'_, String> {
        refuse()
    }
    fn node_info(&self) -> BoxFuture<'_, NodeInfo> {
        Box::pin(std::future::ready(NodeInfo::default()))
    }
    fn subscribe_logs(
        &self,
        _: pb::SubscribeLogsRequest,
    ) -> Answer<'_, BoxStream<'static, Result<pb::LogMessage, ControlError>>> {
        refuse()
    }
    fn local_overlays(&self) -> BoxFuture<'_, BTreeMap<String, LocalOverlay>> {
        Box::pin(std::future::ready(BTreeMap::new()))
    }
    fn attach_network(
        &self,
        _: String,
        _: String,
        _: Vec<String>,
        _: Vec<String>,
    ) -> Answer<'_, Attachment> {
        refuse()
    }
    fn detach_network(&self, _: String) -> Answer<'_, ()> {
        refuse()
    }
}

//! What reaches the agent and what it wants done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::NetworkId;
use netplan::addr::{Cidr, Mac};
use netplan::view::{IngressTarget, Overlay, Proto};
use wire::swarmkit as pb;

/// What this node is, for the life of the process.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_id: String,
    /// Where the other nodes' VXLAN packets reach this one.
    pub data_path: IpAddr,
    /// The name of this node on the gossip: rows of this owner are its own.
    pub gossip_name: String,
    /// What a session tells the manager.
    pub description: pb::NodeDescription,
    /// This node's own object as [`Effect::Node`] gave it last: with it the networks stay as they
    /// are while no manager can be asked.
    pub node: Option<pb::Node>,
    /// An earlier life of this node's daemon opened the routing mesh, and the kernel still has it.
    pub mesh_open: bool,
    /// The networks that an earlier life of the daemon left lead to other nodes.
    pub had_peers: bool,
    /// Feeds every random choice: 32 bytes from the operating system.
    pub seed: [u8; 32],
}

/// One task as it is kept on this node's disk, written before anything follows from it.
#[derive(Clone, PartialEq)]
pub struct Record {
    pub task: pb::Task,
    /// The last status; never older than what the manager knows.
    pub status: pb::TaskStatus,
}

/// The step of a task's life that the executor was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Prepare,
    Start,
    Shutdown,
    Remove,
}

/// How a stage ended badly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StageError {
    pub message: String,
    /// The task can never run here (no such image, invalid mount): it becomes REJECTED.
    /// Otherwise it becomes FAILED.
    pub reject: bool,
}

/// What a container is, for `service ps` and `inspect`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub container_id: String,
    pub pid: i32,
    pub exit_code: i32,
    /// Host-mode ports that were really bound.
    pub ports: Vec<pb::PortConfig>,
}

/// A leg of a task on an overlay network.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub network: NetworkId,
    pub network_name: String,
    /// 64 hex digits, the same after a restart.
    pub endpoint_id: String,
    pub addresses: Vec<Cidr>,
    pub mac: Mac,
    /// Names besides the task's own, for this network.
    pub aliases: Vec<String>,
    pub ingress: bool,
    pub internal: bool,
}

/// Everything that the executor needs for a task.
#[derive(Clone, PartialEq)]
pub struct Work {
    pub task: pb::Task,
    /// The ingress network last: the first one that is not internal is the container's `eth0`.
    pub endpoints: Vec<Endpoint>,
    /// Ports of the routing mesh that the task serves inside its own namespace.
    pub ingress: Vec<IngressTarget>,
    /// Those that the task mounts, with their data.
    pub secrets: Vec<pb::Secret>,
    pub configs: Vec<pb::Config>,
}

/// A container that no service made, as others on its network know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    pub container_id: String,
    pub name: String,
    pub aliases: Vec<String>,
    /// Of its link, where the user has chosen it.
    pub mac: Option<Mac>,
}

/// What happened.
#[derive(Clone)]
pub enum Event {
    /// [`crate::Agent::deadline`] has come.
    Deadline,
    /// A message of the session stream that [`Effect::OpenSession`] asked for, the first included.
    Session(Box<pb::SessionMessage>),
    /// The session, assignments or heartbeat call failed or ended.
    SessionLost {
        reason: String,
    },
    /// The manager's answer to a heartbeat.
    HeartbeatDone {
        period_nanos: u64,
    },
    Assignments(pb::AssignmentsMessage),
    /// The answer to [`Effect::Report`].
    Reported {
        ok: bool,
    },
    /// What this node can do has changed.
    Described(pb::NodeDescription),
    /// A stage ended. For `Start`: the process runs and, when it has a health check, is healthy.
    Staged {
        task: String,
        stage: Stage,
        result: Result<Container, StageError>,
    },
    /// The container of a started task ended; also told once for each recorded task whose container
    /// was found dead at start-up. `None` when there is no container at all.
    Exited {
        task: String,
        container: Option<Container>,
        message: String,
    },
    /// Health of a running container: an unhealthy one gets no new connection.
    Health {
        task: String,
        healthy: bool,
    },
    /// A row of the gossip, this node's own included; `None` is "no such row".
    Row {
        network: NetworkId,
        table: String,
        key: String,
        owner: String,
        value: Option<Vec<u8>>,
    },
    /// The other nodes on a network, by their names on the gossip: all of them.
    Peers {
        network: NetworkId,
        names: BTreeSet<String>,
        /// Further ones that do not answer.
        failed: BTreeSet<String>,
    },
    /// The rows of a network are here as another node on it knows them.
    Synced {
        network: NetworkId,
    },
    /// Rows of this node that the node `by` has put to work.
    Applied {
        by: String,
        rows: Vec<u64>,
    },
    /// A node on the gossip; `skep` when it is one of ours.
    MemberUp {
        name: String,
        address: IpAddr,
        skep: bool,
    },
    /// It failed (its rows may stay) or left.
    MemberDown {
        name: String,
    },
    /// Published ports that another process on this host has: all of them.
    PortsTaken(BTreeSet<(Proto, u16)>),
    /// Not only the node failed, nothing on its host can be reached. Over when it is up.
    HostSilent {
        name: String,
    },
    /// A container of this node that no service made is on an attachable network, where this task
    /// stands for it. Level: told again it replaces.
    Attached {
        task: String,
        guest: Guest,
    },
    Detached {
        task: String,
    },
}

/// What to do, in this order.
#[derive(Clone, PartialEq)]
pub enum Effect {
    /// Open the session stream to a manager; its messages come as [`Event::Session`].
    OpenSession(pb::SessionRequest),
    /// End the session's stream, its assignments and its heartbeats.
    CloseSession,
    OpenAssignments(pb::AssignmentsRequest),
    Heartbeat(pb::HeartbeatRequest),
    /// At most one is under way; answered with [`Event::Reported`].
    Report(pb::UpdateTaskStatusRequest),

    /// Managers to turn to, by weight. The whole set.
    Managers(Vec<pb::WeightedPeer>),
    /// The keys of gossip and of encrypted networks. The whole set.
    Keys(Vec<Key>),
    RootCa(Vec<u8>),
    /// This node's own object: role, labels, certificate, availability.
    Node(Box<pb::Node>),

    /// Write the record before anything that follows.
    Persist(Box<Record>),
    Forget {
        task: String,
    },

    /// Pull the image and make the container: answered with [`Event::Staged`].
    Prepare(Box<Work>),
    Start {
        task: String,
    },
    /// Stop with the task's own signal and grace period; no container is success.
    Shutdown {
        task: String,
    },
    /// Remove the container and what belongs to it; no container is success.
    Remove {
        task: String,
    },
    /// Secrets' and configs' data are no longer needed here.
    DropSecrets(Vec<String>),
    /// The attachment that `docker run --network` waits for is here, with its address.
    Attachment(Box<Work>),
    AttachmentGone {
        task: String,
    },

    /// Every overlay network of this node. The whole set, sent when it changed.
    Overlays(OverlayState),
    /// Once the overlays told last are in the kernel, the node `to` hears that its rows are.
    Applied {
        to: String,
        rows: Vec<u64>,
    },
    /// What the sandboxes on each network can resolve. The whole set, sent when it changed.
    Zones(BTreeMap<NetworkId, dns::Zone>),
    JoinNetwork(NetworkId),
    LeaveNetwork(NetworkId),
    PutRow {
        network: NetworkId,
        table: &'static str,
        key: String,
        value: Vec<u8>,
    },
    DeleteRow {
        network: NetworkId,
        table: &'static str,
        key: String,
    },
}

/// The overlay networks as this node sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayState {
    pub overlays: BTreeMap<NetworkId, Overlay>,
    pub names: BTreeMap<NetworkId, String>,
    /// The cluster's UDP port of VXLAN; 0 while no manager has told it.
    pub vxlan_port: u16,
    /// Who has a name on each network, for those who ask.
    pub listed: BTreeMap<NetworkId, Vec<Listed>>,
}

/// One that has a name on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Empty for a container that no service made.
    pub service: String,
    pub vips: Vec<IpAddr>,
    /// Ports of the routing mesh: (target, published).
    pub ports: Vec<(u16, u16)>,
    pub task: String,
    pub endpoint_id: String,
    pub address: IpAddr,
    /// The data-path address of its node; none while the node has not told where it is.
    pub host: Option<IpAddr>,
}

/// A key that managers hand out. Not `Debug`: keys are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// `networking:gossip` or `networking:ipsec`.
    pub subsystem: String,
    pub lamport: u64,
    pub secret: Vec<u8>,
}

//! The node's life in a swarm: init, join, restart, renewal, leave; and the swarm as the Engine API sees it.

mod aside;
pub mod clock;
pub mod saved;
pub mod address;
pub mod events;
pub mod manager_task;
pub mod agent_task;
mod gossip_keys;
mod gossiped;
mod listening;
mod callers;
mod credentials;
mod names_told;
mod outgoing;
mod paths;
mod overlays_applied;
mod keys;
mod ports_taken;
mod task_containers;
pub mod task_records;
pub mod executor;
pub mod task_spec;
pub mod log_publisher;
pub mod description;
pub mod node;
mod renewal;
pub mod life;
pub mod view;
pub mod attach;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use docker_api::swarm::api::{Answer, Attachment, LocalNodeState, LocalOverlay};
use docker_api::swarm::{
    ClusterApi, ControlCode, ControlError, InitRequest, JoinRequest, NodeInfo,
};
use engine::Engine;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use transport::gate::Counters;
use wire::control::{Call, Request, Response};
use wire::swarmkit as pb;

use clock::Clock;
use node::Node;
use saved::Folder;

/// Gossip's port, fixed in Docker's protocol.
pub const GOSSIP_PORT: u16 = 7946;
/// An election takes seconds: calls wait for its end rather than fail.
const LEADER_WAIT: Duration = Duration::from_secs(10);
/// A question waits this long for a leader, and as long for its answer.
const READ_WAIT: Duration = Duration::from_secs(3);
/// A daemon that ends waits no longer than this for another leader.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
const LOG_MESSAGES_WAITING_MAX: usize = 256;

/// What this node is at the moment.
#[derive(Clone, Default)]
pub enum State {
    #[default]
    Inactive,
    /// A manager's keys are sealed until the unlock key is given.
    Locked,
    /// A member; perhaps not yet registered.
    Active(Arc<Node>),
    /// Could not begin; the reason is shown by `docker info`.
    Failed(String),
}

/// This node's side of the swarm. One per daemon.
pub struct Cluster {
    pub(crate) engine: Arc<Engine>,
    pub(crate) folder: Folder,
    pub(crate) clock: Clock,
    /// What the manager's port let in and refused, in all lives of the manager.
    pub(crate) counters: Arc<Counters>,
    state: RwLock<State>,
    pub(crate) keys: keys::Keys,
    /// Held while the node's life changes, so that one change ends before the next begins.
    pub(crate) changing: Mutex<()>,
}

/// How long an address that the managers refuse is asked for again.
const PLACE_WAIT: Duration = Duration::from_secs(5);
const PLACE_LOOK: Duration = Duration::from_millis(250);
/// Between attempts to give a place on a network back.
const GIVE_BACK_PAUSE_MIN: Duration = Duration::from_secs(1);
const GIVE_BACK_PAUSE_MAX: Duration = Duration::from_secs(30);

impl Cluster {
    /// Resumes what the disk says this node is.
    pub async fn open(engine: Arc<Engine>, counters: Arc<Counters>) -> Arc<Self> {
        let folder = Folder::below(&engine.config().data_root);
        let cluster = Arc::new(Self {
            keys: keys::Keys::new(folder.certificates()),
            folder,
            engine,
            clock: Clock::start(),
            counters,
            state: RwLock::default(),
            changing: Mutex::new(()),
        });
        life::resume(&cluster).await;
        cluster
    }

    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    pub(crate) fn set_state(&self, state: State) {
        *self.state.write().unwrap_or_else(|poison| poison.into_inner()) = state;
    }

    fn member(&self) -> Result<Arc<Node>, ControlError> {
        match self.state() {
            State::Active(node) => Ok(node),
            State::Locked => {
                Err(ControlError::new(ControlCode::NotManager, docker_api::swarm::api::LOCKED))
            }
            State::Failed(reason) => {
                Err(ControlError::new(ControlCode::NotManager, life::not_begun(&reason)))
            }
            State::Inactive => Err(ControlError::no_swarm()),
        }
    }

    /// This node's manager and, once there is one, who leads.
    async fn led(
        &self,
    ) -> Result<(Arc<Node>, manager_task::Handle, manager::Leader), ControlError> {
        let (node, manager) = self.managing().await?;
        match leader_within(&manager, LEADER_WAIT).await {
            Some(leader) => Ok((node, manager, leader)),
            None => Err(match manager.trouble().await {
                Some(trouble) => ControlError::new(ControlCode::Unavailable, trouble),
                None => no_leader(),
            }),
        }
    }

    async fn managing(&self) -> Result<(Arc<Node>, manager_task::Handle), ControlError> {
        let node = self.member()?;
        match settled_manager(&node).await {
            Some(manager) => Ok((node, manager)),
            None => Err(match node.manager_trouble() {
                Some(trouble) => ControlError::new(ControlCode::Unavailable, trouble),
                None => ControlError::worker(),
            }),
        }
    }

    /// A leader answers. A question is answered from this manager's own copy when none is known or
    /// none answers in time, so that whoever has to mend a swarm can see it.
    async fn ask(&self, request: Request) -> Result<Response, ControlError> {
        if !manager::is_read(&request) {
            let (node, manager, leader) = self.led().await?;
            if leader.here {
                return ask_here(&node, &manager, request).await;
            }
            return far(&node, &leader)?.control(request).await.map_err(refused);
        }
        let (node, manager) = self.managing().await?;
        if let Some(leader) = leader_within(&manager, READ_WAIT).await
            && !leader.here
        {
            let asked = far(&node, &leader)?;
            match tokio::time::timeout(READ_WAIT, asked.control(request.clone())).await {
                Ok(Err(status)) if status.code() == transport::Code::Unavailable => {}
                Ok(answer) => return answer.map_err(refused),
                Err(_) => {}
            }
        }
        ask_here(&node, &manager, request).await
    }

    async fn logs(
        &self,
        request: pb::SubscribeLogsRequest,
    ) -> Result<BoxStream<'static, Result<pb::LogMessage, ControlError>>, ControlError> {
        let (node, manager, leader) = self.led().await?;
        let batches: BoxStream<'static, _> = if leader.here {
            let (stream, batches) = mpsc::channel(LOG_MESSAGES_WAITING_MAX);
            manager.logs(node.caller(), request, stream).await;
            ReceiverStream::new(batches).boxed()
        } else {
            let far = far(&node, &leader)?;
            far.logs().subscribe_logs(request).await.map_err(refused)?.into_inner().boxed()
        };
        Ok(batches
            .flat_map(|batch| {
                let lines: Vec<Result<pb::LogMessage, ControlError>> = match batch {
                    Ok(batch) => batch.messages.into_iter().map(Ok).collect(),
                    Err(status) => vec![Err(refused(status))],
                };
                futures_util::stream::iter(lines)
            })
            .boxed())
    }

    async fn info(&self) -> NodeInfo {
        let node = match self.state() {
            State::Inactive => return NodeInfo::default(),
            State::Locked => {
                let error = docker_api::swarm::api::LOCKED.to_owned();
                return NodeInfo { state: LocalNodeState::Locked, error, ..Default::default() };
            }
            State::Failed(error) => {
                return NodeInfo { state: LocalNodeState::Error, error, ..Default::default() };
            }
            State::Active(node) => node,
        };
        let subject = node.keys.identity().subject;
        let state = match *node.agent.registered.borrow() {
            true => LocalNodeState::Active,
            false => LocalNodeState::Pending,
        };
        let mut info = NodeInfo {
            node_id: subject.node_id,
            node_addr: node
                .saved
                .advertise_addr
                .rsplit_once(':')
                .map_or("", |(host, _)| host)
                .trim_matches(['[', ']'])
                .to_owned(),
            state,
            remote_managers: agent_task::locked(&node.agent.view.managers).clone(),
            ..Default::default()
        };
        if let Some(manager) = settled_manager(&node).await {
            info.control_available = manager.leader.borrow().is_some();
            info.state = LocalNodeState::Active;
            (info.nodes, info.managers) = *manager.nodes.borrow();
            info.cluster = manager.cluster.borrow().as_deref().cloned();
            info.error = manager.disk_trouble().unwrap_or_default();
            info.control_available &= info.error.is_empty();
            info.warnings = manager_warnings(info.managers, info.control_available);
        } else {
            info.error = node.manager_trouble().unwrap_or_default();
        }
        info.warnings.extend(self.blocked_paths(&node, &info).await);
        info
    }

    /// Warnings of ways to other nodes that only a part of the gossip passes.
    async fn blocked_paths(&self, node: &Node, info: &NodeInfo) -> Vec<String> {
        let paths = &node.agent.view.paths;
        if paths.is_empty() {
            return Vec::new();
        }
        // Only managers know the other nodes' names, and the addresses say as much.
        let nodes = match node.manager() {
            Some(manager) => {
                let request = pb::ListNodesRequest::default().into();
                let asked = tokio::time::timeout(READ_WAIT, ask_here(node, &manager, request));
                asked.await.ok().and_then(Result::ok).and_then(nodes_of).unwrap_or_default()
            }
            None => Vec::new(),
        };
        let here = format!("{} ({})", description::hostname(), info.node_addr);
        paths.warnings(&here, &nodes)
    }

    pub(crate) async fn attach(
        self: &Arc<Self>,
        target: String,
        container_id: String,
        aliases: Vec<String>,
        addresses: Vec<String>,
    ) -> Result<Attachment, ControlError> {
        let node = self.member()?;
        let config =
            pb::NetworkAttachmentConfig { target, aliases, addresses, ..Default::default() };
        let request = pb::AttachNetworkRequest { config: Some(config), container_id };
        let id = attach_when_possible(&node, request).await?;
        match tokio::time::timeout(Duration::from_secs(20), node.agent.attachment(id.clone())).await
        {
            Ok(Some(work)) => Ok(Attachment { id, networks: work.task.networks }),
            _ => {
                give_back(self.clone(), id);
                Err(ControlError::new(
                    ControlCode::DeadlineExceeded,
                    "the network gave the container no address in time",
                ))
            }
        }
    }

    async fn detach(&self, attachment_id: String) -> Result<(), ControlError> {
        let node = self.member()?;
        node.agent.tell(agent::Event::Detached { task: attachment_id.clone() }).await;
        let request = pb::DetachNetworkRequest { attachment_id };
        let gone = node.ask_managers(|far| {
            let request = request.clone();
            Box::pin(async move { far.resource_allocator().detach_network(request).await })
        });
        match gone.await {
            Err(Some(status)) if status.code() == transport::Code::NotFound => Ok(()),
            answer => answer.map(drop).map_err(unanswered),
        }
    }
}

/// Asks again for what will be there in a moment: a leader, or an address on its way back to the
/// managers from the container that held it.
async fn attach_when_possible(
    node: &Node,
    request: pb::AttachNetworkRequest,
) -> Result<String, ControlError> {
    let begun = tokio::time::Instant::now();
    loop {
        let asked = node.ask_managers(|far| {
            let request = request.clone();
            Box::pin(async move { far.resource_allocator().attach_network(request).await })
        });
        let error = match asked.await {
            Ok(answer) => return Ok(answer.into_inner().attachment_id),
            Err(status) => unanswered(status),
        };
        let patience = match error.code {
            ControlCode::FailedPrecondition => PLACE_WAIT,
            ControlCode::Unavailable => LEADER_WAIT,
            _ => return Err(error),
        };
        if begun.elapsed() >= patience {
            return Err(error);
        }
        tokio::time::sleep(PLACE_LOOK).await;
    }
}

/// Gives a place on a network back, however long the managers are away: until then its address is
/// nobody else's.
pub(crate) fn give_back(cluster: Arc<Cluster>, attachment_id: String) {
    tokio::spawn(async move {
        let mut pause = GIVE_BACK_PAUSE_MIN;
        // A node that left the swarm has no place in it.
        while matches!(cluster.state(), State::Active(_)) {
            match cluster.detach(attachment_id.clone()).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(attachment_id, %error, "place on a network not given back yet");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(GIVE_BACK_PAUSE_MAX);
        }
    });
}

fn unanswered(status: Option<transport::Status>) -> ControlError {
    status.map_or_else(no_leader, refused)
}

fn nodes_of(answer: Response) -> Option<Vec<pb::Node>> {
    Some(<pb::ListNodesRequest as Call>::answer(answer)?.nodes)
}

fn manager_warnings(managers: u64, control_available: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if !control_available {
        warnings.push(
            "WARNING: the swarm has no leader: tasks and traffic go on, nothing can be changed."
                .to_owned(),
        );
    }
    if managers > 0 && managers.is_multiple_of(2) {
        warnings.push(format!(
            "WARNING: Running Swarm in a {managers}-manager configuration. This configuration provides no fault tolerance beyond {} managers.",
            managers - 1
        ));
    }
    warnings
}

/// The manager of a node that is to have one: while it begins again, as it does when its disk failed, the
/// node is no mere worker.
async fn settled_manager(node: &Node) -> Option<manager_task::Handle> {
    if node.manager().is_none() && node.keys.identity().subject.role == pb::NodeRole::Manager {
        let _settled = tokio::time::timeout(READ_WAIT, node.change_manager()).await;
    }
    node.manager()
}

/// The leader, if one is known by then.
async fn leader_within(manager: &manager_task::Handle, wait: Duration) -> Option<manager::Leader> {
    let mut leader = manager.leader.clone();
    let known = tokio::time::timeout(wait, leader.wait_for(Option::is_some)).await;
    known.ok()?.ok()?.clone()
}

fn far(node: &Node, leader: &manager::Leader) -> Result<transport::client::Manager, ControlError> {
    transport::client::Manager::new(&leader.address, node.keys.clone()).map_err(refused)
}

async fn ask_here(
    node: &Node,
    manager: &manager_task::Handle,
    request: Request,
) -> Result<Response, ControlError> {
    match manager.call(node.caller(), manager::Call::Control(request)).await {
        Ok(manager::Answer::Control(response)) => Ok(response),
        Ok(_) => {
            Err(ControlError::new(ControlCode::Internal, "the answer belongs to another call"))
        }
        Err(failure) => Err(refused(manager_task::status(failure))),
    }
}

/// SwarmKit's words, and what to do when the others do not come back.
fn no_leader() -> ControlError {
    ControlError::new(
        ControlCode::Unavailable,
        "The swarm does not have a leader. It's possible that too few managers are online. \
         Make sure more than half of the managers are online. If the others are lost for good, \
         'docker swarm init --force-new-cluster' here goes on with this manager alone.",
    )
}

/// A gRPC status as the Engine API answers it.
pub(crate) fn refused(status: transport::Status) -> ControlError {
    use transport::Code;
    let code = match status.code() {
        Code::InvalidArgument | Code::OutOfRange => ControlCode::InvalidArgument,
        Code::NotFound => ControlCode::NotFound,
        Code::AlreadyExists => ControlCode::AlreadyExists,
        Code::PermissionDenied | Code::Unauthenticated => ControlCode::PermissionDenied,
        Code::FailedPrecondition => ControlCode::FailedPrecondition,
        Code::Aborted | Code::Cancelled => ControlCode::Aborted,
        Code::Unimplemented => ControlCode::Unimplemented,
        Code::Unavailable => ControlCode::Unavailable,
        Code::DeadlineExceeded => ControlCode::DeadlineExceeded,
        Code::ResourceExhausted => ControlCode::ResourceExhausted,
        Code::Internal | Code::DataLoss => ControlCode::Internal,
        Code::Unknown | Code::Ok => ControlCode::Unknown,
    };
    ControlError::new(code, status.message())
}

/// Resumes this node's membership, if it has one; what the daemon hands to the Engine API.
pub async fn start(engine: Arc<Engine>, counters: Arc<Counters>) -> Arc<Api> {
    let cluster = Cluster::open(engine.clone(), counters).await;
    engine.set_swarm(Arc::new(attach::Attacher(Arc::downgrade(&cluster)))).await;
    Arc::new(Api(cluster))
}

/// The trait's implementation is a handle, so that changes of life can outlive a request.
#[derive(Clone)]
pub struct Api(pub Arc<Cluster>);

impl Api {
    /// Before the daemon ends: the swarm need not miss its leader to have another one.
    pub async fn hand_over(&self) {
        if let State::Active(node) = self.0.state()
            && let Some(manager) = node.manager()
        {
            manager.hand_over(HAND_OVER_MAX).await;
        }
    }
}

impl ClusterApi for Api {
    fn control(&self, request: Request) -> Answer<'_, Response> {
        Box::pin(self.0.ask(request))
    }

    fn init(&self, request: InitRequest) -> Answer<'_, String> {
        Box::pin(life::init(self.0.clone(), request))
    }

    fn join(&self, request: JoinRequest) -> Answer<'_, ()> {
        Box::pin(life::join(self.0.clone(), request))
    }

    fn leave(&self, force: bool) -> Answer<'_, ()> {
        Box::pin(life::leave(self.0.clone(), force))
    }

    fn unlock(&self, key: String) -> Answer<'_, ()> {
        Box::pin(life::unlock(self.0.clone(), key))
    }

    fn unlock_key(&self) -> Answer<'_, String> {
        Box::pin(async move {
            let (node, manager, leader) = self.0.led().await?;
            let key = if leader.here {
                match manager
                    .call(node.caller(), manager::Call::GetUnlockKey(pb::GetUnlockKeyRequest {}))
                    .await
                {
                    Ok(manager::Answer::GetUnlockKey(answer)) => answer.unlock_key,
                    Ok(_) => Vec::new(),
                    Err(failure) => return Err(refused(manager_task::status(failure))),
                }
            } else {
                let found = transport::join::unlock_key(&leader.address, node.keys.clone()).await;
                found.map_err(life::joining)?.unlock_key
            };
            Ok(if key.is_empty() { String::new() } else { ca::token::unlock_key_text(&key) })
        })
    }

    fn node_info(&self) -> BoxFuture<'_, NodeInfo> {
        Box::pin(self.0.info())
    }

    fn subscribe_logs(
        &self,
        request: pb::SubscribeLogsRequest,
    ) -> Answer<'_, BoxStream<'static, Result<pb::LogMessage, ControlError>>> {
        Box::pin(self.0.logs(request))
    }

    fn local_overlays(&self) -> BoxFuture<'_, BTreeMap<String, LocalOverlay>> {
        Box::pin(async move {
            match self.0.state() {
                State::Active(node) => view::local_overlays(&self.0.engine, &node),
                _ => BTreeMap::new(),
            }
        })
    }

    fn gossip_counters(&self) -> BoxFuture<'_, BTreeMap<&'static str, u64>> {
        Box::pin(async move {
            match self.0.state() {
                State::Active(node) => node.agent.gossip_counters().await,
                _ => BTreeMap::new(),
            }
        })
    }

    fn attach_network(
        &self,
        target: String,
        container_id: String,
        aliases: Vec<String>,
        addresses: Vec<String>,
    ) -> Answer<'_, Attachment> {
        Box::pin(self.0.attach(target, container_id, aliases, addresses))
    }

    fn detach_network(&self, attachment_id: String) -> Answer<'_, ()> {
        Box::pin(self.0.detach(attachment_id))
    }
}

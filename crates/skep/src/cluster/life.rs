//! The turns of a node's life: init, join, leave, unlock, and resuming after a restart.

use std::sync::{Arc, Weak};
use std::time::Duration;

use docker_api::swarm::{ControlCode, ControlError, InitRequest, JoinRequest};
use engine::network::OverlayState;
use manager::Bootstrap;
use model::swarm_id;
use transport::identity::Refused;
use transport::join::Wishes;
use transport::{Identity, Keys};
use wire::control::Call;
use wire::swarmkit as pb;

use super::node::{Begin, Node, dice};
use super::saved::Saved;
use super::{Cluster, State, address, refused};

/// `docker swarm join` waits this long for the session, as dockerd does.
const REGISTER_TIME_MAX: Duration = Duration::from_secs(20);
const INIT_TIME_MAX: Duration = Duration::from_secs(20);
const LEAVE_TIME_MAX: Duration = Duration::from_secs(10);

/// Between attempts to go on with the membership that the disk tells of.
const RESUME_PAUSE_MIN: Duration = Duration::from_secs(1);
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(30);

const ALREADY: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";
const NOT_YET: &str = "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \"docker info\" command to see the current swarm status of your node.";

fn internal(error: impl std::fmt::Display) -> ControlError {
    ControlError::new(ControlCode::Failed, format!("{error:#}"))
}

/// Why a node did not get in, in the words of whoever refused it.
pub fn joining(error: Refused) -> ControlError {
    match error {
        Refused::Remote(status) => refused(status),
        Refused::Token => ControlError::new(ControlCode::BadParameter, "invalid join token"),
        other => ControlError::new(ControlCode::Refused, other.to_string()),
    }
}

fn check_outside(cluster: &Cluster) -> Result<(), ControlError> {
    match cluster.state() {
        State::Inactive => Ok(()),
        State::Active(_) | State::Locked => {
            Err(ControlError::new(ControlCode::AlreadyInSwarm, ALREADY))
        }
        // What it knows is still on the disk, and is perhaps all that is left of the swarm.
        State::Failed(reason) => {
            Err(ControlError::new(ControlCode::AlreadyInSwarm, not_begun(&reason)))
        }
    }
}

pub(super) fn not_begun(reason: &str) -> String {
    format!(
        "This node is part of a swarm, but could not begin its part: {reason}. It tries again by itself; \
         use \"docker swarm leave --force\" to forget the swarm and everything that this node knows of it."
    )
}

/// Nothing of the swarm stays on this node: after it left, or as if an init or a join that failed had
/// not been tried.
async fn forget(cluster: &Cluster) -> Result<(), ControlError> {
    cluster.set_state(State::Inactive);
    cluster.keys.set_unlock_key(None);
    if let Err(error) = cluster.engine.network.set_overlays(OverlayState::default()).await {
        tracing::warn!(%error, "networks of a swarm that this node is not in");
    }
    cluster.folder.remove().map_err(internal)
}

/// The error is what the user hears; what stays behind is for the log.
async fn undo(cluster: &Cluster) {
    if let Err(error) = forget(cluster).await {
        tracing::warn!(error = error.message, "files of a swarm that did not begin");
    }
}

pub async fn init(cluster: Arc<Cluster>, request: InitRequest) -> Result<String, ControlError> {
    // Detached: a client that goes away must not leave half a swarm behind.
    tokio::spawn(async move {
        let _changing = cluster.changing.lock().await;
        // Where there is no cluster to go on with, dockerd begins one.
        if request.force_new_cluster && !matches!(cluster.state(), State::Inactive) {
            return force_new_cluster(&cluster).await;
        }
        check_outside(&cluster)?;
        let made = make(&cluster, request).await;
        if made.is_err() {
            undo(&cluster).await;
        }
        made
    })
    .await
    .unwrap_or_else(|error| Err(internal(error)))
}

async fn make(cluster: &Arc<Cluster>, request: InitRequest) -> Result<String, ControlError> {
    let addresses = address::resolve(
        &request.listen_addr,
        &advertised(cluster, &request.advertise_addr),
        &request.data_path_addr,
        None,
    )
    .await?;
    let mut dice = dice().map_err(internal)?;
    let (node_id, cluster_id) = (swarm_id(&mut dice), swarm_id(&mut dice));
    let now = cluster.clock.now();
    let root = ca::Root::create(now, &mut dice).map_err(internal)?;
    let key = ca::Key::generate().map_err(internal)?;
    let csr = key.request().map_err(internal)?;
    let expiry =
        request.spec.ca_config.as_ref().and_then(|config| config.node_cert_expiry.as_ref());
    let expiry = expiry.map_or(ca::certificate::EXPIRY_DEFAULT, store::access::duration);
    let subject = ca::Identity {
        node_id: node_id.clone(),
        role: pb::NodeRole::Manager,
        organization: cluster_id.clone(),
    };
    let issued = root.sign(&csr, &subject, now, expiry, &mut dice).map_err(internal)?;
    let lock =
        request.spec.encryption_config.as_ref().is_some_and(|config| config.auto_lock_managers);
    let unlock_key = lock.then(|| ca::token::new_unlock_key(&mut dice));
    cluster.keys.set_unlock_key(unlock_key.clone());
    cluster.folder.create().map_err(internal)?;
    let identity =
        Identity::from_pem(&issued.chain, key.pem().as_bytes(), &root.roots).map_err(internal)?;
    cluster.keys.save_identity(&identity).map_err(internal)?;
    let saved = Saved {
        node_id: node_id.clone(),
        cluster_id,
        listen_addr: addresses.listen.to_string(),
        advertise_addr: addresses.advertise.to_string(),
        data_path_addr: addresses.data_path.to_string(),
        managers: vec![(node_id.clone(), addresses.advertise.to_string())],
        ..Default::default()
    };
    cluster.folder.save(&saved).map_err(internal)?;
    make_way_out(cluster).await?;
    let host_networks = cluster.engine.network.host_networks().borrow().clone();
    let bootstrap = Bootstrap {
        spec: request.spec,
        root,
        address_pools: request.default_addr_pool,
        subnet_size: request.subnet_size,
        data_path_port: request.data_path_port,
        availability: request.availability,
        request: csr,
        certificate: issued.chain,
        unlock_key,
        host_networks: host_networks.iter().map(ToString::to_string).collect(),
    };
    let node = Node::start(cluster, identity, saved).await.map_err(internal)?;
    let begin = Begin::Cluster(Box::new(bootstrap));
    node.change_manager().await.start(cluster, begin).await.map_err(internal)?;
    let manager = node.manager().ok_or_else(|| internal("the manager did not start"))?;
    cluster.set_state(State::Active(node.clone()));
    let mut object = manager.cluster.clone();
    let begun = async { object.wait_for(Option::is_some).await.is_ok() && takes_part(&node).await };
    match tokio::time::timeout(INIT_TIME_MAX, begun).await {
        Ok(true) => Ok(node_id),
        _ => Err(internal("the new swarm did not begin in time")),
    }
}

pub async fn join(cluster: Arc<Cluster>, request: JoinRequest) -> Result<(), ControlError> {
    tokio::spawn(async move {
        let _changing = cluster.changing.lock().await;
        check_outside(&cluster)?;
        let joined = enter(&cluster, request).await;
        if let Err(error) = &joined
            && error.message != NOT_YET
        {
            undo(&cluster).await;
        }
        joined
    })
    .await
    .unwrap_or_else(|error| Err(internal(error)))
}

/// Makes `docker_gwbridge`, which tasks leave the host by: whoever lists the networks after `init` or
/// `join` has answered finds it.
async fn make_way_out(cluster: &Cluster) -> Result<(), ControlError> {
    let network = &cluster.engine.network;
    let state = OverlayState { in_swarm: true, ..network.overlays() };
    network.set_overlays(state).await.map_err(internal)
}

/// What was asked for, else `--swarm-default-advertise-addr`.
fn advertised(cluster: &Cluster, asked: &str) -> String {
    match asked.is_empty() {
        true => cluster.engine.config().swarm_default_advertise_addr.clone().unwrap_or_default(),
        false => asked.to_owned(),
    }
}

async fn enter(cluster: &Arc<Cluster>, request: JoinRequest) -> Result<(), ControlError> {
    let mut remotes = Vec::new();
    for remote in &request.remote_addrs {
        remotes.push(address::with_port(remote)?);
    }
    let addresses = address::resolve(
        &request.listen_addr,
        &advertised(cluster, &request.advertise_addr),
        &request.data_path_addr,
        remotes.first().map(String::as_str),
    )
    .await?;
    let wishes = Wishes { availability: request.availability };
    let asked = transport::join::join(&remotes, &request.join_token, wishes);
    let identity = match tokio::time::timeout(REGISTER_TIME_MAX, asked).await {
        Ok(identity) => identity.map_err(joining)?,
        Err(_) => {
            let message = format!(
                "Timeout was reached before node joined: no manager at {} answered",
                remotes.join(", ")
            );
            return Err(ControlError::new(ControlCode::Refused, message));
        }
    };
    cluster.folder.create().map_err(internal)?;
    cluster.keys.save_identity(&identity).map_err(internal)?;
    let role = identity.subject.role;
    let saved = Saved {
        node_id: identity.subject.node_id.clone(),
        cluster_id: identity.subject.cluster_id.clone(),
        listen_addr: addresses.listen.to_string(),
        advertise_addr: addresses.advertise.to_string(),
        data_path_addr: addresses.data_path.to_string(),
        managers: remotes.iter().map(|remote| (String::new(), remote.clone())).collect(),
        ..Default::default()
    };
    cluster.folder.save(&saved).map_err(internal)?;
    make_way_out(cluster).await?;
    if role == pb::NodeRole::Manager {
        unlocked_by_others(cluster, &identity, &remotes).await?;
    }
    let node = Node::start(cluster, identity, saved).await.map_err(internal)?;
    if role == pb::NodeRole::Manager {
        let address = remotes.first().cloned().unwrap_or_default();
        node.change_manager()
            .await
            .start(cluster, Begin::Join { address })
            .await
            .map_err(internal)?;
    }
    cluster.set_state(State::Active(node.clone()));
    match tokio::time::timeout(REGISTER_TIME_MAX, takes_part(&node)).await {
        Ok(true) => Ok(()),
        _ => Err(ControlError::new(ControlCode::Refused, NOT_YET)),
    }
}

/// The node has a session and, as a manager, knows the leader: only then does `docker info` call it
/// a manager, by which the docker command names the role that a node joined in; and only then is the
/// node's object what it stays, so that a change of it is not refused as out of sequence.
async fn takes_part(node: &Node) -> bool {
    let mut registered = node.agent.registered.clone();
    if registered.wait_for(|registered| *registered).await.is_err() {
        return false;
    }
    match node.manager() {
        Some(manager) => manager.leader.clone().wait_for(Option::is_some).await.is_ok(),
        None => true,
    }
}

/// With autolock on a new manager seals its keys from the start.
async fn unlocked_by_others(
    cluster: &Cluster,
    identity: &Identity,
    remotes: &[String],
) -> Result<(), ControlError> {
    let keys = Keys::new(identity.clone()).map_err(internal)?;
    let Some(address) = remotes.first() else { return Ok(()) };
    let answer = transport::join::unlock_key(address, keys).await.map_err(joining)?;
    if !answer.unlock_key.is_empty() {
        // Written again, this time sealed.
        cluster.keys.seal(Some(answer.unlock_key), None).map_err(internal)?;
    }
    Ok(())
}

pub async fn leave(cluster: Arc<Cluster>, force: bool) -> Result<(), ControlError> {
    tokio::spawn(async move {
        let _changing = cluster.changing.lock().await;
        let node = match cluster.state() {
            State::Inactive => {
                return Err(ControlError::new(
                    ControlCode::NotManager,
                    "This node is not part of a swarm",
                ));
            }
            State::Locked if !force => {
                return Err(ControlError::new(
                    ControlCode::NotManager,
                    docker_api::swarm::api::LOCKED_LEAVE,
                ));
            }
            State::Failed(reason) if !force => {
                return Err(ControlError::new(ControlCode::NotManager, not_begun(&reason)));
            }
            State::Active(node) => Some(node),
            State::Locked | State::Failed(_) => None,
        };
        if let Some(node) = node {
            say_goodbye(&cluster, &node, force).await?;
        }
        super::task_containers::remove_all(&cluster.engine).await;
        forget(&cluster).await
    })
    .await
    .unwrap_or_else(|error| Err(internal(error)))
}

async fn say_goodbye(
    cluster: &Arc<Cluster>,
    node: &Arc<Node>,
    force: bool,
) -> Result<(), ControlError> {
    if let Some(manager) = node.manager() {
        if !force {
            return Err(ControlError::new(ControlCode::Refused, leaving_words(cluster).await));
        }
        // Best effort: the others keep their quorum if they can let this one go.
        let own = node.keys.identity().subject.node_id;
        let members = manager.members.borrow().clone();
        let me = members.iter().find(|member| member.node_id == own).cloned();
        let other = members.iter().find(|member| member.node_id != own);
        if let (Some(me), Some(other)) = (me, other)
            && let Ok(far) = transport::client::Manager::new(other.addr.clone(), node.keys.clone())
        {
            let mut client = far.raft_membership();
            let request = pb::LeaveRequest { node: Some(me) };
            let _ = tokio::time::timeout(LEAVE_TIME_MAX, client.leave(request)).await;
        }
    }
    node.agent.say_goodbye().await;
    node.stop().await;
    Ok(())
}

/// Why leaving needs `--force`, in Docker's words: what becomes of the managers that stay.
async fn leaving_words(cluster: &Cluster) -> String {
    let start =
        "You are attempting to leave the swarm on a node that is participating as a manager. ";
    let end = "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.";
    let Ok(nodes) = cluster.ask(pb::ListNodesRequest::default().into()).await else {
        return format!("{start}Doing so may lose the consensus of your cluster. {end}");
    };
    let nodes = <pb::ListNodesRequest as Call>::answer(nodes).unwrap_or_default().nodes;
    let managers: Vec<bool> = nodes
        .iter()
        .filter_map(|node| node.manager_status.as_ref())
        .map(|status| status.reachability() == pb::raft_member_status::Reachability::Reachable)
        .collect();
    let (total, reachable) = (managers.len(), managers.iter().filter(|it| **it).count());
    match (total, reachable) {
        (0 | 1, _) => format!(
            "{start}Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
        ),
        // Docker counts on one more to be lost.
        _ if reachable.saturating_sub(2) > total - reachable => format!("{start}{end}"),
        _ => format!(
            "{start}Removing this node leaves {} managers out of {total}. Without a Raft quorum your swarm will be inaccessible. {end}",
            reachable.saturating_sub(1)
        ),
    }
}

pub async fn unlock(cluster: Arc<Cluster>, key: String) -> Result<(), ControlError> {
    let _changing = cluster.changing.lock().await;
    match cluster.state() {
        State::Locked => {}
        State::Active(node) if node.manager().is_none() => return Err(ControlError::worker()),
        State::Active(_) => {
            return Err(ControlError::new(ControlCode::Conflict, "swarm is not locked"));
        }
        State::Inactive | State::Failed(_) => return Err(ControlError::no_swarm()),
    }
    let key = ca::token::parse_unlock_key(&key)
        .ok_or_else(|| ControlError::new(ControlCode::BadParameter, "invalid key string"))?;
    cluster.keys.unlock(key).map_err(|_| {
        ControlError::new(
            ControlCode::Unauthorized,
            "swarm could not be unlocked: invalid key provided",
        )
    })?;
    continue_life(&cluster).await.map_err(internal)
}

/// At the daemon's start: whatever the disk says this node is. What does not begin, because an address
/// or a port is not there yet, is tried again until it does or somebody decides otherwise.
pub async fn resume(cluster: &Arc<Cluster>) {
    if try_again(cluster).await {
        tokio::spawn(keep_trying(Arc::downgrade(cluster)));
    }
}

async fn keep_trying(cluster: Weak<Cluster>) {
    let mut pause = RESUME_PAUSE_MIN;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RESUME_PAUSE_MAX);
        let Some(cluster) = cluster.upgrade() else { return };
        let _changing = cluster.changing.lock().await;
        if !matches!(cluster.state(), State::Failed(_)) || !try_again(&cluster).await {
            return;
        }
    }
}

/// Whether it failed and may be tried once more.
async fn try_again(cluster: &Arc<Cluster>) -> bool {
    let Err(error) = continue_life(cluster).await else { return false };
    let reason = format!("{error:#}");
    if !matches!(cluster.state(), State::Failed(before) if before == reason) {
        tracing::error!("swarm: {reason}");
    }
    cluster.set_state(State::Failed(reason));
    true
}

async fn continue_life(cluster: &Arc<Cluster>) -> anyhow::Result<()> {
    let Some(saved) = cluster.folder.load()? else { return Ok(()) };
    let identity = match cluster.keys.identity() {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            anyhow::bail!("the node's certificate or key is missing from its folder");
        }
        Err(error) if matches!(error.downcast_ref(), Some(disk::Error::Locked)) => {
            cluster.set_state(State::Locked);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let role = identity.subject.role;
    let node = Node::start(cluster, identity, saved).await?;
    if role == pb::NodeRole::Manager {
        // Its turn ends here: stopping needs one of its own.
        let begun = node.change_manager().await.start(cluster, Begin::Restore).await;
        if let Err(error) = begun {
            // Its ports have to be free for the next attempt.
            node.stop().await;
            return Err(error);
        }
    }
    cluster.set_state(State::Active(node));
    // When the daemon lent the swarm its containers, it may have been locked, or without an address.
    cluster.engine.tell_swarm().await;
    Ok(())
}

/// `docker swarm init --force-new-cluster`: this manager alone, with everything that it knows.
async fn force_new_cluster(cluster: &Arc<Cluster>) -> Result<String, ControlError> {
    let (node, _) = cluster.managing().await?;
    // Whoever looks after this node must not find it without a manager and begin the old one again.
    let changing = node.change_manager().await;
    changing.stop().await;
    changing.start(cluster, Begin::Alone).await.map_err(internal)?;
    Ok(node.keys.identity().subject.node_id)
}

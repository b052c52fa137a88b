//! Nodes: read with what raft knows of them, changed by their spec, removed when down.

use store::{Change, Transaction, access};
use wire::control::Response;
use wire::swarmkit as pb;

use super::{
    Decided, Desk, answer, filter, lacking, not_found, precondition, seen, store_error, stored,
};
use crate::membership::{can_remove, member_status};
use crate::{Code, Failure};

/// Tasks that a node's removal says the end of by itself: the entry holds the node and the cluster, too.
const ORPHANS_MAX: usize = store::ACTIONS_MAX - 10;
/// And how much of an entry they may take; a cluster object with many refused certificates is large.
const ORPHANS_BYTES_MAX: usize = consensus::PROPOSAL_BYTES_MAX / 2;

pub fn get(desk: &Desk<'_>, request: pb::GetNodeRequest) -> Decided {
    if request.node_id.is_empty() {
        return Err(lacking());
    }
    let node = desk.store.get::<pb::Node>(&request.node_id);
    let node = node.ok_or_else(|| not_found("node", &request.node_id))?;
    let node = Some(with_status(desk.raft, pb::Node::clone(node)));
    answer(Response::GetNode(pb::GetNodeResponse { node }))
}

pub fn list(desk: &Desk<'_>, request: pb::ListNodesRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let nodes = desk.store.all::<pb::Node>().filter(|node| wanted(node, &filters));
    let nodes = nodes.map(|node| with_status(desk.raft, pb::Node::clone(node))).collect();
    answer(Response::ListNodes(pb::ListNodesResponse { nodes }))
}

fn wanted(node: &pb::Node, filters: &pb::list_nodes_request::Filters) -> bool {
    let spec = node.spec.as_ref();
    let annotations = spec.and_then(|spec| spec.annotations.as_ref());
    let description = node.description.as_ref();
    let hostname = description.map_or("", |description| &description.hostname);
    let engine = description.and_then(|description| description.engine.as_ref());
    let membership = spec.map_or(0, |spec| spec.membership);
    filter::any(hostname, &filters.names)
        && filter::any_prefix(hostname, &filters.name_prefixes)
        && filter::any_prefix(&node.id, &filters.id_prefixes)
        && filter::labels(engine.map(|engine| &engine.labels), &filters.labels)
        && filter::labels(annotations.map(|annotations| &annotations.labels), &filters.node_labels)
        && filter::any_number(node.role, &filters.roles)
        && filter::any_number(membership, &filters.memberships)
}

/// A manager's address and reachability are not stored: the leader's raft knows them.
fn with_status(raft: &consensus::Raft, mut node: pb::Node) -> pb::Node {
    node.manager_status = raft.members().by_node(&node.id).map(|member| {
        let status = member_status(raft, member.raft_id);
        pb::ManagerStatus {
            raft_id: member.raft_id,
            addr: member.addr.clone(),
            leader: status.leader,
            reachability: status.reachability,
        }
    });
    node
}

pub fn update(desk: &Desk<'_>, request: pb::UpdateNodeRequest) -> Decided {
    let id = request.node_id;
    let version = request.node_version.filter(|_| !id.is_empty()).ok_or_else(lacking)?;
    let spec = request.spec.ok_or_else(lacking)?;
    let node = desk.store.get::<pb::Node>(&id).ok_or_else(|| not_found("node", &id))?;
    let mut node = pb::Node::clone(node);
    let desired = node.spec.as_ref().map_or(pb::NodeRole::Worker, |spec| spec.desired_role());
    if desired == pb::NodeRole::Manager && spec.desired_role() == pb::NodeRole::Worker {
        check_demotion(desk, &id)?;
    }
    node.spec = Some(spec);
    seen(&mut node, &version);
    let mut transaction = desk.transaction();
    transaction.update(node).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let node = Some(stored(store, &id)?);
            Ok(Response::UpdateNode(pb::UpdateNodeResponse { node }))
        }),
    )
}

fn check_demotion(desk: &Desk<'_>, id: &str) -> Result<(), Failure> {
    let is_manager = |node: &&std::sync::Arc<pb::Node>| node.role() == pb::NodeRole::Manager;
    let managers: Vec<_> = desk.store.all::<pb::Node>().filter(is_manager).collect();
    if managers.len() == 1 && managers[0].id == id {
        return Err(precondition("attempting to demote the last manager of the swarm"));
    }
    let Some(member) = desk.raft.members().by_node(id) else {
        return Err(Failure::new(Code::NotFound, "can't find manager in raft memberlist"));
    };
    if !can_remove(desk.raft, member.raft_id) {
        let reason = "can't remove member from the raft: this would result in a loss of quorum";
        return Err(precondition(reason));
    }
    Ok(())
}

pub fn remove(desk: &Desk<'_>, request: pb::RemoveNodeRequest) -> Decided {
    let id = request.node_id;
    if id.is_empty() {
        return Err(lacking());
    }
    let node = desk.store.get::<pb::Node>(&id).ok_or_else(|| not_found("node", &id))?;
    let desired = node.spec.as_ref().map_or(pb::NodeRole::Worker, |spec| spec.desired_role());
    if desired == pb::NodeRole::Manager && desk.raft.members().by_node(&id).is_some() {
        let reason = format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        );
        return Err(precondition(reason));
    }
    let ready = node.status.as_ref().is_some_and(|s| s.state() == pb::node_status::State::Ready);
    if ready && !request.force {
        return Err(precondition(format!("node {id} is not down and can't be removed")));
    }
    let mut transaction = desk.transaction();
    revoke(desk, &mut transaction, node)?;
    orphan_tasks(desk, &mut transaction, &id)?;
    transaction.remove::<pb::Node>(&id).map_err(store_error)?;
    desk.write(transaction, Box::new(|_| Ok(Response::RemoveNode(pb::RemoveNodeResponse {}))))
}

/// The certificate is refused until it has run out by itself.
fn revoke(
    desk: &Desk<'_>,
    transaction: &mut Transaction<'_>,
    node: &pb::Node,
) -> Result<(), Failure> {
    let Some(cluster) = desk.store.cluster() else { return Ok(()) };
    let mut cluster = pb::Cluster::clone(cluster);
    forget_expired(&mut cluster, desk.now.unix().0);
    let certificate =
        node.certificate.as_ref().map(|c| c.certificate.as_slice()).unwrap_or_default();
    let expiry = ca::pem::certificates(certificate)
        .and_then(|chain| ca::certificate::read_der(chain.first()?).ok())
        .map(|verified| verified.not_after)
        // The certificate of a cluster's first manager is not stored: as long as any could be good.
        .unwrap_or(desk.now + crate::authority::node_expiry(&cluster));
    let revoked =
        pb::BlacklistedCertificate { expiry: Some(store::transaction::timestamp(expiry)) };
    cluster.blacklisted_certificates.insert(node.id.clone(), revoked);
    transaction.update(cluster).map_err(store_error)
}

/// Certificates that ran out some time ago need not be remembered (an hour for late clocks).
pub(super) fn forget_expired(cluster: &mut pb::Cluster, now: i64) {
    cluster.blacklisted_certificates.retain(|_, revoked| {
        revoked.expiry.as_ref().is_none_or(|expiry| expiry.seconds + 3600 >= now)
    });
}

/// Says of the node's tasks that nobody will report about them again, of those first that had not ended. What does not
/// fit into the entry beside the node's removal is for the loops, which see that the node is gone.
fn orphan_tasks(
    desk: &Desk<'_>,
    transaction: &mut Transaction<'_>,
    node: &str,
) -> Result<(), Failure> {
    let mut tasks: Vec<_> = desk.store.tasks_of_node(node).collect();
    tasks.sort_by_key(|task| access::has_ended(task));
    let mut room = ORPHANS_BYTES_MAX;
    for task in tasks {
        let change = orphaned(desk, task);
        let bytes = transaction.bytes_of(&change);
        if transaction.len() >= ORPHANS_MAX || bytes > room {
            break;
        }
        room -= bytes;
        transaction.apply(change).map_err(store_error)?;
    }
    Ok(())
}

fn orphaned(desk: &Desk<'_>, task: &pb::Task) -> Change {
    if matches!(
        task.spec.as_ref().and_then(|spec| spec.runtime.as_ref()),
        Some(pb::task_spec::Runtime::Attachment(_))
    ) {
        return Change::remove::<pb::Task>(task.id.clone());
    }
    let mut task = task.clone();
    let status = task.status.get_or_insert_default();
    status.timestamp = Some(store::transaction::timestamp(desk.now));
    status.set_state(pb::TaskState::Orphaned);
    status.message = "Task belonged to a node that has been deleted".into();
    Change::update(task)
}

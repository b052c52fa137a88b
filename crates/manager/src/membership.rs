//! Who is in the manager set: joining, leaving, promotion and demotion.

use std::net::IpAddr;

use consensus::{MemberChange, Raft};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use store::{Change, Store};
use wire::swarmkit as pb;

use crate::{Caller, Code, Failure};

/// What the leader's raft knows of a member at this moment.
pub(crate) fn member_status(raft: &Raft, raft_id: u64) -> pb::RaftMemberStatus {
    use pb::raft_member_status::Reachability;
    let active = raft_id == raft.id() || raft.active().contains(&raft_id);
    let reachability = match (raft.leads(), active) {
        (false, _) => Reachability::Unknown,
        (true, true) => Reachability::Reachable,
        (true, false) => Reachability::Unreachable,
    };
    pb::RaftMemberStatus {
        leader: raft_id == raft.leader(),
        reachability: reachability as i32,
        message: String::new(),
    }
}

/// Whether the set keeps its quorum of reachable members without this one.
pub(crate) fn can_remove(raft: &Raft, raft_id: u64) -> bool {
    let others = raft.members().iter().filter(|member| member.raft_id != raft_id);
    let others: Vec<u64> = others.map(|member| member.raft_id).collect();
    let active = raft.active();
    let reachable = others.iter().filter(|id| active.contains(id)).count();
    // The removal itself needs the quorum of the set as it is, too.
    let with_it = reachable + usize::from(active.contains(&raft_id));
    !others.is_empty() && reachable > others.len() / 2 && with_it > raft.members().count() / 2
}

/// What a request to join comes to, before the joiner is probed.
pub(crate) enum Joining {
    /// It is a member at this address already.
    Known(u64),
    /// To be proposed once the joiner answers under its address.
    Change(MemberChange),
}

pub(crate) fn join(
    store: &Store,
    raft: &Raft,
    caller: &Caller,
    request: &pb::JoinRequest,
    dice: &mut ChaCha8Rng,
) -> Result<Joining, Failure> {
    // Its certificate may still say otherwise: it renews it later.
    let node = store.get::<pb::Node>(&caller.node_id);
    if node.is_some_and(|node| desired_role(node) == pb::NodeRole::Worker) {
        let reason = format!("node {} is to be a worker", caller.node_id);
        return Err(Failure::new(Code::PermissionDenied, reason));
    }
    let addr = reachable_address(&request.addr, caller.address).ok_or_else(|| {
        let reason = format!("invalid address {} in join request", request.addr);
        Failure::new(Code::InvalidArgument, reason)
    })?;
    if let Some(member) = raft.members().by_node(&caller.node_id) {
        if member.addr == addr {
            return Ok(Joining::Known(member.raft_id));
        }
        let moved = pb::RaftMember { addr, status: None, ..member.clone() };
        return Ok(Joining::Change(MemberChange::Update(moved)));
    }
    let raft_id = new_raft_id(raft, dice);
    let member = pb::RaftMember { raft_id, node_id: caller.node_id.clone(), addr, status: None };
    Ok(Joining::Change(MemberChange::Add(member)))
}

/// Random, not zero, 63 bits, and never used in this set.
fn new_raft_id(raft: &Raft, dice: &mut ChaCha8Rng) -> u64 {
    loop {
        let id = random_raft_id(dice);
        if raft.members().get(id).is_none() && !raft.members().is_removed(id) {
            return id;
        }
    }
}

pub(crate) fn random_raft_id(dice: &mut ChaCha8Rng) -> u64 {
    dice.random_range(1..=i64::MAX as u64)
}

/// `0.0.0.0:2377` means the address that the call came from.
fn reachable_address(address: &str, from: Option<IpAddr>) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.is_empty() {
        return None;
    }
    match bare.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Some(match from? {
            IpAddr::V6(ip) => format!("[{ip}]:{port}"),
            IpAddr::V4(ip) => format!("{ip}:{port}"),
        }),
        _ => Some(address.to_owned()),
    }
}

pub(crate) fn join_response(raft: &Raft, raft_id: u64) -> pb::JoinResponse {
    pb::JoinResponse {
        raft_id,
        members: raft.members().iter().cloned().collect(),
        removed_members: raft.members().removed().collect(),
    }
}

pub(crate) fn leave(
    raft: &Raft,
    caller: &Caller,
    request: &pb::LeaveRequest,
) -> Result<MemberChange, Failure> {
    let raft_id = request.node.as_ref().map_or(0, |member| member.raft_id);
    let Some(member) = raft.members().get(raft_id) else {
        let reason = format!("no member with the id {raft_id:x} in the raft cluster");
        return Err(Failure::new(Code::NotFound, reason));
    };
    if !caller.node_id.is_empty() && member.node_id != caller.node_id {
        let reason = "a manager can only leave for itself";
        return Err(Failure::new(Code::PermissionDenied, reason));
    }
    if !can_remove(raft, raft_id) {
        return Err(quorum_at_risk());
    }
    Ok(MemberChange::Remove(raft_id))
}

pub(crate) fn quorum_at_risk() -> Failure {
    let reason = "raft: member cannot be removed, because removing it may result in loss of quorum";
    Failure::new(Code::FailedPrecondition, reason)
}

/// The next step towards the roles that users want.
#[derive(Default)]
pub(crate) struct RolePlan {
    pub changes: Vec<Change>,
    /// One membership change at a time.
    pub member: Option<MemberChange>,
    /// This manager is to go: somebody else must lead first.
    pub hand_over_to: Option<u64>,
    /// Something waits for members to be reachable: look again later.
    pub waits: bool,
}

pub(crate) fn plan_roles(store: &Store, raft: &Raft) -> RolePlan {
    let mut plan = RolePlan::default();
    for node in store.all::<pb::Node>() {
        let desired = desired_role(node);
        match (desired, raft.members().by_node(&node.id)) {
            // Only a node that raft no longer knows may lose its manager's certificate.
            (pb::NodeRole::Worker, Some(member)) => remove_member(&mut plan, raft, member.raft_id),
            _ if desired != node.role() => {
                plan.changes.push(Change::update(with_role(node, desired)));
            }
            _ => {}
        }
    }
    for member in raft.members().iter() {
        if store.get::<pb::Node>(&member.node_id).is_none() && store.cluster().is_some() {
            remove_member(&mut plan, raft, member.raft_id);
        }
    }
    plan
}

fn desired_role(node: &pb::Node) -> pb::NodeRole {
    node.spec.as_ref().map_or(pb::NodeRole::Worker, |spec| spec.desired_role())
}

fn remove_member(plan: &mut RolePlan, raft: &Raft, raft_id: u64) {
    if !can_remove(raft, raft_id) {
        plan.waits = true;
    } else if raft_id == raft.id() {
        plan.hand_over_to = heir(raft);
        plan.waits = true;
    } else if plan.member.is_none() {
        plan.member = Some(MemberChange::Remove(raft_id));
    }
}

/// Who leads best after this leader: the reachable member that has most of the log.
pub(crate) fn heir(raft: &Raft) -> Option<u64> {
    let active = raft.active();
    let others = raft.members().iter().map(|member| member.raft_id);
    let others = others.filter(|id| raft.leads() && *id != raft.id() && active.contains(id));
    others.max_by_key(|id| raft.matched(*id))
}

fn with_role(node: &pb::Node, role: pb::NodeRole) -> pb::Node {
    let mut node = node.clone();
    node.role = role as i32;
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_the_callers() {
        let from = Some(IpAddr::from([10, 0, 0, 9]));
        assert_eq!(reachable_address("0.0.0.0:2377", from).as_deref(), Some("10.0.0.9:2377"));
        assert_eq!(reachable_address("[::]:2377", from).as_deref(), Some("10.0.0.9:2377"));
        assert_eq!(reachable_address("10.1.1.1:2377", from).as_deref(), Some("10.1.1.1:2377"));
        assert_eq!(reachable_address("host:2377", None).as_deref(), Some("host:2377"));
        for bad in ["", "10.1.1.1", "10.1.1.1:x", ":2377", "0.0.0.0:99999"] {
            assert_eq!(reachable_address(bad, from), None, "{bad}");
        }
    }
}

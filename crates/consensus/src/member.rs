//! Who is in the set: kept from the log's membership entries, never from hearsay.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use wire::raftpb;
use wire::swarmkit as pb;

/// Members and the ids that may never come back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members {
    members: BTreeMap<u64, pb::RaftMember>,
    removed: BTreeSet<u64>,
}

/// A change of the set, as the leader proposes it.
#[derive(Clone, Debug, PartialEq)]
pub enum MemberChange {
    Add(pb::RaftMember),
    /// A member has another address.
    Update(pb::RaftMember),
    Remove(u64),
}

impl MemberChange {
    pub(crate) fn encode(&self, id: u64) -> Vec<u8> {
        let (kind, raft_id, context) = match self {
            Self::Add(member) => (
                raftpb::ConfChangeType::ConfChangeAddNode,
                member.raft_id,
                Some(member.encode_to_vec()),
            ),
            Self::Update(member) => (
                raftpb::ConfChangeType::ConfChangeUpdateNode,
                member.raft_id,
                Some(member.encode_to_vec()),
            ),
            Self::Remove(raft_id) => (raftpb::ConfChangeType::ConfChangeRemoveNode, *raft_id, None),
        };
        raftpb::ConfChange {
            id: Some(id),
            r#type: Some(kind as i32),
            node_id: Some(raft_id),
            context,
        }
        .encode_to_vec()
    }

    /// `None` when it is not one that SwarmKit makes.
    pub(crate) fn decode(data: &[u8]) -> Option<Self> {
        let change = raftpb::ConfChange::decode(data).ok()?;
        let raft_id = change.node_id();
        if raft_id == 0 {
            return None;
        }
        let member = || {
            let member = pb::RaftMember::decode(change.context()).ok()?;
            Some(pb::RaftMember { raft_id, ..member })
        };
        match change.r#type() {
            raftpb::ConfChangeType::ConfChangeAddNode => Some(Self::Add(member()?)),
            raftpb::ConfChangeType::ConfChangeUpdateNode => Some(Self::Update(member()?)),
            raftpb::ConfChangeType::ConfChangeRemoveNode => Some(Self::Remove(raft_id)),
            raftpb::ConfChangeType::ConfChangeAddLearnerNode => None,
        }
    }
}

impl Members {
    pub fn iter(&self) -> impl Iterator<Item = &pb::RaftMember> {
        self.members.values()
    }

    pub fn get(&self, raft_id: u64) -> Option<&pb::RaftMember> {
        self.members.get(&raft_id)
    }

    pub fn by_node(&self, node_id: &str) -> Option<&pb::RaftMember> {
        self.members.values().find(|member| member.node_id == node_id)
    }

    pub fn count(&self) -> usize {
        self.members.len()
    }

    pub fn is_removed(&self, raft_id: u64) -> bool {
        self.removed.contains(&raft_id)
    }

    pub fn removed(&self) -> impl Iterator<Item = u64> {
        self.removed.iter().copied()
    }

    /// Members as a new one is told of them, or as a snapshot has them. Who is known beside them
    /// joined after the snapshot was taken, unless it was removed since.
    pub(crate) fn learn(&mut self, cluster: pb::ClusterSnapshot) {
        self.removed.extend(cluster.removed);
        self.members.extend(cluster.members.into_iter().map(|member| (member.raft_id, member)));
        self.members.retain(|raft_id, _| !self.removed.contains(raft_id));
    }

    /// Whether anything changed.
    pub(crate) fn apply(&mut self, change: &MemberChange) -> bool {
        let before = self.clone();
        match change {
            MemberChange::Add(member) | MemberChange::Update(member) => {
                if !self.removed.contains(&member.raft_id) {
                    let member = pb::RaftMember { status: None, ..member.clone() };
                    self.members.insert(member.raft_id, member);
                }
            }
            MemberChange::Remove(raft_id) => {
                self.members.remove(raft_id);
                self.removed.insert(*raft_id);
            }
        }
        *self != before
    }

    pub(crate) fn save(&self) -> pb::ClusterSnapshot {
        pb::ClusterSnapshot {
            members: self.members.values().cloned().collect(),
            removed: self.removed.iter().copied().collect(),
        }
    }
}

//! What a member must have on disk, and what it finds there after a restart.

use wire::raftpb;
use wire::swarmkit as pb;

/// To be written and synchronised, as a whole and in this order, before anything that follows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Write {
    /// Who this member is; written once, with the first write.
    pub identity: Option<pb::RaftMember>,
    /// Whom a joining member was told of: without it a restart before the first snapshot would know
    /// no address to answer to. Written once, with the identity.
    pub membership: Option<pb::ClusterSnapshot>,
    /// Replaces the snapshot. Entries up to `compact_to` may be forgotten once it is on disk.
    pub snapshot: Option<raftpb::Snapshot>,
    /// After a snapshot taken by itself some older entries are kept for slow followers; a snapshot
    /// from the leader replaces the whole log.
    pub compact_to: u64,
    /// Replace whatever the log holds from the first one's index on.
    pub entries: Vec<raftpb::Entry>,
    pub hard_state: Option<raftpb::HardState>,
}

impl Write {
    pub fn is_empty(&self) -> bool {
        *self == Write::default()
    }
}

/// What the disk gives back after a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    pub identity: pb::RaftMember,
    pub membership: pb::ClusterSnapshot,
    pub hard_state: raftpb::HardState,
    pub snapshot: Option<raftpb::Snapshot>,
    pub entries: Vec<raftpb::Entry>,
}

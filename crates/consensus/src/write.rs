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

impl Recovered {
    /// A crash between writing a snapshot and rewriting the log leaves the log as it was before.
    /// What of it does not lead up to the snapshot, or follow it, was to be replaced: raft takes a
    /// conflict below what is committed for a damaged log (Raft paper, figure 13, step 6).
    pub fn forget_what_a_snapshot_replaced(&mut self) {
        let snapshot = self.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let Some((index, term)) = snapshot.map(|metadata| (metadata.index(), metadata.term()))
        else {
            return;
        };
        let fits = match self.entries.iter().find(|entry| entry.index() == index) {
            Some(entry) => entry.term() == term,
            None => self.entries.first().is_none_or(|first| first.index() == index + 1),
        };
        if !fits {
            self.entries.clear();
        }
        if self.hard_state.term() < term {
            self.hard_state.term = Some(term);
            self.hard_state.vote = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovered(entries: &[(u64, u64)], snapshot: (u64, u64), term: u64) -> Recovered {
        let entry = |&(index, term): &(u64, u64)| raftpb::Entry {
            index: Some(index),
            term: Some(term),
            ..Default::default()
        };
        let metadata = raftpb::SnapshotMetadata {
            index: Some(snapshot.0),
            term: Some(snapshot.1),
            ..Default::default()
        };
        let mut recovered = Recovered {
            entries: entries.iter().map(entry).collect(),
            snapshot: Some(raftpb::Snapshot { metadata: Some(metadata), ..Default::default() }),
            ..Default::default()
        };
        recovered.hard_state.term = Some(term);
        recovered.forget_what_a_snapshot_replaced();
        recovered
    }

    #[test]
    fn a_log_that_leads_up_to_the_snapshot_or_follows_it_stays() {
        assert_eq!(recovered(&[(8, 2), (9, 2), (10, 2)], (9, 2), 2).entries.len(), 3);
        assert_eq!(recovered(&[(10, 2), (11, 2)], (9, 2), 2).entries.len(), 2);
    }

    #[test]
    fn a_log_that_the_snapshot_was_to_replace_goes() {
        assert_eq!(recovered(&[(3, 1), (4, 1)], (9, 2), 2).entries, []);
        let torn = recovered(&[(8, 1), (9, 1), (10, 1)], (9, 2), 1);
        assert_eq!(torn.entries, []);
        assert_eq!(torn.hard_state.term(), 2);
    }
}

//! One member goes on without the others: the way back after a quorum is lost for good.

use prost::Message as _;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::member::{MemberChange, Members};
use crate::write::{Recovered, Write};

impl Recovered {
    /// The same log with every other member removed at its end, all of it committed, and what has
    /// to be written for that.
    ///
    /// Entries that may not have been committed stay: an acknowledged one could be among them.
    pub fn alone(mut self) -> (Self, Write) {
        let own = self.identity.raft_id;
        let members = self.members();
        // A member that the log does not name yet is added by what it says itself.
        let add = members.get(own).is_none().then(|| MemberChange::Add(self.identity.clone()));
        let others = members.iter().map(|member| member.raft_id).filter(|id| *id != own);
        let changes: Vec<MemberChange> =
            add.into_iter().chain(others.map(MemberChange::Remove)).collect();
        let in_snapshot = self.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let (mut index, mut term) =
            in_snapshot.map_or((0, 0), |metadata| (metadata.index(), metadata.term()));
        if let Some(last) = self.entries.last() {
            index = index.max(last.index());
            term = term.max(last.term());
        }
        term = term.max(self.hard_state.term());
        let changes: Vec<raftpb::Entry> = changes
            .into_iter()
            .map(|change| {
                index += 1;
                raftpb::Entry {
                    r#type: Some(raftpb::EntryType::EntryConfChange as i32),
                    term: Some(term),
                    index: Some(index),
                    data: Some(change.encode(0).into()),
                }
            })
            .collect();
        let hard_state =
            raftpb::HardState { term: Some(term), vote: self.hard_state.vote, commit: Some(index) };
        self.entries.extend(changes.iter().cloned());
        self.hard_state = hard_state;
        let write = Write { entries: changes, hard_state: Some(hard_state), ..Write::default() };
        (self, write)
    }

    fn members(&self) -> Members {
        let mut members = Members::default();
        let data = self.snapshot.as_ref().map(|snapshot| snapshot.data()).unwrap_or_default();
        if let Ok(snapshot) = pb::Snapshot::decode(data) {
            members.learn(snapshot.membership.unwrap_or_default());
        }
        for entry in &self.entries {
            if entry.r#type() == raftpb::EntryType::EntryConfChange
                && let Some(change) = MemberChange::decode(entry.data())
            {
                members.apply(&change);
            }
        }
        members
    }
}

//! What a peer's message must be like before raft-rs may see it.
//!
//! raft-rs ends the process on what correct peers never send. A member with a damaged disk, one that was restored from
//! an old copy, or a hostile one sends it all the same, and must not take the others with it: such messages are dropped.

use ::raft::eraftpb::{Entry, Message, MessageType, Snapshot};
use ::raft::{Raft, RaftLog, StateRole};

use crate::storage::Log;

/// No set comes near: a term grows by one with each election. Beyond it adding one may overflow.
const TERM_MAX: u64 = u64::MAX / 2;

/// Whether raft-rs can take the message, whatever it makes of it.
pub(crate) fn is_sane(message: &Message, raft: &Raft<Log>) -> bool {
    let last = raft.raft_log.last_index();
    if message.term > TERM_MAX || message.log_term > TERM_MAX {
        return false;
    }
    // Term 0 means a message of the member to itself; only the wish for another leader may come so from outside.
    if message.term == 0 && message.msg_type != MessageType::MsgTransferLeader {
        return false;
    }
    match message.msg_type {
        MessageType::MsgAppend => append_is_sane(message, &raft.raft_log),
        // A leader tells a member at most what that member has: this one has lost entries.
        MessageType::MsgHeartbeat => message.commit <= last,
        MessageType::MsgSnapshot => snapshot_is_sane(message.get_snapshot(), message.term),
        // A member that does not lead would pass it on.
        MessageType::MsgTransferLeader => raft.state == StateRole::Leader,
        // Nobody has what was never sent.
        MessageType::MsgAppendResponse => message.index <= last && message.commit <= last,
        MessageType::MsgHeartbeatResponse => message.commit <= last,
        _ => true,
    }
}

/// Entries follow on one another, and the one before them does not contradict what is committed.
fn append_is_sane(message: &Message, log: &RaftLog<Log>) -> bool {
    let mut before = (message.index, message.log_term);
    let follows = |before: (u64, u64), entry: &Entry| {
        before.0.checked_add(1) == Some(entry.index)
            && (before.1.max(1)..=message.term).contains(&entry.term)
    };
    for entry in &message.entries {
        if !follows(before, entry) {
            return false;
        }
        before = (entry.index, entry.term);
    }
    let committed = log.term(log.committed).unwrap_or(0);
    // Only the place before the first entry has no term; raft-rs takes every place beyond its log for one.
    (message.index == 0) == (message.log_term == 0)
        && message.log_term <= message.term
        && (message.index < log.committed || message.log_term >= committed)
}

/// SwarmKit's sets have voters; a learner is a member that has taken in a snapshot from before its time.
fn snapshot_is_sane(snapshot: &Snapshot, term: u64) -> bool {
    let metadata = snapshot.get_metadata();
    let state = metadata.get_conf_state();
    let mut members = [state.voters.as_slice(), &state.learners].concat();
    members.sort_unstable();
    let distinct = members.windows(2).all(|pair| pair[0] != pair[1]);
    let settled =
        state.voters_outgoing.is_empty() && state.learners_next.is_empty() && !state.auto_leave;
    (1..=TERM_MAX).contains(&metadata.index)
        && (1..=term).contains(&metadata.term)
        && members.first().is_some_and(|first| *first != 0)
        && !state.voters.is_empty()
        && distinct
        && settled
}

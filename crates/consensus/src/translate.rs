//! Between etcd's messages (ours) and raft-rs's.

use ::raft::eraftpb;
use wire::raftpb;

/// `None` for messages that only etcd's own storage threads send, and for unknown kinds.
pub fn message_in(message: raftpb::Message) -> Option<eraftpb::Message> {
    let mut out = eraftpb::Message::default();
    out.msg_type = kind_in(message.r#type())?;
    out.to = message.to();
    out.from = message.from();
    out.term = message.term();
    out.log_term = message.log_term();
    out.index = message.index();
    out.commit = message.commit();
    out.reject = message.reject();
    out.reject_hint = message.reject_hint();
    // Go sends an empty snapshot in every message; only a snapshot message has one.
    if out.msg_type == eraftpb::MessageType::MsgSnapshot {
        out.set_snapshot(snapshot_in(message.snapshot?));
    }
    out.context = message.context.unwrap_or_default().into();
    out.entries = message.entries.into_iter().map(entry_in).collect::<Vec<_>>().into();
    Some(out)
}

pub fn message_out(mut message: eraftpb::Message) -> Option<raftpb::Message> {
    let snapshot = message.snapshot.take().map(snapshot_out);
    Some(raftpb::Message {
        r#type: Some(kind_out(message.msg_type)? as i32),
        to: Some(message.to),
        from: Some(message.from),
        term: Some(message.term),
        log_term: Some(message.log_term),
        index: Some(message.index),
        entries: message.take_entries().into_iter().map(entry_out).collect(),
        commit: Some(message.commit),
        // Go dereferences it in every message.
        snapshot: Some(snapshot.unwrap_or_default()),
        reject: Some(message.reject),
        reject_hint: Some(message.reject_hint),
        context: (!message.context.is_empty()).then(|| message.context.to_vec()),
        vote: None,
        responses: Vec::new(),
    })
}

fn kind_in(kind: raftpb::MessageType) -> Option<eraftpb::MessageType> {
    use eraftpb::MessageType as To;
    use raftpb::MessageType as From;
    Some(match kind {
        From::MsgApp => To::MsgAppend,
        From::MsgAppResp => To::MsgAppendResponse,
        From::MsgVote => To::MsgRequestVote,
        From::MsgVoteResp => To::MsgRequestVoteResponse,
        From::MsgSnap => To::MsgSnapshot,
        From::MsgHeartbeat => To::MsgHeartbeat,
        From::MsgHeartbeatResp => To::MsgHeartbeatResponse,
        From::MsgTransferLeader => To::MsgTransferLeader,
        From::MsgTimeoutNow => To::MsgTimeoutNow,
        From::MsgPreVote => To::MsgRequestPreVote,
        From::MsgPreVoteResp => To::MsgRequestPreVoteResponse,
        // Local to a member, or never used by SwarmKit. A forwarded proposal is dropped by everyone.
        _ => return None,
    })
}

fn kind_out(kind: eraftpb::MessageType) -> Option<raftpb::MessageType> {
    use eraftpb::MessageType as From;
    use raftpb::MessageType as To;
    Some(match kind {
        From::MsgAppend => To::MsgApp,
        From::MsgAppendResponse => To::MsgAppResp,
        From::MsgRequestVote => To::MsgVote,
        From::MsgRequestVoteResponse => To::MsgVoteResp,
        From::MsgSnapshot => To::MsgSnap,
        From::MsgHeartbeat => To::MsgHeartbeat,
        From::MsgHeartbeatResponse => To::MsgHeartbeatResp,
        From::MsgTransferLeader => To::MsgTransferLeader,
        From::MsgTimeoutNow => To::MsgTimeoutNow,
        From::MsgRequestPreVote => To::MsgPreVote,
        From::MsgRequestPreVoteResponse => To::MsgPreVoteResp,
        _ => return None,
    })
}

pub fn entry_in(entry: raftpb::Entry) -> eraftpb::Entry {
    let mut out = eraftpb::Entry::default();
    out.entry_type = match entry.r#type() {
        raftpb::EntryType::EntryNormal => eraftpb::EntryType::EntryNormal,
        raftpb::EntryType::EntryConfChange => eraftpb::EntryType::EntryConfChange,
        raftpb::EntryType::EntryConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
    };
    out.term = entry.term();
    out.index = entry.index();
    out.data = entry.data.unwrap_or_default();
    out
}

pub fn entry_out(entry: eraftpb::Entry) -> raftpb::Entry {
    let kind = match entry.entry_type {
        eraftpb::EntryType::EntryNormal => raftpb::EntryType::EntryNormal,
        eraftpb::EntryType::EntryConfChange => raftpb::EntryType::EntryConfChange,
        eraftpb::EntryType::EntryConfChangeV2 => raftpb::EntryType::EntryConfChangeV2,
    };
    raftpb::Entry {
        r#type: Some(kind as i32),
        term: Some(entry.term),
        index: Some(entry.index),
        data: (!entry.data.is_empty()).then_some(entry.data),
    }
}

pub fn snapshot_in(snapshot: raftpb::Snapshot) -> eraftpb::Snapshot {
    let mut out = eraftpb::Snapshot::default();
    out.data = snapshot.data.unwrap_or_default();
    let metadata = snapshot.metadata.unwrap_or_default();
    let to = out.mut_metadata();
    to.index = metadata.index();
    to.term = metadata.term();
    if let Some(state) = metadata.conf_state {
        to.set_conf_state(conf_state_in(&state));
    }
    out
}

/// SwarmKit sends a snapshot as it was taken, also to a member that joined later; raft-rs ignores one
/// that does not name its receiver. As a learner it takes the snapshot in, and does not stand for
/// election until the entry that added it is applied: what etcd's members do with such a snapshot.
pub fn name_receiver(snapshot: &mut eraftpb::Snapshot, id: u64) {
    let state = snapshot.mut_metadata().mut_conf_state();
    let mut named = state.voters.iter().chain(&state.learners).chain(&state.voters_outgoing);
    if named.all(|named| *named != id) {
        state.learners.push(id);
    }
}

pub fn snapshot_out(mut snapshot: eraftpb::Snapshot) -> raftpb::Snapshot {
    let metadata = snapshot.take_metadata();
    raftpb::Snapshot {
        data: (!snapshot.data.is_empty()).then_some(snapshot.data),
        metadata: Some(raftpb::SnapshotMetadata {
            conf_state: Some(conf_state_out(metadata.get_conf_state())),
            index: Some(metadata.index),
            term: Some(metadata.term),
        }),
    }
}

fn conf_state_in(state: &raftpb::ConfState) -> eraftpb::ConfState {
    let mut out = eraftpb::ConfState::default();
    out.voters = state.voters.clone();
    out.learners = state.learners.clone();
    out.voters_outgoing = state.voters_outgoing.clone();
    out.learners_next = state.learners_next.clone();
    out.auto_leave = state.auto_leave();
    out
}

pub fn conf_state_out(state: &eraftpb::ConfState) -> raftpb::ConfState {
    raftpb::ConfState {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: Some(state.auto_leave),
    }
}

pub fn hard_state_in(state: &raftpb::HardState) -> eraftpb::HardState {
    let mut out = eraftpb::HardState::default();
    out.term = state.term();
    out.vote = state.vote();
    out.commit = state.commit();
    out
}

pub fn hard_state_out(state: &eraftpb::HardState) -> raftpb::HardState {
    raftpb::HardState { term: Some(state.term), vote: Some(state.vote), commit: Some(state.commit) }
}

//! The member itself: events in, ordered effects out.

use std::collections::BTreeMap;
use std::time::Duration;

use ::raft::eraftpb;
use ::raft::{Config, RawNode, SnapshotStatus, StateRole};
use bytes::Bytes;
use model::Instant;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::mark::{Mark, decode_snapshot, whole};
use crate::member::{MemberChange, Members};
use crate::sane;
use crate::storage::Log;
use crate::translate;
use crate::write::{Recovered, Write};

/// SwarmKit's parameters: members of one set must agree on them.
pub const TICK: Duration = Duration::from_secs(1);
const HEARTBEAT_TICKS: usize = 1;
const ELECTION_TICKS: usize = 10;
const MESSAGE_BYTES_MAX: u64 = 65_535;
const MESSAGES_IN_FLIGHT_MAX: usize = 256;
/// Entries between two snapshots.
pub const SNAPSHOT_INTERVAL: u64 = 10_000;
/// Bytes of entries after which a snapshot is due, however few they are.
pub const SNAPSHOT_BYTES: u64 = 64 * 1024 * 1024;
/// Entries kept before the snapshot, for followers that are a little late.
pub const ENTRIES_FOR_SLOW_FOLLOWERS: u64 = 500;
/// An entry bigger than this is not proposed (SwarmKit's limit of one request).
pub const PROPOSAL_BYTES_MAX: usize = 3 * 512 * 1024;
/// Ticks without a word from the leader (who speaks at each) after which something may be wrong.
const QUIET_TICKS: u32 = 3;
/// Ticks after which a snapshot that nobody reported on counts as lost, so that the follower is
/// asked again instead of waiting for ever.
const SNAPSHOT_PATIENCE_TICKS: u32 = 60;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("this manager does not lead")]
    NotLeader,
    #[error("a membership change is under way: try again")]
    ChangeUnderWay,
    #[error("proposal of {bytes} bytes: at most {PROPOSAL_BYTES_MAX} are possible")]
    TooLarge { bytes: usize },
    #[error("raft: {0}")]
    Raft(String),
}

/// Where a proposal stands in the log: what is committed there in another term was not it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proposed {
    pub index: u64,
    pub term: u64,
}

pub enum Event {
    Deadline,
    Message(Box<raftpb::Message>),
    Unreachable(u64),
    SnapshotSent {
        raft_id: u64,
        delivered: bool,
    },
    /// Hand the lead to this member.
    Transfer(u64),
    /// Try to lead at once.
    Campaign,
    /// The leader is known to be gone: stand for election without waiting for its lease to end.
    Succeed,
}

/// In the order in which they must happen; see [`Write`] for what goes before what.
pub enum Effect {
    Persist(Write),
    Send(Box<raftpb::Message>),
    /// An entry is committed; `data` is an `InternalRaftRequest`.
    Committed {
        at: Proposed,
        data: Bytes,
    },
    /// A membership entry is committed and the set may look different.
    Members {
        at: Proposed,
    },
    /// The leader's snapshot replaces the whole store.
    Restored(Box<pb::StoreSnapshot>),
    /// Another role, another leader, or another term.
    Leadership,
    /// This member is no longer in the set.
    Removed,
}

/// One member of a set.
pub struct Raft {
    id: u64,
    node: RawNode<Log>,
    dice: ChaCha8Rng,
    tick_at: Instant,
    /// Ticks beyond the election timeout that this member waits: drawn anew whenever it hears from a leader.
    patience: u32,
    members: Members,
    applied: Proposed,
    removed: bool,
    snapshots_sent: BTreeMap<u64, u32>,
    leadership: (u64, StateRole, u64),
    next_change: u64,
    /// Ticks since the leader was heard.
    quiet: u32,
    /// The term in which this member had voted for itself when it began.
    own_term: Option<u64>,
}

impl Raft {
    /// The first member of a new set. Its log begins as SwarmKit's does: with its own membership.
    pub fn bootstrap(
        now: Instant,
        dice: ChaCha8Rng,
        identity: pb::RaftMember,
    ) -> (Self, Vec<Effect>) {
        let entry = raftpb::Entry {
            r#type: Some(raftpb::EntryType::EntryConfChange as i32),
            term: Some(1),
            index: Some(1),
            data: Some(MemberChange::Add(identity.clone()).encode(0).into()),
        };
        let hard_state = raftpb::HardState { term: Some(1), vote: Some(0), commit: Some(1) };
        let write = Write {
            identity: Some(identity.clone()),
            entries: vec![entry.clone()],
            hard_state: Some(hard_state),
            ..Write::default()
        };
        let recovered =
            Recovered { identity, hard_state, entries: vec![entry], ..Recovered::default() };
        let (raft, mut rest) = Self::restore(now, dice, recovered);
        let mut effects = vec![Effect::Persist(write)];
        effects.append(&mut rest);
        (raft, effects)
    }

    /// A member that a leader has just added; the log comes from the leader.
    pub fn join(
        now: Instant,
        dice: ChaCha8Rng,
        identity: pb::RaftMember,
        members: Vec<pb::RaftMember>,
        removed: Vec<u64>,
    ) -> (Self, Vec<Effect>) {
        let membership = pb::ClusterSnapshot { members, removed };
        let write = Write {
            identity: Some(identity.clone()),
            membership: Some(membership.clone()),
            ..Write::default()
        };
        let recovered = Recovered { identity, membership, ..Recovered::default() };
        let (raft, mut rest) = Self::restore(now, dice, recovered);
        let mut effects = vec![Effect::Persist(write)];
        effects.append(&mut rest);
        (raft, effects)
    }

    /// Goes on where the disk says that this member stopped. The committed entries come again.
    pub fn restore(
        now: Instant,
        mut dice: ChaCha8Rng,
        recovered: Recovered,
    ) -> (Self, Vec<Effect>) {
        let id = recovered.identity.raft_id.max(1);
        let mut members = Members::default();
        members.learn(recovered.membership);
        let mut effects = Vec::new();
        let snapshot_data = recovered.snapshot.as_ref().map(|snapshot| snapshot.data().to_vec());
        if let Some((store, cluster)) = snapshot_data.as_deref().and_then(decode_snapshot) {
            members.learn(cluster);
            effects.push(Effect::Restored(Box::new(store)));
        }
        let voted = &recovered.hard_state;
        let own_term = (voted.vote() == id).then(|| voted.term());
        let log = Log::restore(
            recovered.snapshot.map(translate::snapshot_in),
            translate::hard_state_in(&recovered.hard_state),
            recovered.entries.into_iter().map(translate::entry_in).collect(),
        );
        let applied = log.snapshot_index();
        let applied = Proposed { index: applied, term: log.term_of(applied).unwrap_or(0) };
        let patience = dice.random_range(0..ELECTION_TICKS as u32);
        let node = new_node(id, applied.index, log);
        let mut raft = Self {
            id,
            node,
            dice,
            tick_at: now + TICK,
            patience,
            members,
            applied,
            removed: false,
            snapshots_sent: BTreeMap::new(),
            leadership: (0, StateRole::Follower, 0),
            next_change: 0,
            quiet: 0,
            own_term,
        };
        raft.drain(&mut effects);
        if raft.alone() {
            // Nobody else could lead: there is nothing to wait for.
            effects.append(&mut raft.step(now, Event::Campaign));
        }
        (raft, effects)
    }

    pub fn deadline(&self) -> Option<Instant> {
        (!self.removed).then_some(self.tick_at)
    }

    #[must_use]
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.removed {
            return effects;
        }
        match event {
            Event::Deadline => self.tick(now),
            Event::Message(message) => self.receive(*message),
            Event::Unreachable(raft_id) => self.node.report_unreachable(raft_id),
            Event::SnapshotSent { raft_id, delivered } => self.snapshot_sent(raft_id, delivered),
            Event::Transfer(raft_id) => self.node.transfer_leader(raft_id),
            Event::Succeed => self.succeed(),
            Event::Campaign => {
                // Refused only while a membership entry waits; the election timer tries again.
                let _refused = self.node.campaign();
            }
        }
        self.drain(&mut effects);
        effects
    }

    /// Asks the set to agree on an entry.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<(Proposed, Vec<Effect>), Error> {
        if data.len() > PROPOSAL_BYTES_MAX {
            return Err(Error::TooLarge { bytes: data.len() });
        }
        self.propose_entry(eraftpb::EntryType::EntryNormal, data)
    }

    /// Asks the set to agree on a change of itself; one at a time.
    pub fn propose_change(
        &mut self,
        change: &MemberChange,
    ) -> Result<(Proposed, Vec<Effect>), Error> {
        if self.node.raft.has_pending_conf() {
            return Err(Error::ChangeUnderWay);
        }
        self.next_change += 1;
        let data = change.encode(self.next_change);
        self.propose_entry(eraftpb::EntryType::EntryConfChange, data)
    }

    fn propose_entry(
        &mut self,
        kind: eraftpb::EntryType,
        data: Vec<u8>,
    ) -> Result<(Proposed, Vec<Effect>), Error> {
        if self.removed || !self.leads() {
            return Err(Error::NotLeader);
        }
        let mut entry = eraftpb::Entry::default();
        entry.entry_type = kind;
        entry.data = data.into();
        let mut message = eraftpb::Message::default();
        message.msg_type = eraftpb::MessageType::MsgPropose;
        message.from = self.id;
        message.entries = vec![entry].into();
        self.node.raft.step(message).map_err(|error| Error::Raft(error.to_string()))?;
        let log = &self.node.raft.raft_log;
        let proposed = Proposed { index: log.last_index(), term: self.node.raft.term };
        let mut effects = Vec::new();
        self.drain(&mut effects);
        Ok((proposed, effects))
    }

    /// Whether so much was applied since the last snapshot that a new one is worth it. `interval`
    /// counts entries. The larger the snapshot, the longer the log that it replaces.
    pub fn snapshot_due(&self, interval: u64) -> bool {
        let log = self.node.store();
        let entries = self.applied.index.saturating_sub(log.snapshot_index());
        let bytes = SNAPSHOT_BYTES.max(log.snapshot_bytes() / 2);
        entries >= interval.max(1) || (log.bytes() >= bytes && entries > 1)
    }

    /// What a snapshot of the store as it is now has to say besides.
    pub fn mark(&self) -> Mark {
        Mark {
            at: self.applied,
            conf_state: translate::conf_state_out(&self.node.store().conf_state),
            membership: self.members.save(),
        }
    }

    /// Takes in a snapshot that was made of a [`Mark`], and shortens the log but for the last `keep`
    /// entries before it. Nothing happens when the leader's came meanwhile.
    pub fn snapshot(&mut self, snapshot: raftpb::Snapshot, keep: u64) -> Vec<Effect> {
        let index = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index());
        if index <= self.node.store().snapshot_index() || index > self.applied.index {
            return Vec::new();
        }
        let compact_to = self.node.store().forgettable(index, keep);
        self.node.mut_store().compact(translate::snapshot_in(snapshot.clone()), compact_to);
        vec![Effect::Persist(Write { snapshot: Some(snapshot), compact_to, ..Write::default() })]
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this member leads and has applied everything from before its time: only then does
    /// its store hold all that was acknowledged.
    pub fn leads_fully(&self) -> bool {
        self.leads() && self.node.store().term_of(self.applied.index) == Some(self.node.raft.term)
    }

    /// 0 when nobody is known to lead.
    pub fn leader(&self) -> u64 {
        self.node.raft.leader_id
    }

    /// Whether a follower has not heard its leader for several heartbeats.
    pub fn leader_is_quiet(&self) -> bool {
        let has_leader = self.leader() != 0 || self.led_until_restarted();
        !self.leads() && has_leader && self.quiet >= QUIET_TICKS
    }

    /// Whether the term's only possible leader was this member, which a restart made a follower: the
    /// others wait for a leader that answers and does not lead. In the term of its beginning alone:
    /// who stands again after each lost election keeps those with more of the log from standing.
    pub fn led_until_restarted(&self) -> bool {
        let raft = &self.node.raft;
        self.leader() == 0 && raft.state == StateRole::Follower && self.own_term == Some(raft.term)
    }

    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    pub fn commit_index(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    pub fn applied(&self) -> Proposed {
        self.applied
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Members that answered lately, as the leader sees it: itself among them.
    pub fn active(&self) -> Vec<u64> {
        let active = |(id, progress): (&u64, &::raft::Progress)| {
            (*id == self.id || progress.recent_active).then_some(*id)
        };
        let mut active: Vec<u64> = self.node.raft.prs().iter().filter_map(active).collect();
        active.sort_unstable();
        active
    }

    /// How far a member's log is known to agree with the leader's.
    pub fn matched(&self, raft_id: u64) -> u64 {
        self.node.raft.prs().get(raft_id).map_or(0, |progress| progress.matched)
    }

    fn alone(&self) -> bool {
        self.node.store().conf_state.voters == [self.id]
    }

    fn tick(&mut self, now: Instant) {
        if now < self.tick_at {
            return;
        }
        // A process that was stopped does not make up for the ticks it slept through.
        self.tick_at = (self.tick_at + TICK).max(now + TICK / 2);
        self.count_snapshots();
        self.quiet = self.quiet.saturating_add(1);
        if !self.leads() {
            let waited = self.node.raft.election_elapsed;
            if waited == 0 {
                self.patience = self.dice.random_range(0..ELECTION_TICKS as u32);
            }
            if waited + 1 >= ELECTION_TICKS && self.patience > 0 {
                self.patience -= 1;
                return;
            }
        }
        let _has_ready = self.node.tick();
    }

    /// As if the leader had handed over: the others grant their votes although its lease runs.
    fn succeed(&mut self) {
        let mut message = eraftpb::Message::default();
        message.msg_type = eraftpb::MessageType::MsgTimeoutNow;
        message.from = self.leader();
        message.to = self.id;
        message.term = self.term();
        // Refused only when it cannot stand; then nothing happens.
        let _refused = self.node.raft.step(message);
    }

    fn count_snapshots(&mut self) {
        let mut lost = Vec::new();
        for (raft_id, ticks) in &mut self.snapshots_sent {
            *ticks += 1;
            if *ticks > SNAPSHOT_PATIENCE_TICKS {
                lost.push(*raft_id);
            }
        }
        for raft_id in lost {
            self.snapshot_sent(raft_id, false);
        }
    }

    fn snapshot_sent(&mut self, raft_id: u64, delivered: bool) {
        self.snapshots_sent.remove(&raft_id);
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(raft_id, status);
    }

    fn receive(&mut self, message: raftpb::Message) {
        if message.to() != self.id || self.members.is_removed(message.from()) || message.from() == 0
        {
            return;
        }
        if message.r#type() == raftpb::MessageType::MsgSnap && !whole(&message) {
            return;
        }
        let Some(mut message) = translate::message_in(message) else { return };
        // Silence lets an honest sender probe again.
        if !sane::is_sane(&message, &self.node.raft) {
            return;
        }
        if message.msg_type == eraftpb::MessageType::MsgSnapshot {
            translate::name_receiver(message.mut_snapshot(), self.id);
        }
        if message.from == self.leader() {
            self.quiet = 0;
        }
        // What raft-rs refuses is an answer of a stranger; it needs no answer.
        let _refused = self.node.step(message);
    }

    /// Takes everything that raft-rs has ready, in the order in which it may happen.
    fn drain(&mut self, effects: &mut Vec<Effect>) {
        while !self.removed && self.node.has_ready() {
            let mut ready = self.node.ready();
            let mut write = Write::default();
            if !ready.snapshot().is_empty() {
                let snapshot = ready.snapshot().clone();
                write.compact_to = snapshot.get_metadata().index;
                write.snapshot = Some(translate::snapshot_out(snapshot.clone()));
                self.node.mut_store().replace(snapshot);
            }
            let entries = ready.take_entries();
            self.node.mut_store().append(&entries);
            write.entries = entries.into_iter().map(translate::entry_out).collect();
            if let Some(state) = ready.hs() {
                self.node.mut_store().hard_state = state.clone();
                write.hard_state = Some(translate::hard_state_out(state));
            }
            let restored = write.snapshot.as_ref().and_then(|snapshot| {
                decode_snapshot(snapshot.data()).map(|data| (data, snapshot.metadata.clone()))
            });
            if !write.is_empty() {
                effects.push(Effect::Persist(write));
            }
            if let Some(((store, cluster), metadata)) = restored {
                let metadata = metadata.unwrap_or_default();
                self.applied = Proposed { index: metadata.index(), term: metadata.term() };
                self.members.learn(cluster);
                effects.push(Effect::Restored(Box::new(store)));
                effects.push(Effect::Members { at: self.applied });
            }
            self.send(ready.take_messages(), effects);
            self.apply(ready.take_committed_entries(), effects);
            self.send(ready.take_persisted_messages(), effects);
            let mut light = self.node.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                // Written with the next hard state: after a restart the leader tells it again.
                self.node.mut_store().hard_state.commit = commit;
            }
            self.send(light.take_messages(), effects);
            self.apply(light.take_committed_entries(), effects);
            self.node.advance_apply();
        }
        self.notice_leadership(effects);
    }

    fn send(&mut self, messages: Vec<eraftpb::Message>, effects: &mut Vec<Effect>) {
        for message in messages {
            if message.msg_type == eraftpb::MessageType::MsgSnapshot {
                self.snapshots_sent.insert(message.to, 0);
            }
            if let Some(message) = translate::message_out(message) {
                effects.push(Effect::Send(Box::new(message)));
            }
        }
    }

    fn apply(&mut self, entries: Vec<eraftpb::Entry>, effects: &mut Vec<Effect>) {
        for entry in entries {
            let at = Proposed { index: entry.index, term: entry.term };
            self.applied = at;
            match entry.entry_type {
                eraftpb::EntryType::EntryNormal if entry.data.is_empty() => {}
                eraftpb::EntryType::EntryNormal => {
                    effects.push(Effect::Committed { at, data: entry.data });
                }
                eraftpb::EntryType::EntryConfChange => self.change(at, &entry.data, effects),
                // SwarmKit makes none.
                eraftpb::EntryType::EntryConfChangeV2 => {}
            }
        }
    }

    fn change(&mut self, at: Proposed, data: &[u8], effects: &mut Vec<Effect>) {
        let Some(change) = MemberChange::decode(data) else {
            effects.push(Effect::Members { at });
            return;
        };
        let translated = match &change {
            MemberChange::Add(member) => Some((eraftpb::ConfChangeType::AddNode, member.raft_id)),
            MemberChange::Remove(raft_id) => Some((eraftpb::ConfChangeType::RemoveNode, *raft_id)),
            // etcd's number for it means something else to raft-rs, and the voters stay the same.
            MemberChange::Update(_) => None,
        };
        if let Some((kind, raft_id)) = translated {
            let mut out = eraftpb::ConfChange::default();
            out.set_change_type(kind);
            out.node_id = raft_id;
            // Refused is only what would leave no voter at all; then the set stays as it is.
            if let Ok(conf_state) = self.node.apply_conf_change(&out) {
                self.node.mut_store().conf_state = conf_state;
            }
        }
        self.members.apply(&change);
        effects.push(Effect::Members { at });
        if change == MemberChange::Remove(self.id)
            && !self.node.store().conf_state.voters.contains(&self.id)
        {
            self.removed = true;
            effects.push(Effect::Removed);
        }
    }

    fn notice_leadership(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.node.raft;
        let leadership = (raft.leader_id, raft.state, raft.term);
        if leadership != self.leadership {
            self.leadership = leadership;
            self.quiet = 0;
            effects.push(Effect::Leadership);
        }
    }
}

fn new_node(id: u64, applied: u64, log: Log) -> RawNode<Log> {
    let config = Config {
        id,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: HEARTBEAT_TICKS,
        // Always the same: how long a member waits is drawn from its own dice.
        min_election_tick: ELECTION_TICKS,
        max_election_tick: ELECTION_TICKS + 1,
        applied,
        max_size_per_msg: MESSAGE_BYTES_MAX,
        max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
        check_quorum: true,
        pre_vote: false,
        ..Config::default()
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    match RawNode::new(&config, log, &logger) {
        Ok(node) => node,
        // The configuration is constant and good, and `Log::restore` leaves no contradiction.
        Err(error) => unreachable!("raft-rs refuses a sound configuration: {error}"),
    }
}

//! Sets of members in one thread, under a seed, with everything that can go wrong between them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use model::Instant;
use prost::Message as _;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::{Effect, Event, MemberChange, Raft, Recovered, Write};

const START: Instant = Instant::from_nanos(1_000_000_000_000);

fn member(raft_id: u64) -> pb::RaftMember {
    pb::RaftMember {
        raft_id,
        node_id: format!("node{raft_id}"),
        addr: format!("10.0.0.{raft_id}:2377"),
        status: None,
    }
}

/// What a member's disk holds, by the rules of [`Write`].
#[derive(Default, Clone)]
struct Disk {
    recovered: Recovered,
}

impl Disk {
    fn write(&mut self, write: Write) {
        let held = &mut self.recovered;
        if let Some(identity) = write.identity {
            held.identity = identity;
        }
        if let Some(membership) = write.membership {
            held.membership = membership;
        }
        if let Some(snapshot) = write.snapshot {
            held.entries.retain(|entry| entry.index() > write.compact_to);
            held.snapshot = Some(snapshot);
        }
        if let Some(first) = write.entries.first() {
            held.entries.retain(|entry| entry.index() < first.index());
        }
        held.entries.extend(write.entries);
        if let Some(state) = write.hard_state {
            held.hard_state = state;
        }
    }
}

struct Host {
    raft: Option<Raft>,
    disk: Disk,
    /// What was applied, in order; index and data.
    applied: Vec<(u64, Vec<u8>)>,
}

struct Set {
    now: Instant,
    dice: ChaCha8Rng,
    hosts: BTreeMap<u64, Host>,
    network: VecDeque<raftpb::Message>,
    cut: BTreeMap<u64, u32>,
    loss: f64,
    leaders: BTreeMap<u64, u64>,
    /// Whatever any member ever saw committed.
    committed: BTreeMap<u64, Vec<u8>>,
}

impl Set {
    fn new(seed: u64) -> Self {
        let mut set = Self {
            now: START,
            dice: ChaCha8Rng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeMap::new(),
            loss: 0.0,
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
        };
        let dice = ChaCha8Rng::seed_from_u64(seed + 1000);
        let (raft, effects) = Raft::bootstrap(START, dice, member(1));
        set.hosts.insert(1, Host { raft: Some(raft), disk: Disk::default(), applied: Vec::new() });
        set.perform(1, effects, usize::MAX);
        set
    }

    fn perform(&mut self, id: u64, effects: Vec<Effect>, limit: usize) {
        let host = self.hosts.get_mut(&id).unwrap();
        for effect in effects.into_iter().take(limit) {
            match effect {
                Effect::Persist(write) => host.disk.write(write),
                Effect::Send(message) => self.network.push_back(*message),
                Effect::Committed { at, data } => {
                    let seen = self.committed.entry(at.index).or_insert_with(|| data.to_vec());
                    assert_eq!(*seen, data, "member {id} applies something else at {}", at.index);
                    host.applied.push((at.index, data.to_vec()));
                }
                Effect::Restored(store) => {
                    // The tests' store is a list of extension ids `<index>`.
                    host.applied = store
                        .extensions
                        .iter()
                        .map(|one| (one.id.parse().unwrap(), one.description.clone().into_bytes()))
                        .collect();
                }
                Effect::Members { .. } | Effect::Leadership | Effect::Removed => {}
            }
        }
        if let Some(raft) = &host.raft
            && raft.leads()
        {
            let leader = *self.leaders.entry(raft.term()).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", raft.term());
        }
    }

    fn step(&mut self, id: u64, event: Event) {
        let now = self.now;
        let Some(raft) = self.hosts.get_mut(&id).and_then(|host| host.raft.as_mut()) else {
            return;
        };
        let effects = raft.step(now, event);
        self.perform(id, effects, usize::MAX);
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now = self.now + Duration::from_millis(250);
            for id in self.hosts.keys().copied().collect::<Vec<_>>() {
                self.step(id, Event::Deadline);
            }
            self.deliver();
        }
    }

    fn deliver(&mut self) {
        for _ in 0..20_000 {
            let Some(message) = self.network.pop_front() else { return };
            let (from, to) = (message.from(), message.to());
            let cut = self.cut.get(&from).copied().unwrap_or(0)
                != self.cut.get(&to).copied().unwrap_or(0);
            let snapshot = message.r#type() == raftpb::MessageType::MsgSnap;
            let lost = cut || self.dice.random_bool(self.loss);
            if lost {
                self.step(from, Event::Unreachable(to));
            } else if self.dice.random_bool(self.loss / 2.0) && self.network.len() < 1000 {
                self.network.push_back(message);
                continue;
            } else {
                self.step(to, Event::Message(Box::new(message)));
            }
            if snapshot {
                self.step(from, Event::SnapshotSent { raft_id: to, delivered: !lost });
            }
        }
    }

    fn leader(&self) -> Option<u64> {
        let lead = |(id, host): (&u64, &Host)| {
            host.raft.as_ref().is_some_and(Raft::leads_fully).then_some(*id)
        };
        self.hosts
            .iter()
            .filter(|(id, _)| self.cut.get(id).copied().unwrap_or(0) == 0)
            .find_map(lead)
    }

    fn propose(&mut self, data: &[u8]) -> Option<crate::Proposed> {
        let leader = self.leader()?;
        let raft = self.hosts.get_mut(&leader)?.raft.as_mut()?;
        let (at, effects) = raft.propose(data.to_vec()).ok()?;
        self.perform(leader, effects, usize::MAX);
        Some(at)
    }

    fn change(&mut self, change: MemberChange) -> bool {
        let Some(leader) = self.leader() else { return false };
        let raft = self.hosts.get_mut(&leader).unwrap().raft.as_mut().unwrap();
        let Ok((_, effects)) = raft.propose_change(&change) else { return false };
        self.perform(leader, effects, usize::MAX);
        true
    }

    fn add(&mut self, id: u64) {
        for _ in 0..100 {
            if self.change(MemberChange::Add(member(id))) {
                break;
            }
            self.run(1);
        }
        self.run(1);
        let leader = self.leader().expect("somebody leads");
        let members =
            self.hosts[&leader].raft.as_ref().unwrap().members().iter().cloned().collect();
        let dice = ChaCha8Rng::seed_from_u64(self.dice.random());
        let (raft, effects) = Raft::join(self.now, dice, member(id), members, Vec::new());
        self.hosts
            .insert(id, Host { raft: Some(raft), disk: Disk::default(), applied: Vec::new() });
        self.perform(id, effects, usize::MAX);
        self.run(3);
    }

    fn restart(&mut self, id: u64) {
        let dice = ChaCha8Rng::seed_from_u64(self.dice.random());
        let now = self.now;
        let host = self.hosts.get_mut(&id).unwrap();
        let (raft, effects) = Raft::restore(now, dice, host.disk.recovered.clone());
        host.raft = Some(raft);
        host.applied.clear();
        self.perform(id, effects, usize::MAX);
    }

    fn snapshot(&mut self, id: u64) {
        let host = self.hosts.get_mut(&id).unwrap();
        let extensions = host
            .applied
            .iter()
            .map(|(index, data)| pb::Extension {
                id: index.to_string(),
                description: String::from_utf8(data.clone()).unwrap(),
                ..Default::default()
            })
            .collect();
        let store = pb::StoreSnapshot { extensions, ..Default::default() };
        let raft = host.raft.as_mut().unwrap();
        let snapshot = raft.mark().snapshot(store.encoded_len(), |data| store.encode_raw(data));
        let effects = raft.snapshot(snapshot, 500);
        self.perform(id, effects, usize::MAX);
    }
}

#[test]
fn a_new_set_has_swarmkits_first_entries_and_leads_at_once() {
    let mut set = Set::new(1);
    assert_eq!(set.leader(), Some(1));
    let at = set.propose(b"first").unwrap();
    assert_eq!((at.index, at.term), (3, 2));
    let log = &set.hosts[&1].disk.recovered.entries;
    let kinds: Vec<_> =
        log.iter().map(|e| (e.index(), e.term(), e.r#type(), !e.data().is_empty())).collect();
    use raftpb::EntryType::{EntryConfChange, EntryNormal};
    let expected =
        [(1, 1, EntryConfChange, true), (2, 2, EntryNormal, false), (3, 2, EntryNormal, true)];
    assert_eq!(kinds, expected);
    assert_eq!(set.hosts[&1].applied, [(3, b"first".to_vec())]);
}

#[test]
fn a_lone_member_goes_on_after_a_restart_without_waiting() {
    let mut set = Set::new(2);
    set.propose(b"kept").unwrap();
    set.restart(1);
    assert_eq!(set.leader(), Some(1));
    assert_eq!(set.hosts[&1].applied, [(3, b"kept".to_vec())]);
}

#[test]
fn members_join_follow_and_replace_a_lost_leader() {
    let mut set = Set::new(3);
    set.propose(b"a").unwrap();
    set.add(2);
    set.add(3);
    set.propose(b"b").unwrap();
    set.run(3);
    let first = set.leader().unwrap();
    set.hosts.get_mut(&first).unwrap().raft = None;
    set.run(40);
    let second = set.leader().expect("another leads");
    assert_ne!(first, second);
    set.propose(b"c").unwrap();
    set.restart(first);
    set.run(10);
    for host in set.hosts.values() {
        let data: Vec<_> = host.applied.iter().map(|(_, data)| data.clone()).collect();
        assert_eq!(data, [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
        assert_eq!(host.raft.as_ref().unwrap().members().count(), 3);
    }
}

#[test]
fn a_member_that_was_away_too_long_gets_a_snapshot_even_if_it_joined_after_it_was_taken() {
    let mut set = Set::new(4);
    for number in 0..700 {
        set.propose(format!("{number}").as_bytes()).unwrap();
    }
    set.snapshot(1);
    set.add(2);
    set.run(5);
    assert_eq!(set.hosts[&2].applied, set.hosts[&1].applied);
    set.restart(2);
    set.propose(b"after").unwrap();
    set.run(3);
    assert_eq!(set.hosts[&2].applied, set.hosts[&1].applied);
    assert_eq!(set.hosts[&2].raft.as_ref().unwrap().members().count(), 2);
}

fn from_leader(kind: raftpb::MessageType, to: u64) -> raftpb::Message {
    let mut message = raftpb::Message::default();
    message.r#type = Some(kind as i32);
    (message.from, message.to, message.term) = (Some(1), Some(to), Some(2));
    message
}

/// As SwarmKit sends it: taken before the member joined, with the set of that time.
fn snapshot_without(index: u64) -> raftpb::Snapshot {
    let cluster = pb::ClusterSnapshot { members: vec![member(1)], removed: vec![9] };
    let store = Some(pb::StoreSnapshot::default());
    let data = pb::Snapshot { version: 0, membership: Some(cluster), store };
    let state = raftpb::ConfState { voters: vec![1], ..Default::default() };
    let metadata =
        raftpb::SnapshotMetadata { conf_state: Some(state), index: Some(index), term: Some(2) };
    raftpb::Snapshot { data: Some(data.encode_to_vec().into()), metadata: Some(metadata) }
}

fn sent(effects: &[Effect]) -> Vec<(raftpb::MessageType, u64)> {
    let messages = effects.iter().filter_map(|effect| match effect {
        Effect::Send(message) => Some((message.r#type(), message.index())),
        _ => None,
    });
    messages.collect()
}

#[test]
fn a_snapshot_that_does_not_name_its_receiver_is_taken_in_and_the_receiver_votes_later() {
    let dice = ChaCha8Rng::seed_from_u64(6);
    let others = vec![member(1), member(2), member(9)];
    let (mut raft, effects) = Raft::join(START, dice, member(2), others, Vec::new());
    let mut disk = Disk::default();
    let write = |disk: &mut Disk, effects: &[Effect]| {
        for effect in effects {
            if let Effect::Persist(write) = effect {
                disk.write(write.clone());
            }
        }
    };
    write(&mut disk, &effects);
    let mut message = from_leader(raftpb::MessageType::MsgSnap, 2);
    message.snapshot = Some(snapshot_without(700));
    let effects = raft.step(START, Event::Message(Box::new(message)));
    write(&mut disk, &effects);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Restored(_))));
    assert_eq!(sent(&effects), [(raftpb::MessageType::MsgAppResp, 700)]);
    let known = |raft: &Raft| raft.members().iter().map(|m| m.raft_id).collect::<Vec<_>>();
    assert_eq!(known(&raft), [1, 2], "who joined later is known, who was removed is not");

    // Neither it nor its restarted self stands for election in a set that does not name it.
    let dice = ChaCha8Rng::seed_from_u64(7);
    let (mut again, _) = Raft::restore(START, dice, disk.recovered.clone());
    assert_eq!(known(&again), [1, 2]);
    let mut now = START;
    for _ in 0..60 {
        now = now + Duration::from_secs(1);
        for raft in [&mut raft, &mut again] {
            assert_eq!(sent(&raft.step(now, Event::Deadline)), []);
        }
    }

    let mut message = from_leader(raftpb::MessageType::MsgApp, 2);
    (message.index, message.log_term, message.commit) = (Some(700), Some(2), Some(701));
    message.entries = vec![raftpb::Entry {
        r#type: Some(raftpb::EntryType::EntryConfChange as i32),
        term: Some(2),
        index: Some(701),
        data: Some(MemberChange::Add(member(2)).encode(1).into()),
    }];
    let effects = raft.step(now, Event::Message(Box::new(message)));
    assert_eq!(sent(&effects), [(raftpb::MessageType::MsgAppResp, 701)]);
    let stood = (0..60).any(|second| {
        let effects = raft.step(now + Duration::from_secs(second), Event::Deadline);
        sent(&effects).contains(&(raftpb::MessageType::MsgVote, 701))
    });
    assert!(stood, "a member of the set stands when the leader is silent");
}

#[test]
fn a_member_that_restarts_before_its_first_snapshot_still_knows_whom_to_answer() {
    let dice = ChaCha8Rng::seed_from_u64(8);
    let others = vec![member(1), member(2)];
    let (_, effects) = Raft::join(START, dice.clone(), member(2), others, Vec::new());
    let mut disk = Disk::default();
    for effect in effects {
        if let Effect::Persist(write) = effect {
            disk.write(write);
        }
    }
    let (raft, _) = Raft::restore(START, dice, disk.recovered);
    assert_eq!(raft.members().get(1), Some(&member(1)));
}

#[test]
fn an_address_changes_without_a_change_of_voters() {
    let mut set = Set::new(5);
    set.add(2);
    let moved = pb::RaftMember { addr: "10.9.9.9:2377".into(), ..member(2) };
    assert!(set.change(MemberChange::Update(moved)));
    set.run(3);
    for host in set.hosts.values() {
        let raft = host.raft.as_ref().unwrap();
        assert_eq!(raft.members().get(2).unwrap().addr, "10.9.9.9:2377");
        assert_eq!(raft.active().len(), if raft.leads() { 2 } else { raft.active().len() });
    }
    set.propose(b"still two voters").unwrap();
    set.run(2);
    assert_eq!(set.hosts[&2].applied.len(), 1);
}

#[test]
fn the_lead_is_handed_over_and_a_removed_member_stops() {
    let mut set = Set::new(6);
    set.add(2);
    set.add(3);
    set.step(1, Event::Transfer(2));
    set.deliver();
    set.run(2);
    assert_eq!(set.leader(), Some(2));
    assert!(set.change(MemberChange::Remove(1)));
    set.run(3);
    let leader = set.hosts[&2].raft.as_ref().unwrap();
    assert!(leader.members().is_removed(1));
    assert_eq!(leader.members().count(), 2);
    set.propose(b"two left").unwrap();
    set.run(2);
    assert_eq!(set.hosts[&3].applied.last().unwrap().1, b"two left");
}

#[test]
fn a_commit_index_beyond_the_log_is_not_believed() {
    let mut set = Set::new(7);
    set.add(2);
    let message = raftpb::Message {
        r#type: Some(raftpb::MessageType::MsgHeartbeat as i32),
        to: Some(2),
        from: Some(1),
        term: Some(2),
        commit: Some(1_000_000),
        ..Default::default()
    };
    set.step(2, Event::Message(Box::new(message)));
    set.propose(b"fine").unwrap();
    set.run(2);
    assert_eq!(set.hosts[&2].applied.len(), 1);
}

#[test]
fn one_of_three_goes_on_alone_with_everything_it_has() {
    let mut set = Set::new(8);
    set.add(2);
    set.add(3);
    for number in 0..5 {
        set.propose(format!("{number}").as_bytes()).unwrap();
    }
    set.run(3);
    set.snapshot(2);
    set.propose(b"last").unwrap();
    set.run(3);
    let applied = set.hosts[&2].applied.clone();
    for id in [1, 3] {
        set.hosts.get_mut(&id).unwrap().raft = None;
    }
    let (recovered, write) = set.hosts[&2].disk.recovered.clone().alone();
    set.hosts.get_mut(&2).unwrap().disk.write(write);
    assert_eq!(set.hosts[&2].disk.recovered, recovered);
    set.restart(2);
    assert_eq!(set.leader(), Some(2));
    assert_eq!(set.hosts[&2].applied, applied);
    let members = set.hosts[&2].raft.as_ref().unwrap().members();
    assert_eq!(members.count(), 1);
    assert!(members.is_removed(1) && members.is_removed(3));
    set.propose(b"alone").unwrap();
    set.add(4);
    assert_eq!(set.hosts[&4].applied.last().unwrap().1, b"alone");
}

/// Loss, partitions, crashes in the middle of the effects, restarts, snapshots: what a leader saw
/// committed stays committed, everybody applies the same, and the healed set agrees.
fn storm(seed: u64) -> usize {
    let mut set = Set::new(seed);
    for id in 2..=3 + (seed % 2) * 2 {
        set.add(id);
    }
    set.loss = 0.1;
    let ids: Vec<u64> = set.hosts.keys().copied().collect();
    for round in 0..40u32 {
        let id = ids[set.dice.random_range(0..ids.len())];
        match set.dice.random_range(0..9) {
            0 => {
                set.cut.clear();
                set.cut.insert(id, 1);
            }
            1 => set.cut.clear(),
            2 => set.hosts.get_mut(&id).unwrap().raft = None,
            3 if set.hosts[&id].raft.is_some() => set.snapshot(id),
            4 => crash_while_stepping(&mut set, id),
            5 => set.step(id, Event::Succeed),
            _ => {
                for number in 0..3 {
                    set.propose(format!("{round}.{number}").as_bytes());
                }
            }
        }
        let pause = set.dice.random_range(1..16);
        set.run(pause);
        if set.hosts[&id].raft.is_none() && set.dice.random_bool(0.6) {
            set.restart(id);
        }
    }
    set.loss = 0.0;
    set.cut.clear();
    for id in ids {
        if set.hosts[&id].raft.is_none() {
            set.restart(id);
        }
    }
    // A member that lacks entries may stand for election a few times in vain before another does.
    for _ in 0..20 {
        set.run(15);
        if set.leader().is_some() {
            break;
        }
    }
    set.propose(b"healed").unwrap_or_else(|| panic!("seed {seed}: no leader after healing"));
    set.run(5);
    for host in set.hosts.values() {
        let applied: BTreeMap<u64, Vec<u8>> = host.applied.iter().cloned().collect();
        assert_eq!(applied, set.committed, "seed {seed}: something that was committed is lost");
        assert_eq!(host.applied.last().unwrap().1, b"healed", "seed {seed}");
    }
    set.committed.len()
}

fn crash_while_stepping(set: &mut Set, id: u64) {
    let now = set.now;
    let Some(raft) = set.hosts.get_mut(&id).unwrap().raft.as_mut() else { return };
    let effects = match raft.propose(b"torn".to_vec()) {
        Ok((_, effects)) => effects,
        Err(_) => raft.step(now, Event::Deadline),
    };
    let done = set.dice.random_range(0..=effects.len());
    set.perform(id, effects, done);
    set.hosts.get_mut(&id).unwrap().raft = None;
}

#[test]
fn nothing_committed_is_lost_under_two_hundred_storms() {
    let committed: usize = (0..200).map(storm).sum();
    assert!(committed > 200 * 20, "storms that let nothing through show nothing: {committed}");
}

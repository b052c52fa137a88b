//! Messages of a raft set's other members, and the log that a disk gives back.

use consensus::{Effect, Event, MemberChange, Raft, Recovered};
use disk::{DataKey, RaftLog};
use model::Instant;
use prost::Message as _;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::chunks;

/// The member that hears the messages.
pub const LISTENER: u64 = 2;
/// A chunk with a message; any other kind lets a second pass.
pub const MESSAGE: u8 = 1;
/// A first chunk of this kind: the leader of three hears what follows.
pub const LEADER: u8 = 3;
/// The key that the seeds' log is sealed with.
pub const LOG_KEY: [u8; 32] = [7; 32];
const TICK_NANOS: u64 = 1_000_000_000;

pub fn member(raft_id: u64) -> pb::RaftMember {
    pb::RaftMember {
        raft_id,
        node_id: format!("node{raft_id}"),
        addr: format!("192.0.2.{raft_id}:2377"),
        ..Default::default()
    }
}

/// A member that has just joined, as `LISTENER` was when the seeds were recorded.
pub fn listener() -> (Raft, Vec<Effect>) {
    let members = [1, LISTENER, 3].map(member).to_vec();
    let dice = ChaCha8Rng::from_seed([3; 32]);
    Raft::join(Instant::from_nanos(0), dice, member(LISTENER), members, Vec::new())
}

/// The first member of a set that asks a second one in.
pub fn leader() -> Raft {
    let dice = ChaCha8Rng::from_seed([1; 32]);
    let (mut raft, _) = Raft::bootstrap(Instant::from_nanos(0), dice, member(1));
    let _ = raft.propose_change(&MemberChange::Add(member(LISTENER)));
    raft
}

/// What others send reaches a member that persists nothing but what it says it does.
pub fn messages(data: &[u8]) {
    let chunks = chunks::split(data);
    let leads = chunks.first().is_some_and(|(kind, _)| *kind == LEADER);
    let mut raft = if leads { leader() } else { listener().0 };
    let mut now = 0;
    let mut committed = raft.applied().index;
    for (kind, body) in chunks.into_iter().take(64) {
        let event = match kind {
            MESSAGE => match raftpb::Message::decode(body) {
                Ok(message) => Event::Message(Box::new(message)),
                Err(_) => continue,
            },
            _ => {
                now += TICK_NANOS;
                Event::Deadline
            }
        };
        for effect in raft.step(Instant::from_nanos(now), event) {
            if let Effect::Committed { at, .. } = effect {
                assert!(at.index > committed, "entry {} after {committed}", at.index);
                committed = at.index;
            }
        }
    }
}

/// The file of a log, damaged in any way: it opens, or says that it is damaged; then it opens again the same.
pub fn log(data: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let open = || -> Option<Option<Recovered>> {
        let key = DataKey::from_bytes(&LOG_KEY)?;
        RaftLog::open(folder.path(), key).ok().map(|(_, recovered)| recovered)
    };
    if std::fs::write(folder.path().join("log"), data).is_err() {
        return;
    }
    let first = open();
    assert!(open() == first, "a second look found something else");
}

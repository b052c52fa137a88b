//! A leader that died is missed after seconds, not after the election timeout of ten to twenty.
//!
//! A follower that hears nothing for a few heartbeats asks all members whether they serve. When the
//! leader does not and a quorum does, one follower after the other, in the order of their ids,
//! stands for election as if the leader had handed over. A follower that is itself cut off finds no
//! quorum and stays quiet. A leader that was restarted answers and leads no more, which it alone
//! knows: it stands itself.

use std::collections::BTreeMap;
use std::time::Duration;

use consensus::Raft;
use model::Instant;

use crate::{Effect, Ticket};

/// Between one follower's turn to stand and the next one's.
const TURN: Duration = Duration::from_secs(2);

pub(crate) struct Succession {
    /// Members that were asked and have not answered.
    asked: BTreeMap<Ticket, u64>,
    /// Counts down, so that no ticket is the shell's.
    next: u64,
    serving: usize,
    leader_gone: bool,
    ask_at: Instant,
    stand_at: Option<Instant>,
}

impl Succession {
    pub fn new() -> Self {
        Self {
            asked: BTreeMap::new(),
            next: u64::MAX,
            serving: 0,
            leader_gone: false,
            ask_at: Instant::default(),
            stand_at: None,
        }
    }

    /// Looks at the leader; asks about it at most once in a while.
    pub fn look(&mut self, now: Instant, raft: &Raft, out: &mut Vec<Effect>) {
        if !raft.leader_is_quiet() {
            self.forget();
        } else if self.stand_at.is_none() && self.asked.is_empty() && self.ask_at <= now {
            self.forget();
            self.leader_gone = raft.led_until_restarted();
            self.ask_at = now + TURN;
            self.ask_all(raft, out);
        }
    }

    /// Whether it is this member's turn to stand.
    pub fn take_turn(&mut self, now: Instant, raft: &Raft) -> bool {
        let due = raft.leader_is_quiet() && self.stand_at.is_some_and(|stand_at| now >= stand_at);
        if due {
            self.forget();
        }
        due
    }

    /// An answer; `false` when the ticket is not one of these.
    pub fn probed(&mut self, now: Instant, raft: &Raft, ticket: Ticket, healthy: bool) -> bool {
        let Some(raft_id) = self.asked.remove(&ticket) else { return ticket.0 > self.next };
        match (raft_id == raft.leader(), healthy) {
            (true, true) => self.forget(),
            (true, false) => self.leader_gone = true,
            (false, true) => self.serving += 1,
            (false, false) => {}
        }
        let quorum = raft.members().count() / 2 + 1;
        if self.leader_gone && self.serving + 1 >= quorum && self.stand_at.is_none() {
            let before = raft.members().iter().map(|member| member.raft_id);
            let before = match raft.led_until_restarted() {
                true => 0,
                false => before.filter(|id| *id < raft.id() && *id != raft.leader()).count(),
            };
            self.stand_at = Some(now + TURN * before as u32);
        }
        true
    }

    fn ask_all(&mut self, raft: &Raft, out: &mut Vec<Effect>) {
        for member in raft.members().iter().filter(|member| member.raft_id != raft.id()) {
            let ticket = Ticket(self.next);
            self.next -= 1;
            self.asked.insert(ticket, member.raft_id);
            out.push(Effect::Probe { ticket, address: member.addr.clone() });
        }
    }

    fn forget(&mut self) {
        self.asked.clear();
        self.serving = 0;
        self.leader_gone = false;
        self.stand_at = None;
    }
}

//! What a leader proposes: callers and its own loops take turns, one entry at a time.

use consensus::MemberChange;
use model::Instant;
use prost::Message as _;
use wire::swarmkit as pb;

use crate::leading::Leading;
use crate::manager::{InFlight, Manager, Then, raft_member};
use crate::membership::{self, RolePlan};
use crate::start::Bootstrap;
use crate::{Answer, Code, Effect, Failure, Ticket, bootstrap};

/// Entries proposed in one step before the shell may look at other events.
const ROUNDS_MAX: usize = 32;
/// Actions after which it may, however few the entries: a worker's beat waits for the step's end.
const ACTIONS_MAX: usize = 2 * store::ACTIONS_MAX;
/// Objects looked at after which it may, however little came of them; a round ends by itself.
const LOOKS_MAX: u64 = 20_000;
/// Of an entry that the loops propose; the rest is for what surrounds the actions.
pub(crate) const ROUND_BYTES_MAX: usize = consensus::PROPOSAL_BYTES_MAX - 1024;
/// Of an entry that a caller wants: the loops add addresses, networks and statuses to what it
/// holds, and whatever is made from it must fit too.
const CALL_BYTES_MAX: usize = consensus::PROPOSAL_BYTES_MAX - 64 * 1024;

impl Manager {
    /// Proposes, one entry at a time, what callers and the leader's loops want.
    pub(crate) fn pump(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.start_leading(now, out);
        self.unfinished = false;
        self.acted = 0;
        let before = self.looks();
        for _ in 0..ROUNDS_MAX {
            if self.acted >= ACTIONS_MAX || self.looks().saturating_sub(before) >= LOOKS_MAX {
                break;
            }
            if self.leading.is_none() || self.in_flight.is_some() {
                return;
            }
            self.propose_next_change(now, out);
            if !self.propose_next(now, out) {
                return;
            }
        }
        self.unfinished = self.in_flight.is_none();
    }

    fn looks(&self) -> u64 {
        self.store.reads() + self.leading.as_ref().map_or(0, Leading::looks)
    }

    /// Whether there was anything to do.
    fn propose_next(&mut self, now: Instant, out: &mut Vec<Effect>) -> bool {
        if let Some(bootstrap) = self.bootstrap.take() {
            self.propose_bootstrap(now, bootstrap, out);
            return true;
        }
        let calls_turn = self.leading.as_ref().is_some_and(|leading| leading.calls_turn);
        // Callers and loops take turns; who has nothing to do gives its turn away.
        let done = (calls_turn && self.next_call(now, out))
            || self.round(now, out)
            || (!calls_turn && self.next_call(now, out));
        if let Some(leading) = &mut self.leading {
            leading.calls_turn = !calls_turn;
        }
        done
    }

    fn propose_bootstrap(&mut self, now: Instant, bootstrap: Bootstrap, out: &mut Vec<Effect>) {
        if self.store.cluster().is_some() {
            return;
        }
        let version = self.raft.commit_index();
        let actions = bootstrap::actions(
            &self.store,
            &self.identity,
            bootstrap,
            now,
            version,
            &mut self.dice,
        );
        if let Ok(actions) = actions {
            self.propose(now, actions, None, None, out);
        }
    }

    fn next_call(&mut self, now: Instant, out: &mut Vec<Effect>) -> bool {
        let Some((ticket, caller, call)) = self.waiting.pop_front() else { return false };
        match self.decide(now, &caller, call) {
            Ok((actions, then)) if actions.is_empty() => {
                out.push(Effect::Reply { ticket, reply: then(&self.store) });
            }
            Ok((actions, then)) => self.propose(now, actions, Some(ticket), Some(then), out),
            Err(failure) => out.push(Effect::Reply { ticket, reply: Err(failure) }),
        }
        true
    }

    fn round(&mut self, now: Instant, out: &mut Vec<Effect>) -> bool {
        let moved = self.moved();
        let Some(leading) = &mut self.leading else { return false };
        if !leading.take_dirty(now) {
            return false;
        }
        let mut roles = match leading.nodes_changed() {
            true => membership::plan_roles(&self.store, &self.raft),
            false => RolePlan::default(),
        };
        let waits = roles.waits || roles.member.is_some();
        roles.member = roles.member.or(moved);
        let transaction = leading.plan(now, &self.store, roles.changes, out);
        if waits {
            leading.look_at_nodes_later();
        }
        let actions =
            transaction.map(|transaction| transaction.finish(now, self.raft.commit_index()));
        if let Some(change) = roles.member
            && self.changes.is_empty()
            && self.change_in_flight.is_none()
        {
            self.changes.push_back((change, None));
        }
        if let Some(raft_id) = roles.hand_over_to {
            let effects = self.raft.step(now, consensus::Event::Transfer(raft_id));
            self.carry_out(now, effects, out);
            return true;
        }
        let Some(actions) = actions else { return !self.changes.is_empty() };
        self.propose(now, actions, None, None, out);
        true
    }

    /// This manager was started under another address than the others know.
    fn moved(&self) -> Option<MemberChange> {
        let known = self.raft.members().get(self.raft.id())?;
        (known.addr != self.identity.address)
            .then(|| MemberChange::Update(raft_member(&self.identity, self.raft.id())))
    }

    fn propose(
        &mut self,
        now: Instant,
        actions: Vec<pb::StoreAction>,
        ticket: Option<Ticket>,
        then: Option<Then>,
        out: &mut Vec<Effect>,
    ) {
        self.requests += 1;
        self.acted += actions.len();
        let id = (now.as_nanos() / 1_000_000) << 8 | self.requests & 0xff;
        let request = pb::InternalRaftRequest { id, action: actions }.encode_to_vec();
        if let Some(ticket) = ticket
            && request.len() > CALL_BYTES_MAX
        {
            return out.push(Effect::Reply { ticket, reply: Err(too_large(request.len())) });
        }
        match (self.raft.propose(request), ticket) {
            (Ok((at, effects)), ticket) => {
                self.in_flight = Some(InFlight { at, ticket, then });
                self.carry_out(now, effects, out);
            }
            (Err(error), Some(ticket)) => {
                out.push(Effect::Reply { ticket, reply: Err(raft_failure(&error)) });
            }
            (Err(error), None) => {
                out.push(Effect::Complaint(format!(
                    "the leader's changes are not stored: {error}"
                )));
            }
        }
    }

    fn propose_next_change(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.change_in_flight.is_some() {
            return;
        }
        let Some((change, ticket)) = self.changes.pop_front() else { return };
        let change = match self.as_things_are(change) {
            Ok(change) => change,
            Err(raft_id) => {
                let answer = Answer::Join(membership::join_response(&self.raft, raft_id));
                out.extend(ticket.map(|ticket| Effect::Reply { ticket, reply: Ok(answer) }));
                return self.propose_next_change(now, out);
            }
        };
        match self.raft.propose_change(&change) {
            Ok((at, effects)) => {
                self.change_in_flight = Some((at, change, ticket));
                self.carry_out(now, effects, out);
            }
            Err(consensus::Error::ChangeUnderWay) => self.changes.push_front((change, ticket)),
            Err(error) => {
                if let Some(ticket) = ticket {
                    out.push(Effect::Reply { ticket, reply: Err(raft_failure(&error)) });
                }
            }
        }
    }

    /// A joiner that asked again while its first request was under way may be a member by now: a
    /// node has one raft id, whatever it asked for. `Err` is the id when nothing is left to do.
    fn as_things_are(&self, change: MemberChange) -> Result<MemberChange, u64> {
        let MemberChange::Add(joiner) = &change else { return Ok(change) };
        match self.raft.members().by_node(&joiner.node_id) {
            None => Ok(change),
            Some(member) if member.addr == joiner.addr => Err(member.raft_id),
            Some(member) => Ok(MemberChange::Update(pb::RaftMember {
                addr: joiner.addr.clone(),
                status: None,
                ..member.clone()
            })),
        }
    }
}

fn too_large(bytes: usize) -> Failure {
    let text = format!("the object has {bytes} bytes: at most {CALL_BYTES_MAX} are possible");
    Failure::new(Code::ResourceExhausted, text)
}

fn raft_failure(error: &consensus::Error) -> Failure {
    let code = match error {
        consensus::Error::TooLarge { .. } => Code::ResourceExhausted,
        _ => Code::Unavailable,
    };
    Failure::new(code, error.to_string())
}

//! The manager itself: takes events, keeps the store in step with the log, and pumps what waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use consensus::{MemberChange, Proposed, Raft, Recovered};
use model::Instant;
use prost::Message as _;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::{Kind, Store, Touched};
use wire::{raftpb, swarmkit as pb};

use crate::leading::Leading;
use crate::membership;
use crate::start::{Bootstrap, Identity};
use crate::succession::Succession;
use crate::{
    Answer, Call, Caller, Code, Effect, Event, Failure, Leader, Reply, Snapshot, StreamId, Ticket,
    authority,
};

/// Docker's words when nobody leads.
pub const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.";
/// Calls that wait for their turn to write; the next one is refused.
pub(crate) const CALLS_WAITING_MAX: usize = 1_024;
/// Calls that wait for a certificate; the next one is told to ask again.
pub(crate) const CERTIFICATE_WAITERS_MAX: usize = 4_096;
/// A step that comes so much later than it was due tells that this process was held up, by a slow
/// disk or by being stopped: what others sent meanwhile still waits to be heard.
const HELD_UP_MIN: Duration = Duration::from_secs(1);

/// One manager.
pub struct Manager {
    pub(crate) identity: Identity,
    pub(crate) raft: Raft,
    pub(crate) store: Store,
    pub(crate) dice: ChaCha8Rng,
    pub(crate) leading: Option<Leading>,
    /// Calls that write, in their order.
    pub(crate) waiting: VecDeque<(Ticket, Caller, Call)>,
    /// Calls that came between the election and the first entry of the term.
    pub(crate) early: Vec<(Ticket, Caller, Call)>,
    succession: Succession,
    pub(crate) in_flight: Option<InFlight>,
    /// Changes of the set that wait for the one under way.
    pub(crate) changes: VecDeque<(MemberChange, Option<Ticket>)>,
    pub(crate) change_in_flight: Option<(Proposed, MemberChange, Option<Ticket>)>,
    /// Joiners that are asked whether they answer under their address.
    pub(crate) probes: BTreeMap<Ticket, MemberChange>,
    pub(crate) certificate_waiters: BTreeMap<Ticket, String>,
    /// Streams that are open while it leads.
    pub(crate) streams: BTreeSet<StreamId>,
    pub(crate) bootstrap: Option<Bootstrap>,
    leader: Option<Leader>,
    members: Vec<pb::RaftMember>,
    pub(crate) requests: u64,
    /// Actions that this step proposed.
    pub(crate) acted: usize,
    /// The last step stopped before it was done.
    pub(crate) unfinished: bool,
    /// A snapshot is being encoded.
    snapshotting: bool,
    /// When the last step was.
    stepped_at: Instant,
    host_networks: Vec<String>,
}

/// What is answered once an entry is committed.
pub(crate) type Then = Box<dyn FnOnce(&Store) -> Reply + Send>;

pub(crate) struct InFlight {
    pub at: Proposed,
    pub ticket: Option<Ticket>,
    pub then: Option<Then>,
}

impl Manager {
    /// The first manager of a new cluster.
    pub fn bootstrap(
        now: Instant,
        mut dice: ChaCha8Rng,
        identity: Identity,
        bootstrap: Bootstrap,
    ) -> (Self, Vec<Effect>) {
        let raft_id = membership::random_raft_id(&mut dice);
        let member = raft_member(&identity, raft_id);
        let (raft, effects) = Raft::bootstrap(now, fork(&mut dice), member);
        Self::begin(now, dice, identity, raft, effects, Some(bootstrap))
    }

    /// A manager that the leader has just taken into the set.
    pub fn join(
        now: Instant,
        mut dice: ChaCha8Rng,
        identity: Identity,
        response: pb::JoinResponse,
    ) -> (Self, Vec<Effect>) {
        let member = raft_member(&identity, response.raft_id);
        let dice_of_raft = fork(&mut dice);
        let (raft, effects) =
            Raft::join(now, dice_of_raft, member, response.members, response.removed_members);
        Self::begin(now, dice, identity, raft, effects, None)
    }

    /// Goes on where the disk says that this manager stopped.
    pub fn restore(
        now: Instant,
        mut dice: ChaCha8Rng,
        identity: Identity,
        recovered: Recovered,
    ) -> (Self, Vec<Effect>) {
        let (raft, effects) = Raft::restore(now, fork(&mut dice), recovered);
        Self::begin(now, dice, identity, raft, effects, None)
    }

    /// Goes on as the only member, whoever else was in the set: `--force-new-cluster`.
    pub fn restore_alone(
        now: Instant,
        dice: ChaCha8Rng,
        identity: Identity,
        recovered: Recovered,
    ) -> (Self, Vec<Effect>) {
        let (recovered, write) = recovered.alone();
        let (manager, rest) = Self::restore(now, dice, identity, recovered);
        let mut effects = vec![Effect::Persist(Box::new(write))];
        effects.extend(rest);
        (manager, effects)
    }

    fn begin(
        now: Instant,
        dice: ChaCha8Rng,
        identity: Identity,
        raft: Raft,
        effects: Vec<consensus::Effect>,
        bootstrap: Option<Bootstrap>,
    ) -> (Self, Vec<Effect>) {
        let reached = bootstrap.as_ref().map(|bootstrap| bootstrap.host_networks.clone());
        let mut manager = Self {
            identity,
            raft,
            store: Store::default(),
            dice,
            leading: None,
            waiting: VecDeque::new(),
            early: Vec::new(),
            succession: Succession::new(),
            in_flight: None,
            changes: VecDeque::new(),
            change_in_flight: None,
            probes: BTreeMap::new(),
            certificate_waiters: BTreeMap::new(),
            streams: BTreeSet::new(),
            bootstrap,
            leader: None,
            members: Vec::new(),
            requests: 0,
            acted: 0,
            unfinished: false,
            snapshotting: false,
            stepped_at: now,
            host_networks: reached.unwrap_or_default(),
        };
        let mut out = Vec::new();
        manager.carry_out(now, effects, &mut out);
        manager.tell_members(now, &mut out);
        manager.pump(now, &mut out);
        (manager, out)
    }

    #[must_use]
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.forgive_own_delay(now);
        let raft_event = match event {
            Event::Deadline => Some(consensus::Event::Deadline),
            Event::HostNetworks(networks) => {
                if let Some(leading) = &mut self.leading {
                    leading.avoid(&networks);
                }
                self.host_networks = networks;
                None
            }
            Event::HandOver => membership::heir(&self.raft).map(consensus::Event::Transfer),
            Event::Raft(message) => Some(consensus::Event::Message(message)),
            Event::RaftUnreachable { raft_id } => Some(consensus::Event::Unreachable(raft_id)),
            Event::RaftSnapshotSent { raft_id, delivered } => {
                Some(consensus::Event::SnapshotSent { raft_id, delivered })
            }
            Event::RaftRemoved => {
                self.stop_serving(&mut out);
                out.push(Effect::Removed);
                None
            }
            Event::Snapshot(snapshot) => {
                self.snapshot_made(now, *snapshot, &mut out);
                None
            }
            Event::Probed { ticket, healthy } => {
                self.probed(now, ticket, healthy, &mut out);
                None
            }
            Event::Call { ticket, caller, call } => {
                self.call(now, ticket, caller, *call, &mut out);
                None
            }
            Event::Cancelled { ticket } => {
                self.certificate_waiters.remove(&ticket);
                None
            }
            Event::Open { stream, caller, open } => {
                self.open(now, stream, &caller, open, &mut out);
                None
            }
            Event::Closed { stream } => {
                self.closed(now, stream, &mut out);
                None
            }
        };
        if let Some(event) = raft_event {
            let effects = self.raft.step(now, event);
            self.carry_out(now, effects, &mut out);
            self.succession.look(now, &self.raft, &mut out);
            self.succeed_in_turn(now, &mut out);
            self.expire(now, &mut out);
        }
        self.pump(now, &mut out);
        out
    }

    /// Silence that this manager could not have heard through is nobody's fault.
    fn forgive_own_delay(&mut self, now: Instant) {
        let due = self.raft.deadline().unwrap_or(now).max(self.stepped_at);
        self.stepped_at = now;
        let late = now.since(due);
        if let Some(leading) = &mut self.leading
            && late >= HELD_UP_MIN
        {
            leading.dispatcher.wait_longer(now, &self.store, late);
        }
    }

    /// When [`Event::Deadline`] is wanted.
    pub fn deadline(&self) -> Option<Instant> {
        if self.unfinished {
            return Some(Instant::default());
        }
        let leading = self.leading.as_ref().and_then(|leading| match self.in_flight {
            Some(_) => leading.deadline_in_flight(),
            None => Some(leading.deadline()),
        });
        [self.raft.deadline(), leading].into_iter().flatten().min()
    }

    /// The cluster as this manager knows it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn leader(&self) -> Option<&Leader> {
        self.leader.as_ref()
    }

    /// Whether it leads and knows everything that was ever acknowledged.
    pub fn leads(&self) -> bool {
        self.leading.is_some()
    }

    /// The stream to whoever reads the lines of a log subscription.
    pub fn log_reader(&self, subscription: &str) -> Option<StreamId> {
        self.leading.as_ref()?.logs.reader(subscription)
    }

    pub fn term(&self) -> u64 {
        self.raft.term()
    }

    pub fn raft_id(&self) -> u64 {
        self.raft.id()
    }

    pub fn members(&self) -> impl Iterator<Item = &pb::RaftMember> {
        self.raft.members().iter()
    }

    /// Whether a sender of raft messages was removed: it is told so, and stops.
    pub fn was_removed(&self, raft_id: u64) -> bool {
        self.raft.members().is_removed(raft_id)
    }

    /// Turns what raft wants into effects, and applies what is committed.
    pub(crate) fn carry_out(
        &mut self,
        now: Instant,
        effects: Vec<consensus::Effect>,
        out: &mut Vec<Effect>,
    ) {
        for effect in effects {
            match effect {
                consensus::Effect::Persist(write) => out.push(Effect::Persist(Box::new(write))),
                consensus::Effect::Send(message) => {
                    let raft_id = message.to();
                    let member = self.raft.members().get(raft_id);
                    if let Some(address) = member.map(|member| member.addr.clone()) {
                        out.push(Effect::Send { raft_id, address, message });
                    }
                }
                consensus::Effect::Committed { at, data } => self.committed(now, at, &data, out),
                consensus::Effect::Members { at } => {
                    self.tell_members(now, out);
                    self.change_committed(at, out);
                }
                consensus::Effect::Restored(snapshot) => {
                    let restored = Store::restore(*snapshot);
                    let touched = self.store.changes_to(&restored);
                    self.store = restored;
                    self.touched(now, touched, out);
                }
                consensus::Effect::Leadership => self.leadership(now, out),
                consensus::Effect::Removed => {
                    self.stop_serving(out);
                    out.push(Effect::Removed);
                }
            }
        }
        let (interval, _) = self.snapshot_rules();
        if !self.snapshotting && self.raft.snapshot_due(interval) {
            self.snapshotting = true;
            let (mark, store) = (self.raft.mark(), self.store.freeze());
            out.push(Effect::Snapshot(Box::new(Snapshot { mark, store })));
        }
    }

    fn snapshot_made(&mut self, now: Instant, snapshot: raftpb::Snapshot, out: &mut Vec<Effect>) {
        self.snapshotting = false;
        let (_, keep) = self.snapshot_rules();
        let effects = self.raft.snapshot(snapshot, keep);
        self.carry_out(now, effects, out);
    }

    /// Entries between snapshots, and entries kept before them, as the cluster's users set them.
    fn snapshot_rules(&self) -> (u64, u64) {
        let spec = self.store.cluster().and_then(|cluster| cluster.spec.as_ref());
        match spec.and_then(|spec| spec.raft.as_ref()) {
            Some(raft) if raft.snapshot_interval > 0 => {
                (raft.snapshot_interval, raft.log_entries_for_slow_followers)
            }
            _ => (consensus::SNAPSHOT_INTERVAL, consensus::ENTRIES_FOR_SLOW_FOLLOWERS),
        }
    }

    fn committed(&mut self, now: Instant, at: Proposed, data: &[u8], out: &mut Vec<Effect>) {
        // What cannot be read was written by a newer manager; every skep skips it alike.
        if let Ok(request) = pb::InternalRaftRequest::decode(data) {
            let touched = self.store.apply(request.action);
            self.touched(now, touched, out);
        }
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.at.index <= at.index)
        else {
            return;
        };
        let reply = match in_flight.then {
            Some(then) if in_flight.at == at => then(&self.store),
            Some(_) => Err(lost_leadership()),
            None => return,
        };
        if let Some(ticket) = in_flight.ticket {
            out.push(Effect::Reply { ticket, reply });
        }
    }

    fn touched(&mut self, now: Instant, touched: Vec<Touched>, out: &mut Vec<Effect>) {
        if touched.is_empty() {
            return;
        }
        self.answer_certificate_waiters(&touched, out);
        if let Some(leading) = &mut self.leading {
            let effects = leading.touch(now, &self.store, &touched);
            self.push_streams(effects, out);
        }
        out.push(Effect::Touched(touched));
    }

    fn answer_certificate_waiters(&mut self, touched: &[Touched], out: &mut Vec<Effect>) {
        let nodes = touched.iter().filter(|touched| touched.kind == Kind::Node);
        for node in nodes {
            let waiting = self.certificate_waiters.iter().filter(|(_, id)| **id == node.id);
            let waiting: Vec<Ticket> = waiting.map(|(ticket, _)| *ticket).collect();
            let reply = match authority::status(&self.store, &node.id) {
                Ok(None) => continue,
                Ok(Some(status)) => Ok(Answer::NodeCertificateStatus(status)),
                Err(failure) => Err(failure),
            };
            for ticket in waiting {
                self.certificate_waiters.remove(&ticket);
                out.push(Effect::Reply { ticket, reply: reply.clone() });
            }
        }
    }

    fn tell_members(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let members: Vec<pb::RaftMember> = self.raft.members().iter().cloned().collect();
        if members != self.members {
            self.members = members.clone();
            out.push(Effect::Members(members));
            self.tell_nodes_of_managers(now, out);
        }
        self.tell_leader(out);
    }

    fn tell_leader(&mut self, out: &mut Vec<Effect>) {
        let raft_id = self.raft.leader();
        let leader = self.raft.members().get(raft_id).map(|member| Leader {
            raft_id,
            node_id: member.node_id.clone(),
            address: member.addr.clone(),
            here: raft_id == self.raft.id(),
        });
        if leader != self.leader {
            self.leader = leader.clone();
            out.push(Effect::Leader(leader));
        }
    }

    fn change_committed(&mut self, at: Proposed, out: &mut Vec<Effect>) {
        if let Some(leading) = &mut self.leading {
            leading.look_at_nodes();
        }
        let done = self.change_in_flight.take_if(|(proposed, _, _)| proposed.index <= at.index);
        let Some((proposed, change, Some(ticket))) = done else { return };
        let reply = match change {
            _ if proposed != at => Err(lost_leadership()),
            MemberChange::Add(member) | MemberChange::Update(member) => {
                Ok(Answer::Join(membership::join_response(&self.raft, member.raft_id)))
            }
            MemberChange::Remove(_) => Ok(Answer::Leave(pb::LeaveResponse {})),
        };
        out.push(Effect::Reply { ticket, reply });
    }

    fn leadership(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.tell_leader(out);
        let term = self.raft.term();
        let lost = self.leading.as_ref().is_some_and(|leading| leading.term != term);
        if lost || !self.raft.leads() {
            self.stop_serving(out);
        }
        self.start_leading(now, out);
    }

    pub(crate) fn start_leading(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.leading.is_none() && self.raft.leads_fully() {
            let own = &self.identity.node_id;
            let mut leading = Leading::new(now, self.raft.term(), own, &mut self.dice);
            leading.avoid(&self.host_networks);
            self.leading = Some(leading);
            self.tell_nodes_of_managers(now, out);
            for (ticket, caller, call) in std::mem::take(&mut self.early) {
                self.call(now, ticket, caller, call, out);
            }
        }
    }

    /// It leads no longer: whoever waits for it asks the next leader.
    pub(crate) fn stop_serving(&mut self, out: &mut Vec<Effect>) {
        self.leading = None;
        let mut tickets: Vec<Ticket> =
            self.waiting.drain(..).map(|(ticket, _, _)| ticket).collect();
        tickets.extend(self.early.drain(..).map(|(ticket, _, _)| ticket));
        tickets.extend(self.in_flight.take().and_then(|in_flight| in_flight.ticket));
        tickets.extend(self.changes.drain(..).filter_map(|(_, ticket)| ticket));
        tickets.extend(self.change_in_flight.take().and_then(|(_, _, ticket)| ticket));
        tickets.extend(std::mem::take(&mut self.probes).into_keys());
        tickets.extend(std::mem::take(&mut self.certificate_waiters).into_keys());
        for ticket in tickets {
            out.push(Effect::Reply { ticket, reply: Err(lost_leadership()) });
        }
        for stream in std::mem::take(&mut self.streams) {
            out.push(Effect::Close { stream, end: Err(lost_leadership()) });
        }
    }

    fn probed(&mut self, now: Instant, ticket: Ticket, healthy: bool, out: &mut Vec<Effect>) {
        if self.succession.probed(now, &self.raft, ticket, healthy) {
            self.succeed_in_turn(now, out);
            return;
        }
        let Some(change) = self.probes.remove(&ticket) else { return };
        if healthy {
            self.changes.push_back((change, Some(ticket)));
            return;
        }
        let reason =
            "could not connect to prospective new cluster member using its advertised address";
        out.push(Effect::Reply {
            ticket,
            reply: Err(Failure::new(Code::FailedPrecondition, reason)),
        });
    }

    /// Stands for election when the leader is gone and it is this manager's turn.
    fn succeed_in_turn(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.succession.take_turn(now, &self.raft) {
            let effects = self.raft.step(now, consensus::Event::Succeed);
            self.carry_out(now, effects, out);
        }
    }
}

pub(crate) fn raft_member(identity: &Identity, raft_id: u64) -> pb::RaftMember {
    pb::RaftMember {
        raft_id,
        node_id: identity.node_id.clone(),
        addr: identity.address.clone(),
        status: None,
    }
}

fn fork(dice: &mut ChaCha8Rng) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(dice.next_u64())
}

pub(crate) fn lost_leadership() -> Failure {
    Failure::new(Code::Unavailable, "failed to process the request: node lost leader status")
}

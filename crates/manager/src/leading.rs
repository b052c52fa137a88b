//! What a manager does only while it leads: the loops that turn wishes into tasks.

use std::collections::BTreeSet;
use std::time::Duration;

use allocator::Allocator;
use model::Instant;
use orchestrator::Orchestrator;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scheduler::Scheduler;
use store::transaction::timestamp;
use store::{Change, Kind, Store, Touched, Transaction, object};
use wire::swarmkit as pb;

use crate::dispatcher::{Ask, Dispatcher};
use crate::keys::Keys;
use crate::logs::LogBroker;
use crate::{Effect, authority, control, pump};

/// How often things are looked at again that wait for other nodes: roles, a rotation under way.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How often it is said that an object cannot be stored.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

pub(crate) struct Leading {
    /// The term in which it began.
    pub term: u64,
    pub dice: ChaCha8Rng,
    pub dispatcher: Dispatcher,
    pub logs: LogBroker,
    allocator: Allocator,
    orchestrator: Orchestrator,
    scheduler: Scheduler,
    keys: Keys,
    touched: Vec<Touched>,
    /// What all nodes together decide may have changed: roles, certificates, a rotation.
    nodes_changed: bool,
    /// Something was applied, or a deadline passed, since the last round.
    dirty: bool,
    /// The next change of the queue, not of the loops, is due.
    pub calls_turn: bool,
    look_again: Instant,
    /// What cannot be stored and was said of; said again after this time.
    complained: BTreeSet<String>,
    complain_again: Instant,
}

impl Leading {
    pub fn new(now: Instant, term: u64, own_id: &str, dice: &mut ChaCha8Rng) -> Self {
        let mut fork = || ChaCha8Rng::seed_from_u64(dice.next_u64());
        Self {
            term,
            allocator: Allocator::new(fork()),
            orchestrator: Orchestrator::new(fork()),
            scheduler: Scheduler::new(fork()),
            dispatcher: Dispatcher::new(fork(), own_id),
            logs: LogBroker::default(),
            dice: fork(),
            keys: Keys::new(now),
            touched: Vec::new(),
            nodes_changed: true,
            dirty: true,
            calls_turn: true,
            look_again: now + LOOK_AGAIN,
            complained: BTreeSet::new(),
            complain_again: now,
        }
    }

    /// See [`Allocator::avoid`].
    pub fn avoid(&mut self, networks: &[String]) {
        let networks = networks.iter().filter_map(|text| allocator::subnet::Subnet::parse(text));
        self.allocator.avoid(networks.collect());
    }

    pub fn touch(&mut self, now: Instant, store: &Store, touched: &[Touched]) -> Vec<Effect> {
        self.touched.extend_from_slice(touched);
        let mut kinds = touched.iter().map(|touched| touched.kind);
        self.nodes_changed |= kinds.any(|kind| matches!(kind, Kind::Node | Kind::Cluster));
        self.dirty = true;
        let mut effects = self.dispatcher.step(now, store, Ask::Touched(touched));
        effects.extend(self.logs.touched(touched));
        effects
    }

    pub fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// The next round looks at all nodes.
    pub fn look_at_nodes(&mut self) {
        self.nodes_changed = true;
        self.dirty = true;
    }

    /// So does the one after this, which nothing of it hurries.
    pub fn look_at_nodes_later(&mut self) {
        self.nodes_changed = true;
    }

    pub fn nodes_changed(&self) -> bool {
        self.nodes_changed
    }

    /// Whether a round is due; clears the mark.
    pub fn take_dirty(&mut self, now: Instant) -> bool {
        let due = self.deadline() <= now;
        if self.look_again <= now {
            self.look_again = now + LOOK_AGAIN;
            self.nodes_changed = true;
        }
        std::mem::take(&mut self.dirty) || due
    }

    /// What the planners looked at so far, of the nodes beside the store.
    pub fn looks(&self) -> u64 {
        self.scheduler.looks()
    }

    pub fn deadline(&self) -> Instant {
        let planners = [
            self.allocator.deadline(),
            self.orchestrator.deadline(),
            self.scheduler.deadline(),
            self.dispatcher.deadline(),
        ];
        let first = planners.into_iter().flatten().min();
        let own = self.keys.deadline().min(self.look_again);
        first.map_or(own, |first| first.min(own))
    }

    /// While an entry is under way there is no round: only silent nodes are waited for.
    pub fn deadline_in_flight(&self) -> Option<Instant> {
        self.dispatcher.deadline()
    }

    /// One round of all loops over committed state. An object is changed by one loop in a round:
    /// the others would undo it, and see it in the next round.
    pub fn plan<'a>(
        &mut self,
        now: Instant,
        store: &'a Store,
        first: Vec<Change>,
        out: &mut Vec<Effect>,
    ) -> Option<Transaction<'a>> {
        let touched = std::mem::take(&mut self.touched);
        let mut changes = first;
        if std::mem::take(&mut self.nodes_changed) {
            changes.extend(authority::sign_pending(store, now, &mut self.dice));
            changes.extend(control::finish_rotation(store, &mut self.dice));
            // Until a look finds nothing to do, what it wishes may not have come true.
            self.nodes_changed = !changes.is_empty();
        }
        changes.extend(self.dispatcher.plan(now, store));
        changes.extend(self.keys.plan(now, store, &mut self.dice));
        changes.extend(self.allocator.plan(now, store, &touched));
        changes.extend(self.orchestrator.plan(now, store, &touched));
        changes.extend(self.scheduler.plan(now, store, &touched));
        let transaction = self.gather(now, store, changes, out);
        (!transaction.is_empty()).then_some(transaction)
    }

    /// As many of the changes, in their order, as fit into one entry; the next round has the rest.
    fn gather<'a>(
        &mut self,
        now: Instant,
        store: &'a Store,
        changes: Vec<Change>,
        out: &mut Vec<Effect>,
    ) -> Transaction<'a> {
        let mut transaction = Transaction::new(store);
        let mut room = pump::ROUND_BYTES_MAX;
        for mut change in changes {
            let mut bytes = transaction.bytes_of(&change);
            if bytes > pump::ROUND_BYTES_MAX {
                // No round will ever have the room; the others must not wait for it.
                self.complain(now, &change, bytes, out);
                let Some(told) = too_large_is_told(now, store, &change) else { continue };
                (bytes, change) = (transaction.bytes_of(&told), told);
            }
            if transaction.len() == store::ACTIONS_MAX || bytes > room {
                self.dirty = true;
                break;
            }
            if transaction.has(&change) {
                self.dirty = true;
                continue;
            }
            // What was planned from an older state is planned again from the next.
            if transaction.apply(change).is_ok() {
                room -= bytes;
            }
        }
        transaction
    }

    fn complain(&mut self, now: Instant, change: &Change, bytes: usize, out: &mut Vec<Effect>) {
        if now >= self.complain_again {
            self.complained.clear();
            self.complain_again = now + COMPLAIN_AGAIN;
        }
        let what = match change {
            Change::Create(target) | Change::Update(target) => describe(target),
            Change::Remove(kind, id) => format!("{kind:?} {id}"),
        };
        let most = pump::ROUND_BYTES_MAX;
        let text = format!(
            "{what} is not stored: it has {bytes} bytes, at most {most} are possible; make its specification smaller"
        );
        if self.complained.insert(what) {
            out.push(Effect::Complaint(text));
        }
    }
}

/// The object as it is stored, saying why it stays so; `None` when it says so already, or when it
/// has no place for reasons.
fn too_large_is_told(now: Instant, store: &Store, change: &Change) -> Option<Change> {
    let Change::Update(target) = change else { return None };
    // No number of bytes, which may be another one each time.
    let most = pump::ROUND_BYTES_MAX;
    let why = format!("what comes next has more than {most} bytes and cannot be stored");
    match target {
        store::Target::Task(task) => {
            let mut task = pb::Task::clone(store.get(&task.id)?);
            let status = task.status.get_or_insert_default();
            status.timestamp = Some(timestamp(now));
            let said = std::mem::replace(&mut status.err, why.clone());
            (said != why).then(|| Change::update(task))
        }
        store::Target::Node(node) => {
            let mut node = pb::Node::clone(store.get(&node.id)?);
            let status = node.status.get_or_insert_default();
            let said = std::mem::replace(&mut status.message, why.clone());
            (said != why).then(|| Change::update(node))
        }
        _ => None,
    }
}

fn describe(target: &store::Target) -> String {
    match target {
        // Each plan makes it anew, under another id.
        store::Target::Task(task) => format!("A task of service {}", task.service_id),
        other => format!("{:?} {}", object::kind_of(other), object::id_of(other)),
    }
}

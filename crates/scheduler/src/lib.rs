//! Filter, spread and explain: which node a task goes to, or why none.
//!
//! A leader makes one when it begins to lead and drops it when it no longer does: everything in
//! here follows from the stored objects. A plan is a wish over committed state; changes that are
//! not carried out are wished again by the next plan.

pub mod constraint;
mod filter;
mod generic;
mod group;
mod node;
mod nodes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use model::Instant;
use rand_chacha::ChaCha8Rng;
use store::transaction::timestamp;
use store::{Change, Held, Kind, Store, Touched, access};
use wire::swarmkit as pb;

pub use constraint::{Constraint, ConstraintError};
pub use filter::{Filter, runs_platform};
use group::Group;
use node::NodeInfo;
use nodes::Nodes;

/// Changes in one plan; what is beyond waits for the next.
const PLAN_MAX: usize = store::ACTIONS_MAX;
/// Nodes that one plan looks at, and those of one group of tasks more: some milliseconds.
const LOOKS_MAX: u64 = 10_000;
const ASSIGNED: &str = "scheduler assigned task to node";
const CONFIRMED: &str = "scheduler confirmed task can run on preassigned node";

pub struct Scheduler {
    read: bool,
    nodes: Nodes,
    /// Nodes that changed, or their tasks, since they were looked at.
    stale: BTreeSet<String>,
    /// Placements of the last plan, which their nodes count already.
    wished: BTreeMap<String, pb::Task>,
    /// Tasks that want a node, by service and id: those alike follow each other.
    waiting: BTreeSet<(String, String)>,
    /// The last one that was looked at: they take turns, as not all may fit into one plan.
    seen: (String, String),
    /// The last plan placed none of as many as it looks at, and there are more.
    behind: bool,
    /// How many nodes were looked at so far.
    looks: u64,
    /// Those of them that no node fits, as they say already: looked at again when a node changes.
    refused: BTreeSet<(String, String)>,
}

impl Scheduler {
    /// Nothing is left to chance here; the generator is taken so that all planners are made alike.
    pub fn new(_dice: ChaCha8Rng) -> Self {
        Self {
            read: false,
            nodes: Nodes::default(),
            stale: BTreeSet::new(),
            wished: BTreeMap::new(),
            waiting: BTreeSet::new(),
            seen: Default::default(),
            behind: false,
            looks: 0,
            refused: BTreeSet::new(),
        }
    }

    /// What should change now. `touched` is everything that was applied since the last call; the
    /// first call reads the whole store instead.
    #[must_use]
    pub fn plan(&mut self, now: Instant, store: &Store, touched: &[Touched]) -> Vec<Change> {
        if std::mem::replace(&mut self.read, true) {
            touched.iter().for_each(|touched| self.note(touched));
        } else {
            self.stale = store.all::<pb::Node>().map(|node| node.id.clone()).collect();
            let waiting = store.all::<pb::Task>().filter(|task| is_waiting(task));
            self.waiting = waiting.map(|task| waiting_key(task)).collect();
        }
        // What did not come true is taken back.
        let denied = std::mem::take(&mut self.wished).into_values().map(|task| task.node_id);
        self.stale.extend(denied);
        if !self.stale.is_empty() {
            self.waiting.append(&mut self.refused);
        }
        for id in std::mem::take(&mut self.stale) {
            match store.get::<pb::Node>(&id) {
                Some(node) => self.nodes.put(NodeInfo::new(store, node)),
                None => self.nodes.remove(&id),
            }
        }
        let before = self.looks;
        let mut left = self.waiting.len();
        let mut changes = Vec::new();
        let mut group = None;
        while changes.len() < PLAN_MAX
            && self.looks - before < LOOKS_MAX
            && let Some(more) = left.checked_sub(1)
            && let Some(key) = self.next_waiting()
        {
            left = more;
            self.seen.clone_from(&key);
            let Some(task) = store.get::<pb::Task>(&key.1).filter(|task| is_waiting(task)) else {
                self.waiting.remove(&key);
                continue;
            };
            match self.decide(now, task, &mut group) {
                Some(change) => changes.push(change),
                None => {
                    self.waiting.remove(&key);
                    self.refused.insert(key);
                }
            }
        }
        self.behind = left > 0 && changes.is_empty();
        changes
    }

    /// When [`Self::plan`] has something to do although nothing was applied.
    pub fn deadline(&self) -> Option<Instant> {
        self.behind.then(Instant::default)
    }

    fn next_waiting(&self) -> Option<(String, String)> {
        let after = (Bound::Excluded(&self.seen), Bound::Unbounded);
        self.waiting.range(after).next().or(self.waiting.first()).cloned()
    }

    /// How many nodes were looked at so far: the work that it did, without a clock.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    fn note(&mut self, touched: &Touched) {
        if touched.kind == Kind::Node {
            self.stale.insert(touched.id.clone());
        }
        let same_load = match (&touched.old, &touched.new) {
            (Some(Held::Task(old)), Some(Held::Task(new))) => {
                node::weigh_the_same(old, new) || self.came_true(old, new)
            }
            _ => false,
        };
        for target in [&touched.old, &touched.new].into_iter().flatten() {
            let Held::Task(task) = target else { continue };
            if !task.node_id.is_empty() && !same_load {
                self.stale.insert(task.node_id.clone());
            }
            if is_waiting(task) {
                self.waiting.insert(waiting_key(task));
            } else {
                self.refused.remove(&waiting_key(task));
            }
        }
    }

    /// Whether a placement is stored as it was wished.
    fn came_true(&mut self, old: &pb::Task, new: &pb::Task) -> bool {
        let wished = self.wished.get(&new.id);
        let came = old.node_id.is_empty()
            && wished.is_some_and(|wished| node::weigh_the_same(wished, new));
        if came {
            self.wished.remove(&new.id);
        }
        came
    }

    /// The best node for a task, or the reason why there is none.
    fn choose(
        &mut self,
        now: Instant,
        task: &Arc<pb::Task>,
        group: &mut Option<Group>,
    ) -> Result<String, String> {
        if group.as_ref().is_some_and(|group| !group.is_of(task)) {
            *group = None;
        }
        if group.is_none() {
            let (idle, looked) = self.nodes.idle(now, task);
            self.looks += looked as u64;
            if let Some(info) = idle {
                return Ok(info.node.id.clone());
            }
            self.looks += self.nodes.len() as u64;
        }
        let group = group.get_or_insert_with(|| Group::new(now, task, self.nodes.all()));
        group.choose(&self.nodes)
    }

    /// `group` is kept between the tasks of one plan.
    fn decide(
        &mut self,
        now: Instant,
        task: &Arc<pb::Task>,
        group: &mut Option<Group>,
    ) -> Option<Change> {
        let chosen = if task.node_id.is_empty() {
            self.choose(now, task, group)
        } else {
            let info = self.nodes.get(&task.node_id);
            let refusal = info.map_or(Some(Filter::Ready), |info| filter::refusal(task, info));
            match refusal {
                None => Ok(task.node_id.clone()),
                Some(filter) => Err(filter.explain(1)),
            }
        };
        let told = task.status.as_ref().map_or("", |status| &status.err);
        if chosen.as_ref().is_err_and(|why| why == told) {
            return None;
        }
        let mut decided = pb::Task::clone(task);
        let status = decided.status.get_or_insert_default();
        match chosen {
            Ok(node) => {
                status.set_state(access::TaskState::Assigned);
                status.timestamp = Some(timestamp(now));
                let message = if task.node_id.is_empty() { ASSIGNED } else { CONFIRMED };
                status.message = message.to_owned();
                status.err.clear();
                if let (Some(group), Some(info)) = (group.as_mut(), self.nodes.get(&node)) {
                    group.leave(info);
                }
                self.nodes.place(&node, &mut decided);
                if let (Some(group), Some(info)) = (group.as_mut(), self.nodes.get(&node)) {
                    group.enter(info);
                }
                if task.node_id.is_empty() {
                    self.wished.insert(task.id.clone(), decided.clone());
                } else {
                    // The store counts it on this node already.
                    self.stale.insert(node);
                }
            }
            Err(why) => {
                status.err = why;
                status.timestamp = Some(timestamp(now));
            }
        }
        Some(Change::update(decided))
    }
}

fn is_waiting(task: &pb::Task) -> bool {
    access::state(task) == access::TaskState::Pending && access::is_wanted(task)
}

fn waiting_key(task: &pb::Task) -> (String, String) {
    (task.service_id.clone(), task.id.clone())
}

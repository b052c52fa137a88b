//! Filter, spread and explain: which node a task goes to, or why none.
//!
//! A leader makes one when it begins to lead and drops it when it no longer does: everything in
//! here follows from the stored objects. A plan is a wish over committed state; changes that are
//! not carried out are wished again by the next plan.

pub mod constraint;
mod filter;
mod generic;
mod node;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use model::Instant;
use rand_chacha::ChaCha8Rng;
use store::transaction::timestamp;
use store::{Change, Kind, Store, Target, Touched, access};
use wire::swarmkit as pb;

pub use constraint::{Constraint, ConstraintError};
pub use filter::{Filter, runs_platform};
use node::NodeInfo;

/// Changes in one plan; what is beyond waits for the next.
const PLAN_MAX: usize = store::ACTIONS_MAX;
const ASSIGNED: &str = "scheduler assigned task to node";
const CONFIRMED: &str = "scheduler confirmed task can run on preassigned node";

pub struct Scheduler {
    read: bool,
    nodes: BTreeMap<String, NodeInfo>,
    /// Nodes whose tasks changed since they were looked at.
    stale: BTreeSet<String>,
    /// Tasks without a node that want one.
    waiting: BTreeSet<String>,
}

impl Scheduler {
    /// Nothing is left to chance here; the generator is taken so that all planners are made alike.
    pub fn new(_dice: ChaCha8Rng) -> Self {
        Self {
            read: false,
            nodes: BTreeMap::new(),
            stale: BTreeSet::new(),
            waiting: BTreeSet::new(),
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
            self.waiting = waiting.map(|task| task.id.clone()).collect();
        }
        for id in std::mem::take(&mut self.stale) {
            match store.get::<pb::Node>(&id) {
                Some(node) => drop(self.nodes.insert(id, NodeInfo::new(store, node))),
                None => drop(self.nodes.remove(&id)),
            }
        }
        let mut changes = Vec::new();
        for id in self.waiting.clone() {
            let Some(task) = store.get::<pb::Task>(&id).filter(|task| is_waiting(task)) else {
                self.waiting.remove(&id);
                continue;
            };
            if changes.len() >= PLAN_MAX {
                break;
            }
            if let Some(change) = self.decide(now, task) {
                changes.push(change);
            }
        }
        changes
    }

    /// When [`Self::plan`] has something to do although nothing was applied.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    fn note(&mut self, touched: &Touched) {
        if touched.kind == Kind::Node {
            self.stale.insert(touched.id.clone());
        }
        for target in [&touched.old, &touched.new].into_iter().flatten() {
            let Target::Task(task) = target else { continue };
            if !task.node_id.is_empty() {
                self.stale.insert(task.node_id.clone());
            }
            if is_waiting(task) {
                self.waiting.insert(task.id.clone());
            }
        }
    }

    fn decide(&mut self, now: Instant, task: &pb::Task) -> Option<Change> {
        let mut decided = task.clone();
        let chosen = if task.node_id.is_empty() {
            self.choose(now, task)
        } else {
            let info = self.nodes.get(&task.node_id);
            let refusal = info.map_or(Some(Filter::Ready), |info| filter::refusal(task, info));
            match refusal {
                None => Ok(task.node_id.clone()),
                Some(filter) => Err(filter::explain(&BTreeMap::from([(filter, 1)]))),
            }
        };
        let status = decided.status.get_or_insert_default();
        match chosen {
            Ok(node) => {
                status.set_state(access::TaskState::Assigned);
                status.timestamp = Some(timestamp(now));
                let message = if task.node_id.is_empty() { ASSIGNED } else { CONFIRMED };
                status.message = message.to_owned();
                status.err.clear();
                // Until the wish is stored the node counts as taken; then it is read anew.
                self.nodes.get_mut(&node)?.place(&mut decided);
                self.stale.insert(node);
            }
            Err(why) if status.err == why => return None,
            Err(why) => {
                status.err = why;
                status.timestamp = Some(timestamp(now));
            }
        }
        Some(Change::update(decided))
    }

    /// The best node for a task, or the reason why there is none.
    fn choose(&self, now: Instant, task: &pb::Task) -> Result<String, String> {
        let mut refusals = BTreeMap::new();
        let mut fit: Vec<&NodeInfo> = Vec::new();
        for info in self.nodes.values() {
            match filter::refusal(task, info) {
                None => fit.push(info),
                Some(filter) => *refusals.entry(filter).or_insert(0) += 1,
            }
        }
        let placement = task.spec.as_ref().and_then(|spec| spec.placement.as_ref());
        let preferences = placement.map(|p| p.preferences.as_slice()).unwrap_or_default();
        for preference in preferences {
            let Some(pb::placement_preference::Preference::Spread(spread)) = &preference.preference
            else {
                continue;
            };
            fit = least_used_group(&spread.spread_descriptor, &task.service_id, fit);
        }
        fit.into_iter()
            .min_by_key(|info| {
                let troubled = info.is_troubled(&task.service_id, now.as_nanos());
                (troubled, info.of_service(&task.service_id), info.total, &info.node.id)
            })
            .map(|info| info.node.id.clone())
            .ok_or_else(|| filter::explain(&refusals))
    }
}

/// Of the nodes, those whose value of a spread preference has the fewest tasks of the service.
fn least_used_group<'a>(
    descriptor: &str,
    service: &str,
    nodes: Vec<&'a NodeInfo>,
) -> Vec<&'a NodeInfo> {
    let mut groups: BTreeMap<&str, (usize, Vec<&NodeInfo>)> = BTreeMap::new();
    for info in nodes {
        let group = groups.entry(info.spread_value(descriptor)).or_default();
        group.0 += info.of_service(service);
        group.1.push(info);
    }
    let least = groups.into_values().min_by_key(|(tasks, _)| *tasks);
    least.map(|(_, nodes)| nodes).unwrap_or_default()
}

fn is_waiting(task: &pb::Task) -> bool {
    access::state(task) == access::TaskState::Pending && access::is_wanted(task)
}

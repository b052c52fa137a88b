//! How many slots, and which.

use std::collections::BTreeMap;
use std::sync::Arc;

use store::access::{self, TaskState};
use wire::swarmkit as pb;

use crate::draft::{Draft, SlotKey, Slots};
use crate::slot;

/// A slot is given up when all its tasks are to be removed.
fn is_active(tasks: &[Arc<pb::Task>]) -> bool {
    tasks.iter().any(|task| task.desired_state() != TaskState::Remove)
}

fn active(draft: &Draft) -> Slots {
    let mut slots = draft.slots().clone();
    slots.retain(|_, tasks| is_active(tasks));
    slots
}

pub fn replicated(draft: &mut Draft, replicas: u64) {
    let mut slots = active(draft);
    while slots.len() as u64 > replicas {
        let Some(victim) = least_missed(&slots) else { break };
        for task in slots.remove(&victim).into_iter().flatten() {
            draft.set_desired(&task, TaskState::Remove);
        }
    }
    for key in slots.keys() {
        slot::tend(draft, key);
    }
    let free = (1..).map(SlotKey::Number).filter(|key| !slots.contains_key(key));
    let missing = replicas.saturating_sub(slots.len() as u64);
    // What does not fit into one plan comes with the next.
    let missing = usize::try_from(missing).unwrap_or(usize::MAX).min(store::ACTIONS_MAX);
    for key in free.take(missing) {
        draft.create(&key, TaskState::Running);
    }
}

/// The slot to give up: one that does not run, else one on the node with most of them; the
/// highest number of equals.
fn least_missed(slots: &Slots) -> Option<SlotKey> {
    let runner = |tasks: &[Arc<pb::Task>]| {
        let mut wanted = tasks.iter().rev().filter(|task| access::is_wanted(task));
        wanted.find(|task| access::state(task) == TaskState::Running).map(|t| t.node_id.clone())
    };
    let mut on_node: BTreeMap<String, usize> = BTreeMap::new();
    for node in slots.values().filter_map(|tasks| runner(tasks)) {
        *on_node.entry(node).or_default() += 1;
    }
    let key_of = |tasks: &[Arc<pb::Task>]| {
        runner(tasks).map_or(usize::MAX, |node| on_node.get(&node).copied().unwrap_or(0))
    };
    slots.iter().max_by_key(|(key, tasks)| (key_of(tasks), (*key).clone())).map(|(k, _)| k.clone())
}

/// One task on each node that may have one.
pub fn global(draft: &mut Draft) {
    let slots = draft.slots().clone();
    let store = draft.store;
    for (key, tasks) in &slots {
        let SlotKey::Node(id) = key else { continue };
        match store.get::<pb::Node>(id) {
            Some(node) if may_stay(draft, node) && is_active(tasks) => slot::tend(draft, key),
            Some(node) if may_stay(draft, node) => {}
            Some(_) => {
                for task in tasks.iter().filter(|task| access::is_wanted(task)) {
                    draft.set_desired(task, TaskState::Shutdown);
                }
            }
            None => {
                for task in tasks.iter().filter(|task| !access::has_ended(task)) {
                    draft.orphan(task);
                    draft.set_desired(task, TaskState::Remove);
                }
            }
        }
    }
    for node in store.all::<pb::Node>() {
        let key = SlotKey::Node(node.id.clone());
        let has = draft.slots().get(&key).is_some_and(|tasks| is_active(tasks));
        let active = access::availability(node) == pb::node_spec::Availability::Active
            && access::node_state(node) != pb::node_status::State::Down;
        if active && !has && may_stay(draft, node) {
            draft.create(&key, TaskState::Running);
        }
    }
}

pub fn may_stay(draft: &Draft, node: &pb::Node) -> bool {
    let placement = draft.task_spec.placement.as_ref();
    access::availability(node) != pb::node_spec::Availability::Drain
        && scheduler::constraint::satisfied(placement, node)
        && scheduler::runs_platform(placement, node)
}

//! How many slots, and which.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    let excess = (slots.len() as u64).saturating_sub(replicas);
    for victim in least_missed(&slots, usize::try_from(excess).unwrap_or(usize::MAX)) {
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
    let missing = usize::try_from(missing).unwrap_or(usize::MAX).min(draft.creations_max());
    for key in free.take(missing) {
        draft.create(&key, TaskState::Running);
    }
}

/// Sees to some slots, of which there are as many as there should be.
pub fn replicated_slots(draft: &mut Draft, keys: &BTreeSet<SlotKey>) {
    for key in keys {
        if draft.slots().get(key).is_some_and(|tasks| is_active(tasks)) {
            slot::tend(draft, key);
        }
    }
}

/// The slots to give up, one after another: one that does not run, else one on the node with most of
/// those that are left; the highest number of equals.
fn least_missed(slots: &Slots, count: usize) -> Vec<SlotKey> {
    let runner = |tasks: &[Arc<pb::Task>]| {
        let mut wanted = tasks.iter().rev().filter(|task| access::is_wanted(task));
        wanted.find(|task| access::state(task) == TaskState::Running).map(|t| t.node_id.clone())
    };
    let mut missed = Vec::new();
    let mut on_node: BTreeMap<String, Vec<&SlotKey>> = BTreeMap::new();
    for (key, tasks) in slots.iter().rev() {
        match runner(tasks) {
            Some(node) => on_node.entry(node).or_default().push(key),
            None => missed.push(key.clone()),
        }
    }
    missed.truncate(count);
    // What a node gives up next is the highest of its slots: they stand in falling order.
    let mut on_node: Vec<_> = on_node.into_values().map(VecDeque::from).collect();
    let mut offers: BTreeSet<(usize, &SlotKey, usize)> =
        on_node.iter().enumerate().filter_map(|(node, keys)| offer(node, keys)).collect();
    while missed.len() < count
        && let Some((_, key, node)) = offers.pop_last()
    {
        missed.push(key.clone());
        on_node[node].pop_front();
        offers.extend(offer(node, &on_node[node]));
    }
    missed
}

/// How many slots a node has, the one that it would give up, and the node.
fn offer<'a>(node: usize, keys: &VecDeque<&'a SlotKey>) -> Option<(usize, &'a SlotKey, usize)> {
    Some((keys.len(), *keys.front()?, node))
}

/// One task on each node that may have one.
pub fn global(draft: &mut Draft) {
    let keys: Vec<SlotKey> = draft.slots().keys().cloned().collect();
    keys.iter().for_each(|key| keep(draft, key));
    let store = draft.store;
    store.all::<pb::Node>().for_each(|node| begin(draft, node));
}

/// The same on some of the nodes.
pub fn global_slots(draft: &mut Draft, keys: &BTreeSet<SlotKey>) {
    let store = draft.store;
    for key in keys {
        keep(draft, key);
        if let SlotKey::Node(id) = key
            && let Some(node) = store.get::<pb::Node>(id)
        {
            begin(draft, node);
        }
    }
}

/// A node goes on with what it has, if it may.
fn keep(draft: &mut Draft, key: &SlotKey) {
    let SlotKey::Node(id) = key else { return };
    let tasks = draft.slot(key);
    match draft.store.get::<pb::Node>(id) {
        Some(node) if may_stay(draft, node) && is_active(&tasks) => slot::tend(draft, key),
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

/// A node that has no task gets one, if it may.
fn begin(draft: &mut Draft, node: &pb::Node) {
    let key = SlotKey::Node(node.id.clone());
    let has = draft.slots().get(&key).is_some_and(|tasks| is_active(tasks));
    let active = access::availability(node) == pb::node_spec::Availability::Active
        && access::node_state(node) != pb::node_status::State::Down;
    if active && !has && may_stay(draft, node) {
        draft.create(&key, TaskState::Running);
    }
}

pub fn may_stay(draft: &Draft, node: &pb::Node) -> bool {
    let placement = draft.task_spec.placement.as_ref();
    access::availability(node) != pb::node_spec::Availability::Drain
        && scheduler::constraint::satisfied(placement, node)
        && scheduler::runs_platform(placement, node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(layout: &[(u64, &str)]) -> Slots {
        let task = |(slot, node): &(u64, &str)| {
            let mut task = pb::Task { slot: *slot, node_id: (*node).into(), ..Default::default() };
            task.set_desired_state(TaskState::Running);
            let state = if node.is_empty() { TaskState::Pending } else { TaskState::Running };
            task.status.get_or_insert_default().set_state(state);
            (SlotKey::Number(*slot), vec![Arc::new(task)])
        };
        layout.iter().map(task).collect()
    }

    #[test]
    fn what_does_not_run_goes_first_then_the_fullest_node_gives_up_its_highest_slot() {
        let layout = [(1, "a"), (2, "b"), (3, "a"), (4, ""), (5, "c"), (6, "a"), (7, "b"), (8, "")];
        let missed = least_missed(&slots(&layout), 7);
        let order = [8, 4, 6, 7, 3, 5, 2].map(SlotKey::Number);
        assert_eq!(missed, order);
        assert_eq!(least_missed(&slots(&layout), 3), order[..3]);
        assert_eq!(least_missed(&slots(&layout), 9).len(), 8);
    }
}

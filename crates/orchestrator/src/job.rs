//! Jobs: tasks that run until they have completed, in each run of the job as often as it says.
//!
//! As with SwarmKit, a node that is drained or does not answer keeps the task that it has: what may
//! have been done is not done again elsewhere. Other than there, a slot whose task failed for good
//! stays failed, and a node that joins gets its task of a global job at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use store::access::{self, TaskState};
use wire::swarmkit as pb;

use crate::draft::{Draft, Ground, SlotKey};
use crate::{scale, slot};

/// How far a slot is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its task has completed.
    Done,
    /// A task is on its way, or will be after the restart delay.
    Busy,
    /// Its task failed, and the restart policy wants no other.
    Failed,
}

/// Tasks of the present run in a slot, the oldest first.
fn present(draft: &Draft, key: &SlotKey) -> Vec<Arc<pb::Task>> {
    let mut tasks = draft.slot(key);
    let iteration = draft.iteration.unwrap_or_default();
    tasks.retain(|task| access::is_of_iteration(task, iteration));
    tasks
}

/// Slots with a task of the present run.
fn begun(draft: &Draft) -> BTreeSet<SlotKey> {
    let keys = draft.slots().keys();
    keys.filter(|key| !present(draft, key).is_empty()).cloned().collect()
}

/// Tasks of earlier runs are stopped; `all`: not even their history is kept.
fn retire_earlier(draft: &mut Draft, all: bool) {
    let iteration = draft.iteration.unwrap_or_default();
    for task in draft.slots().clone().into_values().flatten() {
        let earlier = !access::is_of_iteration(&task, iteration);
        if earlier && (all || !access::has_ended(&task)) {
            draft.set_desired(&task, TaskState::Remove);
        }
    }
}

/// Slots are numbered from 0, as SwarmKit does for jobs.
pub fn replicated(draft: &mut Draft, job: &pb::ReplicatedJob) {
    retire_earlier(draft, false);
    let begun = begun(draft);
    let standings: Vec<Standing> = begun.iter().map(|key| tend(draft, key)).collect();
    let busy = standings.iter().filter(|standing| **standing == Standing::Busy).count() as u64;
    let missing = job.total_completions.saturating_sub(begun.len() as u64);
    let new = missing.min(job.max_concurrent.saturating_sub(busy));
    // What does not fit into one plan comes with the next.
    let new = usize::try_from(new).unwrap_or(usize::MAX).min(draft.creations_max());
    let free = (0..job.total_completions).map(SlotKey::Number).filter(|key| !begun.contains(key));
    for key in free.take(new) {
        draft.create(&key, draft.aim());
    }
}

/// One completion on each node that may have a task.
pub fn global(draft: &mut Draft) {
    retire_earlier(draft, true);
    for key in begun(draft) {
        tend(draft, &key);
    }
    let store = draft.store;
    for node in store.all::<pb::Node>() {
        let key = SlotKey::Node(node.id.clone());
        if present(draft, &key).is_empty() && may_begin(draft, node) {
            draft.create(&key, draft.aim());
        }
    }
}

fn may_begin(draft: &Draft, node: &pb::Node) -> bool {
    access::availability(node) == pb::node_spec::Availability::Active
        && access::node_state(node) == pb::node_status::State::Ready
        && scale::may_stay(draft, node)
}

/// Sees to it that the slot's task completes, and begins another one where it did not.
fn tend(draft: &mut Draft, key: &SlotKey) -> Standing {
    let tasks = present(draft, key);
    // Tasks of the same moment have no order: the one that goes on is the newest.
    let goes_on = tasks.iter().find(|task| !access::has_ended(task));
    let Some(last) = goes_on.or(tasks.last()) else { return Standing::Busy };
    if tasks.iter().any(|task| access::state(task) == TaskState::Complete) {
        return Standing::Done;
    }
    let gone = draft.ground(last) == Ground::Gone;
    if !gone && !access::has_ended(last) {
        go_on(draft, key, last);
        return Standing::Busy;
    }
    if !gone && tasks.iter().any(|task| slot::awaits_its_turn(draft, key, task)) {
        return Standing::Busy;
    }
    if !access::has_ended(last) {
        draft.orphan(last);
    }
    for task in tasks.iter().filter(|task| access::is_wanted(task)) {
        draft.set_desired(task, TaskState::Shutdown);
    }
    if !slot::may_restart(draft, last, &tasks) {
        return Standing::Failed;
    }
    let may_begin = match key {
        SlotKey::Number(_) => true,
        SlotKey::Node(id) => {
            draft.store.get::<pb::Node>(id).is_some_and(|node| may_begin(draft, node))
        }
    };
    if may_begin {
        let desired = slot::begin(draft, &draft.slot(key));
        draft.create(key, desired);
        slot::promote(draft, key);
    }
    Standing::Busy
}

/// A task that has not ended: it goes on, unless its node no longer satisfies the constraints.
fn go_on(draft: &mut Draft, key: &SlotKey, task: &pb::Task) {
    let placement = draft.task_spec.placement.as_ref();
    let node = draft.store.get::<pb::Node>(&task.node_id);
    let fits = node.is_none_or(|node| scheduler::constraint::satisfied(placement, node));
    if !fits && access::is_wanted(task) {
        draft.reject(task, "assigned node no longer meets constraints");
        draft.set_desired(task, TaskState::Shutdown);
    } else {
        slot::promote(draft, key);
    }
}

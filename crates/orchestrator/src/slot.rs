//! One slot: the task that should run in it, its predecessors and its successor.

use std::sync::Arc;
use std::time::Duration;

use model::Instant;
use store::access::{self, TaskState};
use wire::swarmkit as pb;

use crate::draft::{Draft, Ground, Part, RESTART_DELAY, SlotKey};

/// A task that came to its end by itself.
pub fn ended_by_itself(task: &pb::Task) -> bool {
    matches!(access::state(task), TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

fn stopped(draft: &Draft, task: &pb::Task) -> bool {
    access::has_ended(task) || matches!(draft.ground(task), Ground::Silent | Ground::Gone)
}

/// Sees to it that one task runs in the slot, now or when its time has come.
pub fn tend(draft: &mut Draft, key: &SlotKey) {
    retire_what_cannot_stay(draft, key);
    let tasks = draft.slot(key);
    let wanted: Vec<&Arc<pb::Task>> = tasks.iter().filter(|task| access::is_wanted(task)).collect();
    let firm = wanted.iter().any(|task| draft.ground(task) == Ground::Firm);
    if !firm && let Some(desired) = successor(draft, key, &tasks) {
        draft.create(key, desired);
    }
    retire_doubles(draft, key);
    promote(draft, key);
}

/// Tasks that ended, or whose node cannot keep them.
fn retire_what_cannot_stay(draft: &mut Draft, key: &SlotKey) {
    for task in draft.slot(key) {
        let ground = draft.ground(&task);
        if ground == Ground::Gone && !access::has_ended(&task) {
            draft.orphan(&task);
        }
        if !access::is_wanted(&task) {
            continue;
        }
        if access::state(&task) > TaskState::Running {
            if ground != Ground::Firm || !awaits_its_turn(draft, key, &task) {
                draft.set_desired(&task, TaskState::Shutdown);
            }
        } else if matches!(ground, Ground::Leaving | Ground::Gone) {
            let drained = draft
                .store
                .get::<pb::Node>(&task.node_id)
                .is_none_or(|n| access::availability(n) == pb::node_spec::Availability::Drain);
            if !drained {
                draft.reject(&task, "assigned node no longer meets constraints");
            }
            draft.set_desired(&task, TaskState::Shutdown);
        }
    }
}

/// Could not even be prepared, and is not replaced before it would have started: a node asks a registry
/// for an image that is none once in a restart delay, not all the time.
pub fn awaits_its_turn(draft: &mut Draft, key: &SlotKey, task: &pb::Task) -> bool {
    if task.desired_state() != TaskState::Ready {
        return false;
    }
    let turn = turn(draft, &draft.slot(key), task);
    if turn > draft.now {
        draft.wake_at(Part::Slot(key.clone()), turn);
    }
    turn > draft.now
}

/// When a task that was made ready may start: the restart delay after it was made.
fn turn(draft: &Draft, tasks: &[Arc<pb::Task>], task: &pb::Task) -> Instant {
    let others: Vec<Arc<pb::Task>> = tasks.iter().filter(|t| t.id != task.id).cloned().collect();
    let born = match &task.meta {
        Some(meta) => access::created_at(Some(meta)),
        None => draft.now,
    };
    start_time(draft, &others, born)
}

/// Whether the slot needs a new task, and whether that may run at once.
fn successor(draft: &Draft, key: &SlotKey, tasks: &[Arc<pb::Task>]) -> Option<TaskState> {
    let newest = tasks.last()?;
    let silent = access::is_wanted(newest) && draft.ground(newest) == Ground::Silent;
    // A global service's task waits for its own node.
    if matches!(key, SlotKey::Node(_)) && silent {
        return None;
    }
    if !draft.is_dirty(newest) && !may_restart(draft, newest, tasks) {
        return None;
    }
    Some(begin(draft, tasks))
}

/// What to want of a new task after those: it waits for their end and for the restart delay.
pub fn begin(draft: &Draft, tasks: &[Arc<pb::Task>]) -> TaskState {
    let ready = tasks.iter().all(|task| stopped(draft, task))
        && start_time(draft, tasks, draft.now) <= draft.now;
    if ready { draft.aim() } else { TaskState::Ready }
}

/// The restart policy's word. Attempts are counted by the tasks that the history still has.
pub fn may_restart(draft: &Draft, newest: &pb::Task, tasks: &[Arc<pb::Task>]) -> bool {
    use pb::restart_policy::RestartCondition;
    let Some(policy) = newest.spec.as_ref().and_then(|spec| spec.restart.as_ref()) else {
        return true;
    };
    let state = access::state(newest);
    match policy.condition() {
        RestartCondition::None => return false,
        RestartCondition::OnFailure if state == TaskState::Complete => return false,
        _ => {}
    }
    if policy.max_attempts == 0 || !ended_by_itself(newest) {
        return true;
    }
    let same = tasks.iter().filter(|task| task.spec_version == newest.spec_version);
    let window = policy.window.as_ref().map(access::duration).unwrap_or_default();
    // The first of them is no restart.
    let restarts = same.skip(1).filter(|task| {
        let born = access::created_at(task.meta.as_ref());
        window == Duration::ZERO || draft.now.since(born) <= window
    });
    (restarts.count() as u64) < policy.max_attempts
}

/// When a task born at `born` may start after its predecessors: the restart delay counts only
/// after an end of its own, not when an update or the loss of a node displaced the old one.
fn start_time(draft: &Draft, predecessors: &[Arc<pb::Task>], born: Instant) -> Instant {
    let Some(last) = predecessors.last().filter(|last| ended_by_itself(last)) else { return born };
    if draft.is_dirty(last) {
        return born;
    }
    let delay = draft.task_spec.restart.as_ref().and_then(|policy| policy.delay.as_ref());
    born + delay.map_or(RESTART_DELAY, access::duration)
}

/// One wanted task per slot, but for a successor that is not running yet: the one that runs what
/// the service wants now stays, so a node that comes back in time keeps its task.
fn retire_doubles(draft: &mut Draft, key: &SlotKey) {
    let tasks = draft.slot(key);
    let wanted: Vec<&Arc<pb::Task>> = tasks.iter().filter(|task| access::is_wanted(task)).collect();
    if wanted.len() < 2 {
        return;
    }
    let runs = |task: &pb::Task| {
        access::state(task) == TaskState::Running && draft.ground(task) == Ground::Firm
    };
    let current = wanted.iter().find(|task| runs(task) && !draft.is_dirty(task));
    let mut keep: Vec<String> = Vec::new();
    if let Some(current) = current {
        keep.push(current.id.clone());
    } else {
        let old = wanted.iter().find(|task| runs(task) || draft.ground(task) == Ground::Silent);
        let new = wanted
            .iter()
            .filter(|task| !runs(task) && draft.ground(task) == Ground::Firm)
            .min_by_key(|task| draft.is_dirty(task));
        // A successor that waits for the end of what no longer fits would wait for ever: this is
        // how a node comes back whose task was replaced while it was silent.
        let waits = new
            .is_some_and(|task| task.desired_state() == TaskState::Ready && !draft.is_dirty(task));
        let old = old.filter(|task| !(waits && runs(task)));
        keep.extend(old.into_iter().chain(new).map(|task| task.id.clone()));
    }
    let retired: Vec<Arc<pb::Task>> =
        wanted.into_iter().filter(|task| !keep.contains(&task.id)).cloned().collect();
    for task in retired {
        draft.set_desired(&task, TaskState::Shutdown);
    }
}

/// A task that was made ready starts when the others have stopped and its delay is over.
pub fn promote(draft: &mut Draft, key: &SlotKey) {
    let tasks = draft.slot(key);
    for task in tasks.iter().filter(|task| task.desired_state() == TaskState::Ready) {
        let start = turn(draft, &tasks, task);
        let mut others = tasks.iter().filter(|other| other.id != task.id);
        if start > draft.now {
            draft.wake_at(Part::Slot(key.clone()), start);
        } else if others.all(|other| stopped(draft, other)) {
            draft.set_desired(task, draft.aim());
        }
    }
}

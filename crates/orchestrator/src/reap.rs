//! Tasks that nobody needs any more, and how many of the old ones are kept.

use std::sync::Arc;

use store::access::{self, TaskState};
use wire::swarmkit as pb;

use crate::draft::{Draft, Ground};

const HISTORY: i64 = 5;

/// Whether a task that is to be removed can go now.
pub fn is_finished(task: &pb::Task, node_is_gone: bool) -> bool {
    let state = access::state(task);
    if state == TaskState::Orphaned {
        return true;
    }
    task.desired_state() == TaskState::Remove
        && (state > TaskState::Running || state < TaskState::Assigned || node_is_gone)
}

pub fn reap(draft: &mut Draft) {
    let limit = limit(draft);
    for tasks in draft.slots().clone().into_values() {
        let (finished, kept): (Vec<_>, Vec<_>) = tasks
            .into_iter()
            .partition(|task| is_finished(task, draft.ground(task) == Ground::Gone));
        finished.iter().for_each(|task| draft.remove(task));
        let Some(limit) = limit else { continue };
        let excess = kept.len().saturating_sub(limit);
        let old = kept.iter().filter(|task| access::has_ended(task) && !stands(draft, task, &kept));
        let old: Vec<_> = old.take(excess).collect();
        old.into_iter().for_each(|task| draft.remove(task));
    }
}

/// An ended task that still says what its slot is: of a job, the last one of the present run tells
/// that it is done, or that it failed for good.
fn stands(draft: &Draft, task: &pb::Task, slot: &[Arc<pb::Task>]) -> bool {
    match draft.iteration {
        None => access::is_wanted(task),
        Some(iteration) => {
            let done = access::state(task) == TaskState::Complete;
            let last = slot.last().is_some_and(|last| last.id == task.id);
            (done || last) && access::is_of_iteration(task, iteration)
        }
    }
}

/// Tasks per slot; `None` keeps all. The restart policy counts by the history, so it stays long
/// enough for that.
fn limit(draft: &Draft) -> Option<usize> {
    let cluster = draft.store.cluster().and_then(|cluster| cluster.spec.as_ref());
    let orchestration = cluster.and_then(|spec| spec.orchestration.as_ref());
    let limit = orchestration.map_or(HISTORY, |spec| spec.task_history_retention_limit);
    let attempts = draft.task_spec.restart.as_ref().map_or(0, |policy| policy.max_attempts);
    let attempts = match attempts {
        0 => 0,
        attempts => usize::try_from(attempts).unwrap_or(usize::MAX).saturating_add(1),
    };
    usize::try_from(limit).ok().map(|limit| limit.max(attempts))
}

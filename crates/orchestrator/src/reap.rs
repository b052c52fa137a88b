//! Tasks that nobody needs any more, and how many of the old ones are kept.

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
        let old = kept.iter().filter(|task| !access::is_wanted(task) && access::has_ended(task));
        old.take(excess).for_each(|task| draft.remove(task));
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

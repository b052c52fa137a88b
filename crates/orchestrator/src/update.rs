//! Bringing a service's tasks to its new spec, a few at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::Instant;
use pb::update_config::FailureAction;
use pb::update_status::UpdateState;
use store::access::{self, TaskState};
use store::transaction::timestamp;
use wire::swarmkit as pb;

use crate::draft::{Draft, Ground, Part, SlotKey};
use crate::slot;

const MONITOR: Duration = Duration::from_secs(5);

/// When tasks were first seen running; a new leader knows none and counts their failures all.
pub type RunningSince = BTreeMap<String, Instant>;

/// How to update, with SwarmKit's defaults.
struct Rules {
    parallelism: usize,
    delay: Duration,
    monitor: Duration,
    start_first: bool,
    on_failure: FailureAction,
    max_failure_ratio: f32,
}

impl Rules {
    fn new(config: Option<&pb::UpdateConfig>) -> Self {
        let default = pb::UpdateConfig { parallelism: 1, ..Default::default() };
        let config = config.unwrap_or(&default);
        Rules {
            parallelism: match config.parallelism {
                0 => usize::MAX,
                some => usize::try_from(some).unwrap_or(usize::MAX),
            },
            delay: config.delay.as_ref().map(access::duration).unwrap_or_default(),
            monitor: config.monitor.as_ref().map_or(MONITOR, access::duration),
            start_first: config.order() == pb::update_config::UpdateOrder::StartFirst,
            on_failure: config.failure_action(),
            max_failure_ratio: config.max_failure_ratio,
        }
    }
}

fn state_of(draft: &Draft) -> UpdateState {
    draft.update_status().map_or(UpdateState::Unknown, |status| status.state())
}

fn rolls_back(state: UpdateState) -> bool {
    matches!(
        state,
        UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted
    )
}

/// The slot's task that the service wants now, and whether anything of the old remains.
struct Progress {
    key: SlotKey,
    new: Option<Arc<pb::Task>>,
    old_remains: bool,
}

fn progress(draft: &Draft) -> Vec<Progress> {
    let mut all = Vec::new();
    for (key, tasks) in draft.slots() {
        if tasks.iter().all(|task| task.desired_state() == TaskState::Remove) {
            continue;
        }
        let (old, new): (Vec<&Arc<pb::Task>>, Vec<&Arc<pb::Task>>) =
            tasks.iter().partition(|task| draft.is_dirty(task));
        let wanted = new.iter().rev().find(|task| access::is_wanted(task));
        let old_remains = old.iter().any(|task| access::is_wanted(task));
        // A task that has done its work stands for the slot as well as one that runs; not one that
        // was stopped because an older task came back with its node.
        let rests = |last: &&Arc<pb::Task>| !old_remains || slot::ended_by_itself(last);
        let rested = || tasks.last().filter(|last| !draft.is_dirty(last)).filter(rests);
        let new = wanted.copied().or_else(rested).cloned();
        all.push(Progress { key: key.clone(), new, old_remains });
    }
    all
}

/// Whether what became of some slots is to be seen beside the others: while an update is under way,
/// or when it has to begin because of them.
pub fn concerns_all(draft: &Draft) -> bool {
    match state_of(draft) {
        UpdateState::Paused | UpdateState::RollbackPaused => false,
        UpdateState::Updating | UpdateState::RollbackStarted => {
            !progress(draft).iter().all(|slot| is_on_its_way(draft, slot))
        }
        _ => is_outdated(&progress(draft)),
    }
}

/// The update has nothing to decide about this slot before its new task runs or has failed. Each task of an update is
/// reported about several times: were all others looked at each time, an update's cost would grow with their square.
fn is_on_its_way(draft: &Draft, slot: &Progress) -> bool {
    let failed = |task: &Arc<pb::Task>| slot::ended_by_itself(task) && is_of_update(draft, task);
    slot.new.as_ref().is_some_and(|new| is_coming(new)) && !draft.slot(&slot.key).iter().any(failed)
}

/// It was made by the update that is under way.
fn is_of_update(draft: &Draft, task: &pb::Task) -> bool {
    access::created_at(task.meta.as_ref()) >= started_at(draft) && !draft.is_dirty(task)
}

fn is_outdated(slots: &[Progress]) -> bool {
    slots.iter().any(|slot| slot.new.is_none() || slot.old_remains)
}

pub fn update(draft: &mut Draft, running_since: &RunningSince) {
    let state = state_of(draft);
    if matches!(state, UpdateState::Paused | UpdateState::RollbackPaused) {
        return;
    }
    let slots = progress(draft);
    let outdated = is_outdated(&slots);
    let under_way = matches!(state, UpdateState::Updating | UpdateState::RollbackStarted);
    if !outdated && !under_way {
        return;
    }
    if !under_way {
        begin(draft);
    } else if state == UpdateState::RollbackStarted && started_at(draft) == Instant::default() {
        begin_rollback(draft);
    }
    let spec = draft.service.spec.clone().unwrap_or_default();
    let config = if rolls_back(state) { spec.rollback } else { spec.update };
    let rules = Rules::new(config.as_ref());
    if let Some(task) = failure(draft, &slots, &rules, running_since) {
        match rules.on_failure {
            FailureAction::Rollback
                if !rolls_back(state) && draft.service.previous_spec.is_some() =>
            {
                roll_back(draft, &task);
            }
            _ => pause(draft, &task),
        }
        return;
    }
    start_some(draft, &slots, &rules, running_since);
    if !outdated {
        complete(draft, &slots, &rules, running_since);
    }
}

fn started_at(draft: &Draft) -> Instant {
    access::instant(draft.update_status().and_then(|status| status.started_at.as_ref()))
}

fn begin(draft: &mut Draft) {
    let mut status = pb::UpdateStatus {
        started_at: Some(timestamp(draft.now)),
        message: "update in progress".to_owned(),
        ..Default::default()
    };
    status.set_state(UpdateState::Updating);
    draft.set_update_status(status);
}

fn begin_rollback(draft: &mut Draft) {
    let mut status = draft.update_status().cloned().unwrap_or_default();
    status.started_at = Some(timestamp(draft.now));
    draft.set_update_status(status);
}

/// A task of the new spec that ended too early, when more slots had one than the rules allow.
fn failure(
    draft: &Draft,
    slots: &[Progress],
    rules: &Rules,
    running_since: &RunningSince,
) -> Option<String> {
    let mut failed: BTreeSet<&SlotKey> = BTreeSet::new();
    let mut last = None;
    for (key, tasks) in draft.slots() {
        for task in tasks.iter().filter(|task| slot::ended_by_itself(task)) {
            let status = task.status.as_ref();
            let ended = access::instant(
                status.and_then(|status| status.applied_at.as_ref().or(status.timestamp.as_ref())),
            );
            let since = running_since.get(&task.id);
            let early = since.is_none_or(|since| ended.since(*since) <= rules.monitor);
            if is_of_update(draft, task) && early {
                failed.insert(key);
                last = Some(task.id.clone());
            }
        }
    }
    let ratio = failed.len() as f32 / slots.len().max(1) as f32;
    let minds = rules.on_failure != FailureAction::Continue;
    last.filter(|_| minds && ratio > rules.max_failure_ratio)
}

fn pause(draft: &mut Draft, task: &str) {
    let mut status = draft.update_status().cloned().unwrap_or_default();
    let (state, what) = match rolls_back(status.state()) {
        true => (UpdateState::RollbackPaused, "rollback"),
        false => (UpdateState::Paused, "update"),
    };
    status.set_state(state);
    status.message = format!("{what} paused due to failure or early termination of task {task}");
    draft.set_update_status(status);
}

fn roll_back(draft: &mut Draft, task: &str) {
    let mut status = pb::UpdateStatus {
        started_at: Some(timestamp(draft.now)),
        message: format!("update rolled back due to failure or early termination of task {task}"),
        ..Default::default()
    };
    status.set_state(UpdateState::RollbackStarted);
    draft.roll_back(status);
}

/// Replaces tasks of the old spec, as many at a time as the rules allow.
fn start_some(draft: &mut Draft, slots: &[Progress], rules: &Rules, running_since: &RunningSince) {
    let mut busy = 0usize;
    for slot in slots {
        busy += usize::from(is_busy(draft, slot, rules, running_since));
    }
    let waiting = slots.iter().filter(|slot| slot.new.is_none());
    let mut waiting: Vec<&Progress> = waiting.collect();
    // What does not run loses nothing by being replaced.
    waiting.sort_by_key(|slot| {
        let tasks = draft.slots().get(&slot.key);
        let mut tasks = tasks.into_iter().flatten();
        tasks.any(|task| access::is_wanted(task) && access::state(task) == TaskState::Running)
    });
    for slot in waiting.into_iter().take(rules.parallelism.saturating_sub(busy)) {
        replace(draft, &slot.key, rules.start_first);
    }
}

/// A slot takes part in the parallelism until its new task runs and the delay is over.
fn is_busy(
    draft: &mut Draft,
    slot: &Progress,
    rules: &Rules,
    running_since: &RunningSince,
) -> bool {
    let Some(new) = &slot.new else { return false };
    if access::created_at(new.meta.as_ref()) < started_at(draft) && new.meta.is_some() {
        return false;
    }
    if is_coming(new) {
        return true;
    }
    let since = running_since.get(&new.id).copied().unwrap_or_default();
    let free = since + rules.delay;
    if access::state(new) == TaskState::Running && free > draft.now {
        draft.wake_at(Part::Whole, free);
        return true;
    }
    slot.old_remains && rules.start_first
}

/// It does not run yet, or waits for its turn to be replaced.
fn is_coming(task: &pb::Task) -> bool {
    access::state(task) < TaskState::Running || task.desired_state() == TaskState::Ready
}

fn replace(draft: &mut Draft, key: &SlotKey, start_first: bool) {
    let tasks = draft.slot(key);
    let runs =
        |task: &pb::Task| access::is_wanted(task) && access::state(task) == TaskState::Running;
    if start_first && tasks.iter().any(|task| runs(task)) {
        draft.create(key, TaskState::Running);
        return;
    }
    for task in tasks.iter().filter(|task| access::is_wanted(task)) {
        draft.set_desired(task, TaskState::Shutdown);
    }
    let stopped = tasks.iter().all(|task| {
        access::has_ended(task) || matches!(draft.ground(task), Ground::Silent | Ground::Gone)
    });
    draft.create(key, if stopped { TaskState::Running } else { TaskState::Ready });
}

/// Everything is new: the update is done once all of it ran for the time of monitoring.
fn complete(draft: &mut Draft, slots: &[Progress], rules: &Rules, running_since: &RunningSince) {
    let start = started_at(draft);
    let mut done_at = start;
    for new in slots.iter().filter_map(|slot| slot.new.as_ref()) {
        if is_coming(new) {
            return;
        }
        if access::created_at(new.meta.as_ref()) >= start {
            let since = running_since.get(&new.id).copied().unwrap_or_default();
            done_at = done_at.max(since + rules.monitor);
        }
    }
    if done_at > draft.now {
        draft.wake_at(Part::Whole, done_at);
        return;
    }
    let mut status = draft.update_status().cloned().unwrap_or_default();
    let (state, what) = match rolls_back(status.state()) {
        true => (UpdateState::RollbackCompleted, "rollback"),
        false => (UpdateState::Completed, "update"),
    };
    status.set_state(state);
    status.message = format!("{what} completed");
    status.completed_at = Some(timestamp(draft.now));
    draft.set_update_status(status);
}

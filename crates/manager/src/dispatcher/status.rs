//! What nodes report about their tasks.

use model::Instant;
use store::access::{self, TaskState};
use store::transaction::timestamp;
use store::{Change, Store};
use wire::swarmkit as pb;

use super::Dispatcher;
use crate::event::{Answer, Code, Failure, Reply};

impl Dispatcher {
    pub(super) fn take_statuses(
        &mut self,
        store: &Store,
        node: &str,
        request: pb::UpdateTaskStatusRequest,
    ) -> Reply {
        self.check(node, &request.session_id)?;
        for update in &request.updates {
            // A task that is unknown here was removed: the node will hear of it.
            let task = store.get::<pb::Task>(&update.task_id);
            if task.is_some_and(|task| task.node_id != node) {
                let text = "cannot update a task not assigned this node";
                return Err(Failure::new(Code::PermissionDenied, text));
            }
        }
        for update in request.updates {
            let Some(status) = update.status else { continue };
            let known = self.statuses.get(&update.task_id);
            if known.is_none_or(|known| known.state() <= status.state()) {
                self.statuses.insert(update.task_id, status);
            }
        }
        Ok(Answer::UpdateTaskStatus(pb::UpdateTaskStatusResponse {}))
    }

    /// Wishes for the statuses that the store does not show yet. States never go backwards.
    pub(super) fn plan_statuses(&mut self, now: Instant, store: &Store) -> Vec<Change> {
        let mut changes = Vec::new();
        let own_id = &self.own_id;
        self.statuses.retain(|id, status| {
            if changes.len() == store::ACTIONS_MAX {
                return true;
            }
            let Some(task) = store.get::<pb::Task>(id) else { return false };
            let stored = task.status.clone().unwrap_or_default();
            let applied = pb::TaskStatus {
                applied_by: own_id.clone(),
                applied_at: Some(timestamp(now)),
                ..status.clone()
            };
            let shown = pb::TaskStatus {
                applied_by: applied.applied_by.clone(),
                applied_at: applied.applied_at,
                ..stored
            };
            if shown == applied || access::state(task) > status.state() {
                return false;
            }
            let task = pb::Task { status: Some(applied), ..pb::Task::clone(task) };
            changes.push(Change::update(task));
            true
        });
        changes
    }

    /// Tasks of nodes that have been down for a day.
    pub(super) fn orphan_tasks(&mut self, now: Instant, store: &Store) {
        for node in self.orphaned.take_due(now) {
            for task in store.tasks_of_node(&node) {
                let state = access::state(task);
                if (TaskState::Assigned..=TaskState::Running).contains(&state) {
                    let mut status = task.status.clone().unwrap_or_default();
                    status.set_state(TaskState::Orphaned);
                    status.message = "node has been down for a day".to_owned();
                    self.statuses.insert(task.id.clone(), status);
                }
            }
        }
    }
}

//! Tasks: read, and removed by hand.

use store::Store;
use wire::control::Response;
use wire::swarmkit as pb;

use super::{Decided, Desk, answer, filter, lacking, not_found, store_error};

pub fn get(desk: &Desk<'_>, request: pb::GetTaskRequest) -> Decided {
    if request.task_id.is_empty() {
        return Err(lacking());
    }
    let task = desk.store.get::<pb::Task>(&request.task_id);
    let task = task.ok_or_else(|| not_found("task", &request.task_id))?;
    answer(Response::GetTask(pb::GetTaskResponse { task: Some(pb::Task::clone(task)) }))
}

pub fn remove(desk: &Desk<'_>, request: pb::RemoveTaskRequest) -> Decided {
    if request.task_id.is_empty() {
        return Err(lacking());
    }
    let mut transaction = desk.transaction();
    transaction.remove::<pb::Task>(&request.task_id).map_err(|error| match error {
        store::Error::NotFound => not_found("task", &request.task_id),
        other => store_error(other),
    })?;
    desk.write(transaction, Box::new(|_| Ok(Response::RemoveTask(pb::RemoveTaskResponse {}))))
}

pub fn list(desk: &Desk<'_>, request: pb::ListTasksRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let tasks = desk.store.all::<pb::Task>().filter(|task| wanted(desk.store, task, &filters));
    let tasks = tasks.map(|task| pb::Task::clone(task)).collect();
    answer(Response::ListTasks(pb::ListTasksResponse { tasks }))
}

fn wanted(store: &Store, task: &pb::Task, filters: &pb::list_tasks_request::Filters) -> bool {
    let labels = task.service_annotations.as_ref().map(|annotations| &annotations.labels);
    let up_to_date = || {
        let service = store.get::<pb::Service>(&task.service_id);
        service.is_some_and(|service| !orchestrator::differs(store, service, task))
    };
    filter::any_prefix(&task.id, &filters.id_prefixes)
        && filter::any(&task.service_id, &filters.service_ids)
        && filter::any(&task.node_id, &filters.node_ids)
        && filter::any_number(task.desired_state, &filters.desired_states)
        && filter::labels(labels, &filters.labels)
        && (filters.names.is_empty() || filter::any(&name(task), &filters.names))
        && (filters.name_prefixes.is_empty()
            || filter::any_prefix(&name(task), &filters.name_prefixes))
        && (filters.runtimes.is_empty()
            || filter::any(runtime(task.spec.as_ref()), &filters.runtimes))
        && (!filters.up_to_date || up_to_date())
}

/// `service.slot.id`, or with the node in the slot's place for global services.
fn name(task: &pb::Task) -> String {
    if let Some(annotations) = &task.annotations
        && !annotations.name.is_empty()
    {
        return annotations.name.clone();
    }
    let service = task.service_annotations.as_ref().map_or("", |annotations| &annotations.name);
    match task.slot {
        0 => format!("{service}.{}.{}", task.node_id, task.id),
        slot => format!("{service}.{slot}.{}", task.id),
    }
}

/// The runtime's name, as lists are filtered by it.
pub fn runtime(spec: Option<&pb::TaskSpec>) -> &str {
    match spec.and_then(|spec| spec.runtime.as_ref()) {
        Some(pb::task_spec::Runtime::Attachment(_)) => "attachment",
        Some(pb::task_spec::Runtime::Generic(generic)) => &generic.kind,
        Some(pb::task_spec::Runtime::Container(_)) => "container",
        None => "",
    }
}

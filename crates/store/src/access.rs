//! Questions that many rooms ask of objects, answered once and for any object, complete or not.

use std::time::Duration;

use model::Instant;
use wire::swarmkit as pb;

pub use pb::TaskState;

/// The state that was last reported; a task without one is new.
pub fn state(task: &pb::Task) -> TaskState {
    task.status.as_ref().map_or(TaskState::New, |status| status.state())
}

/// Nothing of the task runs any more, or ever will.
pub fn has_ended(task: &pb::Task) -> bool {
    state(task) > TaskState::Running || (!is_wanted(task) && state(task) < TaskState::Assigned)
}

/// The task is wanted, whatever it does at the moment: it shall run, or run until it completes.
pub fn is_wanted(task: &pb::Task) -> bool {
    task.desired_state() <= TaskState::Complete
}

/// What the task is called, its container too: its own name, else made of its service's (SwarmKit's
/// `naming.Task`).
pub fn task_name(task: &pb::Task) -> String {
    let own = task.annotations.as_ref().map_or("", |annotations| &annotations.name);
    let service = task.service_annotations.as_ref().map_or("", |annotations| &annotations.name);
    match task.slot {
        _ if !own.is_empty() => own.to_owned(),
        0 => format!("{service}.{}.{}", task.node_id, task.id),
        slot => format!("{service}.{slot}.{}", task.id),
    }
}

/// `None` for other modes than replicated.
pub fn replicas(service: &pb::Service) -> Option<u64> {
    match service.spec.as_ref()?.mode.as_ref()? {
        pb::service_spec::Mode::Replicated(replicated) => Some(replicated.replicas),
        _ => None,
    }
}

/// One task on each node, be it a service's or a job's.
pub fn is_global(service: &pb::Service) -> bool {
    use pb::service_spec::Mode;
    let mode = service.spec.as_ref().and_then(|spec| spec.mode.as_ref());
    matches!(mode, Some(Mode::Global(_) | Mode::GlobalJob(_)))
}

pub fn is_job(spec: &pb::ServiceSpec) -> bool {
    use pb::service_spec::Mode;
    matches!(spec.mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)))
}

/// Which run of a job is the present one; `None` for services that are no jobs.
pub fn job_iteration(service: &pb::Service) -> Option<u64> {
    let job = service.spec.as_ref().is_some_and(is_job);
    let iteration = service.job_status.as_ref().and_then(|status| status.job_iteration.as_ref());
    job.then(|| iteration.map_or(0, |version| version.index))
}

/// The task belongs to the present run of its job.
pub fn is_of_iteration(task: &pb::Task, iteration: u64) -> bool {
    task.job_iteration.as_ref().is_some_and(|version| version.index == iteration)
}

pub fn availability(node: &pb::Node) -> pb::node_spec::Availability {
    node.spec.as_ref().map_or(pb::node_spec::Availability::Active, |spec| spec.availability())
}

pub fn node_state(node: &pb::Node) -> pb::node_status::State {
    node.status.as_ref().map_or(pb::node_status::State::Unknown, |status| status.state())
}

pub fn hostname(node: &pb::Node) -> &str {
    node.description.as_ref().map_or("", |description| description.hostname.as_str())
}

/// A point in time; the beginning of all time when it is missing.
pub fn instant(time: Option<&prost_types::Timestamp>) -> Instant {
    let nanos = time.map_or(0, |time| {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        let nanos = u64::try_from(time.nanos).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    });
    Instant::from_nanos(nanos)
}

/// A length of time; negative ones are zero.
pub fn duration(time: &prost_types::Duration) -> Duration {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let nanos = u32::try_from(time.nanos).unwrap_or(0);
    Duration::new(seconds, nanos.min(999_999_999))
}

pub fn created_at(meta: Option<&pb::Meta>) -> Instant {
    instant(meta.and_then(|meta| meta.created_at.as_ref()))
}

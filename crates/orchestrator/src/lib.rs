//! Replicated and global services, jobs; update, rollback, restart, reaping.
//!
//! A leader makes one when it begins to lead and drops it when it no longer does: what is in here
//! follows from the stored objects. A plan is a wish over committed state; changes that are not
//! carried out are wished again by the next plan.

mod draft;
mod job;
mod reap;
mod scale;
mod slot;
#[cfg(test)]
mod tests;
mod update;

pub use draft::differs;

use std::collections::{BTreeMap, BTreeSet};

use model::Instant;
use pb::service_spec::Mode;
use rand_chacha::ChaCha8Rng;
use store::access::{self, TaskState};
use store::{Change, Held, Kind, Store, Touched};
use wire::swarmkit as pb;

use draft::Draft;
use update::RunningSince;

/// Changes in one plan; what is beyond waits for the next.
const PLAN_MAX: usize = store::ACTIONS_MAX;

pub struct Orchestrator {
    dice: ChaCha8Rng,
    read: bool,
    /// Services to look at. The empty id stands for tasks without one: network attachments.
    dirty: BTreeSet<String>,
    wake: BTreeMap<String, Instant>,
    running_since: RunningSince,
}

impl Orchestrator {
    /// The generator makes the ids of new tasks.
    pub fn new(dice: ChaCha8Rng) -> Self {
        Self {
            dice,
            read: false,
            dirty: BTreeSet::new(),
            wake: BTreeMap::new(),
            running_since: RunningSince::new(),
        }
    }

    /// What should change now. `touched` is everything that was applied since the last call; the
    /// first call reads the whole store instead.
    #[must_use]
    pub fn plan(&mut self, now: Instant, store: &Store, touched: &[Touched]) -> Vec<Change> {
        if std::mem::replace(&mut self.read, true) {
            touched.iter().for_each(|touched| self.note(now, store, touched));
        } else {
            self.look_at_everything(store);
            let tasks = store.all::<pb::Task>();
            let of = tasks.map(|task| task.service_id.clone()).collect::<BTreeSet<_>>();
            self.dirty.extend(of);
        }
        let due: Vec<String> =
            self.wake.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        self.dirty.extend(due);
        let mut changes = Vec::new();
        for id in self.dirty.clone() {
            if changes.len() >= PLAN_MAX {
                break;
            }
            self.wake.remove(&id);
            let (wishes, wake) = self.plan_service(now, store, &id);
            if let Some(at) = wake {
                self.wake.insert(id.clone(), at);
            }
            if wishes.is_empty() {
                self.dirty.remove(&id);
            }
            changes.extend(wishes);
        }
        changes
    }

    /// When [`Self::plan`] has something to do although nothing was applied.
    pub fn deadline(&self) -> Option<Instant> {
        self.wake.values().min().copied()
    }

    fn look_at_everything(&mut self, store: &Store) {
        self.dirty.extend(store.all::<pb::Service>().map(|service| service.id.clone()));
        self.dirty.insert(String::new());
    }

    fn note(&mut self, now: Instant, store: &Store, touched: &Touched) {
        match touched.kind {
            Kind::Service => drop(self.dirty.insert(touched.id.clone())),
            Kind::Cluster => self.look_at_everything(store),
            _ => {}
        }
        if concerns_service(store, touched) {
            for target in [&touched.old, &touched.new].into_iter().flatten() {
                if let Held::Task(task) = target {
                    self.dirty.insert(task.service_id.clone());
                }
            }
        }
        match (&touched.old, &touched.new) {
            (_, Some(Held::Task(task))) if access::state(task) == TaskState::Running => {
                self.running_since.entry(task.id.clone()).or_insert(now);
            }
            (Some(Held::Task(task)), None) => drop(self.running_since.remove(&task.id)),
            (old, Some(Held::Node(new))) => {
                let old = match old {
                    Some(Held::Node(old)) => Some(old),
                    _ => None,
                };
                if old.is_none_or(|old| matters(old) != matters(new)) {
                    self.look_at_users_of(store, &touched.id);
                }
            }
            (Some(Held::Node(_)), None) => self.look_at_users_of(store, &touched.id),
            _ => {}
        }
    }

    fn look_at_users_of(&mut self, store: &Store, node: &str) {
        self.dirty.extend(store.tasks_of_node(node).map(|task| task.service_id.clone()));
        let global = store.all::<pb::Service>().filter(|service| access::is_global(service));
        self.dirty.extend(global.map(|service| service.id.clone()));
    }

    fn plan_service(
        &mut self,
        now: Instant,
        store: &Store,
        id: &str,
    ) -> (Vec<Change>, Option<Instant>) {
        let service = store.get::<pb::Service>(id).filter(|service| !service.pending_delete);
        let Some(service) = service else { return (without_service(store, id), None) };
        let mut draft = Draft::new(now, store, service, &mut self.dice);
        match service.spec.as_ref().and_then(|spec| spec.mode.as_ref()) {
            Some(Mode::Replicated(mode)) => scale::replicated(&mut draft, mode.replicas),
            Some(Mode::Global(_)) => scale::global(&mut draft),
            Some(Mode::ReplicatedJob(mode)) => job::replicated(&mut draft, mode),
            Some(Mode::GlobalJob(_)) => job::global(&mut draft),
            None => return (Vec::new(), None),
        }
        if access::job_iteration(service).is_none() {
            update::update(&mut draft, &self.running_since);
        }
        reap::reap(&mut draft);
        draft.finish()
    }
}

/// What of a node decides about its tasks.
fn matters(node: &pb::Node) -> (Option<&pb::NodeSpec>, i32, i32, Option<&pb::NodeDescription>) {
    let status = node.status.as_ref();
    (
        node.spec.as_ref(),
        status.map_or(0, |status| status.state),
        node.role,
        node.description.as_ref(),
    )
}

/// Whether a change of a task can change what its service wants. A task on its way to running does
/// not: a service is not looked at as a whole for each report about each of its tasks.
fn concerns_service(store: &Store, touched: &Touched) -> bool {
    let (Some(Held::Task(old)), Some(Held::Task(new))) = (&touched.old, &touched.new) else {
        return true;
    };
    fn endpoint(task: &pb::Task) -> Option<&pb::EndpointSpec> {
        task.endpoint.as_ref()?.spec.as_ref()
    }
    let on_its_way = [old, new].into_iter().all(|task| {
        (TaskState::Running..=TaskState::Complete).contains(&task.desired_state())
            && access::state(task) <= TaskState::Running
    }) && old.desired_state == new.desired_state
        && old.node_id == new.node_id
        && old.spec_version == new.spec_version
        && old.spec == new.spec
        && endpoint(old) == endpoint(new);
    if !on_its_way {
        return true;
    }
    let begins_to_run =
        access::state(old) < TaskState::Running && access::state(new) == TaskState::Running;
    begins_to_run && (is_under_update(store, &new.service_id) || has_slot_mates(store, new))
}

/// Anything but an update that never began or is over.
fn is_under_update(store: &Store, service: &str) -> bool {
    use pb::update_status::UpdateState;
    let service = store.get::<pb::Service>(service);
    let status = service.and_then(|service| service.update_status.as_ref());
    status.is_some_and(|status| {
        let over = [UpdateState::Unknown, UpdateState::Completed, UpdateState::RollbackCompleted];
        !over.contains(&status.state())
    })
}

/// Whether the slot has other tasks, which may be retired or started when this one runs.
fn has_slot_mates(store: &Store, task: &pb::Task) -> bool {
    let is_mate = |other: &pb::Task| other.service_id == task.service_id && other.id != task.id;
    match task.slot {
        0 => store.tasks_of_node(&task.node_id).any(|other| is_mate(other)),
        slot => store.tasks_of_slot(&task.service_id, slot).any(|other| is_mate(other)),
    }
}

/// Tasks whose service is gone, or that never had one: attachments live until they are to be
/// removed or end.
fn without_service(store: &Store, id: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    for task in store.tasks_of_service(id) {
        let gone = !task.node_id.is_empty() && store.get::<pb::Node>(&task.node_id).is_none();
        let over = id.is_empty() && (gone || access::state(task) > TaskState::Running);
        if over || reap::is_finished(task, gone) {
            changes.push(Change::remove::<pb::Task>(task.id.clone()));
        } else if !id.is_empty() && task.desired_state() != TaskState::Remove {
            let mut task = pb::Task::clone(task);
            task.set_desired_state(TaskState::Remove);
            changes.push(Change::update(task));
        }
    }
    changes
}

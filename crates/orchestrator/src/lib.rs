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
use std::ops::Bound;

use model::{Agenda, Instant};
use pb::service_spec::Mode;
use rand_chacha::ChaCha8Rng;
use store::access::{self, TaskState};
use store::{Change, Held, Kind, Store, Touched};
use wire::swarmkit as pb;

use draft::{Draft, Part, SlotKey};
use update::RunningSince;

/// Changes in one plan; what is beyond waits for the next.
const PLAN_MAX: usize = store::ACTIONS_MAX;
/// Objects of the store that one plan reads, and those of one service more: some milliseconds.
const READS_MAX: u64 = 10_000;

pub struct Orchestrator {
    dice: ChaCha8Rng,
    read: bool,
    /// Services to look at, and at what of them, until nothing of it is wished any more. The empty
    /// id stands for tasks without one: network attachments.
    dirty: BTreeMap<String, BTreeSet<Part>>,
    /// The last one that was looked at: they take turns, as not all may fit into one plan.
    seen: String,
    /// The last plan found nothing to wish in as much as it looks at, and there is more.
    behind: bool,
    wakes: Agenda<(String, Part)>,
    running_since: RunningSince,
}

impl Orchestrator {
    /// The generator makes the ids of new tasks.
    pub fn new(dice: ChaCha8Rng) -> Self {
        Self {
            dice,
            read: false,
            dirty: BTreeMap::new(),
            seen: String::new(),
            behind: false,
            wakes: Agenda::default(),
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
            let without = |task: &pb::Task| store.get::<pb::Service>(&task.service_id).is_none();
            for task in store.all::<pb::Task>().filter(|task| without(task)) {
                self.look_at(&task.service_id, Part::Whole);
            }
        }
        for (service, part) in self.wakes.take_due(now) {
            self.look_at(&service, part);
        }
        let before = store.reads();
        let mut left = self.dirty.len();
        let mut changes = Vec::new();
        while changes.len() < PLAN_MAX
            && store.reads() - before < READS_MAX
            && let Some(more) = left.checked_sub(1)
            && let Some((id, parts)) = self.next_dirty()
        {
            let (wishes, wakes) = self.plan_service(now, store, &id, &parts);
            for (part, at) in wakes {
                self.wakes.set((id.clone(), part), at);
            }
            if wishes.is_empty() {
                self.dirty.remove(&id);
            }
            changes.extend(wishes);
            self.seen = id;
            left = more;
        }
        self.behind = left > 0 && changes.is_empty();
        changes
    }

    /// When [`Self::plan`] has something to do although nothing was applied.
    pub fn deadline(&self) -> Option<Instant> {
        if self.behind { Some(Instant::default()) } else { self.wakes.first() }
    }

    fn look_at(&mut self, service: &str, part: Part) {
        self.dirty.entry(service.to_owned()).or_default().insert(part);
    }

    fn next_dirty(&self) -> Option<(String, BTreeSet<Part>)> {
        let after = (Bound::Excluded(self.seen.as_str()), Bound::Unbounded);
        let next = self.dirty.range::<str, _>(after).next().or(self.dirty.first_key_value());
        next.map(|(id, parts)| (id.clone(), parts.clone()))
    }

    fn look_at_everything(&mut self, store: &Store) {
        for service in store.all::<pb::Service>() {
            self.look_at(&service.id, Part::Whole);
        }
        self.look_at("", Part::Whole);
    }

    fn note(&mut self, now: Instant, store: &Store, touched: &Touched) {
        match (touched.kind, &touched.old, &touched.new) {
            (Kind::Service, _, _) => self.look_at(&touched.id, Part::Whole),
            (Kind::Cluster, Some(Held::Cluster(old)), Some(Held::Cluster(new)))
                if history(old) == history(new) => {}
            (Kind::Cluster, _, _) => self.look_at_everything(store),
            _ => {}
        }
        if concerns_service(store, touched) {
            for target in [&touched.old, &touched.new].into_iter().flatten() {
                if let Held::Task(task) = target {
                    let slot_is_gone = touched.new.is_none() && !has_slot_mates(store, task);
                    let slot = || Part::Slot(SlotKey::of(task));
                    let part = if slot_is_gone { Part::Whole } else { slot() };
                    self.look_at(&task.service_id, part);
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
        for task in store.tasks_of_node(node) {
            self.look_at(&task.service_id, Part::Slot(SlotKey::of(task)));
        }
        for service in store.all::<pb::Service>().filter(|service| access::is_global(service)) {
            self.look_at(&service.id, Part::Slot(SlotKey::Node(node.to_owned())));
        }
    }

    fn plan_service(
        &mut self,
        now: Instant,
        store: &Store,
        id: &str,
        parts: &BTreeSet<Part>,
    ) -> (Vec<Change>, Vec<(Part, Instant)>) {
        let service = store.get::<pb::Service>(id).filter(|service| !service.pending_delete);
        let Some(service) = service else { return (without_service(store, id, parts), Vec::new()) };
        let planned =
            slots_alone(parts).and_then(|keys| self.plan_slots(now, store, service, &keys));
        planned.unwrap_or_else(|| self.plan_whole(now, store, service))
    }

    /// `None` when the whole service is to be looked at.
    fn plan_slots(
        &mut self,
        now: Instant,
        store: &Store,
        service: &pb::Service,
        keys: &BTreeSet<SlotKey>,
    ) -> Option<(Vec<Change>, Vec<(Part, Instant)>)> {
        let mut draft = Draft::new(now, store, service, Some(keys), &mut self.dice);
        match service.spec.as_ref().and_then(|spec| spec.mode.as_ref()) {
            Some(Mode::Replicated(_)) => scale::replicated_slots(&mut draft, keys),
            Some(Mode::Global(_)) => scale::global_slots(&mut draft, keys),
            _ => return None,
        }
        if update::concerns_all(&draft) {
            return None;
        }
        reap::reap(&mut draft);
        Some(draft.finish())
    }

    fn plan_whole(
        &mut self,
        now: Instant,
        store: &Store,
        service: &pb::Service,
    ) -> (Vec<Change>, Vec<(Part, Instant)>) {
        let mut draft = Draft::new(now, store, service, None, &mut self.dice);
        match service.spec.as_ref().and_then(|spec| spec.mode.as_ref()) {
            Some(Mode::Replicated(mode)) => scale::replicated(&mut draft, mode.replicas),
            Some(Mode::Global(_)) => scale::global(&mut draft),
            Some(Mode::ReplicatedJob(mode)) => job::replicated(&mut draft, mode),
            Some(Mode::GlobalJob(_)) => job::global(&mut draft),
            None => return (Vec::new(), Vec::new()),
        }
        if access::job_iteration(service).is_none() {
            update::update(&mut draft, &self.running_since);
        }
        reap::reap(&mut draft);
        draft.finish()
    }
}

/// The slots, when nothing else is to be looked at.
fn slots_alone(parts: &BTreeSet<Part>) -> Option<BTreeSet<SlotKey>> {
    let slot = |part: &Part| match part {
        Part::Whole => None,
        Part::Slot(key) => Some(key.clone()),
    };
    parts.iter().map(slot).collect()
}

/// How many ended tasks are kept: all that the cluster says about tasks that there are.
fn history(cluster: &pb::Cluster) -> Option<i64> {
    let orchestration = cluster.spec.as_ref()?.orchestration.as_ref()?;
    Some(orchestration.task_history_retention_limit)
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
    let (old, new) = match (&touched.old, &touched.new) {
        (Some(Held::Task(old)), Some(Held::Task(new))) => (old, new),
        // One that was to go no longer counted.
        (Some(Held::Task(old)), None) if old.desired_state() == TaskState::Remove => {
            return has_slot_mates(store, old);
        }
        _ => return true,
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

/// Whether the slot has other tasks, which may be retired or started when this one runs or is gone.
fn has_slot_mates(store: &Store, task: &pb::Task) -> bool {
    let mates = SlotKey::of(task).tasks(store, &task.service_id);
    mates.into_iter().any(|other| other.id != task.id)
}

/// Tasks whose service is gone, or that never had one: attachments live until they are to be
/// removed or end.
fn without_service(store: &Store, id: &str, parts: &BTreeSet<Part>) -> Vec<Change> {
    let tasks: Vec<_> = match slots_alone(parts) {
        Some(keys) => keys.iter().flat_map(|key| key.tasks(store, id)).collect(),
        None => store.tasks_of_service(id).collect(),
    };
    let mut changes = Vec::new();
    for task in tasks {
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

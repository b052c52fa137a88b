//! One service's tasks, and what is to become of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::Instant;
use prost::Message;
use rand::RngCore;
use store::access::{self, TaskState};
use store::transaction::timestamp;
use store::{Change, Store};
use wire::swarmkit as pb;

/// More than an entry of the log may have.
const CREATED_BYTES_MAX: usize = 2 << 20;
pub const RESTART_DELAY: Duration = Duration::from_secs(5);

/// What binds a task's successors to it: a number, or for global services a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotKey {
    Number(u64),
    Node(String),
}

impl SlotKey {
    /// A task's slot, as far as that can be told without its service.
    pub fn of(task: &pb::Task) -> Self {
        match task.slot {
            0 if !task.node_id.is_empty() => SlotKey::Node(task.node_id.clone()),
            number => SlotKey::Number(number),
        }
    }

    /// The tasks of a service in the slot.
    pub fn tasks<'a>(&self, store: &'a Store, service: &str) -> Vec<&'a Arc<pb::Task>> {
        match self {
            SlotKey::Number(number) => store.tasks_of_slot(service, *number).collect(),
            SlotKey::Node(node) => {
                store.tasks_of_node(node).filter(|task| task.service_id == service).collect()
            }
        }
    }
}

/// What of a service is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Whole,
    Slot(SlotKey),
}

/// How the node of a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In order, or not chosen yet.
    Firm,
    /// It does not answer: the task may well run there.
    Silent,
    /// The user wants it empty, or it no longer satisfies the constraints.
    Leaving,
    /// No longer a member.
    Gone,
}

/// Tasks by their slots, the oldest first in each.
pub type Slots = BTreeMap<SlotKey, Vec<Arc<pb::Task>>>;

pub struct Draft<'a> {
    pub now: Instant,
    pub store: &'a Store,
    pub service: &'a pb::Service,
    /// What a task made now would be told.
    pub task_spec: pb::TaskSpec,
    dice: &'a mut dyn RngCore,
    /// Which run of the job this is, if it is one.
    pub iteration: Option<u64>,
    slots: Slots,
    removed: BTreeSet<String>,
    update_status: Option<pb::UpdateStatus>,
    rolls_back: bool,
    wakes: Vec<(Part, Instant)>,
    /// Of tasks of a version of the service, with their image or still without.
    likenesses: RefCell<BTreeMap<(u64, bool), Likeness>>,
}

impl<'a> Draft<'a> {
    /// Of all slots, or only of these.
    pub fn new(
        now: Instant,
        store: &'a Store,
        service: &'a pb::Service,
        only: Option<&BTreeSet<SlotKey>>,
        dice: &'a mut dyn RngCore,
    ) -> Self {
        let mut slots = Slots::new();
        let mut enter = |task: &Arc<pb::Task>| {
            slots.entry(key_of(service, task)).or_default().push(task.clone());
        };
        match only {
            None => store.tasks_of_service(&service.id).for_each(enter),
            Some(keys) => {
                keys.iter().flat_map(|key| key.tasks(store, &service.id)).for_each(&mut enter);
            }
        }
        for tasks in slots.values_mut() {
            tasks.sort_by_key(|task| (access::created_at(task.meta.as_ref()), task.id.clone()));
        }
        Self {
            now,
            store,
            service,
            task_spec: task_spec(service),
            dice,
            iteration: access::job_iteration(service),
            slots,
            removed: BTreeSet::new(),
            update_status: None,
            rolls_back: false,
            wakes: Vec::new(),
            likenesses: RefCell::default(),
        }
    }

    /// The tasks as this draft would leave them.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    pub fn slot(&self, key: &SlotKey) -> Vec<Arc<pb::Task>> {
        self.slots.get(key).cloned().unwrap_or_default()
    }

    fn change(&mut self, task: &pb::Task, change: impl FnOnce(&mut pb::Task)) {
        let slot = self.slots.get_mut(&key_of(self.service, task));
        let mut tasks = slot.into_iter().flatten();
        if let Some(task) = tasks.find(|other| other.id == task.id) {
            change(Arc::make_mut(task));
        }
    }

    pub fn set_desired(&mut self, task: &pb::Task, desired: TaskState) {
        if task.desired_state() != desired {
            self.change(task, |task| task.set_desired_state(desired));
        }
    }

    /// Nobody will ever report about this task again.
    pub fn orphan(&mut self, task: &pb::Task) {
        let now = timestamp(self.now);
        self.change(task, |task| {
            let status = task.status.get_or_insert_default();
            status.set_state(TaskState::Orphaned);
            status.message = "the node is no longer a member of the swarm".to_owned();
            status.timestamp = Some(now);
        });
    }

    /// Says on the task why it can no longer be where it is.
    pub fn reject(&mut self, task: &pb::Task, why: &str) {
        self.change(task, |task| task.status.get_or_insert_default().err = why.to_owned());
    }

    pub fn remove(&mut self, task: &pb::Task) {
        if let Some(tasks) = self.slots.get_mut(&key_of(self.service, task)) {
            tasks.retain(|other| other.id != task.id);
        }
        self.removed.insert(task.id.clone());
    }

    /// How many new tasks one plan may hold: what is beyond an entry of the log comes with the next plan anyway, and
    /// large ones are costly to make.
    pub fn creations_max(&self) -> usize {
        let spec = self.service.spec.as_ref();
        let beside = spec.map_or(0, |spec| {
            let annotations = spec.annotations.as_ref().map_or(0, Message::encoded_len);
            annotations + spec.endpoint.as_ref().map_or(0, Message::encoded_len)
        });
        let each = self.task_spec.encoded_len() + beside;
        (CREATED_BYTES_MAX / each.max(1)).clamp(1, store::ACTIONS_MAX)
    }

    /// What becomes of a task that need not wait: it runs, a job's until it completes.
    pub fn aim(&self) -> TaskState {
        if self.iteration.is_some() { TaskState::Complete } else { TaskState::Running }
    }

    pub fn create(&mut self, key: &SlotKey, desired: TaskState) {
        let (slot, node) = match key {
            SlotKey::Number(number) => (*number, String::new()),
            SlotKey::Node(node) => (0, node.clone()),
        };
        let spec = self.service.spec.clone().unwrap_or_default();
        let mut status = pb::TaskStatus {
            timestamp: Some(timestamp(self.now)),
            message: "created".to_owned(),
            ..Default::default()
        };
        status.set_state(TaskState::New);
        let defaults = self.store.cluster().and_then(|cluster| cluster.spec.as_ref());
        let defaults = defaults.and_then(|spec| spec.task_defaults.as_ref());
        let log_driver = self.task_spec.log_driver.clone();
        let mut task = pb::Task {
            id: model::swarm_id(self.dice),
            spec: Some(self.task_spec.clone()),
            spec_version: self.service.spec_version,
            service_id: self.service.id.clone(),
            service_annotations: spec.annotations,
            slot,
            node_id: node,
            status: Some(status),
            endpoint: Some(pb::Endpoint { spec: spec.endpoint, ..Default::default() }),
            log_driver: log_driver.or_else(|| defaults?.log_driver.clone()),
            job_iteration: self.iteration.map(|index| pb::Version { index }),
            ..Default::default()
        };
        task.set_desired_state(desired);
        self.slots.entry(key.clone()).or_default().push(Arc::new(task));
    }

    pub fn set_update_status(&mut self, status: pb::UpdateStatus) {
        self.update_status = Some(status);
    }

    pub fn update_status(&self) -> Option<&pb::UpdateStatus> {
        self.update_status.as_ref().or(self.service.update_status.as_ref())
    }

    /// The spec before the last change shall be the service's again. As with SwarmKit none is kept
    /// beside it: the one that failed is not to be rolled back to.
    pub fn roll_back(&mut self, status: pb::UpdateStatus) {
        self.rolls_back = true;
        self.set_update_status(status);
    }

    /// Look at this part of the service again at that time; the first time counts.
    pub fn wake_at(&mut self, part: Part, at: Instant) {
        self.wakes.push((part, at));
    }

    /// The changes, and what is to be looked at again when.
    pub fn finish(mut self) -> (Vec<Change>, Vec<(Part, Instant)>) {
        self.wakes.sort();
        self.wakes.dedup_by(|later, first| later.0 == first.0);
        let mut changes = Vec::new();
        if let Some(status) = self.update_status {
            let mut service = pb::Service { update_status: Some(status), ..self.service.clone() };
            if self.rolls_back {
                service.spec = service.previous_spec.take();
                service.spec_version = service.previous_spec_version.take();
            }
            changes.push(Change::update(service));
        }
        // New tasks first: an entry that is cut short must not leave a slot without any.
        let (created, kept): (Vec<_>, Vec<_>) =
            self.slots.into_values().flatten().partition(|task| task.meta.is_none());
        changes.extend(created.into_iter().map(|task| Change::create(pb::Task::clone(&task))));
        let changed = kept.into_iter().filter(|task| {
            let stored: Option<&Arc<pb::Task>> = self.store.get(&task.id);
            stored.is_some_and(|stored| !Arc::ptr_eq(stored, task) && stored != task)
        });
        changes.extend(changed.map(|task| Change::update(pb::Task::clone(&task))));
        changes.extend(self.removed.into_iter().map(Change::remove::<pb::Task>));
        (changes, self.wakes)
    }

    pub fn ground(&self, task: &pb::Task) -> Ground {
        if task.node_id.is_empty() {
            return Ground::Firm;
        }
        let Some(node) = self.store.get::<pb::Node>(&task.node_id) else { return Ground::Gone };
        let placement = self.task_spec.placement.as_ref();
        if access::node_state(node) == pb::node_status::State::Down {
            Ground::Silent
        } else if access::availability(node) == pb::node_spec::Availability::Drain
            || (!self.is_dirty(task) && !scheduler::constraint::satisfied(placement, node))
        {
            Ground::Leaving
        } else {
            Ground::Firm
        }
    }

    /// Whether a task differs from what the service wants now.
    pub fn is_dirty(&self, task: &pb::Task) -> bool {
        if is_of_this_version(self.service, task) {
            return false;
        }
        if has_another_endpoint(self.service, task) {
            return true;
        }
        let compare = || likeness(&self.task_spec, task);
        let likeness = match task.spec_version {
            // Tasks that were made from one version of the service have one spec: the whole of it is
            // compared once in a plan, not for each task.
            Some(version) => {
                let mut known = self.likenesses.borrow_mut();
                *known.entry((version.index, has_its_image(task))).or_insert_with(compare)
            }
            None => compare(),
        };
        likeness.differs(self.store, &self.task_spec, task)
    }
}

/// Whether a task differs from what its service wants now. A change that leaves the task's own
/// spec alone, such as another number of replicas, makes no task differ.
pub fn differs(store: &Store, service: &pb::Service, task: &pb::Task) -> bool {
    let task_spec = task_spec(service);
    !is_of_this_version(service, task)
        && (has_another_endpoint(service, task)
            || likeness(&task_spec, task).differs(store, &task_spec, task))
}

fn is_of_this_version(service: &pb::Service, task: &pb::Task) -> bool {
    task.spec_version.is_some() && task.spec_version == service.spec_version
}

fn has_another_endpoint(service: &pb::Service, task: &pb::Task) -> bool {
    let wanted = service.spec.as_ref().and_then(|spec| spec.endpoint.as_ref());
    task.endpoint.as_ref().is_some_and(|endpoint| endpoint.spec.as_ref() != wanted)
}

/// What a task was told, beside what one would be told now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Same,
    /// But for the placement: it may stay where the new one allows it.
    Placement,
    Other,
}

impl Likeness {
    fn differs(self, store: &Store, task_spec: &pb::TaskSpec, task: &pb::Task) -> bool {
        match self {
            Likeness::Same => false,
            Likeness::Other => true,
            Likeness::Placement => !store.get::<pb::Node>(&task.node_id).is_some_and(|node| {
                scheduler::constraint::satisfied(task_spec.placement.as_ref(), node)
            }),
        }
    }
}

fn likeness(task_spec: &pb::TaskSpec, task: &pb::Task) -> Likeness {
    if task.spec.as_ref() == Some(task_spec) {
        return Likeness::Same;
    }
    let mut spec = task.spec.clone().unwrap_or_default();
    // Once the image is there, other credentials for it are no reason to start anew.
    if has_its_image(task) {
        let options = pull_options(task_spec).cloned();
        if let Some(pb::task_spec::Runtime::Container(container)) = &mut spec.runtime {
            container.pull_options = options;
        }
    }
    if spec == *task_spec {
        return Likeness::Same;
    }
    spec.placement = task_spec.placement.clone();
    if spec == *task_spec { Likeness::Placement } else { Likeness::Other }
}

fn has_its_image(task: &pb::Task) -> bool {
    (TaskState::Ready..=TaskState::Running).contains(&access::state(task))
}

fn key_of(service: &pb::Service, task: &pb::Task) -> SlotKey {
    match access::is_global(service) {
        true => SlotKey::Node(task.node_id.clone()),
        false => SlotKey::Number(task.slot),
    }
}

fn pull_options(spec: &pb::TaskSpec) -> Option<&pb::container_spec::PullOptions> {
    store::object::container(spec)?.pull_options.as_ref()
}

/// The task's part of a service's spec; older clients put the networks beside it.
fn task_spec(service: &pb::Service) -> pb::TaskSpec {
    let spec = service.spec.clone().unwrap_or_default();
    let mut task = spec.task.unwrap_or_default();
    if task.networks.is_empty() {
        task.networks = spec.networks;
    }
    task
}

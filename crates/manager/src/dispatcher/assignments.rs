//! What one node has to run, told as a whole once and then by differences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message as _;
use store::access::{self, TaskState};
use store::{Held, Kind, Object, Store, Touched};
use wire::swarmkit as pb;

use super::{Dispatcher, message, refuse};
use crate::event::{Effect, Message, StreamId};
use pb::assignment::Item;
use pb::assignment_change::AssignmentAction;

/// Changes in one incremental message.
const CHANGES_MAX: usize = 100;
/// Changes in one message: a worker takes 4 MiB in all.
const CHANGES_BYTES_MAX: usize = (4 << 20) - 64 * 1024;

/// What a node was told.
#[derive(Default)]
pub(super) struct Assignments {
    sequence: u64,
    tasks: BTreeMap<String, Arc<pb::Task>>,
    /// Secrets and configs by kind and id, with their versions.
    needed: BTreeMap<(Kind, String), u64>,
}

impl Dispatcher {
    pub(super) fn open_assignments(
        &mut self,
        store: &Store,
        stream: StreamId,
        node: &str,
        session: &str,
    ) -> Vec<Effect> {
        let known = match self.check(node, session) {
            Ok(known) => known,
            Err(failure) => return refuse(stream, failure),
        };
        let mut told = Assignments::default();
        let tasks = store.tasks_of_node(node).map(|task| task.id.as_str()).collect();
        let changes = told.difference(store, node, &tasks, true);
        let (first, rest) = divide(changes);
        let mut messages = vec![told.message(pb::assignments_message::Type::Complete, first)];
        messages.extend(told.incremental(rest));
        known.assignments = Some((stream, told));
        send(stream, messages).collect()
    }

    pub(super) fn open_tasks(
        &mut self,
        store: &Store,
        stream: StreamId,
        node: &str,
        session: &str,
    ) -> Vec<Effect> {
        match self.check(node, session) {
            Ok(known) => {
                known.tasks = Some(stream);
                vec![message(stream, Message::Tasks(all_tasks(store, node)))]
            }
            Err(failure) => refuse(stream, failure),
        }
    }

    /// The node has taken in the addresses that its tasks on further networks need.
    pub(super) fn tell_held_back(&mut self, store: &Store, node: &str) -> Vec<Effect> {
        let Some(session) = self.sessions.get_mut(node) else { return Vec::new() };
        let held_back = std::mem::take(&mut session.held_back);
        let Some((stream, told)) = &mut session.assignments else { return Vec::new() };
        let tasks = held_back.iter().map(String::as_str).collect();
        let changes = told.difference(store, node, &tasks, false);
        send(*stream, told.incremental(changes)).collect()
    }

    /// Tells each node that a change concerns what it did not know.
    pub(super) fn assign(&mut self, store: &Store, touched: &[Touched]) -> Vec<Effect> {
        let mut nodes: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let mounted = touched.iter().any(|it| matches!(it.kind, Kind::Secret | Kind::Config));
        if mounted {
            nodes.extend(self.sessions.keys().map(|node| (node.clone(), BTreeSet::new())));
        }
        for touched in touched {
            for target in [&touched.old, &touched.new].into_iter().flatten() {
                if let Held::Task(task) = target {
                    nodes.entry(task.node_id.clone()).or_default().insert(&touched.id);
                }
            }
        }
        let mut effects = Vec::new();
        for (node, tasks) in &nodes {
            let Some(session) = self.sessions.get_mut(node) else { continue };
            let taking_in = self.taking_in.has(node);
            let (later, tasks): (BTreeSet<&str>, BTreeSet<&str>) =
                tasks.iter().partition(|id| taking_in && is_of_user(store, id));
            session.held_back.extend(later.into_iter().map(str::to_owned));
            if let Some((stream, told)) = &mut session.assignments {
                let changes = told.difference(store, node, &tasks, mounted);
                effects.extend(send(*stream, told.incremental(changes)));
            }
            if let Some(stream) = session.tasks {
                effects.push(message(stream, Message::Tasks(all_tasks(store, node))));
            }
        }
        effects
    }
}

/// The task of a container that no service made.
fn is_of_user(store: &Store, task: &str) -> bool {
    let runtime = store.get::<pb::Task>(task).and_then(|task| task.spec.as_ref()?.runtime.as_ref());
    matches!(runtime, Some(pb::task_spec::Runtime::Attachment(_)))
}

fn send(stream: StreamId, messages: Vec<pb::AssignmentsMessage>) -> impl Iterator<Item = Effect> {
    messages.into_iter().map(move |it| message(stream, Message::Assignments(it)))
}

/// What the first message says, and what is left for those after it when not all fits. A node ends
/// what the first one does not name, so that the tasks which it has begun come before all else. A
/// task that it has not begun waits until it has been told what the task mounts.
fn divide(
    changes: Vec<pb::AssignmentChange>,
) -> (Vec<pb::AssignmentChange>, Vec<pb::AssignmentChange>) {
    if changes.iter().map(bytes_of).sum::<usize>() <= CHANGES_BYTES_MAX {
        return (changes, Vec::new());
    }
    let state = |change: &pb::AssignmentChange| match change.assignment.as_ref()?.item.as_ref()? {
        Item::Task(task) => Some(access::state(task)),
        _ => None,
    };
    let begun = TaskState::Accepted..=TaskState::Running;
    let (mut first, others): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|it| state(it).is_some_and(|state| begun.contains(&state)));
    let mut bytes: usize = first.iter().map(bytes_of).sum();
    let mut rest = Vec::new();
    for change in others {
        let fits = bytes + bytes_of(&change) <= CHANGES_BYTES_MAX;
        if fits && state(&change) != Some(TaskState::Assigned) {
            bytes += bytes_of(&change);
            first.push(change);
        } else {
            rest.push(change);
        }
    }
    (first, rest)
}

/// With its tag and its length.
fn bytes_of(change: &pb::AssignmentChange) -> usize {
    change.encoded_len() + 8
}

fn all_tasks(store: &Store, node: &str) -> pb::TasksMessage {
    let tasks = store.tasks_of_node(node).filter(|task| is_assigned(task));
    pb::TasksMessage { tasks: tasks.map(|task| pb::Task::clone(task)).collect() }
}

fn is_assigned(task: &pb::Task) -> bool {
    access::state(task) >= TaskState::Assigned
}

impl Assignments {
    fn message(
        &mut self,
        kind: pb::assignments_message::Type,
        changes: Vec<pb::AssignmentChange>,
    ) -> pb::AssignmentsMessage {
        let applies_to = match self.sequence {
            0 => String::new(),
            last => last.to_string(),
        };
        self.sequence += 1;
        pb::AssignmentsMessage {
            r#type: kind as i32,
            applies_to,
            results_in: self.sequence.to_string(),
            changes,
        }
    }

    /// The changes in their order, in as many messages as they need.
    fn incremental(&mut self, changes: Vec<pb::AssignmentChange>) -> Vec<pb::AssignmentsMessage> {
        let mut parts: Vec<Vec<_>> = Vec::new();
        let mut bytes = 0;
        for change in changes {
            let more = bytes_of(&change);
            match parts.last_mut() {
                Some(part) if part.len() < CHANGES_MAX && bytes + more <= CHANGES_BYTES_MAX => {
                    part.push(change);
                    bytes += more;
                }
                _ => {
                    parts.push(vec![change]);
                    bytes = more;
                }
            }
        }
        let incremental = pb::assignments_message::Type::Incremental;
        parts.into_iter().map(|part| self.message(incremental, part)).collect()
    }

    /// The changes that bring the node up to date with these tasks, which from now on it is:
    /// secrets and configs before the tasks that use them, removals last. `mounted` when what
    /// tasks mount may have changed too.
    fn difference(
        &mut self,
        store: &Store,
        node: &str,
        touched: &BTreeSet<&str>,
        mounted: bool,
    ) -> Vec<pb::AssignmentChange> {
        let mut updates = Vec::new();
        let mut removals = Vec::new();
        let mut mounted = mounted || !self.needed.is_empty();
        for id in touched.iter().copied() {
            let task = store.get::<pb::Task>(id);
            match task.filter(|task| task.node_id == node && is_assigned(task)) {
                Some(task) => {
                    let told = self.tasks.insert(id.to_owned(), task.clone());
                    if told.is_none_or(|told| must_be_told(&told, task)) {
                        updates.push(updated(Item::Task(pb::Task::clone(task))));
                    }
                    mounted |= task.spec.as_ref().is_some_and(mounts);
                }
                None if self.tasks.remove(id).is_some() => {
                    let task = pb::Task { id: id.to_owned(), ..Default::default() };
                    removals.push(removed(Item::Task(task)));
                }
                None => {}
            }
        }
        let mut changes = Vec::new();
        let needed = if mounted { self.needs(store) } else { BTreeMap::new() };
        for ((kind, id), version) in &needed {
            if self.needed.get(&(*kind, id.clone())) != Some(version) {
                changes.extend(item(store, *kind, id).map(updated));
            }
        }
        changes.extend(updates);
        changes.extend(removals);
        for (kind, id) in self.needed.keys().filter(|key| !needed.contains_key(*key)) {
            let gone = match kind {
                Kind::Secret => Item::Secret(pb::Secret { id: id.clone(), ..Default::default() }),
                _ => Item::Config(pb::Config { id: id.clone(), ..Default::default() }),
            };
            changes.push(removed(gone));
        }
        self.needed = needed;
        changes
    }

    /// What the tasks of the node mount. One that has ended mounts nothing any more.
    fn needs(&self, store: &Store) -> BTreeMap<(Kind, String), u64> {
        let mut needed = BTreeMap::new();
        for task in self.tasks.values().filter(|task| access::state(task) <= TaskState::Running) {
            needs(store, task, &mut needed);
        }
        needed
    }
}

fn mounts(spec: &pb::TaskSpec) -> bool {
    let mut all = store::object::task_secrets(spec).chain(store::object::task_configs(spec));
    all.next().is_some()
}

fn needs(store: &Store, task: &pb::Task, needed: &mut BTreeMap<(Kind, String), u64>) {
    let Some(spec) = &task.spec else { return };
    for id in store::object::task_secrets(spec) {
        if let Some(secret) = store.get::<pb::Secret>(id) {
            needed.insert((Kind::Secret, id.to_owned()), secret.version());
        }
    }
    for id in store::object::task_configs(spec) {
        if let Some(config) = store.get::<pb::Config>(id) {
            needed.insert((Kind::Config, id.to_owned()), config.version());
        }
    }
}

fn item(store: &Store, kind: Kind, id: &str) -> Option<Item> {
    match kind {
        Kind::Secret => store.get::<pb::Secret>(id).map(|s| Item::Secret(pb::Secret::clone(s))),
        _ => store.get::<pb::Config>(id).map(|c| Item::Config(pb::Config::clone(c))),
    }
}

/// Whether the node has to hear of a change: what it reported itself it knows already.
fn must_be_told(told: &Arc<pb::Task>, task: &Arc<pb::Task>) -> bool {
    if Arc::ptr_eq(told, task) {
        return false;
    }
    let differs = told.desired_state != task.desired_state
        || told.spec != task.spec
        || told.networks != task.networks
        || told.endpoint != task.endpoint
        || told.annotations != task.annotations
        || told.service_annotations != task.service_annotations
        || told.log_driver != task.log_driver
        || told.assigned_generic_resources != task.assigned_generic_resources
        || told.volumes != task.volumes;
    differs || (access::state(task) == TaskState::Assigned && told.status != task.status)
}

fn updated(item: Item) -> pb::AssignmentChange {
    change(item, AssignmentAction::Update)
}

fn removed(item: Item) -> pb::AssignmentChange {
    change(item, AssignmentAction::Remove)
}

fn change(item: Item, action: AssignmentAction) -> pb::AssignmentChange {
    pb::AssignmentChange {
        assignment: Some(pb::Assignment { item: Some(item) }),
        action: action as i32,
    }
}

//! A node with what its tasks leave of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use store::access;
use wire::swarmkit as pb;

use crate::{filter, generic};

/// Failures of a service on a node count for so long, and so many make the node a last choice.
const FAILURES_WORTH: u64 = 300_000_000_000;
const FAILURES_MAX: usize = 5;

#[derive(Clone, Debug, PartialEq)]
pub struct NodeInfo {
    pub node: Arc<pb::Node>,
    /// Tasks of each service that run here or are about to.
    tasks: BTreeMap<String, usize>,
    pub total: usize,
    pub cpus_left: i64,
    pub memory_left: i64,
    pub generic_left: Vec<pb::GenericResource>,
    pub host_ports: BTreeSet<(i32, u32)>,
    /// When tasks of a service failed here.
    failures: BTreeMap<String, Vec<u64>>,
}

impl NodeInfo {
    /// From the stored objects alone.
    pub fn new(store: &store::Store, node: &Arc<pb::Node>) -> Self {
        let resources = node.description.as_ref().and_then(|d| d.resources.clone());
        let resources = resources.unwrap_or_default();
        let mut info = NodeInfo {
            node: node.clone(),
            tasks: BTreeMap::new(),
            total: 0,
            cpus_left: resources.nano_cpus,
            memory_left: resources.memory_bytes,
            generic_left: resources.generic,
            host_ports: BTreeSet::new(),
            failures: BTreeMap::new(),
        };
        // A global service's task has its node from the start, and takes nothing of it before it is
        // let in: it must not stand in its own way.
        let let_in = store.tasks_of_node(&node.id).filter(|task| !crate::is_waiting(task));
        for task in let_in {
            if !access::has_ended(task) {
                let given = task.assigned_generic_resources.clone();
                generic::remove(&given, &mut info.generic_left);
                info.add(task);
            } else if access::state(task) == access::TaskState::Failed {
                let at = task.status.as_ref().and_then(|status| status.timestamp.as_ref());
                let at = access::instant(at).as_nanos();
                info.failures.entry(task.service_id.clone()).or_default().push(at);
            }
        }
        info
    }

    fn add(&mut self, task: &pb::Task) {
        // One that is on its way out still needs its room, but is no longer a replica.
        if access::is_wanted(task) {
            *self.tasks.entry(task.service_id.clone()).or_default() += 1;
            self.total += 1;
        }
        if let Some(reserved) = filter::reservations(task) {
            self.cpus_left -= reserved.nano_cpus;
            self.memory_left -= reserved.memory_bytes;
        }
        self.host_ports.extend(filter::host_ports(task));
    }

    /// Puts a task here; the generic resources that it gets are noted on it.
    pub fn place(&mut self, task: &mut pb::Task) {
        let asked = filter::reservations(task).map(|r| r.generic.clone()).unwrap_or_default();
        task.assigned_generic_resources = generic::take(&asked, &mut self.generic_left);
        task.node_id = self.node.id.clone();
        self.add(task);
    }

    pub fn of_service(&self, service: &str) -> usize {
        self.tasks.get(service).copied().unwrap_or(0)
    }

    /// A service that keeps failing here is tried elsewhere first.
    pub fn is_troubled(&self, service: &str, now: u64) -> bool {
        let failures = self.failures.get(service).map(Vec::as_slice).unwrap_or_default();
        let recent = failures.iter().filter(|at| now.saturating_sub(**at) < FAILURES_WORTH);
        recent.count() >= FAILURES_MAX
    }

    /// What the node is by a spread preference: `node.labels.rack`; empty when it has no such label.
    pub fn spread_value(&self, descriptor: &str) -> &str {
        let lower = descriptor.to_ascii_lowercase();
        let description = self.node.description.as_ref();
        let labels = if lower.starts_with("node.labels.") {
            let annotations = self.node.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
            annotations.map(|annotations| (&annotations.labels, "node.labels.".len()))
        } else if lower.starts_with("engine.labels.") {
            let engine = description.and_then(|d| d.engine.as_ref());
            engine.map(|engine| (&engine.labels, "engine.labels.".len()))
        } else {
            None
        };
        labels.and_then(|(labels, at)| labels.get(&descriptor[at..])).map_or("", String::as_str)
    }
}

/// Whether two states of a task take the same from the same node: [`NodeInfo`] stays right.
pub fn weigh_the_same(old: &pb::Task, new: &pb::Task) -> bool {
    let lives = |task| (access::is_wanted(task), access::has_ended(task));
    old.node_id == new.node_id
        && crate::is_waiting(old) == crate::is_waiting(new)
        && lives(old) == lives(new)
        && !access::has_ended(new)
        && old.service_id == new.service_id
        && old.assigned_generic_resources == new.assigned_generic_resources
        && filter::reservations(old) == filter::reservations(new)
        && filter::host_ports(old).eq(filter::host_ports(new))
}

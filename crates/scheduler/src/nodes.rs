//! All nodes, by their ids and by how many tasks they have.

use std::collections::{BTreeMap, BTreeSet};

use model::Instant;
use wire::swarmkit as pb;

use crate::filter;
use crate::group;
use crate::node::NodeInfo;

/// Nodes that are tried for one task before all are looked at.
const TRIES_MAX: usize = 64;

#[derive(Default)]
pub struct Nodes {
    by_id: BTreeMap<String, NodeInfo>,
    by_load: BTreeSet<(usize, String)>,
}

impl Nodes {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn get(&self, id: &str) -> Option<&NodeInfo> {
        self.by_id.get(id)
    }

    pub fn all(&self) -> impl Iterator<Item = &NodeInfo> {
        self.by_id.values()
    }

    pub fn put(&mut self, info: NodeInfo) {
        let id = info.node.id.clone();
        self.remove(&id);
        self.by_load.insert((info.total, id.clone()));
        self.by_id.insert(id, info);
    }

    pub fn remove(&mut self, id: &str) {
        if let Some((id, info)) = self.by_id.remove_entry(id) {
            self.by_load.remove(&(info.total, id));
        }
    }

    /// Puts a task on a node; see [`NodeInfo::place`].
    pub fn place(&mut self, id: &str, task: &mut pb::Task) {
        if let Some((id, mut info)) = self.by_id.remove_entry(id) {
            self.by_load.remove(&(info.total, id));
            info.place(task);
            self.put(info);
        }
    }

    /// The node that [`group::Group`] would choose, when that can be told without a look at all: of
    /// those that have no task of the service, the one with the fewest of all. And how many were
    /// looked at.
    pub fn idle(&self, now: Instant, task: &pb::Task) -> (Option<&NodeInfo>, usize) {
        if !group::spread_descriptors(task).is_empty() {
            return (None, 0);
        }
        let best = |info: &&NodeInfo| {
            info.of_service(&task.service_id) == 0
                && !info.is_troubled(&task.service_id, now.as_nanos())
                && filter::refusal(task, info).is_none()
        };
        let mut looked = 0;
        let mut nodes = self.by_load.iter().take(TRIES_MAX).filter_map(|(_, id)| self.get(id));
        let found = nodes.find(|info| {
            looked += 1;
            best(info)
        });
        (found, looked)
    }
}

//! Tasks that are alike, and the nodes that fit them in the order of choice.
//!
//! A node is looked at once for all tasks of a group, and once more after each that it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::Instant;
use wire::swarmkit as pb;

use crate::filter::{self, Filter};
use crate::node::NodeInfo;
use crate::nodes::Nodes;

/// Least troubled, then fewest tasks of the service, then fewest tasks of all, then the id.
type Rank = (bool, usize, usize, String);

pub struct Group {
    now: Instant,
    task: Arc<pb::Task>,
    fit: BTreeSet<Rank>,
    refusals: BTreeMap<Filter, usize>,
}

impl Group {
    pub fn new<'a>(
        now: Instant,
        task: &Arc<pb::Task>,
        nodes: impl Iterator<Item = &'a NodeInfo>,
    ) -> Self {
        let task = task.clone();
        let mut group = Self { now, task, fit: BTreeSet::new(), refusals: BTreeMap::new() };
        nodes.for_each(|info| group.enter(info));
        group
    }

    /// Whether a task may go where those of this group may.
    pub fn is_of(&self, task: &pb::Task) -> bool {
        task.service_id == self.task.service_id
            && task.spec == self.task.spec
            && task.endpoint == self.task.endpoint
            && task.log_driver == self.task.log_driver
            && networks(task).eq(networks(&self.task))
    }

    /// Ranks a node by what it holds now.
    pub fn enter(&mut self, info: &NodeInfo) {
        match filter::refusal(&self.task, info) {
            None => drop(self.fit.insert(self.rank(info))),
            Some(filter) => *self.refusals.entry(filter).or_default() += 1,
        }
    }

    /// Takes a node out that is about to change: to be called before the change.
    pub fn leave(&mut self, info: &NodeInfo) {
        if !self.fit.remove(&self.rank(info))
            && let Some(filter) = filter::refusal(&self.task, info)
            && let Some(nodes) = self.refusals.get_mut(&filter)
        {
            *nodes -= 1;
        }
    }

    fn rank(&self, info: &NodeInfo) -> Rank {
        let service = &self.task.service_id;
        let troubled = info.is_troubled(service, self.now.as_nanos());
        (troubled, info.of_service(service), info.total, info.node.id.clone())
    }

    /// The best node for a task of the group, or the reason why there is none.
    pub fn choose(&self, nodes: &Nodes) -> Result<String, String> {
        let spread = spread_descriptors(&self.task);
        let best = if spread.is_empty() {
            self.fit.first().map(|(_, _, _, id)| id.clone())
        } else {
            let mut fit: Vec<&NodeInfo> =
                self.fit.iter().filter_map(|(_, _, _, id)| nodes.get(id)).collect();
            for descriptor in spread {
                fit = least_used_group(descriptor, &self.task.service_id, fit);
            }
            // They are still in the order of their ranks.
            fit.first().map(|info| info.node.id.clone())
        };
        best.ok_or_else(|| {
            let refusals = self.refusals.iter().filter(|(_, nodes)| **nodes > 0);
            filter::explain(&refusals.map(|(filter, nodes)| (*filter, *nodes)).collect())
        })
    }
}

/// The networks of a task, whose drivers a node must have.
fn networks(task: &pb::Task) -> impl Iterator<Item = &str> {
    let held = task.networks.iter().filter_map(|held| held.network.as_ref());
    held.map(|network| network.id.as_str())
}

pub fn spread_descriptors(task: &pb::Task) -> Vec<&str> {
    use pb::placement_preference::Preference;
    let placement = task.spec.as_ref().and_then(|spec| spec.placement.as_ref());
    let preferences = placement.map(|p| p.preferences.as_slice()).unwrap_or_default();
    let spread = preferences.iter().filter_map(|preference| match &preference.preference {
        Some(Preference::Spread(spread)) => Some(spread.spread_descriptor.as_str()),
        _ => None,
    });
    spread.collect()
}

/// Of the nodes, those whose value of a spread preference has the fewest tasks of the service.
fn least_used_group<'a>(
    descriptor: &str,
    service: &str,
    nodes: Vec<&'a NodeInfo>,
) -> Vec<&'a NodeInfo> {
    let mut groups: BTreeMap<&str, (usize, Vec<&NodeInfo>)> = BTreeMap::new();
    for info in nodes {
        let group = groups.entry(info.spread_value(descriptor)).or_default();
        group.0 += info.of_service(service);
        group.1.push(info);
    }
    let least = groups.into_values().min_by_key(|(tasks, _)| *tasks);
    least.map(|(_, nodes)| nodes).unwrap_or_default()
}

//! Changes of the store as the events that `docker events` shows with scope swarm.

use std::collections::BTreeMap;

use docker_api::swarm::object::availability;
use engine::events::Type;
use store::{Held, Kind, Touched};
use wire::swarmkit as pb;

type Attributes = BTreeMap<String, String>;

/// `create`, `update` or `remove` of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterEvent {
    pub kind: Type,
    pub action: &'static str,
    pub id: String,
    pub attributes: Attributes,
}

/// None for objects that Docker has no events for.
pub fn cluster_events(touched: &Touched) -> Vec<ClusterEvent> {
    let kind = match touched.kind {
        Kind::Node => Type::NODE,
        Kind::Service => Type::SERVICE,
        Kind::Network => Type::NETWORK,
        Kind::Secret => Type::SECRET,
        Kind::Config => Type::CONFIG,
        _ => return Vec::new(),
    };
    let action = match (&touched.old, &touched.new) {
        (None, Some(_)) => "create",
        (Some(_), Some(_)) => "update",
        (Some(_), None) => "remove",
        (None, None) => return Vec::new(),
    };
    let Some(attributes) = attributes(touched.old.as_ref(), touched.new.as_ref()) else {
        return Vec::new();
    };
    // Reports of a node that change nothing that was asked for are none.
    if let (Some(Held::Node(old)), Some(Held::Node(new))) = (&touched.old, &touched.new)
        && attributes.len() <= 1
        && old.spec == new.spec
    {
        return Vec::new();
    }
    vec![ClusterEvent { kind, action, id: touched.id.to_string(), attributes }]
}

fn attributes(old: Option<&Held>, new: Option<&Held>) -> Option<Attributes> {
    let mut attributes = Attributes::new();
    let name = |annotations: Option<&pb::Annotations>| {
        annotations.map(|a| a.name.clone()).unwrap_or_default()
    };
    match (old, new.or(old)?) {
        (old, Held::Node(node)) => {
            let hostname =
                node.description.as_ref().map(|description| description.hostname.clone());
            attributes.insert("name".into(), hostname.unwrap_or_default());
            if let Some(Held::Node(old)) = old {
                node_changes(old, node, &mut attributes);
            }
        }
        (old, Held::Service(service)) => {
            attributes.insert(
                "name".into(),
                name(service.spec.as_ref().and_then(|spec| spec.annotations.as_ref())),
            );
            if let Some(Held::Service(old)) = old {
                service_changes(old, service, &mut attributes);
            }
        }
        (_, Held::Network(network)) => {
            attributes.insert(
                "name".into(),
                name(network.spec.as_ref().and_then(|spec| spec.annotations.as_ref())),
            );
        }
        (_, Held::Secret(secret)) => {
            attributes.insert(
                "name".into(),
                name(secret.spec.as_ref().and_then(|spec| spec.annotations.as_ref())),
            );
        }
        (_, Held::Config(config)) => {
            attributes.insert(
                "name".into(),
                name(config.spec.as_ref().and_then(|spec| spec.annotations.as_ref())),
            );
        }
        _ => return None,
    }
    Some(attributes)
}

fn changed(attributes: &mut Attributes, key: &str, old: impl ToString, new: impl ToString) {
    let (old, new) = (old.to_string(), new.to_string());
    if old != new {
        attributes.insert(format!("{key}.old"), old);
        attributes.insert(format!("{key}.new"), new);
    }
}

fn node_changes(old: &pb::Node, new: &pb::Node, attributes: &mut Attributes) {
    let state = |node: &pb::Node| match node.status.clone().unwrap_or_default().state() {
        pb::node_status::State::Unknown => "unknown",
        pb::node_status::State::Down => "down",
        pb::node_status::State::Ready => "ready",
        pb::node_status::State::Disconnected => "disconnected",
    };
    changed(attributes, "state", state(old), state(new));
    let available =
        |node: &pb::Node| availability(node.spec.clone().unwrap_or_default().availability());
    changed(attributes, "availability", available(old), available(new));
    let role = |node: &pb::Node| match node.spec.clone().unwrap_or_default().desired_role() {
        pb::NodeRole::Worker => "worker",
        pb::NodeRole::Manager => "manager",
    };
    changed(attributes, "role", role(old), role(new));
    let leader = |node: &pb::Node| node.manager_status.as_ref().is_some_and(|status| status.leader);
    changed(attributes, "leader", leader(old), leader(new));
}

fn service_changes(old: &pb::Service, new: &pb::Service, attributes: &mut Attributes) {
    let replicas = |service: &pb::Service| store::access::replicas(service).unwrap_or_default();
    changed(attributes, "replicas", replicas(old), replicas(new));
    let image = |service: &pb::Service| {
        let task = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
        task.and_then(store::object::container)
            .map(|container| container.image.clone())
            .unwrap_or_default()
    };
    changed(attributes, "image", image(old), image(new));
    let update =
        |service: &pb::Service| match service.update_status.as_ref().map(|status| status.state()) {
            Some(pb::update_status::UpdateState::Updating) => "updating",
            Some(pb::update_status::UpdateState::Paused) => "paused",
            Some(pb::update_status::UpdateState::Completed) => "completed",
            Some(pb::update_status::UpdateState::RollbackStarted) => "rollback_started",
            Some(pb::update_status::UpdateState::RollbackPaused) => "rollback_paused",
            Some(pb::update_status::UpdateState::RollbackCompleted) => "rollback_completed",
            _ => "",
        };
    changed(attributes, "updatestate", update(old), update(new));
}

//! Which nodes can take a task, and in SwarmKit's words why the others cannot.

use std::collections::BTreeMap;

use store::access;
use wire::swarmkit as pb;

use crate::constraint;
use crate::generic;
use crate::node::NodeInfo;

/// The filters in SwarmKit's order; a node is refused by the first that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    Ready,
    Resources,
    Plugins,
    Constraints,
    Platform,
    HostPorts,
    MaxReplicas,
}

const ORDER: [Filter; 7] = [
    Filter::Ready,
    Filter::Resources,
    Filter::Plugins,
    Filter::Constraints,
    Filter::Platform,
    Filter::HostPorts,
    Filter::MaxReplicas,
];

impl Filter {
    /// Why it refuses so many nodes: all that is said of a task that belongs on a certain one.
    pub fn explain(self, nodes: usize) -> String {
        let on = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        match self {
            Filter::Ready => format!("{on} not available for new tasks"),
            Filter::Resources => format!("insufficient resources on {on}"),
            Filter::Plugins => format!("missing plugin on {on}"),
            Filter::Constraints => format!("scheduling constraints not satisfied on {on}"),
            Filter::Platform => format!("unsupported platform on {on}"),
            Filter::HostPorts => format!("host-mode port already in use on {on}"),
            Filter::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}

/// `no suitable node (scheduling constraints not satisfied on 2 nodes)`: most refusals first.
pub fn explain(refusals: &BTreeMap<Filter, usize>) -> String {
    let mut refusals: Vec<(Filter, usize)> = refusals.iter().map(|(f, n)| (*f, *n)).collect();
    refusals.sort_by_key(|(filter, nodes)| (std::cmp::Reverse(*nodes), *filter));
    let parts: Vec<String> =
        refusals.iter().map(|(filter, nodes)| filter.explain(*nodes)).collect();
    match parts.is_empty() {
        true => "no suitable node".to_owned(),
        false => format!("no suitable node ({})", parts.join("; ")),
    }
}

/// The first filter that refuses the node, if any does.
pub fn refusal(task: &pb::Task, info: &NodeInfo) -> Option<Filter> {
    ORDER.into_iter().find(|filter| !allows(*filter, task, info))
}

fn allows(filter: Filter, task: &pb::Task, info: &NodeInfo) -> bool {
    let spec = task.spec.as_ref();
    let placement = spec.and_then(|spec| spec.placement.as_ref());
    match filter {
        Filter::Ready => {
            access::node_state(&info.node) == pb::node_status::State::Ready
                && access::availability(&info.node) == pb::node_spec::Availability::Active
        }
        Filter::Resources => has_resources(task, info),
        Filter::Plugins => has_plugins(task, info),
        Filter::Constraints => constraint::satisfied(placement, &info.node),
        Filter::Platform => runs_platform(placement, &info.node),
        Filter::HostPorts => host_ports(task).all(|port| !info.host_ports.contains(&port)),
        Filter::MaxReplicas => {
            let most = placement.map_or(0, |placement| placement.max_replicas);
            most == 0 || (info.of_service(&task.service_id) as u64) < most
        }
    }
}

pub fn reservations(task: &pb::Task) -> Option<&pb::Resources> {
    task.spec.as_ref()?.resources.as_ref()?.reservations.as_ref()
}

fn has_resources(task: &pb::Task, info: &NodeInfo) -> bool {
    let Some(wanted) = reservations(task) else { return true };
    info.cpus_left >= wanted.nano_cpus
        && info.memory_left >= wanted.memory_bytes
        && generic::fits(&wanted.generic, &info.generic_left)
}

/// Host-mode ports that the task wants; 0 is any port, which never clashes.
pub fn host_ports(task: &pb::Task) -> impl Iterator<Item = (i32, u32)> {
    let spec = task.endpoint.as_ref().and_then(|endpoint| endpoint.spec.as_ref());
    spec.into_iter()
        .flat_map(|spec| &spec.ports)
        .filter(|port| port.publish_mode() == pb::port_config::PublishMode::Host)
        .filter(|port| port.published_port != 0)
        .map(|port| (port.protocol, port.published_port))
}

fn has_plugins(task: &pb::Task, info: &NodeInfo) -> bool {
    let Some(engine) = info.node.description.as_ref().and_then(|d| d.engine.as_ref()) else {
        return true;
    };
    let has = |kind: &str, name: &str| {
        let plain = |name: &str| name.trim_end_matches(":latest").to_owned();
        engine.plugins.iter().any(|p| p.r#type == kind && plain(&p.name) == plain(name))
    };
    let container = task.spec.as_ref().and_then(store::object::container);
    let volumes = container
        .into_iter()
        .flat_map(|container| &container.mounts)
        .filter_map(|mount| mount.volume_options.as_ref()?.driver_config.as_ref())
        .filter(|driver| !driver.name.is_empty() && driver.name != "local");
    let networks = task
        .networks
        .iter()
        .filter_map(|attachment| attachment.network.as_ref()?.driver_state.as_ref())
        .filter(|driver| !driver.name.is_empty());
    let of_task = task.log_driver.as_ref();
    let log = of_task.or(task.spec.as_ref().and_then(|spec| spec.log_driver.as_ref()));
    // Engines of old versions list no log drivers at all.
    let lists_logs = engine.plugins.iter().any(|plugin| plugin.r#type == "Log");
    let mut logs =
        log.into_iter().filter(|log| lists_logs && !log.name.is_empty() && log.name != "none");
    volumes.into_iter().all(|driver| has("Volume", &driver.name))
        && networks.into_iter().all(|driver| has("Network", &driver.name))
        && logs.all(|driver| has("Log", &driver.name))
}

/// The names by which Go and uname call the same machine.
pub fn architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i686" => "386",
        name => name,
    }
}

/// Whether a node is one of the platforms that the image was built for.
pub fn runs_platform(placement: Option<&pb::Placement>, node: &pb::Node) -> bool {
    let wanted = placement.map(|placement| placement.platforms.as_slice()).unwrap_or_default();
    let Some(own) = node.description.as_ref().and_then(|d| d.platform.as_ref()) else {
        return true;
    };
    wanted.is_empty()
        || wanted.iter().any(|platform| {
            let os = platform.os.is_empty() || platform.os.eq_ignore_ascii_case(&own.os);
            let arch = architecture(&platform.architecture);
            os && (arch.is_empty() || arch == architecture(&own.architecture))
        })
}

//! Who answers on a network as the managers know it: for a manager that has no part in the network, and
//! so hears nothing of it on the gossip.

use std::collections::BTreeMap;

use wire::swarmkit as pb;

use super::api::{VerboseService, VerboseTask};

/// By service; containers that no service made are under the empty name, as in Docker. What only
/// the node of a task knows, the endpoint's id, is left empty.
pub fn services(
    network: &pb::Network,
    tasks: &[pb::Task],
    nodes: &[pb::Node],
) -> BTreeMap<String, VerboseService> {
    let hosts: BTreeMap<&str, &str> = nodes
        .iter()
        .filter_map(|node| Some((node.id.as_str(), node.status.as_ref()?.addr.as_str())))
        .collect();
    let ingress = network.spec.as_ref().is_some_and(|spec| spec.ingress);
    let mut services: BTreeMap<String, VerboseService> = BTreeMap::new();
    let mut running: Vec<(String, &pb::Task)> =
        tasks.iter().filter(|task| runs(task)).map(|task| (name_of(task), task)).collect();
    running.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (name, task) in running {
        let on = |held: &&pb::NetworkAttachment| {
            held.network.as_ref().is_some_and(|held| held.id == network.id)
        };
        let address = task.networks.iter().find(on).and_then(|held| held.addresses.first());
        let Some(address) = address else { continue };
        let service = services.entry(service_of(task).to_owned()).or_insert_with(|| {
            let vip = vip_of(task, &network.id).unwrap_or("<nil>").to_owned();
            let ports = if ingress { ports_of(task) } else { Vec::new() };
            VerboseService { vip, ports, ..Default::default() }
        });
        service.tasks.push(VerboseTask {
            name,
            endpoint_id: String::new(),
            endpoint_ip: plain(address).to_owned(),
            host_ip: hosts.get(task.node_id.as_str()).copied().unwrap_or_default().to_owned(),
        });
    }
    services
}

fn runs(task: &pb::Task) -> bool {
    let state = task.status.as_ref().map(pb::TaskStatus::state);
    state == Some(pb::TaskState::Running) && task.desired_state() == pb::TaskState::Running
}

fn service_of(task: &pb::Task) -> &str {
    task.service_annotations.as_ref().map_or("", |named| named.name.as_str())
}

/// As its container is called; one that no service made by the beginning of its id.
fn name_of(task: &pb::Task) -> String {
    let runtime = task.spec.as_ref().and_then(|spec| spec.runtime.as_ref());
    if let Some(pb::task_spec::Runtime::Attachment(attachment)) = runtime {
        return attachment.container_id.chars().take(12).collect();
    }
    match task.slot {
        0 => format!("{}.{}.{}", service_of(task), task.node_id, task.id),
        slot => format!("{}.{slot}.{}", service_of(task), task.id),
    }
}

fn vip_of<'a>(task: &'a pb::Task, network: &str) -> Option<&'a str> {
    let vips = &task.endpoint.as_ref()?.virtual_ips;
    let vip = vips.iter().find(|vip| vip.network_id == network)?;
    Some(plain(&vip.addr)).filter(|vip| !vip.is_empty())
}

fn ports_of(task: &pb::Task) -> Vec<String> {
    let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    ports
        .filter(|port| port.publish_mode() == pb::port_config::PublishMode::Ingress)
        .map(|port| format!("Target: {}, Publish: {}", port.target_port, port.published_port))
        .collect()
}

fn plain(address: &str) -> &str {
    address.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, slot: u64, state: pb::TaskState) -> pb::Task {
        let on = |network: &str, address: &str| pb::NetworkAttachment {
            network: Some(pb::Network { id: network.into(), ..Default::default() }),
            addresses: vec![address.into()],
            ..Default::default()
        };
        let vip = |network: &str, addr: &str| pb::endpoint::VirtualIp {
            network_id: network.into(),
            addr: addr.into(),
        };
        let port = pb::PortConfig { target_port: 80, published_port: 8080, ..Default::default() };
        pb::Task {
            id: id.into(),
            slot,
            node_id: "n1".into(),
            service_annotations: Some(pb::Annotations { name: "app".into(), ..Default::default() }),
            networks: vec![on("net", &format!("10.0.1.{slot}/24")), on("mesh", "10.0.0.9/24")],
            endpoint: Some(pb::Endpoint {
                virtual_ips: vec![vip("mesh", "10.0.0.2/24"), vip("net", "10.0.1.200/24")],
                ports: vec![port],
                ..Default::default()
            }),
            status: Some(pb::TaskStatus { state: state as i32, ..Default::default() }),
            desired_state: pb::TaskState::Running as i32,
            ..Default::default()
        }
    }

    #[test]
    fn a_network_lists_what_runs_on_it_and_where() {
        let status = pb::NodeStatus { addr: "192.0.2.1".into(), ..Default::default() };
        let node = pb::Node { id: "n1".into(), status: Some(status), ..Default::default() };
        let running = pb::TaskState::Running;
        let tasks =
            [task("t2", 2, running), task("t1", 1, running), task("t3", 3, pb::TaskState::Ready)];
        let network = pb::Network { id: "net".into(), ..Default::default() };
        let shown = services(&network, &tasks, &[node]);
        let app = &shown["app"];
        assert_eq!((app.vip.as_str(), app.ports.len(), shown.len()), ("10.0.1.200", 0, 1));
        let listed: Vec<_> =
            app.tasks.iter().map(|task| (&*task.name, &*task.endpoint_ip)).collect();
        assert_eq!(listed, [("app.1.t1", "10.0.1.1"), ("app.2.t2", "10.0.1.2")]);
        assert_eq!(app.tasks[0].host_ip, "192.0.2.1");
        let spec = pb::NetworkSpec { ingress: true, ..Default::default() };
        let mesh = pb::Network { id: "mesh".into(), spec: Some(spec), ..Default::default() };
        assert_eq!(services(&mesh, &tasks, &[])["app"].ports, ["Target: 80, Publish: 8080"]);
    }
}

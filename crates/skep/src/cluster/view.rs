//! The overlays that this node takes part in, as `docker network inspect` shows them here.

use std::collections::BTreeMap;

use docker_api::swarm::api::{LocalEndpoint, LocalOverlay, VerboseService, VerboseTask};
use engine::Engine;
use model::NetworkId;

use super::agent_task::locked;
use super::node::Node;

pub fn local_overlays(engine: &Engine, node: &Node) -> BTreeMap<String, LocalOverlay> {
    let state = locked(&node.agent.view.overlays).clone();
    let networks = locked(&node.agent.view.networks).clone();
    let sandboxes = engine.network.sandboxes();
    let mut shown = BTreeMap::new();
    for (id, overlay) in &state.overlays {
        let Some((network, since)) = networks.get(id.as_str()) else { continue };
        let containers = sandboxes
            .iter()
            .filter_map(|(container, sandbox)| {
                let endpoint =
                    sandbox.endpoints.values().find(|endpoint| endpoint.network_id == *id)?;
                let of_family = |v4: bool| {
                    let cidr = endpoint.addresses.iter().find(|cidr| cidr.is_v4() == v4);
                    cidr.map(ToString::to_string).unwrap_or_default()
                };
                Some(LocalEndpoint {
                    container_id: container.to_string(),
                    name: sandbox.container_name.clone(),
                    endpoint_id: endpoint.endpoint_id.clone(),
                    mac: endpoint.mac.to_string(),
                    ipv4: of_family(true),
                    ipv6: of_family(false),
                })
            })
            .collect();
        let local = LocalOverlay {
            network: network.clone(),
            lb_address: overlay.lb_address.map(|address| address.to_string()),
            lb_mac: overlay.lb_address.and_then(|address| mac_of(address.addr)),
            lb_endpoint_id: overlay.lb_address.map(|address| endpoint_id(id, &address.to_string())),
            containers,
            peers: node.agent.peers(id),
            services: services(state.listed.get(id).map(Vec::as_slice).unwrap_or_default()),
            created_unix_nanos: *since,
        };
        shown.insert(id.to_string(), local);
    }
    shown
}

/// Docker's MAC for an IPv4 address on an overlay.
fn mac_of(address: std::net::IpAddr) -> Option<String> {
    match address {
        std::net::IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            Some(format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))
        }
        std::net::IpAddr::V6(_) => None,
    }
}

/// 64 hex digits that stay the same over restarts.
fn endpoint_id(network: &NetworkId, address: &str) -> String {
    transport::join::hex_digest(format!("lb {network} {address}").as_bytes())
}

/// By service; containers that no service made are under the empty name, as in Docker.
fn services(listed: &[agent::Listed]) -> BTreeMap<String, VerboseService> {
    let mut services: BTreeMap<String, VerboseService> = BTreeMap::new();
    for one in listed {
        let service = services.entry(one.service.clone()).or_insert_with(|| VerboseService {
            vip: one.vips.first().map_or_else(|| "<nil>".to_owned(), ToString::to_string),
            ..Default::default()
        });
        for (target, published) in &one.ports {
            let port = format!("Target: {target}, Publish: {published}");
            if !service.ports.contains(&port) {
                service.ports.push(port);
            }
        }
        service.tasks.push(VerboseTask {
            name: one.task.clone(),
            endpoint_id: one.endpoint_id.clone(),
            endpoint_ip: one.address.to_string(),
            host_ip: one.host.map(|host| host.to_string()).unwrap_or_default(),
        });
    }
    // The same on every node: its own tasks are not first.
    for service in services.values_mut() {
        service.tasks.sort_by(|a, b| a.name.cmp(&b.name));
    }
    services
}

//! A service's endpoint: virtual addresses and published ports.

use std::collections::BTreeSet;

use store::Store;
use wire::swarmkit as pb;

use crate::books::{Books, address_of, ingress_ports};
use crate::network;
use crate::subnet::Holder;

/// A network by its id, or by its name as older clients write it.
pub fn resolve<'a>(store: &'a Store, target: &str) -> Option<&'a pb::Network> {
    let by_id = store.get::<pb::Network>(target);
    by_id.or_else(|| store.by_name::<pb::Network>(target).next()).map(|network| &**network)
}

/// The networks that a service's tasks are on besides ingress, as the task's spec or, from older
/// clients, the service's own spec says.
pub fn wanted_networks(spec: &pb::ServiceSpec) -> &[pb::NetworkAttachmentConfig] {
    match &spec.task {
        Some(task) if !task.networks.is_empty() => &task.networks,
        _ => &spec.networks,
    }
}

pub fn publishes_by_ingress(endpoint: Option<&pb::EndpointSpec>) -> bool {
    endpoint.is_some_and(|endpoint| {
        let mut ports = endpoint.ports.iter();
        ports.any(|port| port.publish_mode() == pb::port_config::PublishMode::Ingress)
    })
}

/// The endpoint as it should be: the stored one with whatever is still right in it.
pub fn endpoint(
    books: &mut Books,
    store: &Store,
    service: &pb::Service,
) -> Result<Option<pb::Endpoint>, String> {
    let Some(spec) = &service.spec else { return Ok(service.endpoint.clone()) };
    let networks = vip_networks(store, spec)?;
    if spec.endpoint.is_none() && networks.is_empty() {
        return Ok(None);
    }
    let old = service.endpoint.clone().unwrap_or_default();
    Ok(Some(pb::Endpoint {
        spec: spec.endpoint.clone(),
        ports: ports(books, store, service, spec.endpoint.as_ref(), &old)?,
        virtual_ips: virtual_ips(books, service, &networks, &old)?,
    }))
}

/// The networks in which the service has a virtual address, ingress first.
fn vip_networks<'a>(
    store: &'a Store,
    spec: &pb::ServiceSpec,
) -> Result<Vec<&'a pb::Network>, String> {
    let mut networks = Vec::new();
    if publishes_by_ingress(spec.endpoint.as_ref()) {
        networks.push(&**store.ingress_network().ok_or("there is no ingress network")?);
    }
    let mode = spec.endpoint.as_ref().map(|endpoint| endpoint.mode());
    if mode.is_none_or(|mode| mode == pb::endpoint_spec::ResolutionMode::Vip) {
        for wanted in wanted_networks(spec) {
            let network = resolve(store, &wanted.target)
                .ok_or_else(|| format!("network {} not found", wanted.target))?;
            if network::is_overlay(network) && !networks.iter().any(|n| n.id == network.id) {
                networks.push(network);
            }
        }
    }
    match networks.iter().find(|network| !network::is_allocated(network)) {
        Some(network) => Err(format!("network {} has no subnet yet", network::name(network))),
        None => Ok(networks),
    }
}

fn virtual_ips(
    books: &mut Books,
    service: &pb::Service,
    networks: &[&pb::Network],
    old: &pb::Endpoint,
) -> Result<Vec<pb::endpoint::VirtualIp>, String> {
    let holder = Holder::Service(service.id.clone());
    let mut vips = Vec::new();
    for network in networks {
        let mut kept: Vec<pb::endpoint::VirtualIp> = old
            .virtual_ips
            .iter()
            .filter(|vip| vip.network_id == network.id)
            .filter(|vip| {
                address_of(&vip.addr)
                    .is_some_and(|address| books.holds(&network.id, address, &holder))
            })
            .cloned()
            .collect();
        let held: Vec<_> = kept.iter().filter_map(|vip| address_of(&vip.addr)).collect();
        let given = books.take_besides(&network.id, &holder, &held).map_err(|full| {
            format!("no virtual address for the service: {}", in_network(network, &full))
        })?;
        let new = |addr| pb::endpoint::VirtualIp { network_id: network.id.clone(), addr };
        kept.extend(given.into_iter().map(new));
        // A Docker Engine node takes the first of a network for the only one, and wants IPv4.
        kept.sort_by_key(|vip| vip.addr.contains(':'));
        vips.extend(kept);
    }
    Ok(vips)
}

pub fn in_network(network: &pb::Network, why: &str) -> String {
    format!("network {}: {why}", network::name(network))
}

fn ports(
    books: &mut Books,
    store: &Store,
    service: &pb::Service,
    spec: Option<&pb::EndpointSpec>,
    old: &pb::Endpoint,
) -> Result<Vec<pb::PortConfig>, String> {
    let mut ports = spec.map(|spec| spec.ports.clone()).unwrap_or_default();
    let by_mesh =
        |port: &pb::PortConfig| port.publish_mode() == pb::port_config::PublishMode::Ingress;
    let mut taken: BTreeSet<(i32, u32)> = BTreeSet::new();
    // A port that is named must not be given away as a free one before.
    for port in ports.iter().filter(|port| by_mesh(port) && port.published_port != 0) {
        take_named(books, store, service, port)?;
        taken.insert((port.protocol, port.published_port));
    }
    for port in ports.iter_mut().filter(|port| by_mesh(port) && port.published_port == 0) {
        port.published_port = dynamic_port(books, service, port, old, &mut taken)?;
    }
    Ok(ports)
}

fn take_named(
    books: &mut Books,
    store: &Store,
    service: &pb::Service,
    port: &pb::PortConfig,
) -> Result<(), String> {
    match books.port_holder(port.protocol, port.published_port) {
        Some(holder) if holder != service.id => {
            let other = store.get::<pb::Service>(holder);
            let other = other.map_or(holder, |service| store::Object::name(&**service));
            Err(format!("port {} is already in use by service {other}", port.published_port))
        }
        Some(_) => Ok(()),
        None => {
            books.take_port(port.protocol, port.published_port, &service.id);
            Ok(())
        }
    }
}

/// The port that the service had for the same target, or a free one.
fn dynamic_port(
    books: &mut Books,
    service: &pb::Service,
    port: &pb::PortConfig,
    old: &pb::Endpoint,
    taken: &mut BTreeSet<(i32, u32)>,
) -> Result<u32, String> {
    let before = ingress_ports(Some(old)).find(|before| {
        before.name == port.name
            && before.protocol == port.protocol
            && before.target_port == port.target_port
            && !taken.contains(&(before.protocol, before.published_port))
            && books.port_holder(before.protocol, before.published_port) == Some(&service.id)
    });
    let published = match before {
        Some(before) => before.published_port,
        None => {
            let free = books.free_port(port.protocol).ok_or("dynamic port space is exhausted")?;
            books.take_port(port.protocol, free, &service.id);
            free
        }
    };
    taken.insert((port.protocol, published));
    Ok(published)
}

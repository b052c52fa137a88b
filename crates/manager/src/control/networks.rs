//! Networks of the swarm: what may be created, and when one may go.

use std::collections::BTreeMap;
use std::net::IpAddr;

use store::tables::is_ingress;
use wire::control::Response;
use wire::swarmkit as pb;

use super::{
    Decided, Desk, answer, filter, invalid, lacking, name_taken, not_found, precondition,
    store_error, stored, validate,
};
use crate::{Code, Failure};

/// Marks the host's own networks (`bridge`, `host`), which the swarm only names.
pub(crate) const PREDEFINED_LABEL: &str = "com.docker.swarm.predefined";

pub fn create(desk: &mut Desk<'_>, request: pb::CreateNetworkRequest) -> Decided {
    let spec = request.spec.ok_or_else(lacking)?;
    check(&spec)?;
    check_against_others(desk, &spec)?;
    let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
    if labels.is_some_and(|labels| labels.contains_key(PREDEFINED_LABEL)) {
        let reason = format!(
            "label {PREDEFINED_LABEL} is for internally created predefined networks and cannot be applied by users"
        );
        return Err(Failure::new(Code::PermissionDenied, reason));
    }
    if spec.ingress
        && let Some(other) = desk.store.ingress_network()
    {
        let reason = format!("ingress network ({}) is already present", other.id);
        return Err(Failure::new(Code::AlreadyExists, reason));
    }
    let name = validate::name(spec.annotations.as_ref()).to_owned();
    let id = desk.id();
    let network = pb::Network { id: id.clone(), spec: Some(spec), ..Default::default() };
    let mut transaction = desk.transaction();
    transaction.create(network).map_err(name_taken("network", &name))?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let network = Some(stored(store, &id)?);
            Ok(Response::CreateNetwork(pb::CreateNetworkResponse { network }))
        }),
    )
}

fn check(spec: &pb::NetworkSpec) -> Result<(), Failure> {
    validate::annotations(spec.annotations.as_ref())?;
    if spec.ingress && spec.attachable {
        return Err(invalid("ingress network cannot be attachable"));
    }
    let driver = spec.driver_config.as_ref().map_or("", |driver| driver.name.as_str());
    if !matches!(driver, "" | "overlay") {
        return Err(super::unimplemented(format!(
            "not supported by skep yet: swarm network driver {driver}"
        )));
    }
    check_options(spec)?;
    let Some(ipam) = &spec.ipam else { return Ok(()) };
    let driver = ipam.driver.as_ref().map_or("", |driver| driver.name.as_str());
    if !matches!(driver, "" | "default") {
        return Err(super::unimplemented(format!(
            "not supported by skep yet: IPAM driver {driver}"
        )));
    }
    // One beside others is left out, as with the Docker Engine, whose stack files live with that.
    let v6 = |pool: &pb::IpamConfig| network(&pool.subnet).is_some_and(|(base, _)| base.is_ipv6());
    if let Some(pool) = ipam.configs.first()
        && !spec.ipv6_enabled
        && ipam.configs.iter().all(v6)
    {
        return Err(invalid(format!(
            "ipam configuration: subnet {} is IPv6, which the network does not have: create it with --ipv6",
            pool.subnet
        )));
    }
    ipam.configs.iter().try_for_each(check_pool)
}

const MTU_OPTION: &str = "com.docker.network.driver.mtu";
const ENCRYPTED_OPTION: &str = "encrypted";
/// What IPv4 (RFC 791) and IPv6 (RFC 8200) need at least, and what an IP packet can hold.
const MTU_MIN: u32 = 68;
const MTU_MIN6: u32 = 1280;
const MTU_MAX: u32 = 65_535;

fn options(spec: &pb::NetworkSpec) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    spec.driver_config.as_ref().map_or(&NONE, |driver| &driver.options)
}

fn check_options(spec: &pb::NetworkSpec) -> Result<(), Failure> {
    let options = options(spec);
    // Traffic that should be secret must not go in the clear.
    if options.contains_key(ENCRYPTED_OPTION) {
        return Err(super::unimplemented(
            "encrypted overlay networks are not supported by skep: create it without --opt encrypted",
        ));
    }
    if let Some(text) = options.get(MTU_OPTION) {
        let least = if spec.ipv6_enabled { MTU_MIN6 } else { MTU_MIN };
        let fits = text.parse().is_ok_and(|mtu: u32| (least..=MTU_MAX).contains(&mtu));
        if !fits {
            return Err(invalid(format!(
                "invalid MTU {text:?}: {MTU_OPTION} is a number from {least} to {MTU_MAX}"
            )));
        }
    }
    vnis(spec).map(drop)
}

/// The segments asked for.
fn vnis(spec: &pb::NetworkSpec) -> Result<Vec<u32>, Failure> {
    let mut vnis = Vec::new();
    let list = options(spec).get(allocator::VNI_OPTION);
    for text in list.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
        let vni = text.parse().ok().filter(|vni| (1..1 << 24).contains(vni));
        let vni: u32 = vni.ok_or_else(|| {
            invalid(format!("invalid VXLAN id {text:?}: it is a number from 1 to 16777215"))
        })?;
        if vnis.contains(&vni) {
            return Err(invalid(format!("VXLAN id {vni} is given twice")));
        }
        vnis.push(vni);
    }
    Ok(vnis)
}

/// Subnets and segments are one network's each; what another has is named.
fn check_against_others(desk: &Desk<'_>, spec: &pb::NetworkSpec) -> Result<(), Failure> {
    let wanted = vnis(spec)?;
    let mut subnets: Vec<(allocator::subnet::Subnet, String)> = Vec::new();
    for other in desk.store.all::<pb::Network>() {
        let name = store::Object::name(&**other);
        if let Some(vni) = allocator::vnis_of(other).into_iter().find(|vni| wanted.contains(vni)) {
            let reason = format!("VXLAN id {vni} is in use by network {name}");
            return Err(Failure::new(Code::PermissionDenied, reason));
        }
        let ipam = other.ipam.as_ref().or(other.spec.as_ref().and_then(|s| s.ipam.as_ref()));
        let held = ipam.iter().flat_map(|ipam| &ipam.configs);
        let held = held.filter_map(|pool| allocator::subnet::Subnet::parse(&pool.subnet));
        subnets.extend(held.map(|subnet| (subnet, format!("{subnet} of network {name}"))));
    }
    for pool in spec.ipam.iter().flat_map(|ipam| &ipam.configs) {
        let Some(subnet) = allocator::subnet::Subnet::parse(&pool.subnet) else { continue };
        if let Some((_, other)) = subnets.iter().find(|(other, _)| other.overlaps(&subnet)) {
            let reason = format!(
                "Pool overlaps with other one on this address space: {subnet} with {other}"
            );
            return Err(Failure::new(Code::PermissionDenied, reason));
        }
        subnets.push((subnet, format!("{subnet} of the same request")));
    }
    Ok(())
}

fn check_pool(pool: &pb::IpamConfig) -> Result<(), Failure> {
    let subnet = match pool.subnet.as_str() {
        // Which subnet it will be is not known yet: what is said of it could not be kept.
        "" if *pool != (pb::IpamConfig { family: pool.family, ..Default::default() }) => {
            return Err(invalid(
                "ipam configuration: every gateway, ip-range and auxiliary address needs a subnet",
            ));
        }
        "" => None,
        text => Some(
            network(text)
                .ok_or_else(|| invalid(format!("ipam configuration: invalid subnet {text}")))?,
        ),
    };
    if !pool.range.is_empty() {
        let (base, length) = network(&pool.range)
            .ok_or_else(|| invalid(format!("ipam configuration: invalid range {}", pool.range)))?;
        let inside = subnet.is_some_and(|subnet| length >= subnet.1 && contains(subnet, base));
        if !inside {
            return Err(invalid(format!(
                "ipam configuration: subnet {} does not contain range {}",
                pool.subnet, pool.range
            )));
        }
    }
    if !pool.gateway.is_empty() {
        let gateway: IpAddr = pool.gateway.parse().map_err(|_| {
            invalid(format!("ipam configuration: invalid gateway {}", pool.gateway))
        })?;
        if subnet.is_some_and(|subnet| !contains(subnet, gateway)) {
            return Err(invalid(format!(
                "ipam configuration: subnet {} does not contain gateway {}",
                pool.subnet, pool.gateway
            )));
        }
        let hosts = allocator::subnet::Subnet::parse(&pool.subnet);
        if hosts.is_some_and(|hosts| !hosts.is_host(gateway)) {
            return Err(invalid(format!(
                "ipam configuration: gateway {} is no host's address in {}",
                pool.gateway, pool.subnet
            )));
        }
    }
    for (name, text) in &pool.reserved {
        let inside = text.parse().is_ok_and(|aux| subnet.is_some_and(|s| contains(s, aux)));
        if !inside {
            return Err(invalid(format!(
                "ipam configuration: subnet {} does not contain auxiliary address {name}={text}",
                pool.subnet
            )));
        }
    }
    Ok(())
}

fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (base, length) = text.split_once('/')?;
    let base: IpAddr = base.parse().ok()?;
    let length: u32 = length.parse().ok()?;
    (length <= if base.is_ipv4() { 32 } else { 128 }).then_some((base, length))
}

fn contains((base, length): (IpAddr, u32), address: IpAddr) -> bool {
    let (bits, base, address) = match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            (32, u128::from(base.to_bits()), u128::from(address.to_bits()))
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => (128, base.to_bits(), address.to_bits()),
        _ => return false,
    };
    let shift = bits - length;
    shift >= 128 || base >> shift == address >> shift
}

pub fn get(desk: &Desk<'_>, request: pb::GetNetworkRequest) -> Decided {
    let network = find(desk, &request.network_id, &request.name)?;
    let network = Some(pb::Network::clone(network));
    answer(Response::GetNetwork(pb::GetNetworkResponse { network }))
}

fn find<'a>(
    desk: &Desk<'a>,
    id: &str,
    name: &str,
) -> Result<&'a std::sync::Arc<pb::Network>, Failure> {
    let by_id = desk.store.get::<pb::Network>(id);
    let by_name = || desk.store.by_name::<pb::Network>(name).next();
    match (id, name) {
        ("", "") => Err(lacking()),
        ("", name) => by_name().ok_or_else(|| not_found("network", name)),
        (id, _) => by_id.ok_or_else(|| not_found("network", id)),
    }
}

pub fn list(desk: &Desk<'_>, request: pb::ListNetworksRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let networks =
        desk.store.all::<pb::Network>().filter(|n| filter::common!(n.as_ref(), &filters));
    let networks = networks.map(|network| pb::Network::clone(network)).collect();
    answer(Response::ListNetworks(pb::ListNetworksResponse { networks }))
}

pub fn remove(desk: &Desk<'_>, request: pb::RemoveNetworkRequest) -> Decided {
    let network = find(desk, &request.network_id, &request.name)?;
    let name = store::Object::name(network.as_ref());
    let annotations = store::Object::annotations(network.as_ref());
    if annotations.is_some_and(|annotations| annotations.labels.contains_key(PREDEFINED_LABEL)) {
        return Err(precondition(format!("{name} is a pre-defined network and cannot be removed")));
    }
    if is_ingress(network) {
        check_ingress_unused(desk)?;
    } else {
        check_unused(desk, &network.id, name)?;
    }
    let mut transaction = desk.transaction();
    transaction.remove::<pb::Network>(&network.id).map_err(store_error)?;
    desk.write(transaction, Box::new(|_| Ok(Response::RemoveNetwork(pb::RemoveNetworkResponse {}))))
}

fn check_ingress_unused(desk: &Desk<'_>) -> Result<(), Failure> {
    let user = desk.store.all::<pb::Service>().find(|service| {
        let endpoint = service.spec.as_ref().and_then(|spec| spec.endpoint.as_ref());
        let ports = endpoint.map(|endpoint| endpoint.ports.as_slice()).unwrap_or_default();
        ports.iter().any(|port| port.publish_mode() == pb::port_config::PublishMode::Ingress)
    });
    match user {
        None => Ok(()),
        Some(service) => Err(precondition(format!(
            "ingress network cannot be removed because service {} depends on it",
            service.id
        ))),
    }
}

fn check_unused(desk: &Desk<'_>, id: &str, name: &str) -> Result<(), Failure> {
    let by_id = desk.store.services_using_network(id).next();
    if let Some(service) = by_id.or_else(|| desk.store.services_using_network(name).next()) {
        return Err(precondition(format!("network {id} is in use by service {}", service.id)));
    }
    let alive = |task: &&std::sync::Arc<pb::Task>| {
        store::access::is_wanted(task) && !store::access::has_ended(task)
    };
    if let Some(task) = desk.store.tasks_using_network(id).find(alive) {
        return Err(precondition(format!("network {id} is in use by task {}", task.id)));
    }
    Ok(())
}

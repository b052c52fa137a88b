//! A container's ports and networks as JSON, for inspect and list.

use std::collections::BTreeMap;

use bollard_stubs::models::EndpointSettings;
use engine::containers::Spec;
use engine::network::{EndpointState, SandboxState};
use serde_json::{Map, Value, json};

/// `NetworkSettings.Ports`: bound ones with their addresses, merely exposed ones as null.
pub(super) fn map(spec: &Spec, sandbox: Option<&SandboxState>) -> Value {
    let mut ports: BTreeMap<String, Value> = BTreeMap::new();
    let Some(sandbox) = sandbox else { return json!({}) };
    for exposed in spec.config.exposed_ports.iter().flatten() {
        let key = if exposed.contains('/') { exposed.clone() } else { format!("{exposed}/tcp") };
        ports.insert(key, Value::Null);
    }
    for port in &sandbox.ports {
        let key = format!("{}/{}", port.port, port.proto.name());
        let binding =
            json!({ "HostIp": port.host_ip.to_string(), "HostPort": port.host_port.to_string() });
        match ports.entry(key).or_insert(Value::Null) {
            Value::Array(bindings) => bindings.push(binding),
            empty => *empty = json!([binding]),
        }
    }
    json!(ports)
}

/// `Ports` of the list.
pub(super) fn summary(spec: &Spec, sandbox: Option<&SandboxState>) -> Vec<Value> {
    let Some(sandbox) = sandbox else { return Vec::new() };
    let mut ports: Vec<Value> = sandbox
        .ports
        .iter()
        .map(|port| {
            json!({
                "IP": port.host_ip.to_string(),
                "PrivatePort": port.port,
                "PublicPort": port.host_port,
                "Type": port.proto.name(),
            })
        })
        .collect();
    for exposed in spec.config.exposed_ports.iter().flatten() {
        let Ok((number, proto)) = engine::containers::parse_port(exposed) else { continue };
        if !sandbox.ports.iter().any(|port| port.port == number && port.proto == proto) {
            ports.push(json!({ "PrivatePort": number, "Type": proto.name() }));
        }
    }
    ports
}

/// `NetworkSettings.Networks`: what is, and for a container at rest what was asked for.
pub(super) fn networks(spec: &Spec, sandbox: Option<&SandboxState>) -> Value {
    let mut networks = Map::new();
    for (name, settings) in &spec.networks {
        let ipam = settings.ipam_config.as_ref().map_or(Value::Null, |ipam| json!(ipam));
        networks.insert(name.clone(), endpoint(None, Some(settings), ipam));
    }
    for (name, state) in sandbox.iter().flat_map(|sandbox| &sandbox.endpoints) {
        let asked = spec.networks.get(name);
        let ipam = match asked.and_then(|asked| asked.ipam_config.as_ref()) {
            Some(ipam) => json!(ipam),
            None => task_ipam(spec, state),
        };
        networks.insert(name.clone(), endpoint(Some(state), asked, ipam));
    }
    Value::Object(networks)
}

/// On an overlay the addresses are the manager's, shown as if asked for.
fn task_ipam(spec: &Spec, state: &EndpointState) -> Value {
    let of_task = spec.task.iter().flat_map(|task| &task.endpoints);
    let given = of_task.filter(|endpoint| endpoint.network == state.network_id.as_str());
    match given.flat_map(|endpoint| &endpoint.addresses).find(|cidr| cidr.is_v4()) {
        Some(cidr) => json!({ "IPv4Address": cidr.addr.to_string() }),
        None => Value::Null,
    }
}

fn endpoint(state: Option<&EndpointState>, asked: Option<&EndpointSettings>, ipam: Value) -> Value {
    let addresses = state.map(|state| state.addresses.as_slice()).unwrap_or_default();
    let gateways = state.map(|state| state.gateways.as_slice()).unwrap_or_default();
    let v4 = addresses.iter().find(|cidr| cidr.is_v4());
    let v6 = addresses.iter().find(|cidr| !cidr.is_v4());
    let text = |found: Option<String>| found.unwrap_or_default();
    let names = state.map(|state| &state.dns_names).filter(|names| !names.is_empty());
    let options = match (state, asked.and_then(|asked| asked.driver_opts.as_ref())) {
        (Some(state), _) if !state.driver_opts.is_empty() => json!(state.driver_opts),
        (_, asked) => json!(asked),
    };
    let mac = state.map(|state| state.mac.to_string());
    json!({
        "IPAMConfig": ipam,
        "Links": asked.and_then(|asked| asked.links.as_ref()),
        "Aliases": asked.and_then(|asked| asked.aliases.as_ref()),
        "MacAddress": text(mac.or_else(|| asked.and_then(|asked| asked.mac_address.clone()))),
        "DriverOpts": options,
        "GwPriority": 0,
        "NetworkID": text(state.map(|state| state.network_id.to_string())),
        "EndpointID": text(state.map(|state| state.endpoint_id.clone())),
        "Gateway": text(gateways.iter().find(|ip| ip.is_ipv4()).map(ToString::to_string)),
        "IPAddress": text(v4.map(|cidr| cidr.addr.to_string())),
        "IPPrefixLen": v4.map_or(0, |cidr| cidr.prefix),
        "IPv6Gateway": text(gateways.iter().find(|ip| ip.is_ipv6()).map(ToString::to_string)),
        "GlobalIPv6Address": text(v6.map(|cidr| cidr.addr.to_string())),
        "GlobalIPv6PrefixLen": v6.map_or(0, |cidr| cidr.prefix),
        "DNSNames": names,
    })
}

//! Networks of the swarm in the form of `/networks`; the local ones are shown by their own module.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Value, json};
use wire::swarmkit as pb;

use super::api::{ControlCode, ControlError, LocalEndpoint, LocalOverlay, VerboseService};
use super::cluster::prefix_length;
use super::fault::Fault;
use super::find::{self, Cluster};
use super::json::{Obj, instant, texts, time};

/// The store's words, as SwarmKit has them.
const NAME_TAKEN: &str = "name conflicts with an existing object";
const INGRESS_SANDBOX: &str = "ingress-sbox";

/// `POST /networks/create` for a network of swarm scope: its id, and what is to be said of it.
pub async fn create(cluster: &Cluster, body: &Value) -> Result<(String, String), Fault> {
    let spec = read(body)?;
    let warning = left_out(&spec);
    let name = spec.annotations.as_ref().map_or("", |annotations| &annotations.name).to_owned();
    let answer = cluster.call(pb::CreateNetworkRequest { spec: Some(spec) }).await;
    let answer = answer.map_err(|error| refusal(error, &name))?;
    Ok((answer.network.map(|network| network.id).unwrap_or_default(), warning))
}

fn left_out(spec: &pb::NetworkSpec) -> String {
    let pools = spec.ipam.iter().flat_map(|ipam| &ipam.configs);
    let mut v6 = pools.map(|pool| &pool.subnet).filter(|subnet| subnet.contains(':'));
    match v6.next().filter(|_| !spec.ipv6_enabled) {
        Some(subnet) => format!("subnet {subnet} is not used: the network has no IPv6 (--ipv6)"),
        None => String::new(),
    }
}

/// dockerd has words of its own for two refusals, before it asks the managers.
fn refusal(error: ControlError, name: &str) -> Fault {
    if error.code == ControlCode::AlreadyExists && error.message.contains(NAME_TAKEN) {
        return Fault::conflict(format!("network with name {name} already exists"));
    }
    if error == ControlError::worker() {
        return Fault::new(
            StatusCode::FORBIDDEN,
            "Cannot create a multi-host network from a worker node. Please create the network from a manager node.",
        );
    }
    error.into()
}

/// Whether a create request means a network of the swarm.
pub fn is_swarm_scoped(body: &Value) -> bool {
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
    text("Driver") == "overlay"
        || text("Scope") == "swarm"
        || body.get("Ingress").and_then(Value::as_bool) == Some(true)
}

pub(crate) fn read(body: &Value) -> Result<pb::NetworkSpec, Fault> {
    let body = Obj::root(body)?;
    let name = body.str("Name")?;
    let driver = body.str("Driver")?;
    if !matches!(driver.as_str(), "" | "overlay" | "default") {
        return Err(Fault::unsupported(format!("networks of swarm scope with driver {driver:?}")));
    }
    match body.str("Scope")?.as_str() {
        "" | "swarm" => {}
        "local" => {
            let reason = "cannot downgrade network scope for overlay networks";
            return Err(Fault::new(StatusCode::FORBIDDEN, reason));
        }
        other => return Err(Fault::bad(format!("an overlay network cannot have scope {other:?}"))),
    }
    if body.bool("ConfigOnly")?
        || body
            .obj("ConfigFrom")?
            .is_some_and(|from| from.str("Network").is_ok_and(|n| !n.is_empty()))
    {
        return Err(Fault::unsupported("configuration-only networks of swarm scope"));
    }
    let _ = body.opt_bool("CheckDuplicate")?;
    // Overlays have IPv4 in any case; newer clients say so.
    if body.opt_bool("EnableIPv4")? == Some(false) {
        return Err(Fault::unsupported("overlay networks without IPv4 (EnableIPv4)"));
    }
    let ipam = body.obj("IPAM")?.map(read_ipam).transpose()?.flatten();
    let spec = pb::NetworkSpec {
        annotations: Some(pb::Annotations {
            name,
            labels: body.map("Labels")?,
            indices: Vec::new(),
        }),
        driver_config: Some(pb::Driver { name: "overlay".into(), options: body.map("Options")? }),
        ipv6_enabled: body.bool("EnableIPv6")?,
        internal: body.bool("Internal")?,
        ipam,
        attachable: body.bool("Attachable")?,
        ingress: body.bool("Ingress")?,
        config_from: None,
    };
    body.done()?;
    Ok(spec)
}

fn read_ipam(ipam: Obj<'_>) -> Result<Option<pb::IpamOptions>, Fault> {
    let driver = match ipam.str("Driver")?.as_str() {
        "" | "default" => "default".to_owned(),
        other => return Err(Fault::unsupported(format!("IPAM driver {other:?}"))),
    };
    let options = ipam.map("Options")?;
    let mut configs = Vec::new();
    for pool in ipam.list("Config")? {
        let subnet = pool.str("Subnet")?;
        if !subnet.is_empty() && prefix_length(&subnet).is_none() {
            let reason = format!("Invalid subnet {subnet} : invalid CIDR address: {subnet}");
            return Err(Fault::bad(reason));
        }
        let family = match subnet.contains(':') {
            true => pb::ipam_config::AddressFamily::Ipv6,
            false => pb::ipam_config::AddressFamily::Ipv4,
        };
        let reserved = match pool.map("AuxiliaryAddresses")? {
            given if given.is_empty() => pool.map("AuxAddress")?,
            given => given,
        };
        configs.push(pb::IpamConfig {
            family: family as i32,
            subnet,
            range: pool.str("IPRange")?,
            gateway: pool.str("Gateway")?,
            reserved,
        });
        pool.done()?;
    }
    ipam.done()?;
    let driver = Some(pb::Driver { name: driver, options });
    Ok(Some(pb::IpamOptions { driver, configs }))
}

/// Every network of the swarm that this node knows: all on a manager, those it takes part in on a worker.
pub async fn list(cluster: &Cluster) -> Result<Vec<Value>, Fault> {
    let local = cluster.local_overlays().await;
    let mut shown = BTreeMap::new();
    for network in stored(cluster).await? {
        shown.insert(network.id.clone(), show(&network, local.get(&network.id), false));
    }
    for (id, overlay) in &local {
        shown.entry(id.clone()).or_insert_with(|| show(&overlay.network, Some(overlay), false));
    }
    Ok(shown.into_values().collect())
}

/// Overlays in the store; none when this node is no manager.
async fn stored(cluster: &Cluster) -> Result<Vec<pb::Network>, Fault> {
    match cluster.call(pb::ListNetworksRequest::default()).await {
        Ok(answer) => Ok(answer.networks.into_iter().filter(is_overlay).collect()),
        Err(error) if error.code == ControlCode::NotManager => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The store also holds the hosts' own `bridge` and `host`, for services that name them.
fn is_overlay(network: &pb::Network) -> bool {
    let driver = network
        .driver_state
        .as_ref()
        .or(network.spec.as_ref().and_then(|spec| spec.driver_config.as_ref()));
    driver.is_none_or(|driver| driver.name.is_empty() || driver.name == "overlay")
}

/// One network by id, name or the beginning of its id; `None` when the swarm knows none.
pub async fn inspect(cluster: &Cluster, name: &str, verbose: bool) -> Result<Option<Value>, Fault> {
    let local = cluster.local_overlays().await;
    let mut networks: BTreeMap<String, pb::Network> =
        stored(cluster).await?.into_iter().map(|network| (network.id.clone(), network)).collect();
    for (id, overlay) in &local {
        networks.entry(id.clone()).or_insert_with(|| overlay.network.clone());
    }
    let named = |network: &&pb::Network| name_of(network) == name;
    let found = match networks.get(name).or_else(|| networks.values().find(named)) {
        Some(found) => found,
        None => {
            let mut matches = networks
                .values()
                .filter(|network| !name.is_empty() && network.id.starts_with(name));
            match (matches.next(), matches.next()) {
                (None, _) => return predefined(cluster, name).await,
                (Some(one), None) => one,
                (Some(_), Some(_)) => {
                    let count = 2 + matches.count();
                    return Err(Fault::bad(format!(
                        "network {name} is ambiguous ({count} matches found on name)"
                    )));
                }
            }
        }
    };
    let mut shown = show(found, local.get(&found.id), verbose);
    if verbose && !local.contains_key(&found.id) {
        shown["Services"] = show_services(&known_to_managers(cluster, found).await?);
    }
    Ok(Some(shown))
}

async fn known_to_managers(
    cluster: &Cluster,
    network: &pb::Network,
) -> Result<BTreeMap<String, VerboseService>, Fault> {
    let tasks = cluster.call(pb::ListTasksRequest::default()).await?.tasks;
    let nodes = cluster.call(pb::ListNodesRequest::default()).await?.nodes;
    Ok(super::verbose::services(network, &tasks, &nodes))
}

/// The hosts' own networks are not listed with the swarm's, but services name them: `--network host`.
async fn predefined(cluster: &Cluster, name: &str) -> Result<Option<Value>, Fault> {
    let all = match cluster.call(pb::ListNetworksRequest::default()).await {
        Ok(answer) => answer.networks,
        Err(error) if error.code == ControlCode::NotManager => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let meant = |network: &&pb::Network| network.id == name || name_of(network) == name;
    let found = all.iter().filter(|network| !is_overlay(network)).find(meant);
    Ok(found.map(|network| show(network, None, false)))
}

/// Whether the swarm had such a network and has removed it.
pub async fn remove(cluster: &Cluster, name: &str) -> Result<bool, Fault> {
    if !stored(cluster)
        .await?
        .iter()
        .any(|network| network.id.starts_with(name) || name_of(network) == name)
    {
        return Ok(false);
    }
    let found = find::network(cluster, name).await?;
    cluster.call(pb::RemoveNetworkRequest { name: String::new(), network_id: found.id }).await?;
    Ok(true)
}

fn name_of(network: &pb::Network) -> &str {
    network
        .spec
        .as_ref()
        .and_then(|spec| spec.annotations.as_ref())
        .map_or("", |annotations| &annotations.name)
}

fn show(network: &pb::Network, local: Option<&LocalOverlay>, verbose: bool) -> Value {
    let spec = network.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.clone().unwrap_or_default();
    let driver = network.driver_state.clone().or(spec.driver_config.clone()).unwrap_or_default();
    let ipam = network.ipam.clone().or(spec.ipam.clone()).unwrap_or_default();
    let configs: Vec<Value> = ipam.configs.iter().map(show_pool).collect();
    let ipam_driver = ipam.driver.unwrap_or_default();
    let meta = network.meta.unwrap_or_default();
    let created = match local.filter(|local| local.created_unix_nanos != 0) {
        Some(local) => instant(i128::from(local.created_unix_nanos)),
        None => time(meta.created_at.as_ref()),
    };
    let labels = match (annotations.labels.is_empty(), local) {
        (true, None) => Value::Null,
        _ => texts(&annotations.labels),
    };
    let mut shown = json!({
        "Name": annotations.name,
        "Id": network.id,
        "Created": created,
        "Scope": "swarm",
        "Driver": if driver.name.is_empty() { "overlay".into() } else { driver.name },
        "EnableIPv4": true,
        "EnableIPv6": spec.ipv6_enabled,
        "IPAM": {
            "Driver": if ipam_driver.name.is_empty() { "default".into() } else { ipam_driver.name },
            "Options": if ipam_driver.options.is_empty() { Value::Null } else { texts(&ipam_driver.options) },
            "Config": configs,
        },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": local.map_or(Value::Null, |local| containers(local, &annotations.name, spec.ingress)),
        "Options": texts(&driver.options),
        "Labels": labels,
    });
    if let Some(local) = local {
        let peers: Vec<Value> =
            local.peers.iter().map(|(name, ip)| json!({"Name": name, "IP": ip})).collect();
        shown["Peers"] = peers.into();
        if verbose {
            shown["Services"] = show_services(&local.services);
        }
    }
    shown
}

fn show_pool(config: &pb::IpamConfig) -> Value {
    let mut pool = serde_json::Map::new();
    for (key, value) in
        [("Subnet", &config.subnet), ("IPRange", &config.range), ("Gateway", &config.gateway)]
    {
        if !value.is_empty() {
            pool.insert(key.to_owned(), value.clone().into());
        }
    }
    if !config.reserved.is_empty() {
        pool.insert("AuxiliaryAddresses".into(), texts(&config.reserved));
    }
    Value::Object(pool)
}

fn containers(local: &LocalOverlay, name: &str, ingress: bool) -> Value {
    let entry = |one: &LocalEndpoint| {
        json!({"Name": one.name, "EndpointID": one.endpoint_id, "MacAddress": one.mac,
               "IPv4Address": one.ipv4, "IPv6Address": one.ipv6})
    };
    let mut shown: serde_json::Map<String, Value> =
        local.containers.iter().map(|one| (one.container_id.clone(), entry(one))).collect();
    if let Some(address) = &local.lb_address {
        let (key, endpoint_name) = match ingress {
            true => (INGRESS_SANDBOX.to_owned(), "ingress-endpoint".to_owned()),
            false => (format!("lb-{name}"), format!("{name}-endpoint")),
        };
        let one = LocalEndpoint {
            name: endpoint_name,
            endpoint_id: local.lb_endpoint_id.clone().unwrap_or_default(),
            mac: local.lb_mac.clone().unwrap_or_default(),
            ipv4: address.clone(),
            ..Default::default()
        };
        shown.insert(key, entry(&one));
    }
    Value::Object(shown)
}

fn show_services(services: &BTreeMap<String, VerboseService>) -> Value {
    services.iter().map(|(name, service)| (name.clone(), show_service(service))).collect()
}

fn show_service(service: &VerboseService) -> Value {
    let tasks: Vec<Value> = service
        .tasks
        .iter()
        .map(|task| {
            json!({"Name": task.name, "EndpointID": task.endpoint_id, "EndpointIP": task.endpoint_ip,
                   "Info": {"Host IP": task.host_ip}})
        })
        .collect();
    json!({"VIP": service.vip, "Ports": service.ports, "LocalLBIndex": service.local_lb_index, "Tasks": tasks})
}

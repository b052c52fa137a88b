//! Networks: create, list, inspect, connect, disconnect, remove, prune; those of this host and,
//! asked of the cluster, those of the swarm.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bollard_stubs::models::EndpointSettings;
use engine::events::Type as EventType;
use engine::network::{
    BRIDGE, Cidr, Driver, EndpointState, GATEWAY_BRIDGE, HOST, IpamPool, LocalNetwork, NONE,
    NetworkSpec, SandboxState,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ApiState;
use crate::error::{ApiError, ApiResult};
use crate::request::{Body, Filters, Parameters, RawBody};
use crate::swarm;

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/networks", get(list))
        // Docker has this one path with a slash at its end as well.
        .route("/networks/", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

// ---- create

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateRequest {
    name: String,
    check_duplicate: Option<bool>,
    driver: Option<String>,
    internal: bool,
    attachable: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    config_only: bool,
    config_from: Option<ConfigFrom>,
    #[serde(rename = "IPAM")]
    ipam: Option<Ipam>,
    options: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigFrom {
    network: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    driver: Option<String>,
    options: Option<BTreeMap<String, String>>,
    config: Option<Vec<Pool>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Pool {
    subnet: Option<String>,
    #[serde(rename = "IPRange")]
    ip_range: Option<String>,
    gateway: Option<String>,
    #[serde(alias = "AuxAddress")]
    auxiliary_addresses: Option<BTreeMap<String, String>>,
}

async fn create(State(state): State<ApiState>, body: Body<Value>) -> Result<Response, Response> {
    let body = body.required().map_err(IntoResponse::into_response)?;
    if swarm::networks::is_swarm_scoped(&body) {
        let made = swarm::networks::create(&state.cluster, &body).await;
        let (id, warning) = made.map_err(IntoResponse::into_response)?;
        return Ok(created(&id, &warning));
    }
    create_local(&state, body).await.map_err(IntoResponse::into_response)
}

fn created(id: &str, warning: &str) -> Response {
    (StatusCode::CREATED, Json(json!({ "Id": id, "Warning": warning }))).into_response()
}

async fn create_local(state: &ApiState, body: Value) -> ApiResult {
    let request: CreateRequest = serde_json::from_value(body)
        .map_err(|error| ApiError::bad_request(format!("invalid JSON: {error}")))?;
    let spec = spec(request)?;
    let network = state.engine.network.create(spec).await.map_err(engine::Error::from)?;
    Ok(created(&network.id, ""))
}

pub(crate) fn spec(request: CreateRequest) -> Result<NetworkSpec, ApiError> {
    let _ = request.check_duplicate;
    if request.name.trim().is_empty() {
        return Err(ApiError::bad_request("network name cannot be empty"));
    }
    if request.config_only || request.config_from.is_some_and(|from| !from.network.is_empty()) {
        return Err(ApiError::unsupported("configuration-only networks"));
    }
    let driver = match request.driver.as_deref().unwrap_or_default() {
        "" | "default" | "bridge" => Driver::Bridge,
        "host" => Driver::Host,
        "null" => Driver::Null,
        name @ ("macvlan" | "ipvlan") => {
            return Err(ApiError::unsupported(format!("networks with driver {name}")));
        }
        other => return Err(ApiError::not_found(format!("plugin \"{other}\" not found"))),
    };
    let ipam = request.ipam.unwrap_or_default();
    let ipam_driver = ipam.driver.filter(|name| !name.is_empty()).unwrap_or("default".into());
    if ipam_driver != "default" {
        return Err(ApiError::not_found(format!("plugin \"{ipam_driver}\" not found")));
    }
    let pools = ipam.config.unwrap_or_default().into_iter().map(pool);
    Ok(NetworkSpec {
        name: request.name,
        driver,
        internal: request.internal,
        attachable: request.attachable,
        ipv6: request.enable_ipv6.unwrap_or(false),
        ipam_driver,
        ipam_options: ipam.options.unwrap_or_default(),
        pools: pools.collect::<Result<_, _>>()?,
        options: request.options.unwrap_or_default(),
        labels: request.labels.unwrap_or_default(),
    })
}

fn pool(pool: Pool) -> Result<IpamPool, ApiError> {
    let subnet = pool.subnet.filter(|text| !text.is_empty());
    let subnet = subnet.map(|text| cidr("subnet", &text)).transpose()?;
    if let Some(subnet) = subnet.filter(|subnet| subnet.network() != *subnet) {
        let network = subnet.network();
        return Err(ApiError::bad_request(format!(
            "invalid subnet {subnet}: it should be {network}"
        )));
    }
    let ip_range = pool.ip_range.filter(|text| !text.is_empty());
    let gateway = pool.gateway.filter(|text| !text.is_empty());
    let aux = pool.auxiliary_addresses.unwrap_or_default();
    Ok(IpamPool {
        subnet,
        ip_range: ip_range.map(|text| cidr("ip-range", &text)).transpose()?,
        gateway: gateway.map(|text| address("gateway", &text)).transpose()?,
        aux_addresses: aux
            .into_iter()
            .map(|(name, text)| Ok((name, address("auxiliary address", &text)?)))
            .collect::<Result<_, ApiError>>()?,
        automatic: false,
    })
}

fn cidr(what: &str, text: &str) -> Result<Cidr, ApiError> {
    text.parse()
        .map_err(|_| ApiError::bad_request(format!("invalid {what} {text}: invalid CIDR address")))
}

fn address(what: &str, text: &str) -> Result<IpAddr, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request(format!("invalid {what} {text}")))
}

// ---- list and inspect

async fn list(State(state): State<ApiState>, parameters: Parameters) -> Result<Response, Response> {
    let filters = parameters.filters().map_err(IntoResponse::into_response)?;
    let known = ["dangling", "driver", "id", "label", "name", "scope", "type"];
    filters.only(&known).map_err(IntoResponse::into_response)?;
    if let Some(kind) = filters.values("type").find(|kind| !matches!(*kind, "builtin" | "custom")) {
        let error = ApiError::bad_request(format!("invalid filter 'type={kind}'"));
        return Err(error.into_response());
    }
    let dangling = match filters.has("dangling") {
        true => Some(filters.boolean("dangling", false).map_err(IntoResponse::into_response)?),
        false => None,
    };
    let mut shown: Vec<Value> = Vec::new();
    for network in state.engine.network.networks() {
        let mut value = show(&network);
        let unused = is_builtin(&network.name) || containers(&state, &network).is_empty();
        if dangling.is_none_or(|wanted| wanted == (unused && !is_builtin(&network.name))) {
            value["Containers"] = json!({});
            shown.push(value);
        }
    }
    if dangling.is_none() {
        let swarm = swarm::networks::list(&state.cluster).await;
        for mut network in swarm.map_err(IntoResponse::into_response)? {
            // The list tells the networks, not who is on them.
            network["Containers"] = Value::Null;
            shown.push(network);
        }
    }
    shown.retain(|network| fits(network, &filters));
    Ok(Json(shown).into_response())
}

fn is_builtin(name: &str) -> bool {
    [BRIDGE, HOST, NONE].contains(&name)
}

fn fits(network: &Value, filters: &Filters) -> bool {
    let text = |key: &str| network[key].as_str().unwrap_or_default();
    let kind = match is_builtin(text("Name")) || network["Ingress"] == true {
        true => "builtin",
        false => "custom",
    };
    let name_fits =
        !filters.has("name") || filters.values("name").any(|wanted| text("Name").contains(wanted));
    name_fits
        && filters.exact("driver", text("Driver"))
        && filters.exact("scope", text("Scope"))
        && filters.exact("type", kind)
        && filters.prefix("id", text("Id"))
        && filters.labels("label", |key| network["Labels"][key].as_str())
}

async fn inspect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Result<Response, Response> {
    let scope = parameters.text("scope").unwrap_or_default().to_owned();
    let in_scope = |wanted: &str| scope.is_empty() || scope == wanted;
    // A name of both scopes means the local network, as in Docker.
    if in_scope("local")
        && let Ok(network) = state.engine.network.find(&id)
    {
        let mut value = show(&network);
        value["Containers"] = Value::Object(containers(&state, &network));
        return Ok(Json(value).into_response());
    }
    if in_scope("swarm") {
        let verbose = parameters.flag("verbose");
        let found = swarm::networks::inspect(&state.cluster, &id, verbose).await;
        if let Some(network) = found.map_err(IntoResponse::into_response)? {
            return Ok(Json(network).into_response());
        }
    }
    Err(ApiError::not_found(format!("network {id} not found")).into_response())
}

/// A network of this host in Docker's form, without its containers.
fn show(network: &LocalNetwork) -> Value {
    let pools: Vec<Value> = network.pools.iter().map(show_pool).collect();
    let options = match network.ipam_options.is_empty() {
        true => Value::Null,
        false => json!(network.ipam_options),
    };
    json!({
        "Name": network.name,
        "Id": network.id.as_str(),
        "Created": network.created,
        "Scope": "local",
        "Driver": network.driver.name(),
        "EnableIPv4": true,
        "EnableIPv6": network.ipv6,
        "IPAM": { "Driver": network.ipam_driver, "Options": options, "Config": pools },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": network.options,
        "Labels": network.labels,
    })
}

fn show_pool(pool: &IpamPool) -> Value {
    let mut shown = json!({});
    let texts = [
        ("Subnet", pool.subnet.map(|subnet| subnet.to_string())),
        ("IPRange", pool.ip_range.map(|range| range.to_string())),
        ("Gateway", pool.gateway.map(|gateway| gateway.to_string())),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            shown[key] = text.into();
        }
    }
    if !pool.aux_addresses.is_empty() {
        shown["AuxiliaryAddresses"] = json!(pool.aux_addresses);
    }
    shown
}

/// Who is on it, by container id.
fn containers(state: &ApiState, network: &LocalNetwork) -> serde_json::Map<String, Value> {
    let mut shown = serde_json::Map::new();
    for (id, sandbox) in state.engine.network.sandboxes() {
        if let Some(endpoint) = sandbox.endpoints.values().find(|e| e.network_id == network.id) {
            shown.insert(id.to_string(), show_endpoint(&sandbox.container_name, endpoint));
        }
        if let Some(endpoint) = gateway_endpoint(&sandbox, network) {
            let short: String = id.chars().take(12).collect();
            shown.insert(id.to_string(), show_endpoint(&format!("gateway_{short}"), endpoint));
        }
    }
    shown
}

fn gateway_endpoint<'a>(
    sandbox: &'a SandboxState,
    network: &LocalNetwork,
) -> Option<&'a EndpointState> {
    let endpoint = sandbox.gateway_endpoint.as_ref()?;
    (network.name == GATEWAY_BRIDGE && endpoint.network_id == network.id).then_some(endpoint)
}

fn show_endpoint(name: &str, endpoint: &EndpointState) -> Value {
    let of_family = |v4: bool| {
        let cidr = endpoint.addresses.iter().find(|cidr| cidr.is_v4() == v4);
        cidr.map(ToString::to_string).unwrap_or_default()
    };
    json!({
        "Name": name,
        "EndpointID": endpoint.endpoint_id,
        "MacAddress": endpoint.mac.to_string(),
        "IPv4Address": of_family(true),
        "IPv6Address": of_family(false),
    })
}

// ---- remove and prune

async fn remove(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    _: RawBody,
) -> Result<Response, Response> {
    let network = &state.engine.network;
    let removed = match network.find(&id) {
        Ok(local) => {
            let done = network.remove(&local.id).await;
            done.map_err(|error| ApiError::from(engine::Error::from(error)).into_response())?;
            true
        }
        Err(_) => {
            let done = swarm::networks::remove(&state.cluster, &id).await;
            done.map_err(IntoResponse::into_response)?
        }
    };
    match removed {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(ApiError::not_found(format!("network {id} not found")).into_response()),
    }
}

async fn prune(State(state): State<ApiState>, parameters: Parameters, _: RawBody) -> ApiResult {
    let filters = parameters.filters()?;
    filters.only(&["label", "label!", "until"])?;
    let mut deleted = Vec::new();
    for network in state.engine.network.networks() {
        if is_builtin(&network.name) || !prunable(&network.labels, &network.created, &filters)? {
            continue;
        }
        // In use: stays.
        if state.engine.network.remove(&network.id).await.is_ok() {
            deleted.push(network.name);
        }
    }
    for network in swarm::networks::list(&state.cluster).await.unwrap_or_default() {
        let labels: BTreeMap<String, String> =
            serde_json::from_value(network["Labels"].clone()).unwrap_or_default();
        let created = network["Created"].as_str().unwrap_or_default();
        let (Some(id), Some(name)) = (network["Id"].as_str(), network["Name"].as_str()) else {
            continue;
        };
        if network["Ingress"] == true || !prunable(&labels, created, &filters)? {
            continue;
        }
        if matches!(swarm::networks::remove(&state.cluster, id).await, Ok(true)) {
            deleted.push(name.to_owned());
        }
    }
    state.engine.events.publish(EventType::NETWORK, "prune", "", [("reclaimed", "0")]);
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Json(json!({ "NetworksDeleted": deleted })).into_response())
}

fn prunable(
    labels: &BTreeMap<String, String>,
    created: &str,
    filters: &Filters,
) -> Result<bool, ApiError> {
    let label = |key: &str| labels.get(key).map(String::as_str);
    let unwanted = filters.has("label!") && filters.labels("label!", label);
    if unwanted || !filters.labels("label", label) {
        return Ok(false);
    }
    let Some(limit) = crate::images::until(filters)? else { return Ok(true) };
    let format = &time::format_description::well_known::Rfc3339;
    Ok(time::OffsetDateTime::parse(created, format).is_ok_and(|created| created < limit))
}

// ---- connect and disconnect

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConnectRequest {
    container: String,
    endpoint_config: Option<EndpointSettings>,
}

async fn connect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    body: Body<ConnectRequest>,
) -> ApiResult {
    let request = body.required()?;
    let settings = request.endpoint_config.unwrap_or_default();
    state.engine.connect(&id, &request.container, settings).await?;
    Ok(StatusCode::OK.into_response())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DisconnectRequest {
    container: String,
    force: bool,
}

async fn disconnect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    body: Body<DisconnectRequest>,
) -> ApiResult {
    let request = body.required()?;
    state.engine.disconnect(&id, &request.container, request.force).await?;
    Ok(StatusCode::OK.into_response())
}

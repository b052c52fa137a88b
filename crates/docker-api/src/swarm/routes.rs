//! `/swarm` and `/nodes`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use wire::swarmkit as pb;

use super::cluster::{self, AVAILABILITIES, merge_spec, read_init, read_join};
use super::fault::Fault;
use super::json::Obj;
use super::spec::read_annotations;
use super::{find, object};
use crate::request::RawBody;
use crate::{ApiResult, ApiState, Body, Filters, Parameters};

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/swarm/unlock", post(unlock))
        .route("/nodes", get(nodes))
        .route("/nodes/{id}", get(node).delete(remove_node))
        .route("/nodes/{id}/update", post(update_node))
}

async fn inspect(State(state): State<ApiState>) -> ApiResult {
    let found = find::cluster(&state.cluster).await?;
    Ok(Json(cluster::write(&found)).into_response())
}

async fn init(State(state): State<ApiState>, body: Body<Value>) -> ApiResult {
    let request = read_init(&body.required()?)?;
    let node_id = state.cluster.init(request).await?;
    Ok(Json(json!(node_id)).into_response())
}

async fn join(State(state): State<ApiState>, body: Body<Value>) -> ApiResult {
    let request = read_join(&body.required()?)?;
    state.cluster.join(request).await?;
    Ok(StatusCode::OK.into_response())
}

async fn leave(State(state): State<ApiState>, query: Parameters, _: RawBody) -> ApiResult {
    state.cluster.leave(query.flag("force")).await?;
    Ok(StatusCode::OK.into_response())
}

async fn update(State(state): State<ApiState>, query: Parameters, body: Body<Value>) -> ApiResult {
    let version = version_of(&query, "swarm")?;
    let body = body.required()?;
    let body = Obj::root(&body)?;
    if !["", "default"].contains(&body.str("Name")?.as_str()) {
        return Err(Fault::bad("swarm spec must be named \"default\""));
    }
    let rotation = pb::KeyRotation {
        worker_join_token: strict_flag(&query, "rotateWorkerToken")?,
        manager_join_token: strict_flag(&query, "rotateManagerToken")?,
        manager_unlock_key: strict_flag(&query, "rotateManagerUnlockKey")?,
    };
    let current = find::cluster(&state.cluster).await?;
    let spec = merge_spec(&body, current.spec.unwrap_or_default())?;
    body.done()?;
    let request = pb::UpdateClusterRequest {
        cluster_id: current.id,
        cluster_version: Some(pb::Version { index: version }),
        spec: Some(spec),
        rotation: Some(rotation),
    };
    state.cluster.call(request).await?;
    Ok(StatusCode::OK.into_response())
}

async fn unlock_key(State(state): State<ApiState>) -> ApiResult {
    let key = state.cluster.unlock_key().await?;
    Ok(Json(json!({ "UnlockKey": key })).into_response())
}

async fn unlock(State(state): State<ApiState>, body: Body<Value>) -> ApiResult {
    let body = body.required()?;
    let body = Obj::root(&body)?;
    let key = body.str("UnlockKey")?;
    body.done()?;
    state.cluster.unlock(key).await?;
    Ok(StatusCode::OK.into_response())
}

async fn nodes(State(state): State<ApiState>, query: Parameters) -> ApiResult {
    let filters = query.filters()?;
    filters.only(&["name", "id", "label", "role", "membership", "node.label"])?;
    let mut roles = Vec::new();
    for role in filters.values("role") {
        roles.push(match role.to_ascii_lowercase().as_str() {
            "worker" => pb::NodeRole::Worker as i32,
            "manager" => pb::NodeRole::Manager as i32,
            _ => return Err(Fault::bad(format!("Invalid role filter: '{role}'"))),
        });
    }
    let mut memberships = Vec::new();
    for membership in filters.values("membership") {
        memberships.push(match membership.to_ascii_lowercase().as_str() {
            "accepted" => pb::node_spec::Membership::Accepted as i32,
            "pending" => pb::node_spec::Membership::Pending as i32,
            _ => return Err(Fault::bad(format!("Invalid membership filter: '{membership}'"))),
        });
    }
    let request = pb::ListNodesRequest {
        filters: Some(pb::list_nodes_request::Filters {
            name_prefixes: list(&filters, "name"),
            id_prefixes: list(&filters, "id"),
            labels: pairs(&filters, "label"),
            node_labels: pairs(&filters, "node.label"),
            roles,
            memberships,
            ..Default::default()
        }),
    };
    let answer = state.cluster.call(request).await?;
    Ok(array(answer.nodes.iter().map(object::node)))
}

async fn node(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    Ok(Json(object::node(&find::node(&state.cluster, &id).await?)).into_response())
}

async fn remove_node(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult {
    let node = find::node(&state.cluster, &id).await?;
    state
        .cluster
        .call(pb::RemoveNodeRequest { node_id: node.id, force: query.flag("force") })
        .await?;
    Ok(StatusCode::OK.into_response())
}

async fn update_node(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
    body: Body<Value>,
) -> ApiResult {
    let version = version_of(&query, "node")?;
    let body = body.required()?;
    let body = Obj::root(&body)?;
    let annotations = read_annotations(&body)?;
    let (role, availability) = (body.str("Role")?, body.str("Availability")?);
    let desired_role = match role.to_ascii_lowercase().as_str() {
        "worker" => pb::NodeRole::Worker,
        "manager" => pb::NodeRole::Manager,
        _ => return Err(Fault::bad(format!("invalid Role: {role:?}"))),
    };
    let availability = AVAILABILITIES
        .iter()
        .find(|(word, _)| word.eq_ignore_ascii_case(&availability))
        .map(|(_, value)| *value)
        .ok_or_else(|| Fault::bad(format!("invalid Availability: {availability:?}")))?;
    body.done()?;
    let node = find::node(&state.cluster, &id).await?;
    let spec = pb::NodeSpec {
        annotations: Some(annotations),
        desired_role: desired_role as i32,
        membership: node
            .spec
            .map_or(pb::node_spec::Membership::Accepted as i32, |spec| spec.membership),
        availability: availability as i32,
    };
    let request = pb::UpdateNodeRequest {
        node_id: node.id,
        node_version: Some(pb::Version { index: version }),
        spec: Some(spec),
    };
    state.cluster.call(request).await?;
    Ok(StatusCode::OK.into_response())
}

/// `?version=`: without it nothing is updated, because an update that was not looked at first may undo another.
pub(super) fn version_of(query: &Parameters, what: &str) -> Result<u64, Fault> {
    let text = query.get("version").unwrap_or_default();
    text.parse().map_err(|_| {
        Fault::bad(format!(
            "invalid {what} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}

/// Go's `strconv.ParseBool`, where dockerd takes no other word for a truth value.
pub(super) fn strict_flag(query: &Parameters, name: &str) -> Result<bool, Fault> {
    match query.get(name).unwrap_or_default() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(Fault::bad(format!("invalid value for {name}: {other}"))),
    }
}

pub(super) fn list(filters: &Filters, name: &str) -> Vec<String> {
    filters.values(name).map(str::to_owned).collect()
}

/// `key=value` or `key`, as the swarm's label filters take them.
pub(super) fn pairs(filters: &Filters, name: &str) -> std::collections::BTreeMap<String, String> {
    filters
        .values(name)
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

pub(super) fn array(items: impl Iterator<Item = Value>) -> Response {
    Json(Value::Array(items.collect())).into_response()
}

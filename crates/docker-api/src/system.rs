//! The daemon itself: ping, version, info, events, disk usage.

use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::swarm::api::LocalNodeState;
use crate::version::{API_VERSION, API_VERSION_MIN};
use crate::{ApiResult, ApiState};

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
}

async fn ping(State(state): State<ApiState>, method: Method) -> Response {
    let swarm = state.cluster.node_info().await;
    let local = match swarm.state {
        LocalNodeState::Active if swarm.control_available => "active/manager",
        LocalNodeState::Active => "active/worker",
        other => other.as_str(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("builder-version", ""),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        ("content-type", "text/plain; charset=utf-8"),
        ("swarm", local),
    ] {
        if let Ok(value) = header::HeaderValue::from_str(value) {
            headers.insert(header::HeaderName::from_static(name), value);
        }
    }
    let body = if method == Method::HEAD { "" } else { "OK" };
    (headers, body).into_response()
}

async fn version() -> Response {
    Json(json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": API_VERSION.to_string(),
        "MinAPIVersion": API_VERSION_MIN.to_string(),
        "Os": "linux",
        "Arch": "amd64",
    }))
    .into_response()
}

async fn info(State(state): State<ApiState>) -> ApiResult {
    let node = state.cluster.node_info().await;
    let managers: Vec<_> = node
        .remote_managers
        .iter()
        .map(|(id, address)| json!({ "NodeID": id, "Addr": address }))
        .collect();
    let swarm = json!({
        "NodeID": node.node_id,
        "NodeAddr": node.node_addr,
        "LocalNodeState": node.state.as_str(),
        "ControlAvailable": node.control_available,
        "Error": node.error,
        "RemoteManagers": if managers.is_empty() { json!(null) } else { json!(managers) },
    });
    Ok(Json(json!({ "Swarm": swarm, "ServerVersion": env!("CARGO_PKG_VERSION") })).into_response())
}

//! Volumes: create, list, inspect, remove, prune.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use engine::volumes::Volume;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ApiState;
use crate::error::ApiResult;
use crate::images::holds;
use crate::request::{Body, Filters, Parameters, RawBody};
use crate::version::Version;

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateRequest {
    name: Option<String>,
    driver: Option<String>,
    driver_opts: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

async fn create(State(state): State<ApiState>, body: Body<CreateRequest>) -> ApiResult {
    let request = body.0.unwrap_or_default();
    let engine = state.engine.clone();
    let volume = engine::images::blocking(move || {
        engine.volumes.ensure(
            request.name.as_deref(),
            request.driver.as_deref().unwrap_or_default(),
            request.driver_opts.unwrap_or_default(),
            request.labels.unwrap_or_default(),
        )
    })
    .await?;
    Ok((StatusCode::CREATED, Json(shown(&volume))).into_response())
}

async fn list(State(state): State<ApiState>, parameters: Parameters) -> ApiResult {
    let filters = parameters.filters()?;
    filters.only(&["dangling", "driver", "label", "name"])?;
    let dangling =
        filters.has("dangling").then(|| filters.boolean("dangling", false)).transpose()?;
    let volumes = state.engine.volumes.list();
    let wanted = volumes.iter().filter(|volume| {
        let unused = || state.engine.volume_users(&volume.name).is_empty();
        let name =
            !filters.has("name") || filters.values("name").any(|part| volume.name.contains(part));
        name && filters.exact("driver", &volume.driver)
            && labels_match(&filters, volume)
            && dangling.is_none_or(|dangling| dangling == unused())
    });
    let shown: Vec<Value> = wanted.map(shown).collect();
    Ok(Json(json!({ "Volumes": shown, "Warnings": null })).into_response())
}

async fn inspect(State(state): State<ApiState>, Path(name): Path<String>) -> ApiResult {
    Ok(Json(shown(&state.engine.volumes.find(&name)?)).into_response())
}

async fn remove(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    parameters: Parameters,
) -> ApiResult {
    let force = parameters.flag("force");
    let engine = state.engine.clone();
    engine::images::blocking(move || engine.volumes.remove(&name, || users(&engine, &name), force))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(
    State(state): State<ApiState>,
    Extension(version): Extension<Version>,
    parameters: Parameters,
    RawBody(_): RawBody,
) -> ApiResult {
    let filters = parameters.filters()?;
    filters.only(&["all", "label", "label!"])?;
    // Until 1.41 every unused volume went, since then only those without a name.
    let all = filters.boolean("all", version < Version(1, 42))?;
    let engine = state.engine.clone();
    let pruned = engine::images::blocking(move || {
        engine.volumes.prune(
            |volume| (all || volume.anonymous) && labels_match(&filters, volume),
            |name| users(&engine, name),
        )
    })
    .await?;
    let deleted = if pruned.deleted.is_empty() { Value::Null } else { json!(pruned.deleted) };
    Ok(Json(json!({ "VolumesDeleted": deleted, "SpaceReclaimed": pruned.bytes })).into_response())
}

fn users(engine: &engine::Engine, volume: &str) -> Vec<String> {
    engine.volume_users(volume).iter().map(|container| container.id().to_string()).collect()
}

fn labels_match(filters: &Filters, volume: &Volume) -> bool {
    filters.labels("label", |key| volume.labels.get(key).map(String::as_str))
        && filters.values("label!").all(|wanted| !holds(&volume.labels, wanted))
}

/// As `docker volume inspect` prints it.
pub(crate) fn shown(volume: &Volume) -> Value {
    let map =
        |map: &BTreeMap<String, String>| if map.is_empty() { Value::Null } else { json!(map) };
    json!({
        "CreatedAt": volume.created_at,
        "Driver": volume.driver,
        "Labels": map(&volume.labels),
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": map(&volume.options),
        "Scope": "local",
    })
}

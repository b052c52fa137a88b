//! Containers: create, start, stop, list, inspect, wait and their kin.

pub(crate) mod create;
mod inspect;
mod list;
mod ports;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use bollard_stubs::models::{ContainerUpdateBody, HostConfig};
use bytes::Bytes;
use engine::containers::{RemoveOptions, WaitFor};
use serde_json::{Value, json};

use crate::request::RawBody;
use crate::version::Version;
use crate::{ApiError, ApiResult, ApiState, Body, Parameters};

pub use inspect::container_json;
pub(crate) use list::summary_with_size;

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/json", get(list_containers))
        .route("/containers/create", post(create_container))
        .route("/containers/prune", post(prune))
        .route("/containers/{name}/json", get(inspect_container))
        .route("/containers/{name}/start", post(start))
        .route("/containers/{name}/stop", post(stop))
        .route("/containers/{name}/restart", post(restart))
        .route("/containers/{name}/kill", post(kill))
        .route("/containers/{name}/pause", post(pause))
        .route("/containers/{name}/unpause", post(unpause))
        .route("/containers/{name}/wait", post(wait))
        .route("/containers/{name}/rename", post(rename))
        .route("/containers/{name}/update", post(update))
        .route("/containers/{name}", delete(remove))
        .route("/containers/{name}/{alias}", delete(remove_link))
}

async fn create_container(
    State(state): State<ApiState>,
    Extension(version): Extension<Version>,
    query: Parameters,
    body: Body<Value>,
) -> ApiResult {
    let body = body.required()?;
    let old = create::kernel_memory(&body, version)?;
    let request = create::request(&query, body, version)?;
    let created = state.engine.create(request).await?;
    let warnings: Vec<String> = created.warnings.into_iter().chain(old).collect();
    let answer = json!({ "Id": created.container.id().as_str(), "Warnings": warnings });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn list_containers(
    State(state): State<ApiState>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    Ok(Json(list::list(&state, &query).await?).into_response())
}

async fn inspect_container(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    let container = state.engine.container(&name)?;
    Ok(Json(inspect::inspect(&state.engine, &container, query.flag("size")).await?).into_response())
}

async fn start(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    body: RawBody,
) -> ApiResult {
    // Docker took a host configuration here before API 1.24, and refuses one since.
    if body.0.len() > 2 && body.0 != b"null" {
        return Err(ApiError::bad_request(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    if query.text("checkpoint").is_some() {
        return Err(ApiError::unsupported("checkpoints; start the container from its image"));
    }
    state.engine.start(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn stop(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    state.engine.stop(&name, query.number("t")?, query.text("signal")).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn restart(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    state.engine.restart(&name, query.number("t")?, query.text("signal")).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn kill(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    state.engine.kill(&name, query.text("signal")).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn pause(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    _body: RawBody,
) -> ApiResult {
    state.engine.pause(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn unpause(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    _body: RawBody,
) -> ApiResult {
    state.engine.unpause(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The headers go out at once: the CLI starts the container only when it has seen them.
async fn wait(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    let condition = match query.get("condition").unwrap_or_default() {
        "" | "not-running" => WaitFor::NotRunning,
        "next-exit" => WaitFor::NextExit,
        "removed" => WaitFor::Removed,
        other => {
            return Err(ApiError::bad_request(format!("invalid condition: \"{other}\"")));
        }
    };
    let ended = state.engine.wait(&name, condition)?;
    let body = futures_util::stream::once(async move {
        let (code, error) = ended.await;
        let mut answer = json!({ "StatusCode": code });
        if !error.is_empty() {
            answer["Error"] = json!({ "Message": error });
        }
        Ok::<_, std::convert::Infallible>(Bytes::from(format!("{answer}\n")))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(axum::body::Body::from_stream(body))
        .map_err(|cause| ApiError::internal(cause.to_string()))
}

async fn rename(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    state.engine.rename(&name, query.get("name").unwrap_or_default()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn update(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    body: Body<Value>,
) -> ApiResult {
    let mut body = body.required()?;
    create::check_policy(&body)?;
    if body.get("NanoCPUs").is_none()
        && let Some(nano) = body.get("NanoCpus").cloned()
    {
        body["NanoCPUs"] = nano;
    }
    // The limits and the policy have the same names in both objects.
    let _: ContainerUpdateBody = create::read(body.clone())?;
    let change: HostConfig = create::read(body)?;
    let warnings = state.engine.update(&name, change).await?;
    let warnings = if warnings.is_empty() { Value::Null } else { json!(warnings) };
    Ok(Json(json!({ "Warnings": warnings })).into_response())
}

async fn remove(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    if query.flag("link") {
        return Err(ApiError::bad_request(format!(
            "a link is removed by its name: /containers/{name}/<alias>"
        )));
    }
    let options = RemoveOptions { force: query.flag("force"), volumes: query.flag("v") };
    state.engine.remove(&name, options).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /containers/<container>/<alias>?link=1`
async fn remove_link(
    State(state): State<ApiState>,
    Path((name, alias)): Path<(String, String)>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    if !query.flag("link") {
        return Err(ApiError::not_found(format!("No such container: {name}/{alias}")));
    }
    state.engine.remove_link(&name, &alias).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(State(state): State<ApiState>, query: Parameters, _body: RawBody) -> ApiResult {
    let filters = query.filters()?;
    filters.only(&["label", "label!", "until"])?;
    let until = crate::system::until(&filters)?;
    let mut deleted = Vec::new();
    let mut bytes = 0;
    for container in state.engine.containers.all() {
        let spec = container.spec();
        let labels = spec.config.labels.clone().unwrap_or_default();
        let label = |key: &str| labels.get(key).map(String::as_str);
        let stopped = matches!(
            container.phase(),
            engine::containers::Phase::Created
                | engine::containers::Phase::Exited
                | engine::containers::Phase::Dead
        );
        let unwanted = filters.has("label!") && filters.labels("label!", label);
        let young = until.is_some_and(|until| spec.created.unix_timestamp() > until);
        if !stopped || young || unwanted || !filters.labels("label", label) {
            continue;
        }
        let size = list::sizes(&state.engine, &container).await.map_or(0, |sizes| sizes.0);
        if state.engine.remove(container.id(), RemoveOptions::default()).await.is_ok() {
            deleted.push(container.id().to_string());
            bytes += size;
        }
    }
    state.engine.events.publish(
        engine::events::Type::CONTAINER,
        "prune",
        "",
        [("reclaimed", bytes.to_string())],
    );
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Json(json!({ "ContainersDeleted": deleted, "SpaceReclaimed": bytes })).into_response())
}

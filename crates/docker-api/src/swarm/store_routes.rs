//! `/secrets` and `/configs`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use wire::swarmkit as pb;

use super::container::read_driver;
use super::fault::Fault;
use super::json::Obj;
use super::routes::{array, list, pairs, version_of};
use super::spec::read_annotations;
use super::{find, object};
use crate::{ApiResult, ApiState, Body, Parameters};

const FILTERS: &[&str] = &["name", "names", "id", "label"];

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/secrets", get(secrets))
        .route("/secrets/create", post(create_secret))
        .route("/secrets/{id}", get(secret).delete(remove_secret))
        .route("/secrets/{id}/update", post(update_secret))
        .route("/configs", get(configs))
        .route("/configs/create", post(create_config))
        .route("/configs/{id}", get(config).delete(remove_config))
        .route("/configs/{id}/update", post(update_config))
}

fn read_secret(body: &Value) -> Result<pb::SecretSpec, Fault> {
    let body = Obj::root(body)?;
    let spec = pb::SecretSpec {
        annotations: Some(read_annotations(&body)?),
        data: body.bytes("Data")?,
        templating: body.obj("Templating")?.map(read_driver).transpose()?,
        driver: body.obj("Driver")?.map(read_driver).transpose()?,
    };
    body.done()?;
    if spec.driver.as_ref().is_some_and(|driver| !driver.name.is_empty()) {
        return Err(Fault::unsupported("secrets from a driver (Driver)"));
    }
    Ok(pb::SecretSpec { driver: None, ..spec })
}

fn read_config(body: &Value) -> Result<pb::ConfigSpec, Fault> {
    let body = Obj::root(body)?;
    let spec = pb::ConfigSpec {
        annotations: Some(read_annotations(&body)?),
        data: body.bytes("Data")?,
        templating: body.obj("Templating")?.map(read_driver).transpose()?,
    };
    body.done()?;
    Ok(spec)
}

/// dockerd says less here than for nodes and services.
fn object_version(query: &Parameters, what: &str) -> Result<u64, Fault> {
    version_of(query, what).map_err(|_| Fault::bad(format!("invalid {what} version")))
}

async fn secrets(State(state): State<ApiState>, query: Parameters) -> ApiResult {
    let filters = query.filters()?;
    filters.only(FILTERS)?;
    let request = pb::ListSecretsRequest {
        filters: Some(pb::list_secrets_request::Filters {
            names: list(&filters, "names"),
            name_prefixes: list(&filters, "name"),
            id_prefixes: list(&filters, "id"),
            labels: pairs(&filters, "label"),
        }),
    };
    let answer = state.cluster.call(request).await?;
    Ok(array(answer.secrets.iter().map(object::secret)))
}

async fn create_secret(State(state): State<ApiState>, body: Body<Value>) -> ApiResult {
    let spec = read_secret(&body.required()?)?;
    let answer = state.cluster.call(pb::CreateSecretRequest { spec: Some(spec) }).await?;
    let id = answer.secret.map(|secret| secret.id).unwrap_or_default();
    Ok((StatusCode::CREATED, Json(json!({ "ID": id }))).into_response())
}

async fn secret(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    Ok(Json(object::secret(&find::secret(&state.cluster, &id).await?)).into_response())
}

async fn remove_secret(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    let found = find::secret(&state.cluster, &id).await?;
    state.cluster.call(pb::RemoveSecretRequest { secret_id: found.id }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn update_secret(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
    body: Body<Value>,
) -> ApiResult {
    let version = object_version(&query, "secret")?;
    let spec = read_secret(&body.required()?)?;
    let found = find::secret(&state.cluster, &id).await?;
    let request = pb::UpdateSecretRequest {
        secret_id: found.id,
        secret_version: Some(pb::Version { index: version }),
        spec: Some(spec),
    };
    state.cluster.call(request).await?;
    Ok(StatusCode::OK.into_response())
}

async fn configs(State(state): State<ApiState>, query: Parameters) -> ApiResult {
    let filters = query.filters()?;
    filters.only(FILTERS)?;
    let request = pb::ListConfigsRequest {
        filters: Some(pb::list_configs_request::Filters {
            names: list(&filters, "names"),
            name_prefixes: list(&filters, "name"),
            id_prefixes: list(&filters, "id"),
            labels: pairs(&filters, "label"),
        }),
    };
    let answer = state.cluster.call(request).await?;
    Ok(array(answer.configs.iter().map(object::config)))
}

async fn create_config(State(state): State<ApiState>, body: Body<Value>) -> ApiResult {
    let spec = read_config(&body.required()?)?;
    let answer = state.cluster.call(pb::CreateConfigRequest { spec: Some(spec) }).await?;
    let id = answer.config.map(|config| config.id).unwrap_or_default();
    Ok((StatusCode::CREATED, Json(json!({ "ID": id }))).into_response())
}

async fn config(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    Ok(Json(object::config(&find::config(&state.cluster, &id).await?)).into_response())
}

async fn remove_config(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    let found = find::config(&state.cluster, &id).await?;
    state.cluster.call(pb::RemoveConfigRequest { config_id: found.id }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn update_config(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
    body: Body<Value>,
) -> ApiResult {
    let version = object_version(&query, "config")?;
    let spec = read_config(&body.required()?)?;
    let found = find::config(&state.cluster, &id).await?;
    let request = pb::UpdateConfigRequest {
        config_id: found.id,
        config_version: Some(pb::Version { index: version }),
        spec: Some(spec),
    };
    state.cluster.call(request).await?;
    Ok(StatusCode::OK.into_response())
}

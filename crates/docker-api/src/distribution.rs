//! What a registry says about a name, without pulling it.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::ApiState;
use crate::auth::credentials;
use crate::error::{ApiError, ApiResult};
use crate::images::parse;

pub fn routes() -> Router<ApiState> {
    Router::new().route("/distribution/{*rest}", get(inspect))
}

async fn inspect(
    State(state): State<ApiState>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> ApiResult {
    let name = rest.strip_suffix("/json").ok_or_else(|| ApiError::not_found("page not found"))?;
    let reference = parse(name)?.or_latest();
    let credentials = credentials(&headers)?;
    let store = &state.engine.images.store;
    let found =
        store.distribution(&reference, credentials.as_ref()).await.map_err(engine::Error::from)?;
    let platforms: Vec<Value> = found
        .platforms
        .iter()
        .map(|platform| {
            let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
            if !platform.variant.is_empty() {
                value["variant"] = json!(platform.variant);
            }
            value
        })
        .collect();
    let descriptor =
        json!({ "mediaType": found.media_type, "digest": found.digest, "size": found.size });
    Ok(Json(json!({ "Descriptor": descriptor, "Platforms": platforms })).into_response())
}

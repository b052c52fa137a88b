//! Plugins: there are none, and none can be installed.

use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::json;

use crate::ApiState;
use crate::error::ApiError;
use crate::stream::BodyReader;

pub fn routes() -> Router<ApiState> {
    Router::new().route("/plugins", get(list)).route("/plugins/{*rest}", any(refuse))
}

async fn list() -> Response {
    Json(json!([])).into_response()
}

async fn refuse(Path(rest): Path<String>, method: axum::http::Method, body: Body) -> ApiError {
    drop(BodyReader::new(body));
    match (method.as_str(), rest.strip_suffix("/json")) {
        ("GET", Some(name)) => ApiError::not_found(format!("plugin {name:?} not found")),
        _ => ApiError::unsupported(
            "plugins; use the local volume driver with its options (nfs, cifs, bind) and the bridge and overlay networks",
        ),
    }
}

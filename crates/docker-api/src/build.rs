//! Build and checkpoints: refused, with the way round; there is no build's cache to prune.

use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::json;

use crate::ApiState;
use crate::error::{ApiError, ApiResult};
use crate::stream::BodyReader;

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/build", post(build))
        .route("/build/cancel", post(build))
        .route("/build/prune", post(prune))
        .route("/session", post(build))
        .route("/grpc", post(build))
        .route("/containers/{id}/checkpoints", get(checkpoint).post(checkpoint))
        .route("/containers/{id}/checkpoints/{name}", delete(checkpoint))
}

async fn build(body: Body) -> ApiError {
    // A build's context is read to its end: the client writes it before it listens.
    drop(BodyReader::new(body));
    ApiError::unsupported(
        "docker build; build with buildctl, buildah or another host's docker, then docker push and pull, or docker save and load",
    )
}

/// Without builds there is no cache of theirs; `docker system prune` asks for it last, before it tells what it freed.
async fn prune() -> ApiResult {
    Ok(Json(json!({ "CachesDeleted": null, "SpaceReclaimed": 0 })).into_response())
}

async fn checkpoint(body: Body) -> ApiError {
    drop(BodyReader::new(body));
    ApiError::unsupported(
        "checkpoints; docker commit keeps a container's files, its processes must be started again",
    )
}

//! Volumes: create, list, inspect, remove, prune.

use axum::Router;

use crate::ApiState;

pub fn routes() -> Router<ApiState> {
    Router::new()
}

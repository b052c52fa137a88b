//! Networks: create, list, inspect, connect, disconnect, remove, prune.

use axum::Router;

use crate::ApiState;

pub fn routes() -> Router<ApiState> {
    Router::new()
}

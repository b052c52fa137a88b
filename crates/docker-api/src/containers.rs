//! Containers: create, start, stop, list, inspect, wait and their kin.

use axum::Router;

use crate::ApiState;

pub fn routes() -> Router<ApiState> {
    Router::new()
}

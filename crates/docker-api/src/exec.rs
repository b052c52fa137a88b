//! Further processes in a container: create, start, inspect, resize.

use axum::Router;

use crate::ApiState;

pub fn routes() -> Router<ApiState> {
    Router::new()
}

//! Images: pull, push, list, inspect, tag, remove, load, save, import.

use axum::Router;

use crate::ApiState;

pub fn routes() -> Router<ApiState> {
    Router::new()
}

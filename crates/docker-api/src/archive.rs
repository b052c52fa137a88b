//! Files in and out of a container: archive, export, changes, commit.

use axum::Router;

use crate::ApiState;

pub fn routes() -> Router<ApiState> {
    Router::new()
}

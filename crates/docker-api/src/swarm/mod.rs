//! Swarm, nodes, services, tasks, secrets, configs and overlay networks over the Engine API.

pub mod api;

pub use api::{
    ClusterApi, ClusterEvent, ControlCode, ControlError, Inactive, InitRequest, JoinRequest,
    NodeInfo,
};

use axum::Router;

use crate::ApiState;

pub fn routes() -> Router<ApiState> {
    Router::new()
}

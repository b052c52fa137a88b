//! Swarm, nodes, services, tasks, secrets, configs and overlay networks over the Engine API.

pub mod api;
pub mod fault;
pub mod json;
pub mod container;
pub mod spec;
pub mod object;
pub mod cluster;
pub mod find;
pub mod networks;
mod verbose;
mod pem;
mod routes;
mod service_routes;
mod store_routes;
mod logs;

use axum::Router;

use crate::ApiState;

pub use api::{
    ClusterApi, ControlCode, ControlError, Inactive, InitRequest, JoinRequest, NodeInfo,
};
pub use cluster::info_json;

pub fn routes() -> Router<ApiState> {
    Router::new()
        .merge(routes::routes())
        .merge(service_routes::routes())
        .merge(store_routes::routes())
        .merge(logs::routes())
}

#[cfg(test)]
mod tests;

//! The Engine API, a module per resource, JSON to objects, once.

#![recursion_limit = "256"]

pub mod error;
pub mod version;
pub mod request;
pub mod hijack;
pub mod stream;
mod glob;
mod names;
mod websocket;
pub mod system;
pub mod containers;
pub mod exec;
pub mod attach;
pub mod logs;
pub mod stats;
pub mod archive;
pub mod images;
pub mod distribution;
pub mod auth;
pub mod build;
pub mod volumes;
pub mod networks;
pub mod plugins;
pub mod swarm;
#[doc(hidden)]
pub mod fuzz;

use std::sync::Arc;

use axum::Router;
use engine::Engine;

pub use error::{ApiError, ApiResult};
pub use request::{Body, Filters, Parameters};

/// What every handler gets, as `axum::extract::State<ApiState>`.
#[derive(Clone)]
pub struct ApiState {
    pub engine: Arc<Engine>,
    pub cluster: Arc<dyn swarm::ClusterApi>,
}

/// The whole API as one service: the version is stripped *around* the router, so that it never
/// becomes a path parameter.
pub fn router(state: ApiState) -> version::Negotiated {
    version::Negotiated::around(routes().with_state(state))
}

fn routes() -> Router<ApiState> {
    Router::new()
        .merge(system::routes())
        .merge(containers::routes())
        .merge(exec::routes())
        .merge(attach::routes())
        .merge(logs::routes())
        .merge(stats::routes())
        .merge(archive::routes())
        .merge(images::routes())
        .merge(distribution::routes())
        .merge(auth::routes())
        .merge(build::routes())
        .merge(volumes::routes())
        .merge(networks::routes())
        .merge(plugins::routes())
        .merge(swarm::routes())
        .fallback(error::page_not_found)
        .method_not_allowed_fallback(error::page_not_found)
}

#[cfg(test)]
mod tests {
    /// Two areas that claim one path make the router panic: here, not at the start of a daemon.
    #[test]
    fn no_two_areas_claim_the_same_path() {
        let _ = super::routes();
    }
}

//! The handle that everyone else holds on the network controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{ContainerId, NetworkId};

use super::api::*;

#[derive(Clone)]
pub struct Network {
    config: Arc<NetworkConfig>,
}

impl Network {
    /// Adopts what an earlier daemon left under the roots and starts the controller.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Self { config: Arc::new(config) })
    }

    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    // ---- local networks

    pub async fn create(&self, _spec: NetworkSpec) -> Result<LocalNetwork, NetworkError> {
        Err(not_ready())
    }

    pub async fn remove(&self, _id: &NetworkId) -> Result<(), NetworkError> {
        Err(not_ready())
    }

    pub fn networks(&self) -> Vec<LocalNetwork> {
        Vec::new()
    }

    /// By full id, name, or a prefix of the id that fits one network.
    pub fn find(&self, _name_or_id: &str) -> Result<LocalNetwork, NetworkError> {
        Err(not_ready())
    }

    // ---- containers

    /// Makes the container's namespace with everything in it; idempotent for a container that has
    /// one (the state it has is returned).
    pub async fn start(&self, _spec: SandboxSpec) -> Result<SandboxState, NetworkError> {
        Err(not_ready())
    }

    pub async fn connect(
        &self,
        _container: &ContainerId,
        _endpoint: EndpointSpec,
    ) -> Result<EndpointState, NetworkError> {
        Err(not_ready())
    }

    pub async fn disconnect(
        &self,
        _container: &ContainerId,
        _network: &str,
    ) -> Result<(), NetworkError> {
        Err(not_ready())
    }

    pub async fn rename(&self, _container: &ContainerId, _name: &str) -> Result<(), NetworkError> {
        Err(not_ready())
    }

    /// Removes the container's namespace and frees its addresses and ports. Unknown: nothing to do.
    pub async fn stop(&self, _container: &ContainerId) -> Result<(), NetworkError> {
        Err(not_ready())
    }

    pub fn sandbox(&self, _container: &ContainerId) -> Option<SandboxState> {
        None
    }

    pub fn sandboxes(&self) -> BTreeMap<ContainerId, SandboxState> {
        BTreeMap::new()
    }

    /// After a restart: removes the sandboxes of containers that are not running.
    pub async fn retain(&self, _running: Vec<ContainerId>) -> Result<(), NetworkError> {
        Err(not_ready())
    }

    // ---- swarm

    /// The whole overlay state; returns when it is applied. Errors name what could not be.
    pub async fn set_overlays(&self, _state: OverlayState) -> Result<(), NetworkError> {
        Err(not_ready())
    }

    pub fn counters(&self) -> NetworkCounters {
        NetworkCounters::default()
    }

    pub fn events(&self) -> tokio::sync::broadcast::Receiver<NetworkEvent> {
        tokio::sync::broadcast::channel(1).1
    }
}

fn not_ready() -> NetworkError {
    NetworkError::new(NetworkErrorKind::Internal, "the network controller is not ready")
}

//! `docker network connect` and `disconnect`, on containers that run and on those at rest.

use std::sync::Arc;

use bollard_stubs::models::EndpointSettings;

use super::container::Container;
use super::endpoints;
use crate::Engine;
use crate::error::{Error, Result};
use crate::network::{BRIDGE, HOST, NONE};

impl Engine {
    pub async fn connect(
        self: &Arc<Self>,
        network: &str,
        container: &str,
        settings: EndpointSettings,
    ) -> Result<()> {
        let container = self.container(container)?;
        // Whether it runs does not change under our hands.
        let _operation = container.operation.lock().await;
        let mut network = self.network_name(network)?;
        check(&container, &network)?;
        if self.is_on(&container, &network) {
            return Err(Error::forbidden(format!(
                "endpoint with name {} already exists in network {network}",
                container.name()
            )));
        }
        endpoints::refuse_priority(&network, &settings)?;
        let mut spec = endpoints::endpoint(&network, &settings, None)?;
        if network == BRIDGE && !spec.addresses.is_empty() {
            return Err(Error::bad_parameter(
                "user specified IP address is supported on user defined networks only",
            ));
        }
        if !container.is_running() {
            container.change_spec(|spec| drop(spec.networks.insert(network, settings)))?;
            return Ok(());
        }
        // One that a crash left without its endpoint.
        self.give_back(&container, |place| place.network_name == network).await;
        let before = self.network.sandbox(container.id());
        let place = self.attach_endpoint(&container, &container.spec(), &mut spec).await?;
        if let Some(place) = &place {
            network.clone_from(&place.network_name);
        }
        // Written down first: after a crash no container is on a network that its next start leaves out.
        container.change_spec(|spec| drop(spec.networks.insert(network.clone(), settings)))?;
        if let Err(error) = self.network.connect(container.id(), spec).await {
            let task = place.map(|place| place.task);
            self.give_back(&container, |place| Some(&place.task) == task.as_ref()).await;
            container.change_spec(|spec| drop(spec.networks.remove(&network)))?;
            return Err(error.into());
        }
        self.refresh_network_files(&container, before.as_ref())
    }

    pub async fn disconnect(
        self: &Arc<Self>,
        network: &str,
        container: &str,
        force: bool,
    ) -> Result<()> {
        let network = self.network_name(network)?;
        let container = match self.container(container) {
            Err(_) if force => {
                return Err(Error::not_found(format!("endpoint {container} not found")));
            }
            other => other?,
        };
        let _operation = container.operation.lock().await;
        check(&container, &network)?;
        let spec = container.spec();
        let meant = spec.networks.contains_key(&network);
        if spec.task.is_some() && !meant && self.is_on(&container, &network) {
            // The other nodes would go on sending to it.
            return Err(Error::forbidden(format!(
                "container {} is on network {network} as a task of its service: docker service update --network-rm {network}",
                container.name()
            )));
        }
        if container.is_running() {
            // A crash may have left it meant and not done, which is what is asked for now.
            if self.is_on(&container, &network) || !meant {
                let before = self.network.sandbox(container.id());
                self.network.disconnect(container.id(), &network).await?;
                self.refresh_network_files(&container, before.as_ref())?;
            }
            self.give_back(&container, |place| place.network_name == network).await;
        } else if !meant {
            return Err(Error::forbidden(format!(
                "container {} is not connected to network {network}",
                container.id()
            )));
        }
        container.change_spec(|spec| drop(spec.networks.remove(&network)))?;
        Ok(())
    }

    /// A container that runs is on the networks of its sandbox, one at rest on those that it will start with.
    fn is_on(&self, container: &Container, network: &str) -> bool {
        match self.network.sandbox(container.id()).filter(|_| container.is_running()) {
            Some(sandbox) => sandbox.endpoints.contains_key(network),
            None => container.spec().networks.contains_key(network),
        }
    }

    /// The full name of a network, local or of the swarm, from its name or id.
    fn network_name(&self, name_or_id: &str) -> Result<String> {
        let overlays = self.network.overlays();
        let named = overlays
            .names
            .iter()
            .find(|(id, name)| id.as_str() == name_or_id || name.as_str() == name_or_id);
        if let Some((_, name)) = named {
            return Ok(name.clone());
        }
        match self.network.find(name_or_id) {
            Ok(network) => Ok(network.name),
            // It may be a network of the swarm that nobody on this node is on yet.
            Err(_) if self.swarm.get().is_some() => Ok(name_or_id.to_owned()),
            Err(error) => Err(error.into()),
        }
    }

    /// The network's name where this node knows it, or the words by which it was asked for.
    pub(super) fn known_network(&self, name_or_id: &str) -> String {
        self.network_name(name_or_id).unwrap_or_else(|_| name_or_id.to_owned())
    }
}

fn check(container: &Container, network: &str) -> Result<()> {
    let spec = container.spec();
    let mode = spec.host_config.network_mode.clone().unwrap_or_default();
    if network == HOST || mode == HOST {
        return Err(Error::forbidden(
            "container cannot be disconnected from host network or connected to host network",
        ));
    }
    if mode.starts_with("container:") {
        return Err(Error::forbidden(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ));
    }
    if network == NONE || mode == NONE {
        return Err(Error::forbidden(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ));
    }
    Ok(())
}

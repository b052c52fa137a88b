//! Containers that no service made on attachable networks of the swarm. The engine knows no swarm:
//! whoever runs one lends it a [`Swarm`].

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::containers::{Container, Spec};
use crate::network::{Cidr, EndpointSpec, Mac};
use crate::{Engine, Result};

/// What a container wants of the swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name or id of the network.
    pub network: String,
    pub container_id: String,
    pub container_name: String,
    pub aliases: Vec<String>,
    /// `--ip`, or none for any.
    pub addresses: Vec<String>,
    /// `--mac-address`, or none for the one that follows from the address.
    pub mac: Option<Mac>,
}

/// What it got: kept with the container's state, so that a restarted daemon still knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// The task that stands for the container in the swarm.
    pub task: String,
    /// The network's id.
    pub network: String,
    pub network_name: String,
    pub addresses: Vec<Cidr>,
    pub aliases: Vec<String>,
    pub mac: Option<Mac>,
}

/// The swarm as far as a container's networks need it.
pub trait Swarm: Send + Sync + 'static {
    /// `None` when the swarm has no such network. Done once the network is ready on this node.
    fn attach(&self, wanted: Wanted) -> BoxFuture<'_, Result<Option<Place>>>;
    /// Gives the place back; must not fail, and not wait for a manager that is away.
    fn detach(&self, place: Place) -> BoxFuture<'_, ()>;
    /// Says again who holds a place: after a restart, or under another name.
    fn resume(&self, wanted: Wanted, place: Place) -> BoxFuture<'_, ()>;
}

impl Engine {
    /// Lends the engine its swarm; containers that still run on its networks are told to it.
    pub async fn set_swarm(&self, swarm: Arc<dyn Swarm>) {
        // A second swarm would be a mistake of the caller; the first one stays.
        let _ = self.swarm.set(swarm);
        self.tell_swarm().await;
    }

    /// Tells the swarm who is on its networks: one that has begun again does not know.
    pub async fn tell_swarm(&self) {
        for container in self.containers.all() {
            self.tell_places(&container).await;
        }
    }

    /// Where a container is, and under which name.
    pub(crate) async fn tell_places(&self, container: &Container) {
        let Some(swarm) = self.swarm.get() else { return };
        let spec = container.spec();
        for place in container.state().places {
            swarm.resume(wanted(&spec, &place.network_name), place).await;
        }
    }

    /// Gets a place on every network that is not this host's own.
    pub(crate) async fn attach_to_swarm(
        &self,
        container: &Container,
        spec: &Spec,
        endpoints: &mut [EndpointSpec],
    ) -> Result<()> {
        if spec.task.is_some() {
            return Ok(());
        }
        for endpoint in endpoints {
            self.attach_endpoint(container, spec, endpoint).await?;
        }
        Ok(())
    }

    /// Gets a place for one endpoint, when its network is the swarm's.
    pub(crate) async fn attach_endpoint(
        &self,
        container: &Container,
        spec: &Spec,
        endpoint: &mut EndpointSpec,
    ) -> Result<Option<Place>> {
        let Some(swarm) = self.swarm.get() else { return Ok(None) };
        if self.network.find(&endpoint.network).is_ok() {
            return Ok(None);
        }
        let wanted = Wanted {
            aliases: endpoint.aliases.clone(),
            addresses: endpoint.addresses.iter().map(|cidr| cidr.addr.to_string()).collect(),
            mac: endpoint.mac,
            ..wanted(spec, &endpoint.network)
        };
        // The network controller says what is wrong with a name that nobody knows.
        let Some(place) = swarm.attach(wanted).await? else { return Ok(None) };
        let (asked, name) = (&endpoint.network, &place.network_name);
        if asked != name && container.spec().networks.contains_key(asked) {
            // What was asked for by its id is known by its name from here on.
            container.change_spec(|spec| {
                let settings = spec.networks.remove(asked).unwrap_or_default();
                spec.networks.insert(name.clone(), settings);
            })?;
        }
        endpoint.network = place.network.clone();
        endpoint.addresses = place.addresses.clone();
        container.change_state(|state| state.places.push(place.clone()));
        Ok(Some(place))
    }

    /// Gives back the places of a container that has ended.
    pub(crate) async fn detach_from_swarm(&self, container: &Container) {
        self.give_back(container, |_| true).await;
    }

    /// Gives back those of a container's places that are meant.
    pub(crate) async fn give_back(&self, container: &Container, meant: impl Fn(&Place) -> bool) {
        if !container.state().places.iter().any(&meant) {
            return;
        }
        let mut places = Vec::new();
        container.change_state(|state| {
            (places, state.places) =
                std::mem::take(&mut state.places).into_iter().partition(&meant);
        });
        if let Some(swarm) = self.swarm.get() {
            for place in places {
                swarm.detach(place).await;
            }
        }
    }
}

/// A place for a container, wherever on the network.
fn wanted(spec: &Spec, network: &str) -> Wanted {
    Wanted {
        network: network.to_owned(),
        container_id: spec.id.to_string(),
        container_name: spec.name.clone(),
        aliases: Vec::new(),
        addresses: Vec::new(),
        mac: None,
    }
}

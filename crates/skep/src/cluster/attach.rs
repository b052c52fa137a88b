//! Containers that no service made on attachable networks: the engine's way to a place in the swarm.

use std::sync::{Arc, Weak};
use std::time::Duration;

use docker_api::swarm::api::Attachment;
use docker_api::swarm::{ControlCode, ControlError};
use engine::attachments::{Place, Swarm, Wanted};
use engine::{Error, Kind};
use futures_util::future::BoxFuture;
use model::NetworkId;

use super::{Cluster, State, give_back};

/// How long the network itself may take to stand on this node.
const NETWORK_WAIT: Duration = Duration::from_secs(10);
const NETWORK_LOOK: Duration = Duration::from_millis(20);

/// The swarm as the engine sees it; the engine does not keep the cluster alive.
pub struct Attacher(pub Weak<Cluster>);

impl Swarm for Attacher {
    fn attach(&self, wanted: Wanted) -> BoxFuture<'_, engine::Result<Option<Place>>> {
        let cluster = self.0.upgrade();
        Box::pin(async move {
            match cluster {
                Some(cluster) => attach(&cluster, wanted).await,
                None => Ok(None),
            }
        })
    }

    fn detach(&self, place: Place) -> BoxFuture<'_, ()> {
        let cluster = self.0.upgrade();
        // A manager that is away must not hold up the container's end.
        if let Some(cluster) = cluster {
            give_back(cluster, place.task);
        }
        Box::pin(std::future::ready(()))
    }

    fn resume(&self, wanted: Wanted, place: Place) -> BoxFuture<'_, ()> {
        let cluster = self.0.upgrade();
        Box::pin(async move {
            if let Some(cluster) = cluster {
                tell(&cluster, &wanted, &place).await;
            }
        })
    }
}

async fn attach(cluster: &Arc<Cluster>, wanted: Wanted) -> engine::Result<Option<Place>> {
    if !matches!(cluster.state(), State::Active(_)) {
        return Ok(None);
    }
    let (network, container) = (wanted.network.clone(), wanted.container_id.clone());
    let asked =
        cluster.attach(network, container, wanted.aliases.clone(), wanted.addresses.clone());
    let attachment = match asked.await {
        Ok(attachment) => attachment,
        Err(error) if error.code == ControlCode::NotFound => return Ok(None),
        Err(error) => return Err(refused(&wanted.network, &error)),
    };
    let task = attachment.id.clone();
    let Some(place) = place(attachment, &wanted) else {
        give_back(cluster.clone(), task);
        return Err(Error::internal(format!(
            "could not attach to network {}: the managers gave no address",
            wanted.network
        )));
    };
    if let Err(error) = wait_for(cluster, &place).await {
        give_back(cluster.clone(), task);
        return Err(error);
    }
    tell(cluster, &wanted, &place).await;
    Ok(Some(place))
}

fn place(attachment: Attachment, wanted: &Wanted) -> Option<Place> {
    let held = attachment.networks.into_iter().next()?;
    let network = held.network?;
    let name = network.spec.and_then(|spec| spec.annotations).unwrap_or_default().name;
    let addresses: Vec<_> = held.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    (!addresses.is_empty()).then(|| Place {
        task: attachment.id,
        network: network.id,
        network_name: name,
        addresses,
        aliases: wanted.aliases.clone(),
        mac: wanted.mac,
    })
}

/// The namespace, bridge and VXLAN device are made by the same reconciliation as for tasks.
async fn wait_for(cluster: &Cluster, place: &Place) -> engine::Result<()> {
    let id = NetworkId::new(place.network.clone());
    let stands = async {
        while !cluster.engine.network.overlays().overlays.contains_key(&id) {
            tokio::time::sleep(NETWORK_LOOK).await;
        }
    };
    tokio::time::timeout(NETWORK_WAIT, stands).await.map_err(|_| {
        Error::internal(format!(
            "could not attach to network {}: it did not come up on this node in {} seconds",
            place.network_name,
            NETWORK_WAIT.as_secs()
        ))
    })
}

/// From here on the container's name and address are announced.
async fn tell(cluster: &Cluster, wanted: &Wanted, place: &Place) {
    if let State::Active(node) = cluster.state() {
        let guest = agent::Guest {
            container_id: wanted.container_id.clone(),
            name: wanted.container_name.clone(),
            aliases: place.aliases.clone(),
            mac: place.mac,
        };
        node.agent.tell(agent::Event::Attached { task: place.task.clone(), guest }).await;
    }
}

fn refused(network: &str, error: &ControlError) -> Error {
    let kind = match error.code {
        ControlCode::InvalidArgument => Kind::BadParameter,
        ControlCode::PermissionDenied => Kind::Forbidden,
        ControlCode::FailedPrecondition => Kind::Conflict,
        ControlCode::Unavailable | ControlCode::DeadlineExceeded => Kind::Unavailable,
        _ => Kind::Internal,
    };
    Error { kind, message: format!("Could not attach to network {network}: {}", error.message) }
}

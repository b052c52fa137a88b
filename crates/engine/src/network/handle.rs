//! The handle that everyone else holds on the network controller.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};

use model::{ContainerId, NetworkId};
use tokio::sync::{broadcast, oneshot, watch};

use super::api::*;
use super::controller::{Controller, Job, internal};
use super::state::State;

/// Jobs that may wait for the thread; callers beyond that wait for a place.
const JOBS_MAX: usize = 1_024;
const EVENTS_MAX: usize = 1_024;

#[derive(Clone)]
pub struct Network {
    config: Arc<NetworkConfig>,
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
    events: broadcast::Sender<NetworkEvent>,
    resolver: Arc<resolver::Client>,
}

/// What readers see without asking the thread.
#[derive(Default)]
pub struct Shared {
    seen: RwLock<Seen>,
    ports_taken: watch::Sender<BTreeSet<(Proto, u16)>>,
    host_networks: watch::Sender<Vec<Cidr>>,
}

#[derive(Default)]
struct Seen {
    networks: Vec<LocalNetwork>,
    sandboxes: BTreeMap<ContainerId, SandboxState>,
    overlays: OverlayState,
    counters: NetworkCounters,
    warnings: Vec<String>,
}

impl Shared {
    pub fn publish(&self, state: &State, counters: NetworkCounters) {
        let sandboxes = state.sandboxes.iter();
        let seen = Seen {
            networks: state.networks.values().cloned().collect(),
            sandboxes: sandboxes.map(|(id, record)| (id.clone(), record.state.clone())).collect(),
            overlays: state.overlays.clone(),
            counters,
            warnings: state.warnings(),
        };
        *self.seen.write().unwrap_or_else(PoisonError::into_inner) = seen;
        tell_change(&self.ports_taken, &state.mesh_taken);
        tell_change(&self.host_networks, &state.host_networks);
    }

    fn read<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn tell_change<T: Clone + PartialEq>(seen: &watch::Sender<T>, now: &T) {
    seen.send_if_modified(|seen| {
        let changed = seen != now;
        if changed {
            seen.clone_from(now);
        }
        changed
    });
}

impl Network {
    /// Adopts what an earlier daemon left under the roots and starts the controller.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let config = Arc::new(config);
        let (jobs, waiting) = sync_channel::<Job>(JOBS_MAX);
        let shared = Arc::new(Shared::default());
        let events = broadcast::Sender::new(EVENTS_MAX);
        let program = Path::new("/proc/self/exe");
        let resolver = Arc::new(resolver::Client::new(program, &config.exec_root));
        let (ready, opened) = oneshot::channel();
        let parts = (config.clone(), shared.clone(), events.clone(), resolver.clone());
        let run = move || {
            let (config, shared, events, resolver) = parts;
            match Controller::open(config, shared, events, resolver) {
                Ok(controller) => {
                    let _ = ready.send(Ok(()));
                    controller.run(&waiting);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(run)
            .map_err(|error| internal(format!("network controller: {error}")))?;
        opened.await.map_err(|_| ended())??;
        Ok(Self { config, jobs, shared, events, resolver })
    }

    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Published ports of services that another process on this host has.
    pub fn ports_taken(&self) -> watch::Receiver<BTreeSet<(Proto, u16)>> {
        self.shared.ports_taken.subscribe()
    }

    /// Networks that this host reaches or is on.
    pub fn host_networks(&self) -> watch::Receiver<Vec<Cidr>> {
        self.shared.host_networks.subscribe()
    }

    /// Whether this host is part of the routing mesh, or was when an earlier daemon ended.
    pub fn has_mesh(&self) -> bool {
        self.shared.read(|seen| seen.overlays.overlays.values().any(|it| it.ingress.is_some()))
    }

    /// The process that answers names; zones of overlays are set by whoever knows the swarm.
    pub fn resolver(&self) -> Arc<resolver::Client> {
        self.resolver.clone()
    }

    /// Has the thread do it; what it changes is visible to readers when this returns.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Controller) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        self.ask_and_go_on(work, |_| ()).await
    }

    /// The same, with work that nobody waits for but the next caller.
    async fn ask_and_go_on<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Controller) -> Result<T, NetworkError> + Send + 'static,
        rest: impl FnOnce(&mut Controller) + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |controller| {
            let result = work(controller);
            controller.publish_state();
            let _ = reply.send(result);
            rest(controller);
        });
        let jobs = self.jobs.clone();
        let sent = match jobs.try_send(job) {
            Err(std::sync::mpsc::TrySendError::Full(job)) => {
                tokio::task::spawn_blocking(move || jobs.send(job).is_ok()).await.unwrap_or(false)
            }
            other => other.is_ok(),
        };
        if !sent {
            return Err(ended());
        }
        answer.await.map_err(|_| ended())?
    }

    // ---- local networks

    pub async fn create(&self, spec: NetworkSpec) -> Result<LocalNetwork, NetworkError> {
        self.ask(move |controller| controller.create(spec)).await
    }

    pub async fn remove(&self, id: &NetworkId) -> Result<(), NetworkError> {
        let id = id.clone();
        self.ask(move |controller| controller.remove(&id)).await
    }

    pub fn networks(&self) -> Vec<LocalNetwork> {
        self.shared.read(|seen| seen.networks.clone())
    }

    /// By full id, name, or a prefix of the id that fits one network.
    pub fn find(&self, name_or_id: &str) -> Result<LocalNetwork, NetworkError> {
        let networks = self.networks().into_iter().map(|network| (network.id.clone(), network));
        let state = State { networks: networks.collect(), ..State::default() };
        state.find(name_or_id).cloned()
    }

    // ---- containers

    /// Makes the container's namespace with everything in it; idempotent for a container that has
    /// one (the state it has is returned).
    pub async fn start(&self, spec: SandboxSpec) -> Result<SandboxState, NetworkError> {
        self.ask(move |controller| controller.start(spec)).await
    }

    pub async fn connect(
        &self,
        container: &ContainerId,
        endpoint: EndpointSpec,
    ) -> Result<EndpointState, NetworkError> {
        let container = container.clone();
        self.ask(move |controller| controller.connect(&container, endpoint)).await
    }

    pub async fn disconnect(
        &self,
        container: &ContainerId,
        network: &str,
    ) -> Result<(), NetworkError> {
        let (container, network) = (container.clone(), network.to_owned());
        self.ask(move |controller| controller.disconnect(&container, &network)).await
    }

    pub async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), NetworkError> {
        let (container, name) = (container.clone(), name.to_owned());
        self.ask(move |controller| controller.rename(&container, &name)).await
    }

    /// Removes the container's namespace and frees its addresses and ports. Unknown: nothing to do.
    pub async fn stop(&self, container: &ContainerId) -> Result<(), NetworkError> {
        let container = container.clone();
        // The kernel takes tens of milliseconds to take a link down; a crash before that leaves
        // what the next start of the daemon removes.
        self.ask_and_go_on(move |controller| controller.stop(&container), Controller::clear_away)
            .await
    }

    pub fn sandbox(&self, container: &ContainerId) -> Option<SandboxState> {
        self.shared.read(|seen| seen.sandboxes.get(container).cloned())
    }

    pub fn sandboxes(&self) -> BTreeMap<ContainerId, SandboxState> {
        self.shared.read(|seen| seen.sandboxes.clone())
    }

    /// After a restart: removes the sandboxes of containers that are not running.
    pub async fn retain(&self, running: Vec<ContainerId>) -> Result<(), NetworkError> {
        self.ask(move |controller| controller.retain(&running)).await
    }

    // ---- swarm

    /// The whole overlay state; returns when it is applied. Errors name what could not be.
    pub async fn set_overlays(&self, state: OverlayState) -> Result<(), NetworkError> {
        self.ask(move |controller| controller.set_overlays(state)).await
    }

    /// The overlay state that was set last.
    pub fn overlays(&self) -> OverlayState {
        self.shared.read(|seen| seen.overlays.clone())
    }

    /// What is not as a user would expect, in words.
    pub fn warnings(&self) -> Vec<String> {
        self.shared.read(|seen| seen.warnings.clone())
    }

    pub fn counters(&self) -> NetworkCounters {
        self.shared.read(|seen| seen.counters)
    }

    /// Publishes what happens to networks on the engine's bus, for as long as the engine lives.
    pub fn tell(&self, bus: Arc<crate::events::Bus>) {
        let mut events = self.events();
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => {
                        let mut attributes =
                            vec![("name", event.name), ("type", event.driver.to_owned())];
                        attributes.extend(event.container.map(|id| ("container", id.to_string())));
                        let kind = crate::events::Type::NETWORK;
                        bus.publish(kind, event.action, event.network.to_string(), attributes);
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    pub fn events(&self) -> broadcast::Receiver<NetworkEvent> {
        self.events.subscribe()
    }
}

fn ended() -> NetworkError {
    internal("the network controller has ended")
}

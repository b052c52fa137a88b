//! One host's engine: containers, images, volumes and local networks.
//!
//! Above it stand the Engine API (`docker-api`) and the swarm's executor (`skep::cluster`); both
//! hold the same `Arc<Engine>` and call the same functions.

pub mod error;
pub mod config;
pub mod events;
pub mod host;
pub mod images;
pub mod volumes;
pub mod network;
pub mod containers;
pub mod exec;
pub mod logs;
pub mod attach;
pub mod stats;
pub mod files;
pub mod attachments;
mod claim;

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

pub use config::Config;
pub use error::{Error, Kind, Result};
/// The vocabulary of images, for those above.
pub use image;

/// Everything one host runs. Each resource is a part that owns its state and its files.
pub struct Engine {
    id: String,
    config: RwLock<Arc<Config>>,
    pub events: Arc<events::Bus>,
    pub images: Arc<images::Images>,
    pub volumes: Arc<volumes::Volumes>,
    pub network: network::Network,
    pub runtime: runtime::Runtime,
    pub containers: containers::Containers,
    pub execs: exec::Execs,
    /// Kept open as long as this daemon has its directories.
    _claims: claim::Claims,
    /// Once the node's side of the swarm stands.
    swarm: OnceLock<Arc<dyn attachments::Swarm>>,
}

impl Engine {
    /// Opens the state below the data root, adopts what still runs and mends what a crash left.
    pub async fn open(config: Config) -> Result<Arc<Engine>> {
        config.check()?;
        let claims = claim::Claims::make(&config)?;
        config.make_directories()?;
        let events = Arc::new(events::Bus::new());
        let images = Arc::new(images::Images::open(&config, events.clone()).await?);
        let volumes = Arc::new(volumes::Volumes::open(&config, events.clone()).await?);
        let network = network::Network::open(config.network()?).await?;
        network.tell(events.clone());
        let runtime = runtime::Runtime::new(runtime::Config {
            exec_root: config.exec_root.clone(),
            shim_exe: "/proc/self/exe".into(),
            cgroup_parent: config.cgroup_parent.clone().unwrap_or_default(),
            init_program: config.init_path.clone(),
        })?;
        let containers = containers::Containers::open(&config)?;
        let execs = exec::Execs::new();
        let engine = Arc::new(Engine {
            id: host::daemon_id(&config.data_root)?,
            config: RwLock::new(Arc::new(config)),
            events,
            images,
            volumes,
            network,
            runtime,
            containers,
            execs,
            _claims: claims,
            swarm: OnceLock::new(),
        });
        engine.restore().await?;
        Ok(engine)
    }

    /// The settings as they are now; a reload replaces them as a whole.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over of `new` what may change while containers run (see [`Config::reloaded`]), and
    /// tells it as dockerd does: the event `reload` of type `daemon`.
    ///
    /// # Errors
    /// When the registries' settings cannot be used; everything stays as it was.
    pub fn reload(&self, new: &Config) -> Result<()> {
        let mut current = self.config.write().unwrap_or_else(PoisonError::into_inner);
        let next = current.reloaded(new);
        self.images.reload(&next)?;
        *current = Arc::new(next.clone());
        drop(current);
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut attributes = next.reload_attributes();
        attributes.push(("name", name));
        self.events.publish(events::Type::DAEMON, "reload", self.id.clone(), attributes);
        Ok(())
    }
}

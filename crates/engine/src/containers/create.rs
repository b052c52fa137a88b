//! `docker create`: checks, defaults, file system, volumes, and the spec on disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use bollard_stubs::models::{ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig};
use model::ContainerId;
use time::OffsetDateTime;

use super::container::{Container, Spec, State, TaskSpec};
use super::{endpoints, logging, merge, mounts, oci, record, validate};
use crate::Engine;
use crate::error::{Error, IoContext, Result};
use crate::images::blocking;

/// `POST /containers/create`, and what the swarm's executor asks for.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    pub name: Option<String>,
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    pub networking: NetworkingConfig,
    /// `os/arch[/variant]`
    pub platform: Option<String>,
    pub task: Option<TaskSpec>,
}

pub struct Created {
    pub container: Arc<Container>,
    pub warnings: Vec<String>,
}

impl Engine {
    /// Makes a container that has not been started; on an error nothing of it is left.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<Created> {
        let mut request = request;
        let warnings = validate::check(&mut request, &self.config())?;
        let asked = request.config.image.clone().unwrap_or_default();
        let image = self.images.store.resolve(&asked)?;
        check_platform(&asked, request.platform.as_deref(), &image)?;
        merge::merge(&mut request.config, &image.config.run())?;
        validate::check_merged(&request.config)?;
        oci::check_security(&request.host_config, &self.config())?;
        self.check_others(&request.host_config)?;
        let networks = endpoints::wanted(&request)?.into_iter();
        let networks = networks.map(|(name, asked)| (self.known_network(&name), asked)).collect();
        self.check_links(&request.host_config)?;
        let log = self.log_config(&request)?;

        let id = self.containers.new_id();
        let name = self.containers.reserve(request.name.as_deref(), &id)?;
        let made = self.make(&id, name.clone(), image, request, networks, log).await;
        match made {
            Ok(container) => {
                self.containers.insert(container.clone());
                self.volumes.give_back(&id);
                self.publish(&container, "create", []);
                Ok(Created { container, warnings })
            }
            Err(error) => {
                self.containers.release(&name, &id);
                self.unmake(&id).await;
                Err(error)
            }
        }
    }

    /// Other containers that this one names have to exist; which state they are in counts at the start.
    fn check_others(&self, host: &HostConfig) -> Result<()> {
        for mode in [&host.ipc_mode, &host.pid_mode, &host.network_mode] {
            if let Some(other) = mode.as_deref().and_then(|mode| mode.strip_prefix("container:")) {
                self.container(other).map_err(|error| Error::bad_parameter(error.message))?;
            }
        }
        Ok(())
    }

    async fn make(
        &self,
        id: &ContainerId,
        name: String,
        image: Arc<image::Image>,
        request: CreateRequest,
        networks: BTreeMap<String, EndpointSettings>,
        mut log: runtime::LogConfig,
    ) -> Result<Arc<Container>> {
        let directory = self.containers.root().join(id.as_str());
        crate::config::make_directory(&directory, 0o710)?;
        tracing::trace!(target: "step", "container directory made");
        let store = self.images.store.clone();
        let (container_id, of) = (id.clone(), image.clone());
        blocking(move || Ok(store.prepare_rootfs(&container_id, &of).map(drop)?)).await?;
        let mounts = self.resolve_mounts(id, &request).await?;
        mounts::check_targets(&mounts)?;
        if let Some(template) = logging::tag_template(&request.host_config) {
            let container = logging::Named {
                id,
                name: &name,
                image: &image.id.to_string(),
                config: &request.config,
            };
            log.attrs.insert("tag".into(), container.tag(template)?);
        }
        if log.path.as_os_str().is_empty() {
            log.path = directory.join(format!("{id}-json.log"));
        }
        let mut config = request.config;
        if config.hostname.as_deref().unwrap_or_default().is_empty() {
            config.hostname = Some(self.default_hostname(id, &request.host_config)?);
        }
        let spec = Spec {
            id: id.clone(),
            name,
            created: OffsetDateTime::now_utc(),
            image: image.id.to_string(),
            config,
            host_config: request.host_config,
            networks,
            mounts,
            log,
            task: request.task,
        };
        record::write_state(&directory, &State::default(), false)?;
        tracing::trace!(target: "step", "container state written");
        record::write_spec(&directory, &spec)?;
        tracing::trace!(target: "step", "container written");
        record::forget_volumes(&directory)?;
        Ok(Arc::new(Container::new(directory, spec, State::default())))
    }

    /// What a failed create made; errors are told, not returned: the first error is the answer.
    async fn unmake(&self, id: &ContainerId) {
        let directory = self.containers.root().join(id.as_str());
        self.volumes.give_back(id);
        self.drop_new_volumes(&directory);
        let store = self.images.store.clone();
        let container = id.clone();
        if let Err(error) = blocking(move || Ok(store.remove_rootfs(&container)?)).await {
            tracing::warn!(container = %id, %error, "root file system of a failed create stays");
        }
        if let Err(error) = std::fs::remove_dir_all(&directory).during("remove container directory")
            && directory.exists()
        {
            tracing::warn!(container = %id, %error, "directory of a failed create stays");
        }
    }

    /// `--link` names containers that are there.
    fn check_links(&self, host: &HostConfig) -> Result<()> {
        for link in host.links.iter().flatten() {
            if link.is_empty() || link.matches(':').count() > 1 {
                return Err(Error::bad_parameter(format!("bad format for links: {link}")));
            }
            let name = link.split(':').next().unwrap_or_default().trim_start_matches('/');
            self.container(name).map_err(|error| {
                // 400, not 404: the client takes that for a missing image.
                Error::bad_parameter(format!("could not get container for {name}: {error}"))
            })?;
        }
        Ok(())
    }

    /// The anonymous volumes of a create that came to nothing go with it.
    pub(super) fn drop_new_volumes(&self, directory: &std::path::Path) {
        for name in record::new_volumes(directory) {
            if let Err(error) = self.volumes.remove_anonymous(&name, Vec::new) {
                tracing::warn!(volume = name, %error, "volume of a failed create stays");
            }
        }
    }

    /// Docker's: the short id; with the host's network or UTS namespace the host's name, with
    /// another container's network that one's.
    fn default_hostname(&self, id: &ContainerId, host: &HostConfig) -> Result<String> {
        let network = host.network_mode.as_deref().unwrap_or_default();
        if network == "host" || host.uts_mode.as_deref() == Some("host") {
            return Ok(rustix::system::uname().nodename().to_string_lossy().into_owned());
        }
        match network.strip_prefix("container:") {
            // It has to be there at the start, not before.
            Some(other) => Ok(self.container(other).map_or_else(
                |_| String::new(),
                |other| other.spec().config.hostname.clone().unwrap_or_default(),
            )),
            None => Ok(id.chars().take(12).collect()),
        }
    }
}

/// `--platform` must be what the image is for.
fn check_platform(name: &str, wanted: Option<&str>, image: &image::Image) -> Result<()> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { return Ok(()) };
    if wanted.split('/').count() > 3 || wanted.split('/').any(str::is_empty) {
        return Err(Error::bad_parameter(format!(
            "\"{wanted}\": cannot parse platform specifier: use os/architecture[/variant]"
        )));
    }
    let mut parts = wanted.split('/');
    let (os, architecture) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let config = &image.config;
    if (os.is_empty() || os == config.os)
        && (architecture.is_empty() || architecture == config.architecture)
    {
        return Ok(());
    }
    Err(Error::not_found(format!(
        "image with reference {name} was found but does not provide the specified platform ({wanted}): it is for {}/{}",
        config.os, config.architecture
    )))
}

/// The defaults of a host configuration that `inspect` shows although nobody gave them.
pub(crate) fn fill_host_defaults(host: &mut HostConfig, config: &crate::Config) {
    if matches!(host.network_mode.as_deref(), None | Some("") | Some("default")) {
        host.network_mode = Some("bridge".into());
    }
    if host.ipc_mode.as_deref().unwrap_or_default().is_empty() {
        host.ipc_mode = Some(config.default_ipc_mode.clone());
    }
    let asked = host.cgroupns_mode.map(|mode| mode.to_string()).unwrap_or_default();
    if let (true, Some(mode)) = (asked.is_empty(), config.default_cgroupns_mode.as_deref()) {
        use bollard_stubs::models::HostConfigCgroupnsModeEnum as Mode;
        host.cgroupns_mode = Some(if mode == "host" { Mode::HOST } else { Mode::PRIVATE });
    }
    if host.shm_size.unwrap_or_default() == 0 {
        host.shm_size = Some(config.default_shm_size);
    }
    if host.runtime.as_deref().unwrap_or_default().is_empty() {
        host.runtime = Some(config.default_runtime.clone());
    }
    let log = host.log_config.get_or_insert_with(Default::default);
    if log.typ.as_deref().unwrap_or_default().is_empty() {
        log.typ = Some(config.log_driver.clone());
        let own = log.config.get_or_insert_with(Default::default);
        for (key, value) in &config.log_opts {
            own.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    let policy = host.restart_policy.get_or_insert_with(Default::default);
    if policy.name.is_none_or(|name| name.as_ref().is_empty()) {
        policy.name = Some(bollard_stubs::models::RestartPolicyNameEnum::NO);
        // Any count may stand beside no name, and says nothing.
        policy.maximum_retry_count = None;
    }
    policy.maximum_retry_count.get_or_insert(0);
}

impl Engine {
    /// A container's event with its name, image and labels, as Docker sends it.
    pub fn publish(
        &self,
        container: &Container,
        action: &str,
        extra: impl IntoIterator<Item = (String, String)>,
    ) {
        let spec = container.spec();
        let mut attributes: BTreeMap<String, String> =
            spec.config.labels.clone().unwrap_or_default().into_iter().collect();
        attributes.insert("name".into(), spec.name.clone());
        attributes.insert("image".into(), spec.config.image.clone().unwrap_or_default());
        attributes.extend(extra);
        self.events.publish(
            crate::events::Type::CONTAINER,
            action,
            container.id().as_str(),
            attributes,
        );
    }
}

//! The host's volumes: the `local` driver. `<data root>/volumes/<name>/{volume.json, _data}`.
//!
//! Which containers name a volume is the containers' knowledge; here is only for whom one is mounted now.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, IoContext, Kind, Result};
use crate::events::{self, Type};
use crate::images::blocking;

mod device;

/// The label of volumes without a name of their own.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub driver: String,
    #[serde(skip)]
    pub mountpoint: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    pub created_at: String,
    #[serde(default)]
    pub anonymous: bool,
}

/// For whom a volume is mounted: a container that runs, or one look into a container that does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct User {
    pub container: String,
    pub look: Option<u64>,
}

impl User {
    pub fn running(container: &str) -> User {
        User { container: container.to_owned(), look: None }
    }

    /// Two looks at the same time are two users.
    pub fn looking(container: &str) -> User {
        static LOOKS: AtomicU64 = AtomicU64::new(0);
        let look = Some(LOOKS.fetch_add(1, Ordering::Relaxed));
        User { container: container.to_owned(), look }
    }
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<String, Volume>,
    /// Containers that have it and are not among the containers: being created, or not readable.
    taken: BTreeMap<String, BTreeSet<String>>,
    mounted: BTreeMap<String, BTreeSet<User>>,
    /// Held while a volume is mounted, unmounted or removed: a server that does not answer holds up its own volume alone.
    gates: BTreeMap<String, Arc<Mutex<()>>>,
}

pub struct Volumes {
    root: PathBuf,
    events: Arc<events::Bus>,
    state: Mutex<State>,
    mount_device: fn(&Volume) -> Result<()>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PrunedVolumes {
    pub deleted: Vec<String>,
    pub bytes: u64,
}

impl Volumes {
    pub async fn open(config: &Config, events: Arc<events::Bus>) -> Result<Self> {
        let root = config.data_root.join("volumes");
        let directory = root.clone();
        let volumes = blocking(move || read_all(&directory)).await?;
        let state = Mutex::new(State { volumes, ..State::default() });
        Ok(Self { root, events, state, mount_device: device::mount })
    }

    /// The volume of that name, made if it is not there; no name makes an anonymous one.
    pub fn ensure(
        &self,
        name: Option<&str>,
        driver: &str,
        options: BTreeMap<String, String>,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume> {
        self.ensure_for(None, name, driver, options, labels)
    }

    /// The same, taken for a container that is being created until it is given back.
    pub(crate) fn ensure_for(
        &self,
        container: Option<&str>,
        name: Option<&str>,
        driver: &str,
        options: BTreeMap<String, String>,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume> {
        let anonymous = name.is_none_or(str::is_empty);
        let name = match name {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => random_name(),
        };
        if !driver.is_empty() && driver != "local" {
            return Err(Error::not_found(format!(
                "create {name}: error looking up volume plugin {driver}: plugin {driver:?} not found"
            )));
        }
        let mut state = self.lock();
        if let Some(volume) = state.volumes.get(&name).cloned() {
            state.take(&name, container);
            return Ok(volume);
        }
        check_name(&name)?;
        check_options(&options).map_err(|error| error.context(format_args!("create {name}")))?;
        let mut labels = labels;
        if anonymous {
            labels.insert(ANONYMOUS.into(), String::new());
        }
        let volume = Volume {
            mountpoint: self.root.join(&name).join("_data"),
            driver: "local".into(),
            anonymous: labels.contains_key(ANONYMOUS),
            labels,
            options,
            created_at: now(),
            name: name.clone(),
        };
        self.make(&volume)?;
        state.volumes.insert(name.clone(), volume.clone());
        state.take(&name, container);
        drop(state);
        self.events.publish(Type::VOLUME, "create", name, [("driver", "local")]);
        Ok(volume)
    }

    /// Keeps those that `named` accepts from being removed, for a container that is not among the containers.
    pub(crate) fn take(&self, container: &str, named: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        let names: Vec<String> = state.volumes.keys().filter(|name| named(name)).cloned().collect();
        names.iter().for_each(|name| state.take(name, Some(container)));
    }

    /// The container is among the containers now, or came to nothing.
    pub(crate) fn give_back(&self, container: &str) {
        self.lock().taken.retain(|_, takers| {
            takers.remove(container);
            !takers.is_empty()
        });
    }

    pub fn get(&self, name: &str) -> Option<Volume> {
        self.lock().volumes.get(name).cloned()
    }

    pub fn find(&self, name: &str) -> Result<Volume> {
        self.get(name).ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))
    }

    pub fn list(&self) -> Vec<Volume> {
        self.lock().volumes.values().cloned().collect()
    }

    /// Blocks: the directory that is bound; a volume with a device is mounted for the first user.
    pub(crate) fn mount(&self, name: &str, user: &User) -> Result<PathBuf> {
        let gate = self.gate(name);
        let _alone = held(&gate);
        let volume = self.find(name)?;
        if !volume.options.is_empty() && !device::is_mounted(&volume.mountpoint)? {
            (self.mount_device)(&volume)?;
            tracing::trace!(target: "step", "volume mounted");
        }
        self.lock().mounted.entry(name.to_owned()).or_default().insert(user.clone());
        Ok(volume.mountpoint)
    }

    fn gate(&self, name: &str) -> Arc<Mutex<()>> {
        let mut state = self.lock();
        match state.volumes.contains_key(name) {
            true => state.gates.entry(name.to_owned()).or_default().clone(),
            false => Arc::default(),
        }
    }

    /// A container that an earlier daemon started has it mounted.
    pub(crate) fn remember_mounted(&self, name: &str, container: &str) {
        let user = User::running(container);
        self.lock().mounted.entry(name.to_owned()).or_default().insert(user);
    }

    /// Blocks: the last user unmounts the device. An event tells it of those that had it mounted.
    pub(crate) fn unmount(&self, name: &str, user: &User) -> Result<()> {
        let gate = self.gate(name);
        let _alone = held(&gate);
        let Some(volume) = self.get(name) else { return Ok(()) };
        let mut had = false;
        let last = self.lock().mounted.get_mut(name).is_none_or(|mounted| {
            had = mounted.remove(user);
            mounted.is_empty()
        });
        if last && !volume.options.is_empty() && device::is_mounted(&volume.mountpoint)? {
            device::unmount(&volume.mountpoint)?;
        }
        if had {
            let attributes = [("container", user.container.as_str()), ("driver", &volume.driver)];
            self.events.publish(Type::VOLUME, "unmount", name, attributes);
        }
        Ok(())
    }

    /// Removes an anonymous volume together with its container (`rm -v`, `--rm`), unless another has it.
    pub fn remove_anonymous(&self, name: &str, users: impl Fn() -> Vec<String>) -> Result<()> {
        match self.get(name) {
            Some(volume) if volume.anonymous => match self.remove(name, users, false) {
                Err(error) if matches!(error.kind, Kind::Conflict | Kind::NotFound) => Ok(()),
                removed => removed,
            },
            _ => Ok(()),
        }
    }

    /// Blocks: removes a volume that no container has. `users`, the containers that name it, are asked for while no volume
    /// can be taken or given back: a container that is being created is either taken for or among them.
    pub fn remove(&self, name: &str, users: impl Fn() -> Vec<String>, force: bool) -> Result<()> {
        // Whoever mounts it has it: that is answered at once, however long the mount takes.
        if self.unused(&self.lock(), name, &users, force)?.is_none() {
            return Ok(());
        }
        let gate = self.gate(name);
        let _alone = held(&gate);
        let aside = {
            let mut state = self.lock();
            let Some(volume) = self.unused(&state, name, &users, force)? else { return Ok(()) };
            let aside = self.set_aside(&volume)?;
            state.volumes.remove(name);
            state.mounted.remove(name);
            // Others that wait there would meet nobody behind a new one.
            if Arc::strong_count(&gate) <= 2 {
                state.gates.remove(name);
            }
            aside
        };
        self.events.publish(Type::VOLUME, "destroy", name, [("driver", "local")]);
        remove_if_there(&aside)
    }

    /// A volume that may go; `None` where none is missed.
    fn unused(
        &self,
        state: &State,
        name: &str,
        users: impl Fn() -> Vec<String>,
        force: bool,
    ) -> Result<Option<Volume>> {
        let Some(volume) = state.volumes.get(name) else {
            return match force {
                true => Ok(None),
                false => Err(Error::not_found(format!("get {name}: no such volume"))),
            };
        };
        let mut users = users();
        users.extend(state.taken.get(name).into_iter().flatten().cloned());
        match users.is_empty() {
            true => Ok(Some(volume.clone())),
            false => Err(Error::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            ))),
        }
    }

    /// Removes the volumes that `wanted` accepts; `users` tells which containers name a volume.
    pub fn prune(
        &self,
        wanted: impl Fn(&Volume) -> bool,
        users: impl Fn(&str) -> Vec<String>,
    ) -> Result<PrunedVolumes> {
        let mut pruned = PrunedVolumes::default();
        for volume in self.list() {
            // What lies behind a device is not this host's to delete (moby volume/service `Prune`).
            if !volume.options.is_empty() {
                continue;
            }
            if !wanted(&volume) || !users(&volume.name).is_empty() {
                continue;
            }
            let bytes = size(&volume.mountpoint);
            match self.remove(&volume.name, || users(&volume.name), true) {
                // A container came in between.
                Err(error) if error.kind == Kind::Conflict => continue,
                removed => removed?,
            }
            pruned.deleted.push(volume.name.clone());
            pruned.bytes += bytes;
        }
        self.events.publish(Type::VOLUME, "prune", "", [("reclaimed", pruned.bytes.to_string())]);
        Ok(pruned)
    }

    fn make(&self, volume: &Volume) -> Result<()> {
        let target = self.root.join(&volume.name);
        let new = self.root.join(format!(".new-{}", volume.name));
        let making = format!("create volume {}", volume.name);
        remove_if_there(&new)?;
        fs::create_dir_all(new.join("_data")).during(&making)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o701)).during(&making)?;
        fs::set_permissions(new.join("_data"), fs::Permissions::from_mode(0o755))
            .during(&making)?;
        let raw = serde_json::to_vec(volume).during(&making)?;
        let record = new.join("volume.json");
        fs::write(&record, raw)
            .and_then(|()| fs::File::open(&record)?.sync_all())
            .during(&making)?;
        tracing::trace!(target: "step", "volume written");
        fs::rename(&new, &target).during(&making)?;
        tracing::trace!(target: "step", "volume published");
        Ok(())
    }

    /// From here on it is no volume any more, whatever becomes of its files.
    fn set_aside(&self, volume: &Volume) -> Result<PathBuf> {
        if device::is_mounted(&volume.mountpoint)? {
            device::unmount(&volume.mountpoint)?;
        }
        let path = self.root.join(&volume.name);
        let old = self.root.join(format!(".old-{}", random_name()));
        fs::rename(&path, &old).during(format!("remove volume {}", volume.name))?;
        tracing::trace!(target: "step", "volume set aside");
        Ok(old)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held(gate: &Mutex<()>) -> MutexGuard<'_, ()> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn take(&mut self, name: &str, container: Option<&str>) {
        if let Some(container) = container {
            self.taken.entry(name.to_owned()).or_default().insert(container.to_owned());
        }
    }
}

/// What an earlier daemon left; half-made and half-removed volumes go.
fn read_all(root: &Path) -> Result<BTreeMap<String, Volume>> {
    fs::create_dir_all(root).during(format!("create {}", root.display()))?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o701))
        .during(format!("set mode of {}", root.display()))?;
    let mut volumes = BTreeMap::new();
    for entry in fs::read_dir(root).during(format!("read {}", root.display()))? {
        let path = entry.during(format!("read {}", root.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(".new-") || name.starts_with(".old-") {
            // A leftover is no reason not to start.
            if let Err(error) = remove_if_there(&path) {
                tracing::warn!(%error, "the next start tries again");
            }
            continue;
        }
        let Ok(raw) = fs::read(path.join("volume.json")) else { continue };
        match serde_json::from_slice::<Volume>(&raw) {
            Ok(volume) if volume.name == name => {
                let volume = Volume { mountpoint: path.join("_data"), ..volume };
                volumes.insert(volume.name.clone(), volume);
            }
            _ => {
                tracing::warn!(path = %path.display(), "volume record is damaged; the volume is not used")
            }
        }
    }
    Ok(volumes)
}

fn remove_if_there(path: &Path) -> Result<()> {
    image::tree::remove(path).during(format!("remove {}", path.display()))
}

pub(crate) fn random_name() -> String {
    use rand::RngCore;
    let mut bytes = [0u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> String {
    let now = time::OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

fn check_name(name: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name.len() < 2 {
        return Err(Error::bad_parameter(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    if !name.bytes().all(valid) || !name.as_bytes()[0].is_ascii_alphanumeric() || name.len() > 250 {
        return Err(Error::bad_parameter(format!(
            "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        )));
    }
    Ok(())
}

fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    if let Some(unknown) =
        options.keys().find(|key| !matches!(key.as_str(), "type" | "o" | "device" | "size"))
    {
        return Err(Error::bad_parameter(format!("invalid option: {unknown:?}")));
    }
    if options.contains_key("size") {
        return Err(Error::bad_parameter("quota size requested but no quota support"));
    }
    match ["device", "type"]
        .into_iter()
        .find(|key| !options.is_empty() && !options.contains_key(*key))
    {
        Some(missing) => Err(Error::bad_parameter(format!("missing required option: {missing:?}"))),
        None => Ok(()),
    }
}

/// Blocks: bytes of the files below a directory. What cannot be read counts as nothing: it may vanish meanwhile.
pub fn size(directory: &Path) -> u64 {
    image::walk::bytes(directory)
}

#[cfg(test)]
mod tests;

//! All containers by id and name, and how one is found.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use model::ContainerId;
use rand::RngCore;
use tokio::sync::watch;

use super::container::Container;
use super::names;
use crate::error::{Error, Result};
use crate::{Config, Engine};

pub struct Containers {
    root: PathBuf,
    /// True once a starting daemon knows what runs; until then nothing may be started: what is not
    /// known to run is swept away.
    restored: watch::Sender<bool>,
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    by_id: BTreeMap<ContainerId, Arc<Container>>,
    /// Also holds names that a create in progress has reserved.
    by_name: BTreeMap<String, ContainerId>,
}

impl Containers {
    pub(crate) fn open(config: &Config) -> Result<Self> {
        Ok(Self::at(config.containers_directory()))
    }

    fn at(root: PathBuf) -> Self {
        Self { root, restored: watch::Sender::new(false), tables: RwLock::default() }
    }

    pub(crate) fn tell_restored(&self) {
        self.restored.send_replace(true);
    }

    /// Until containers may be started.
    pub(crate) async fn restored(&self) {
        // The sender lives as long as this does.
        let _ = self.restored.subscribe().wait_for(|restored| *restored).await;
    }

    pub(crate) fn root(&self) -> &std::path::Path {
        &self.root
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All of them, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.read().by_id.values().cloned().collect()
    }

    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.read().by_id.get(id).cloned()
    }

    /// By full id, then name (with or without slash), then the beginning of an id.
    pub fn find(&self, name_or_id: &str) -> Result<Arc<Container>> {
        let tables = self.read();
        let missing = || Error::not_found(format!("No such container: {name_or_id}"));
        if name_or_id.is_empty() {
            return Err(Error::bad_parameter("No container name or ID supplied"));
        }
        if let Some(container) = tables.by_id.get(name_or_id) {
            return Ok(container.clone());
        }
        let name = name_or_id.strip_prefix('/').unwrap_or(name_or_id);
        if let Some(container) = tables.by_name.get(name).and_then(|id| tables.by_id.get(id)) {
            return Ok(container.clone());
        }
        let mut fits = tables
            .by_id
            .range(ContainerId::new(name_or_id)..)
            .take_while(|(id, _)| id.starts_with(name_or_id));
        match (fits.next(), fits.next()) {
            (Some((_, container)), None) => Ok(container.clone()),
            (Some(_), Some(_)) => Err(Error::bad_parameter(format!(
                "multiple IDs found with provided prefix: {name_or_id}"
            ))),
            _ => Err(missing()),
        }
    }

    /// Takes a name for an id; an absent one is made up.
    pub(crate) fn reserve(&self, name: Option<&str>, id: &ContainerId) -> Result<String> {
        let mut tables = self.write();
        if let Some(name) = name {
            let name = name.strip_prefix('/').unwrap_or(name);
            names::check(name)?;
            if let Some(owner) = tables.by_name.get(name) {
                return Err(Error::conflict(format!(
                    "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
                )));
            }
            tables.by_name.insert(name.to_owned(), id.clone());
            return Ok(name.to_owned());
        }
        let mut dice = rand::rng();
        let mut attempt = 0;
        loop {
            let name = names::generate(&mut dice, attempt);
            if !tables.by_name.contains_key(&name) {
                tables.by_name.insert(name.clone(), id.clone());
                return Ok(name);
            }
            attempt += 1;
        }
    }

    pub(crate) fn release(&self, name: &str, id: &ContainerId) {
        let mut tables = self.write();
        if tables.by_name.get(name) == Some(id) {
            tables.by_name.remove(name);
        }
    }

    pub(crate) fn insert(&self, container: Arc<Container>) {
        let mut tables = self.write();
        tables.by_name.insert(container.name(), container.id().clone());
        tables.by_id.insert(container.id().clone(), container);
    }

    pub(crate) fn forget(&self, id: &ContainerId) {
        let mut tables = self.write();
        tables.by_id.remove(id);
        tables.by_name.retain(|_, owner| owner != id);
    }

    /// 64 hex digits that no container has.
    pub(crate) fn new_id(&self) -> ContainerId {
        loop {
            let mut bytes = [0u8; 32];
            rand::rng().fill_bytes(&mut bytes);
            let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            // Docker too avoids short ids that are all digits: they would read as numbers
            // (moby pkg/stringid).
            let number = id[..12].bytes().all(|digit| digit.is_ascii_digit());
            if !number && self.get(&id).is_none() {
                return ContainerId::new(id);
            }
        }
    }
}

impl Engine {
    /// By full id, name or the beginning of an id.
    pub fn container(&self, name_or_id: &str) -> Result<Arc<Container>> {
        self.containers.find(name_or_id)
    }

    /// The same, refused in Docker's words unless it runs and is not paused.
    pub fn running_container(&self, name_or_id: &str) -> Result<Arc<Container>> {
        let container = self.container(name_or_id)?;
        let id = container.id();
        match container.phase() {
            super::Phase::Running => Ok(container),
            super::Phase::Paused => Err(Error::conflict(format!(
                "container {id} is paused, unpause the container before exec"
            ))),
            super::Phase::Restarting => Err(Error::conflict(format!(
                "Container {id} is restarting, wait until the container is running"
            ))),
            _ => Err(Error::conflict(format!("container {id} is not running"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::{Spec, State};
    use time::OffsetDateTime;

    fn with(names: &[(&str, &str)]) -> Containers {
        let containers = Containers::at(PathBuf::new());
        for (id, name) in names {
            let spec = Spec {
                id: ContainerId::new(*id),
                name: (*name).to_owned(),
                created: OffsetDateTime::UNIX_EPOCH,
                image: String::new(),
                config: Default::default(),
                host_config: Default::default(),
                networks: Default::default(),
                mounts: Vec::new(),
                log: Default::default(),
                task: None,
            };
            containers.insert(Arc::new(Container::new(PathBuf::new(), spec, State::default())));
        }
        containers
    }

    fn check(containers: &Containers, word: &str, expected: &str) {
        let found = match containers.find(word) {
            Ok(container) => container.id().to_string(),
            Err(error) => error.message,
        };
        assert_eq!(found, expected, "{word}");
    }

    #[test]
    fn a_container_is_found_by_id_name_or_prefix() {
        let containers = with(&[("abc1", "web"), ("abc2", "db"), ("def3", "abc")]);
        check(&containers, "abc1", "abc1");
        check(&containers, "/web", "abc1");
        check(&containers, "abc", "def3");
        check(&containers, "d", "def3");
        check(&containers, "ab", "multiple IDs found with provided prefix: ab");
        check(&containers, "zz", "No such container: zz");
    }

    #[test]
    fn a_taken_name_names_its_owner_and_a_released_one_is_free() {
        let containers = with(&[("abc1", "web")]);
        let id = ContainerId::new("new");
        let error = containers.reserve(Some("/web"), &id).expect_err("taken");
        assert!(error.message.contains("\"/web\" is already in use by container \"abc1\""));
        containers.release("web", &id);
        assert!(containers.reserve(Some("web"), &id).is_err(), "only the owner releases");
        containers.release("web", &ContainerId::new("abc1"));
        assert!(containers.reserve(Some("web"), &id).is_ok());
    }
}

//! The host's volumes: directories below the data root that outlive their containers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rand::RngCore;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::config::make_directory;
use crate::error::{Error, IoContext, Result};
use crate::{Config, events};

const OPTIONS: &str = "opts.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub driver: String,
    pub anonymous: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub mountpoint: PathBuf,
}

pub struct Volumes {
    root: PathBuf,
    events: Arc<events::Bus>,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    volumes: BTreeMap<String, Volume>,
    /// Which containers hold a volume mounted.
    users: BTreeMap<String, BTreeSet<String>>,
}

impl Volumes {
    pub async fn open(config: &Config, events: Arc<events::Bus>) -> Result<Self> {
        let root = config.data_root.join("volumes");
        make_directory(&root, 0o701)?;
        let mut tables = Tables::default();
        for entry in std::fs::read_dir(&root).during("list volumes")? {
            let path = entry.during("list volumes")?.path().join(OPTIONS);
            let Ok(text) = std::fs::read(&path) else { continue };
            let volume: Volume =
                serde_json::from_slice(&text).during(format_args!("read {}", path.display()))?;
            tables.volumes.insert(volume.name.clone(), volume);
        }
        Ok(Self { root, events, tables: Mutex::new(tables) })
    }

    /// The volume of that name; made when there is none. No name: an anonymous one.
    pub fn ensure(
        &self,
        name: Option<&str>,
        driver: &str,
        options: BTreeMap<String, String>,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(volume) = name.and_then(|name| tables.volumes.get(name)) {
            return Ok(volume.clone());
        }
        if !matches!(driver, "" | "local") {
            return Err(Error::not_found(format!(
                "error looking up volume plugin {driver}: plugin \"{driver}\" not found"
            )));
        }
        let name = name.map(str::to_owned).unwrap_or_else(random_name);
        let directory = self.root.join(&name);
        let volume = Volume {
            mountpoint: directory.join("_data"),
            anonymous: labels.contains_key("com.docker.volume.anonymous"),
            driver: "local".into(),
            created: OffsetDateTime::now_utc(),
            options,
            labels,
            name,
        };
        make_directory(&directory, 0o701)?;
        make_directory(&volume.mountpoint, 0o755)?;
        let text = serde_json::to_vec(&volume).during("write volume options")?;
        crate::containers::replace_file(&directory, OPTIONS, &text)?;
        tables.volumes.insert(volume.name.clone(), volume.clone());
        self.events.publish(
            events::Type::VOLUME,
            "create",
            volume.name.as_str(),
            [("driver", "local")],
        );
        Ok(volume)
    }

    pub fn list(&self) -> Vec<Volume> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.volumes.values().cloned().collect()
    }

    pub fn get(&self, name: &str) -> Option<Volume> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.volumes.get(name).cloned()
    }

    /// Makes the volume ready for a container; gives its directory on the host.
    pub fn mount(&self, name: &str, container: &str) -> Result<PathBuf> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(volume) = tables.volumes.get(name) else {
            return Err(Error::not_found(format!("get {name}: no such volume")));
        };
        if !volume.options.is_empty() {
            return Err(Error::unsupported("mount options of local volumes"));
        }
        let path = volume.mountpoint.clone();
        tables.users.entry(name.to_owned()).or_default().insert(container.to_owned());
        Ok(path)
    }

    /// The container does not need it mounted any more.
    pub fn unmount(&self, name: &str, container: &str) -> Result<()> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(users) = tables.users.get_mut(name) {
            users.remove(container);
        }
        Ok(())
    }

    /// Removes an anonymous volume together with its container (`rm -v`, `--rm`).
    pub fn remove_anonymous(&self, name: &str) -> Result<()> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if !tables.volumes.get(name).is_some_and(|volume| volume.anonymous) {
            return Ok(());
        }
        let directory = self.root.join(name);
        std::fs::remove_dir_all(&directory)
            .during(format_args!("remove {}", directory.display()))?;
        tables.volumes.remove(name);
        tables.users.remove(name);
        self.events.publish(events::Type::VOLUME, "destroy", name, [("driver", "local")]);
        Ok(())
    }
}

fn random_name() -> String {
    let mut bytes = [0u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! What the resolver remembers across its own death: tables, ports and the namespaces' files.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dns::Zone;
use serde::{Deserialize, Serialize};

use crate::message::{Ports, Relay, Sandbox};

/// Changes that follow each other this closely are written once.
const GATHER: Duration = Duration::from_millis(50);

/// One sandbox as it is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub sandbox: Sandbox,
    pub ports: Ports,
    /// The namespace's device and inode: the same path may come to hold another namespace.
    pub namespace: (u64, u64),
}

/// Everything set by the daemon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub sandboxes: BTreeMap<String, Held>,
    #[serde(with = "zones")]
    pub zones: BTreeMap<String, Arc<Zone>>,
    #[serde(default)]
    pub relays: BTreeSet<Relay>,
}

/// The state, and the thread that writes it after a change.
pub(crate) struct Keeper {
    path: PathBuf,
    state: Mutex<State>,
    dirty: Mutex<bool>,
    changed: Condvar,
}

impl Keeper {
    /// What an earlier process left, or nothing. A file that cannot be read is as good as none.
    pub fn open(path: PathBuf) -> Arc<Self> {
        let state = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Arc::new(Self {
            path,
            state: Mutex::new(state),
            dirty: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the state to be written soon.
    pub fn mark(&self) {
        *self.dirty.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    /// Writes after every change; never returns.
    pub fn write_changes(&self) {
        loop {
            {
                let dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
                let mut dirty = self
                    .changed
                    .wait_while(dirty, |dirty| !*dirty)
                    .unwrap_or_else(PoisonError::into_inner);
                *dirty = false;
            }
            std::thread::sleep(GATHER);
            let copy = self.state().clone();
            if let Err(error) = write(&self.path, &copy) {
                tracing::warn!(path = %self.path.display(), %error, "resolver state not written");
            }
        }
    }
}

fn write(path: &Path, state: &State) -> io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(state)?)?;
    tracing::trace!(target: "step", "resolver: state prepared");
    std::fs::rename(&fresh, path)?;
    tracing::trace!(target: "step", "resolver: state written");
    Ok(())
}

/// Shared zones, written as plain ones.
mod zones {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        zones: &BTreeMap<String, Arc<Zone>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(zones.iter().map(|(id, zone)| (id, &**zone)))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Arc<Zone>>, D::Error> {
        let plain = BTreeMap::<String, Zone>::deserialize(deserializer)?;
        Ok(plain.into_iter().map(|(id, zone)| (id, Arc::new(zone))).collect())
    }
}

//! Which blob of a registry unpacks to which layer: so that nothing is fetched or sent twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::layers::{Layers, replace};
use crate::{Digest, Error, Result};

/// Repositories remembered per blob; the oldest is forgotten.
const REPOSITORIES_MAX: usize = 50;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
    /// `127.0.0.1:5000/app`: where it was seen.
    pub repositories: BTreeSet<String>,
}

pub(crate) struct Blobs {
    root: PathBuf,
    known: Mutex<BTreeMap<Digest, Blob>>,
    /// One download of a blob at a time.
    busy: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// A part of a blob; no pull goes on with it as long as this lives.
pub(crate) struct Part {
    pub digest: Digest,
    path: PathBuf,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Part {
    pub fn remove(&self) -> Result<()> {
        crate::store::remove_if_there(&self.path)
    }
}

impl Blobs {
    /// Records of layers that are gone are forgotten.
    pub fn open(root: &Path, layers: &Layers) -> Result<Self> {
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(root).map_err(Error::file("read", root))? {
            let path = entry.map_err(Error::file("read", root))?.path();
            let blob =
                fs::read(&path).ok().and_then(|raw| serde_json::from_slice::<Blob>(&raw).ok());
            match blob.filter(|blob| layers.info(&blob.diff_id).is_some()) {
                Some(blob) => drop(known.insert(blob.digest, blob)),
                None => crate::store::remove_if_there(&path)?,
            }
        }
        Ok(Self { root: root.to_owned(), known: Mutex::new(known), busy: Mutex::default() })
    }

    /// The packed forms of a layer.
    pub fn of_layer(&self, diff_id: &Digest) -> Vec<Blob> {
        self.lock().values().filter(|blob| blob.diff_id == *diff_id).cloned().collect()
    }

    pub fn seen(&self, digest: Digest, size: u64, diff_id: Digest, repository: &str) -> Result<()> {
        let mut known = self.lock();
        let blob = known.entry(digest).or_insert(Blob {
            digest,
            size,
            diff_id,
            repositories: BTreeSet::new(),
        });
        blob.diff_id = diff_id;
        if blob.repositories.len() >= REPOSITORIES_MAX {
            blob.repositories.pop_first();
        }
        blob.repositories.insert(repository.to_owned());
        replace(&self.file(&digest), &crate::store::json(blob)?)
    }

    /// Records of layers that are gone say nothing any more.
    pub fn forget_gone(&self, layers: &Layers) -> Result<()> {
        let mut known = self.lock();
        let gone: Vec<Digest> = known
            .values()
            .filter(|blob| layers.info(&blob.diff_id).is_none())
            .map(|blob| blob.digest)
            .collect();
        for digest in gone {
            crate::store::remove_if_there(&self.file(&digest))?;
            known.remove(&digest);
        }
        Ok(())
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex()).with_extension("json")
    }

    pub fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|_, turn| Arc::strong_count(turn) > 1);
        busy.entry(*digest).or_default().clone()
    }

    /// Parts of blobs that pulls have left behind, but for those that a pull is at: file and size.
    pub fn parts(&self, downloads: &Path) -> Result<Vec<(Part, u64)>> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(downloads).map_err(Error::file("read", downloads))? {
            let path = entry.map_err(Error::file("read", downloads))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { continue };
            let Ok(turn) = self.turn(&digest).try_lock_owned() else { continue };
            // Gone since with the pull that has just ended.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            parts.push((Part { digest, path, _turn: turn }, metadata.len()));
        }
        Ok(parts)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Blob>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

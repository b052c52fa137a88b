//! Layers on disk, named by the digest of their tar: `layers/<digest>/{diff, recipe, layer.json}`.
//!
//! A layer appears by one rename when it is whole. It lives as long as somebody holds it: an image, a root file system,
//! a pull that is not over. What nobody holds when the store opens was left by a crash and goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::digest::Hashing;
use crate::recipe::{self, Recipe};
use crate::tarball::Reader;
use crate::unpack::{Purpose, Unpacker};
use crate::{Digest, Error, Result};

const TEMPORARY: &str = ".new-";
const REMOVING: &str = ".old-";

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerInfo {
    pub diff_id: Digest,
    /// Bytes of its files.
    pub size: u64,
    /// Bytes of its tar.
    pub tar_size: u64,
}

pub(crate) struct Layers {
    root: PathBuf,
    held: Mutex<BTreeMap<Digest, (LayerInfo, usize)>>,
    next: AtomicU64,
}

/// A layer that stays while this lives.
pub(crate) struct Held {
    layers: Arc<Layers>,
    pub info: LayerInfo,
    kept: bool,
}

impl Held {
    /// From here on an image or a root file system on disk holds it; `release` gives it back.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.kept {
            self.layers.release(&self.info.diff_id);
        }
    }
}

impl Layers {
    /// Reads what is there; `collect` must follow once images and root file systems hold theirs.
    pub fn open(root: &Path) -> Result<Arc<Self>> {
        fs::create_dir_all(root).map_err(Error::file("create", root))?;
        let mut held = BTreeMap::new();
        for entry in fs::read_dir(root).map_err(Error::file("read", root))? {
            let path = entry.map_err(Error::file("read", root))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(TEMPORARY) || name.starts_with(REMOVING) {
                remove_logged(&path);
                continue;
            }
            let Some(digest) = Digest::from_hex(name) else { continue };
            let file = path.join("layer.json");
            let raw = fs::read(&file).map_err(Error::file("read", &file))?;
            match serde_json::from_slice::<LayerInfo>(&raw) {
                Ok(info) if info.diff_id == digest => drop(held.insert(digest, (info, 0))),
                _ => {
                    tracing::warn!(path = %path.display(), "layer record is damaged; the layer is not used")
                }
            }
        }
        Ok(Arc::new(Self {
            root: root.to_owned(),
            held: Mutex::new(held),
            next: AtomicU64::new(0),
        }))
    }

    /// Removes the layers that nobody holds.
    pub fn collect(&self) {
        let unused: Vec<Digest> = self
            .lock()
            .iter()
            .filter(|(_, (_, count))| *count == 0)
            .map(|(digest, _)| *digest)
            .collect();
        for digest in unused {
            self.lock().remove(&digest);
            self.delete(&digest);
        }
    }

    pub fn hold(self: &Arc<Self>, diff_id: &Digest) -> Option<Held> {
        let mut held = self.lock();
        let (info, count) = held.get_mut(diff_id)?;
        *count += 1;
        Some(Held { layers: self.clone(), info: *info, kept: false })
    }

    pub fn info(&self, diff_id: &Digest) -> Option<LayerInfo> {
        self.lock().get(diff_id).map(|(info, _)| *info)
    }

    pub fn diff_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join(diff_id.hex()).join("diff")
    }

    /// Unpacks a tar stream as a layer; one that is there already is only verified.
    pub fn register(self: &Arc<Self>, tar: impl Read) -> Result<Held> {
        let scratch = self.scratch()?;
        let result = self.unpack_to(&scratch, tar).and_then(|info| self.publish(&scratch, info));
        if result.is_err() {
            remove_logged(&scratch);
        }
        result
    }

    /// Makes a layer of a directory that is in overlayfs's form already: `pack` writes its tar, `fill` moves it in.
    pub fn scratch(&self) -> Result<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        Ok(path)
    }

    /// Writes the layer's tar, byte for byte the one it came from.
    pub fn write_tar(&self, diff_id: &Digest, to: impl Write) -> Result<()> {
        let directory = self.root.join(diff_id.hex());
        let mut to = Hashing::new(to);
        recipe::replay(&directory.join("recipe"), &directory.join("diff"), &mut to)
            .map_err(Error::file("read layer", &directory))?;
        let (_, digest, _) = to.finish();
        match digest == *diff_id {
            true => Ok(()),
            false => Err(Error::System(format!(
                "layer {diff_id} is damaged on this host (its content is {digest}); remove the image and pull it again"
            ))),
        }
    }

    fn unpack_to(&self, scratch: &Path, tar: impl Read) -> Result<LayerInfo> {
        let diff = scratch.join("diff");
        fs::create_dir(&diff).map_err(Error::file("create", &diff))?;
        make_mode(&diff, 0o755)?;
        let recipe = scratch.join("recipe");
        let sink = Recipe::create(&recipe).map_err(Error::file("create", &recipe))?;
        let tar = BufReader::with_capacity(256 << 10, Hashing::new(tar));
        let (unpacked, tar, sink) =
            Unpacker::new(&diff, b"", Purpose::Layer)?.run(Reader::new(tar, sink))?;
        sink.finish().map_err(Error::file("write", &recipe))?;
        tracing::trace!(target: "step", "layer unpacked");
        let (_, diff_id, tar_size) = tar.into_inner().finish();
        Ok(LayerInfo { diff_id, size: unpacked.bytes, tar_size })
    }

    fn publish(self: &Arc<Self>, scratch: &Path, info: LayerInfo) -> Result<Held> {
        let record = scratch.join("layer.json");
        let raw = serde_json::to_vec(&info)
            .map_err(|cause| Error::System(format!("layer record: {cause}")))?;
        write_synced(&record, &raw)?;
        tracing::trace!(target: "step", "layer recorded");
        let mut held = self.lock();
        let target = self.root.join(info.diff_id.hex());
        match held.get_mut(&info.diff_id) {
            Some((_, count)) => {
                *count += 1;
                drop(held);
                remove_logged(scratch);
            }
            None => {
                fs::rename(scratch, &target).map_err(Error::file("rename layer to", &target))?;
                tracing::trace!(target: "step", "layer published");
                held.insert(info.diff_id, (info, 1));
            }
        }
        Ok(Held { layers: self.clone(), info, kept: false })
    }

    pub fn release(&self, diff_id: &Digest) {
        let mut held = self.lock();
        let Some((_, count)) = held.get_mut(diff_id) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            held.remove(diff_id);
            // Under the lock up to the rename: a layer of the same digest may come at once.
            let removing = self.set_aside(diff_id);
            drop(held);
            if let Some(removing) = removing {
                remove_logged(&removing);
            }
        }
    }

    fn delete(&self, diff_id: &Digest) {
        if let Some(removing) = self.set_aside(diff_id) {
            remove_logged(&removing);
        }
    }

    fn set_aside(&self, diff_id: &Digest) -> Option<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let removing = self.root.join(format!("{REMOVING}{}-{number}", std::process::id()));
        let path = self.root.join(diff_id.hex());
        match fs::rename(&path, &removing) {
            Ok(()) => {
                tracing::trace!(target: "step", "layer set aside");
                Some(removing)
            }
            Err(cause) => {
                tracing::warn!(path = %path.display(), %cause, "layer not removed");
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, (LayerInfo, usize)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A leftover that cannot be removed is no reason not to start.
pub(crate) fn remove_logged(path: &Path) {
    if let Err(cause) = crate::tree::remove(path) {
        tracing::warn!(path = %path.display(), %cause, "not removed; the next start tries again");
    }
}

pub(crate) fn make_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::file("set mode of", path))
}

/// The file is on the disk when this returns; its name is, once its directory is synced.
pub(crate) fn write_synced(path: &Path, raw: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(raw)?;
        file.sync_data()
    };
    write().map_err(Error::file("write", path))
}

/// Replaces a file in one step.
pub(crate) fn replace(path: &Path, raw: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    write_synced(&new, raw)?;
    fs::rename(&new, path).map_err(Error::file("replace", path))?;
    sync_parent(path)
}

pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::file("sync", parent))
}

/// The tar inside, whatever it is packed with.
pub(crate) fn decompressed<'a>(mut from: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    from.by_ref().take(4).read_to_end(&mut magic).map_err(Error::stream("read archive"))?;
    let kind: [u8; 4] = magic.as_slice().try_into().unwrap_or_default();
    let from = BufReader::with_capacity(128 << 10, std::io::Cursor::new(magic).chain(from));
    Ok(match kind {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(zstd::Decoder::with_buffer(from).map_err(Error::stream("read archive"))?)
        }
        [b'B', b'Z', b'h', _] => return Err(packed("bzip2")),
        [0xfd, b'7', b'z', b'X'] => return Err(packed("xz")),
        _ => Box::new(from),
    })
}

fn packed(how: &str) -> Error {
    Error::NotSupported(format!(
        "{how} archives are not supported by skep yet: unpack it with {how} -d first"
    ))
}

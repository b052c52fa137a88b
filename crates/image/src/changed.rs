//! What a container changed, as a list, as a layer and as a tar of everything.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::error::errno;
use crate::pack::Packer;
use crate::stack::{self, is_whiteout};
use crate::store::{Meta, json};
use crate::{Commit, Config, Error, History, Image, Result, RootFs, Store, changes};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Modified = 0,
    Added = 1,
    Deleted = 2,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Absolute, as seen in the container.
    pub path: String,
    pub kind: ChangeKind,
}

impl Store {
    /// What the container changed, sorted by path.
    pub fn diff(&self, container: &str) -> Result<Vec<Change>> {
        let rootfs = self.rootfs(container)?;
        let mut found = BTreeSet::new();
        walk(&rootfs, Path::new(""), &mut found).map_err(Error::file("read", &rootfs.upper))?;
        Ok(found.into_iter().collect())
    }

    /// A new image: the container's image and, on top, what it changed.
    pub fn commit(&self, container: &str, commit: &Commit) -> Result<Arc<Image>> {
        let rootfs = self.rootfs(container)?;
        let base = self.image(&rootfs.image);
        let mut run = commit.config.clone();
        changes::apply(&mut run, &commit.changes)?;
        let mut held = Vec::new();
        let mut config = match &base {
            Some(image) => image.config.clone(),
            None => self.nameless_base(container)?,
        };
        for diff_id in &config.rootfs.diff_ids {
            let layer = self.inner.layers.hold(diff_id);
            held.push(layer.ok_or_else(|| Error::System(format!("layer {diff_id} is missing")))?);
        }
        held.push(self.layer_of(&rootfs)?);
        let created = crate::store::now();
        let platform = crate::Platform::host();
        let step = History {
            created: Some(created.clone()),
            author: Some(commit.author.clone()).filter(|author| !author.is_empty()),
            created_by: Some(command_line(&commit.config)),
            comment: Some(commit.message.clone()).filter(|message| !message.is_empty()),
            empty_layer: false,
        };
        config.history.push(step);
        config.rootfs.kind = "layers".into();
        config.rootfs.diff_ids = held.iter().map(|layer| layer.info.diff_id).collect();
        let config = Config {
            architecture: if config.architecture.is_empty() {
                platform.architecture
            } else {
                config.architecture
            },
            os: if config.os.is_empty() { platform.os } else { config.os },
            config: Some(run),
            container: Some(commit.container.clone()),
            container_config: Some(commit.config.clone()),
            created: Some(created),
            author: Some(commit.author.clone()).filter(|author| !author.is_empty()),
            comment: Some(commit.message.clone()).filter(|message| !message.is_empty()),
            ..config
        };
        let passing = commit.reference.is_some();
        let meta = Meta { parent: base.map(|image| image.id), passing, ..Meta::default() };
        let id = self.create(&json(&config)?, held, meta)?;
        if let Some(reference) = &commit.reference {
            self.tag(&id, &reference.clone().or_latest())?;
        }
        self.image(&id).ok_or_else(|| Error::NoSuchImage(id.to_string()))
    }

    /// What a container stands on whose image was removed: its layers are there still.
    fn nameless_base(&self, container: &str) -> Result<Config> {
        let gone = || Error::NotFound(format!("container {container} has no root file system"));
        let mut config = Config::default();
        config.rootfs.diff_ids =
            self.rootfs_records().get(container).ok_or_else(gone)?.layers().to_vec();
        config.history = config.rootfs.diff_ids.iter().map(|_| History::default()).collect();
        Ok(config)
    }

    /// The upper directory, packed and unpacked again: the layer is what any other host would make of it.
    fn layer_of(&self, rootfs: &RootFs) -> Result<crate::layers::Held> {
        let (from, to) = std::io::pipe().map_err(Error::stream("make a pipe"))?;
        let upper = rootfs.upper.clone();
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || pack_tree(&upper, true, std::io::BufWriter::new(to)));
            let layer = self.inner.layers.register(from);
            let packed = packing
                .join()
                .map_err(|_| Error::System("packing the container's changes failed".into()))?;
            packed.and(layer)
        })
    }

    /// The whole file system as one tar; the container may be running or stopped.
    pub fn export(&self, container: &str, out: impl Write) -> Result<()> {
        let visit = self.visit(container)?;
        pack_tree(visit.root(), false, out)
    }

    /// Bytes in the upper directory, and of the whole root file system.
    pub fn rootfs_size(&self, container: &str) -> Result<(u64, u64)> {
        let rootfs = self.rootfs(container)?;
        let own = tree_size(&rootfs.upper, &mut BTreeSet::new());
        let image = self.image(&rootfs.image).map_or(0, |image| image.size);
        Ok((own, own + image))
    }
}

fn pack_tree(directory: &Path, layer: bool, out: impl Write) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(directory, flags, Mode::empty()).map_err(errno("open", directory))?;
    let mut packer = Packer::new(out, layer);
    let packed = packer
        .contents(std::os::fd::AsFd::as_fd(&root), b"")
        .and_then(|()| packer.finish()?.flush());
    packed.map_err(Error::file("pack", directory))
}

/// Each entry of the upper directory against what lies below it.
fn walk(rootfs: &RootFs, at: &Path, found: &mut BTreeSet<Change>) -> std::io::Result<()> {
    for entry in fs::read_dir(rootfs.upper.join(at))? {
        let path = at.join(entry?.file_name());
        let full = rootfs.upper.join(&path);
        let metadata = match fs::symlink_metadata(&full) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let below = below(rootfs, &path)?;
        let kind = match (&below, is_whiteout(&metadata)) {
            (Some(_), true) => Some(ChangeKind::Deleted),
            (None, true) => None,
            (None, false) => Some(ChangeKind::Added),
            (Some(below), false) if below.is_dir() && metadata.is_dir() => {
                (!same_directory(below, &metadata)).then_some(ChangeKind::Modified)
            }
            (Some(_), false) => Some(ChangeKind::Modified),
        };
        if let Some(kind) = kind {
            found.insert(Change { path: shown(&path), kind });
            // A change makes its directory a changed one, whatever its times say.
            for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                let path = shown(parent);
                if !found.iter().any(|change| change.path == path) {
                    found.insert(Change { path, kind: ChangeKind::Modified });
                }
            }
        }
        if metadata.is_dir() {
            walk(rootfs, &path, found)?;
        }
    }
    Ok(())
}

fn below(rootfs: &RootFs, path: &Path) -> std::io::Result<Option<fs::Metadata>> {
    let mut at = PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        if stack::is_opaque(&rootfs.upper.join(&at)) {
            return Ok(None);
        }
    }
    Ok(stack::lookup(&rootfs.lower, path)?.map(|(_, metadata)| metadata))
}

fn same_directory(below: &fs::Metadata, own: &fs::Metadata) -> bool {
    below.mode() == own.mode()
        && below.uid() == own.uid()
        && below.gid() == own.gid()
        && below.mtime() == own.mtime()
}

fn shown(path: &Path) -> String {
    format!("/{}", path.to_string_lossy())
}

fn tree_size(directory: &Path, seen: &mut BTreeSet<(u64, u64)>) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let mut total = 0;
    for entry in entries.flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => total += tree_size(&path, seen),
            Ok(found) if found.is_file() && seen.insert((found.dev(), found.ino())) => {
                total += found.len()
            }
            _ => {}
        }
    }
    total
}

fn command_line(run: &crate::RunConfig) -> String {
    let words = run.entrypoint.iter().flatten().chain(run.cmd.iter().flatten());
    words.map(String::as_str).collect::<Vec<_>>().join(" ")
}

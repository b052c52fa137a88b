//! What a container changed, as a list, as a layer and as a tar of everything.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::errno;
use crate::pack::Packer;
use crate::stack;
use crate::store::{Meta, json};
use crate::{Commit, Config, Error, History, Image, Result, RootFs, Store, changes, walk};

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
        let found = compare(&rootfs).map_err(Error::file("read", &rootfs.upper))?;
        Ok(found.into_iter().map(|(path, kind)| Change { path, kind }).collect())
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
        let own = walk::bytes(&rootfs.upper);
        let image = self.image(&rootfs.image).map_or(0, |image| image.size);
        Ok((own, own + image))
    }
}

fn pack_tree(directory: &Path, layer: bool, out: impl Write) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(directory, flags, Mode::empty()).map_err(errno("open", directory))?;
    let mut packer = Packer::new(out, layer);
    let packed = packer.contents(root.as_fd(), b"").and_then(|()| packer.finish()?.flush());
    packed.map_err(Error::file("pack", directory))
}

/// Each entry of the upper directory against what lies below it.
fn compare(rootfs: &RootFs) -> std::io::Result<BTreeMap<String, ChangeKind>> {
    let mut found = BTreeMap::new();
    // A directory below which nothing is of the image.
    let mut own: Option<PathBuf> = None;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::open(&rootfs.upper, flags, Mode::empty())?;
    walk::walk(upper.as_fd(), |parent, name, path| {
        walk::check_length(path)?;
        let path = Path::new(OsStr::from_bytes(path));
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        let below = match own.as_ref().is_some_and(|own| path.starts_with(own)) {
            true => None,
            false => stack::lookup(&rootfs.lower, path)?.map(|(_, metadata)| metadata),
        };
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if let Some(kind) = kind_of(below.as_ref(), &stat) {
            note(&mut found, path, kind);
        }
        let inside = if directory { Some(walk::open(parent, name)?) } else { None };
        let hides = inside.as_ref().is_some_and(stack::is_opaque_fd);
        if directory && own.as_ref().is_none_or(|own| !path.starts_with(own)) {
            own = (below.is_none() || hides).then(|| path.to_owned());
        }
        Ok(inside)
    })?;
    Ok(found)
}

fn kind_of(below: Option<&fs::Metadata>, own: &Stat) -> Option<ChangeKind> {
    let is = |kind| FileType::from_raw_mode(own.st_mode) == kind;
    match (below, is(FileType::CharacterDevice) && own.st_rdev == 0) {
        (Some(_), true) => Some(ChangeKind::Deleted),
        (None, true) => None,
        (None, false) => Some(ChangeKind::Added),
        (Some(below), false) if below.is_dir() && is(FileType::Directory) => {
            (!same_directory(below, own)).then_some(ChangeKind::Modified)
        }
        (Some(_), false) => Some(ChangeKind::Modified),
    }
}

/// A change makes its directory a changed one, whatever its times say.
fn note(found: &mut BTreeMap<String, ChangeKind>, path: &Path, kind: ChangeKind) {
    found.insert(shown(path), kind);
    for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        match found.entry(shown(parent)) {
            // So are those above it.
            Entry::Occupied(_) => break,
            Entry::Vacant(place) => drop(place.insert(ChangeKind::Modified)),
        }
    }
}

fn same_directory(below: &fs::Metadata, own: &Stat) -> bool {
    below.mode() == own.st_mode
        && below.uid() == own.st_uid
        && below.gid() == own.st_gid
        && below.mtime() == own.st_mtime
}

fn shown(path: &Path) -> String {
    format!("/{}", path.to_string_lossy())
}

fn command_line(run: &crate::RunConfig) -> String {
    let words = run.entrypoint.iter().flatten().chain(run.cmd.iter().flatten());
    words.map(String::as_str).collect::<Vec<_>>().join(" ")
}

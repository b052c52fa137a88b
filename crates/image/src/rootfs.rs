//! A container's root file system: the image's layers below, its own upper directory, one overlay mount.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Commit, Digest, Error, Image, Result, Store};

/// Where a container's root file system lies; nothing is mounted by making one.
#[derive(Clone, Debug, PartialEq)]
pub struct RootFs {
    pub image: Digest,
    /// Topmost first, as overlayfs wants them.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub merged: PathBuf,
}

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

/// The `X-Docker-Container-Path-Stat` header before base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode` bits.
    pub mode: u32,
    pub mtime: String,
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

fn not_ready<T>() -> Result<T> {
    Err(Error::NotSupported(
        "root file systems are not supported by skep yet: this call is being built".into(),
    ))
}

impl Store {
    /// Makes the directories of a new container; the image's layers are held until `remove_rootfs`.
    pub fn prepare_rootfs(&self, _container: &str, _image: &Image) -> Result<RootFs> {
        not_ready()
    }

    /// One that was prepared before, also by an earlier daemon.
    pub fn rootfs(&self, _container: &str) -> Result<RootFs> {
        not_ready()
    }

    /// Mounts it if it is not mounted; gives the merged directory.
    pub fn mount(&self, _container: &str) -> Result<PathBuf> {
        not_ready()
    }

    /// Unmounts it if it is mounted.
    pub fn unmount(&self, _container: &str) -> Result<()> {
        not_ready()
    }

    /// Unmounts and deletes; a container that never had one is fine.
    pub fn remove_rootfs(&self, _container: &str) -> Result<()> {
        not_ready()
    }

    /// Root file systems of containers that are not in `known` (a crash between two steps) are removed.
    pub fn sweep_rootfs(&self, _known: &BTreeSet<String>) -> Result<Vec<String>> {
        not_ready()
    }

    /// What the container changed, sorted by path.
    pub fn diff(&self, _container: &str) -> Result<Vec<Change>> {
        not_ready()
    }

    pub fn commit(&self, _container: &str, _commit: &Commit) -> Result<Arc<Image>> {
        not_ready()
    }

    /// The whole file system as one tar; the container may be running or stopped.
    pub fn export(&self, _container: &str, _out: impl Write) -> Result<()> {
        not_ready()
    }

    /// Bytes in the upper directory, and of the whole root file system.
    pub fn rootfs_size(&self, _container: &str) -> Result<(u64, u64)> {
        not_ready()
    }
}

/// `docker cp`: a path inside a container's mounted root, never outside it.
pub mod copy {
    use super::*;

    pub fn stat(_root: &Path, _path: &str) -> Result<PathStat> {
        not_ready()
    }

    /// The path as a tar whose first name is the path's base name.
    pub fn read(_root: &Path, _path: &str, _out: impl Write) -> Result<()> {
        not_ready()
    }

    /// Unpacks a tar into the directory `path`.
    pub fn write(_root: &Path, _path: &str, _tar: impl Read, _options: WriteOptions) -> Result<()> {
        not_ready()
    }

    #[derive(Clone, Copy, Debug, Default)]
    pub struct WriteOptions {
        /// A directory may not take a file's place, nor a file a directory's.
        pub no_overwrite_dir_non_dir: bool,
        /// Set when files keep the tar's owner; otherwise they belong to `owner`.
        pub copy_uid_gid: bool,
        pub owner: (u32, u32),
    }
}

//! The images of one host: names, configurations and the layers under them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{
    Config, Credentials, Digest, Distribution, Error, ProgressSender, Reference, Registries, Result,
};

/// How the store is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub registries: Registries,
    /// Layers downloaded at once; 0 means Docker's default of 3.
    pub downloads_max: usize,
    /// Layers uploaded at once; 0 means Docker's default of 5.
    pub uploads_max: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    pub config: Config,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// `busybox:latest`
    pub repo_tags: Vec<String>,
    /// `busybox@sha256:…`
    pub repo_digests: Vec<String>,
    /// The image a commit was made on.
    pub parent: Option<Digest>,
    /// Seconds since 1970.
    pub last_tagged: Option<i64>,
}

/// `os/architecture[/variant]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

#[derive(Clone, Debug, Default)]
pub struct Import {
    /// Dockerfile instructions: `CMD [...]`.
    pub changes: Vec<String>,
    pub message: String,
    pub reference: Option<Reference>,
    pub platform: Platform,
}

#[derive(Clone, Debug, Default)]
pub struct Commit {
    pub container: String,
    pub author: String,
    pub message: String,
    pub changes: Vec<String>,
    /// The container's configuration; the image's own is under it.
    pub config: crate::RunConfig,
    pub reference: Option<Reference>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Remove {
    pub force: bool,
    pub prune_children: bool,
}

/// A container that uses an image.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub image: Digest,
    pub container: String,
    pub running: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Deleted {
    Untagged(String),
    Deleted(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pruned {
    pub deleted: Vec<Deleted>,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    /// The image's id on its newest entry, `<missing>` below.
    pub id: String,
    pub created: i64,
    pub created_by: String,
    pub tags: Vec<String>,
    pub size: u64,
    pub comment: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LayerUsage {
    pub diff_id: Digest,
    pub bytes: u64,
    /// How many images share it.
    pub images: usize,
}

/// For `system df`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub layers_bytes: u64,
    pub images: BTreeMap<Digest, ImageUsage>,
    pub layers: Vec<LayerUsage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImageUsage {
    pub size: u64,
    pub shared: u64,
}

#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    options: Options,
}

fn not_ready<T>() -> Result<T> {
    Err(Error::NotSupported(
        "images are not supported by skep yet: this call is being built".into(),
    ))
}

impl Store {
    /// Opens or makes the store at `<root>`; what a crash left half-made is removed.
    pub fn open(root: &Path, options: Options) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(Error::file("create image store", root))?;
        Ok(Self { inner: Arc::new(Inner { root: root.to_owned(), options }) })
    }

    pub fn registries(&self) -> &Registries {
        &self.inner.options.registries
    }

    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        Vec::new()
    }

    /// By name, digest, id or the beginning of an id.
    pub fn resolve(&self, name: &str) -> Result<Arc<Image>> {
        Err(Error::NoSuchImage(name.to_owned()))
    }

    pub fn image(&self, id: &Digest) -> Option<Arc<Image>> {
        let _ = id;
        None
    }

    pub fn config_bytes(&self, id: &Digest) -> Result<Vec<u8>> {
        Err(Error::NoSuchImage(id.to_string()))
    }

    pub fn import(&self, _tar: impl Read, _import: &Import) -> Result<Arc<Image>> {
        not_ready()
    }

    pub fn load(
        &self,
        _tar: impl Read,
        _quiet: bool,
        _progress: &ProgressSender,
    ) -> Result<Vec<Arc<Image>>> {
        not_ready()
    }

    pub fn save(&self, _names: &[String], _out: impl Write) -> Result<()> {
        not_ready()
    }

    pub fn tag(&self, _image: &Digest, _reference: &Reference) -> Result<()> {
        not_ready()
    }

    pub fn remove(&self, _name: &str, _remove: Remove, _users: &[User]) -> Result<Vec<Deleted>> {
        not_ready()
    }

    /// Removes the given images where nothing uses them.
    pub fn prune(
        &self,
        _dangling_only: bool,
        _keep: &dyn Fn(&Image) -> bool,
        _users: &[User],
    ) -> Result<Pruned> {
        not_ready()
    }

    pub fn history(&self, _name: &str) -> Result<Vec<HistoryEntry>> {
        not_ready()
    }

    pub fn usage(&self) -> Usage {
        Usage::default()
    }

    /// Pulls one reference (every tag when `all_tags`).
    pub async fn pull(
        &self,
        _reference: &Reference,
        _all_tags: bool,
        _platform: &Platform,
        _credentials: Option<&Credentials>,
        _progress: &ProgressSender,
    ) -> Result<Option<Arc<Image>>> {
        not_ready()
    }

    pub async fn push(
        &self,
        _reference: &Reference,
        _all_tags: bool,
        _credentials: Option<&Credentials>,
        _progress: &ProgressSender,
    ) -> Result<()> {
        not_ready()
    }

    /// What a registry says about a name, without pulling it.
    pub async fn distribution(
        &self,
        _reference: &Reference,
        _credentials: Option<&Credentials>,
    ) -> Result<Distribution> {
        not_ready()
    }

    /// Checks a login; the text is the registry's greeting.
    pub async fn login(&self, _credentials: &Credentials) -> Result<String> {
        not_ready()
    }
}

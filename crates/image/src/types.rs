//! What the store takes and gives, as plain values.

use std::collections::BTreeMap;

use crate::{Config, Digest, Reference, Registries};

/// How the store is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub registries: Registries,
    /// Layers downloaded at once; 0 means Docker's default of 3.
    pub downloads_max: usize,
    /// Layers uploaded at once; 0 means Docker's default of 5.
    pub uploads_max: usize,
    /// Tries for each layer; 0 means Docker's default of 5.
    pub attempts_max: usize,
}

/// Docker's numbers where none is given.
impl Options {
    pub(crate) fn downloads(&self) -> usize {
        if self.downloads_max == 0 { 3 } else { self.downloads_max }
    }

    pub(crate) fn uploads(&self) -> usize {
        if self.uploads_max == 0 { 5 } else { self.uploads_max }
    }

    pub(crate) fn attempts(&self) -> usize {
        if self.attempts_max == 0 { 5 } else { self.attempts_max }
    }
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

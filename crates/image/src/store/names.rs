//! Which name means which image: `repositories.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layers::replace;
use crate::{Digest, Error, Reference, Result};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Names {
    /// A name has a tag or a digest, never both.
    names: BTreeMap<Reference, Digest>,
}

impl Names {
    pub fn read(path: &Path) -> Result<Self> {
        match fs::read(path) {
            Ok(raw) => serde_json::from_slice(&raw).map_err(|cause| {
                Error::System(format!("{}: {cause}; restore or remove the file", path.display()))
            }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(cause) => Err(Error::file("read", path)(cause)),
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        replace(path, &super::json(self)?)
    }

    pub fn retain(&mut self, images: &BTreeSet<Digest>) {
        self.names.retain(|_, image| images.contains(image));
    }

    /// A name with both a tag and a digest is looked up by its digest.
    pub fn get(&self, reference: &Reference) -> Option<Digest> {
        self.names.get(&key(reference)).copied()
    }

    pub fn set(&mut self, reference: Reference, image: Digest) -> Option<Digest> {
        self.names.insert(key(&reference), image)
    }

    pub fn restore(&mut self, reference: &Reference, before: Option<Digest>) {
        match before {
            Some(image) => self.names.insert(key(reference), image),
            None => self.names.remove(&key(reference)),
        };
    }

    pub fn remove(&mut self, reference: &Reference) -> Option<Digest> {
        self.names.remove(&key(reference))
    }

    /// All names of an image, tags and digests.
    pub fn all(&self, image: &Digest) -> Vec<Reference> {
        self.names.iter().filter(|(_, id)| *id == image).map(|(name, _)| name.clone()).collect()
    }

    /// Every tag of a repository.
    pub fn tags(&self, repository: &Reference) -> Vec<(Reference, Digest)> {
        let same = |name: &Reference| name.tag().is_some() && name.name() == repository.name();
        self.names
            .iter()
            .filter(|(name, _)| same(name))
            .map(|(name, id)| (name.clone(), *id))
            .collect()
    }

    /// `RepoTags` and `RepoDigests`.
    pub fn of(&self, image: &Digest) -> (Vec<String>, Vec<String>) {
        let (digests, tags): (Vec<_>, Vec<_>) =
            self.all(image).into_iter().partition(|name| name.digest().is_some());
        let shown = |names: Vec<Reference>| names.iter().map(Reference::familiar).collect();
        (shown(tags), shown(digests))
    }
}

fn key(reference: &Reference) -> Reference {
    match reference.digest() {
        Some(digest) => reference.with_digest(digest),
        None => reference.clone().or_latest(),
    }
}

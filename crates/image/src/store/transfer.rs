//! Between this host and registries: pull, push, distribution, login.

use std::sync::Arc;

use super::Store;
use crate::{Credentials, Distribution, Error, Image, Platform, ProgressSender, Reference, Result};

fn not_ready<T>() -> Result<T> {
    Err(Error::NotSupported(
        "registries are not supported by skep yet: use docker load or docker import".into(),
    ))
}

impl Store {
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

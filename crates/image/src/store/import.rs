//! An image of one layer out of a tar, and images out of what containers changed.

use std::io::Read;
use std::sync::Arc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Meta, Store};
use crate::config::LayerList;
use crate::layers::{Held, decompressed};
use crate::{Config, Error, History, Image, Import, Platform, Result, changes};

impl Store {
    /// `docker import`: the archive's files become an image's only layer.
    pub fn import(&self, tar: impl Read, import: &Import) -> Result<Arc<Image>> {
        let mut run = crate::RunConfig::default();
        changes::apply(&mut run, &import.changes)?;
        let layer = self.inner.layers.register(decompressed(tar)?)?;
        let platform = import.platform.or_host();
        let created = now();
        let config = Config {
            architecture: platform.architecture,
            variant: Some(platform.variant).filter(|variant| !variant.is_empty()),
            os: platform.os,
            comment: Some(import.message.clone()).filter(|message| !message.is_empty()),
            config: Some(run),
            created: Some(created.clone()),
            history: vec![History {
                created: Some(created),
                comment: Some(import.message.clone()).filter(|message| !message.is_empty()),
                ..History::default()
            }],
            rootfs: LayerList { kind: "layers".into(), diff_ids: vec![layer.info.diff_id] },
            ..Config::default()
        };
        self.create_named(&config, vec![layer], Meta::default(), import.reference.as_ref())
    }

    pub(crate) fn create_named(
        &self,
        config: &Config,
        layers: Vec<Held>,
        meta: Meta,
        reference: Option<&crate::Reference>,
    ) -> Result<Arc<Image>> {
        let meta = Meta { passing: reference.is_some(), ..meta };
        let id = self.create(&super::json(config)?, layers, meta)?;
        if let Some(reference) = reference {
            self.tag(&id, &reference.clone().or_latest())?;
        }
        self.image(&id).ok_or_else(|| Error::NoSuchImage(id.to_string()))
    }
}

pub(crate) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

impl Platform {
    /// What this binary runs on, in Go's words.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", ""),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// `linux/arm64/v8`; a part left out is the host's.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split('/');
        let mut part = || parts.next().unwrap_or_default().to_ascii_lowercase();
        let (os, architecture, variant) = (part(), part(), part());
        let valid = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        if parts.next().is_some() || !valid(&os) || !valid(&architecture) || !valid(&variant) {
            return Err(Error::Invalid(format!(
                "{text:?} is an invalid OS component of platform: must match os/architecture/variant"
            )));
        }
        Ok(Self { os, architecture, variant }.or_host())
    }

    pub fn or_host(&self) -> Self {
        let host = Self::host();
        if self.os.is_empty() {
            return host;
        }
        match self.architecture.is_empty() {
            true => Self { os: self.os.clone(), ..host },
            false => {
                let architecture = match self.architecture.as_str() {
                    "x86_64" | "x86-64" => "amd64",
                    "aarch64" => "arm64",
                    "i386" => "386",
                    other => other,
                };
                Self {
                    os: self.os.clone(),
                    architecture: architecture.into(),
                    variant: self.variant.clone(),
                }
            }
        }
    }
}

//! The host's images, as the engine's other parts use them.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::{Config, events};

pub struct Images {
    pub store: image::Store,
    pub(crate) _events: Arc<events::Bus>,
}

impl Images {
    pub async fn open(config: &Config, events: Arc<events::Bus>) -> Result<Self> {
        let root = config.data_root.join("image");
        let options = image::Options {
            downloads_max: config.max_concurrent_downloads,
            uploads_max: config.max_concurrent_uploads,
            ..Default::default()
        };
        let store = blocking(move || Ok(image::Store::open(&root, options)?)).await?;
        Ok(Self { store, _events: events })
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        let kind = match error.kind() {
            image::Kind::NotFound => Kind::NotFound,
            image::Kind::Invalid => Kind::BadParameter,
            image::Kind::Unauthorized => Kind::Unauthorized,
            image::Kind::Forbidden => Kind::Forbidden,
            image::Kind::Conflict => Kind::Conflict,
            image::Kind::NotSupported => Kind::NotImplemented,
            image::Kind::Unavailable => Kind::Unavailable,
            image::Kind::System => Kind::Internal,
        };
        Error { kind, message: error.to_string() }
    }
}

/// Runs what blocks (files, mounts, archives) where it may.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(cause) => Err(Error::internal(format!("a task of the engine ended early: {cause}"))),
    }
}

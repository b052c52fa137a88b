//! The host's images. Owner: the image area.

use std::sync::Arc;

use crate::{Config, Result, events};

pub struct Images {
    _events: Arc<events::Bus>,
}

impl Images {
    pub async fn open(_config: &Config, events: Arc<events::Bus>) -> Result<Self> {
        Ok(Self { _events: events })
    }
}

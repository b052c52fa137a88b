//! The host's volumes. Owner: the image area.

use std::sync::Arc;

use crate::{Config, Result, events};

pub struct Volumes {
    _events: Arc<events::Bus>,
}

impl Volumes {
    pub async fn open(_config: &Config, events: Arc<events::Bus>) -> Result<Self> {
        Ok(Self { _events: events })
    }
}

//! The host's containers: what was asked for, how it stands, and the steps between.

use crate::{Config, Engine, Result};

pub struct Containers {}

impl Containers {
    pub(crate) fn open(_config: &Config) -> Result<Self> {
        Ok(Self {})
    }
}

impl Engine {
    /// Adopts the containers that kept running while the daemon was away.
    pub(crate) async fn restore(&self) -> Result<()> {
        Ok(())
    }
}

//! Attaching to a container's own streams, and the size of its terminal.

use std::sync::Arc;

pub use runtime::{AttachOptions, PendingAttach};

use crate::Engine;
use crate::containers::{Container, Phase};
use crate::error::{Error, Result};

impl Engine {
    /// Registers the client at once; a container that is not running yet is waited for.
    pub fn attach(
        &self,
        name: &str,
        options: AttachOptions,
    ) -> Result<(Arc<Container>, PendingAttach)> {
        let container = self.container(name)?;
        match container.phase() {
            Phase::Paused => {
                return Err(Error::conflict(format!(
                    "container {} is paused, unpause the container before attach",
                    container.id()
                )));
            }
            Phase::Restarting => {
                return Err(Error::conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    container.id()
                )));
            }
            _ => {}
        }
        let pending = self.runtime.attach(container.id().as_str(), options);
        self.publish(&container, "attach", []);
        Ok((container, pending))
    }

    pub async fn resize(&self, name: &str, height: u16, width: u16) -> Result<()> {
        let container = self.container(name)?;
        if !container.is_running() {
            return Err(Error::conflict(format!("Container {} is not running", container.id())));
        }
        self.runtime.resize(container.id().as_str(), None, height, width).await?;
        let size =
            [("height".to_owned(), height.to_string()), ("width".to_owned(), width.to_string())];
        self.publish(&container, "resize", size);
        Ok(())
    }
}

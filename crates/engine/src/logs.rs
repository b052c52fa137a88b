//! Reading a container's log, whether it runs or not.

use std::sync::Arc;

pub use runtime::{LogEntry, LogOptions, LogReader, LogStream};

use crate::Engine;
use crate::containers::Container;
use crate::error::Result;

impl Engine {
    /// A followed log ends when the container does.
    pub fn logs(&self, name: &str, options: LogOptions) -> Result<(Arc<Container>, LogReader)> {
        let container = self.container(name)?;
        let reader = LogReader::open(&container.spec().log, options, container.ended())?;
        Ok((container, reader))
    }
}

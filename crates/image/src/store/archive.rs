//! `docker load` and `docker save`.

use std::io::{Read, Write};
use std::sync::Arc;

use super::Store;
use crate::{Error, Image, ProgressSender, Result};

impl Store {
    pub fn load(
        &self,
        _tar: impl Read,
        _quiet: bool,
        _progress: &ProgressSender,
    ) -> Result<Vec<Arc<Image>>> {
        Err(Error::NotSupported("load is not supported by skep yet: use docker import".into()))
    }

    pub fn save(&self, _names: &[String], _out: impl Write) -> Result<()> {
        Err(Error::NotSupported("save is not supported by skep yet: use docker export".into()))
    }
}

//! The daemon's side of the resolver.

use std::path::{Path, PathBuf};

use dns::Zone;

use crate::message::{Ports, Sandbox};

/// Why the resolver could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the resolver process could not be started from {program}: {source}")]
    Start {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the resolver at {socket} does not answer: {source}")]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the resolver refused: {0}")]
    Refused(String),
}

/// A connection to the resolver process, made again when it breaks. Calls block for milliseconds.
pub struct Client {
    exec_root: PathBuf,
}

impl Client {
    /// `program` is this binary; the process is started as `<program> resolver --exec-root <exec_root>`.
    pub fn new(_program: &Path, exec_root: &Path) -> Self {
        Self { exec_root: exec_root.to_owned() }
    }

    /// Starts the process if it does not run. Called at start and by the sweep.
    pub fn ensure(&self) -> Result<(), Error> {
        Err(Error::Refused(format!("not ready in {}", self.exec_root.display())))
    }

    /// Opens a sandbox's sockets, or only replaces what it sees when they are open.
    pub fn set_sandbox(&self, _id: &str, _sandbox: &Sandbox) -> Result<Ports, Error> {
        Err(Error::Refused("not ready".into()))
    }

    /// Closes a sandbox's sockets; fine when there are none.
    pub fn remove_sandbox(&self, _id: &str) -> Result<(), Error> {
        Err(Error::Refused("not ready".into()))
    }

    /// Replaces the names of a network, for all sandboxes on it at once.
    pub fn set_zone(&self, _network: &str, _zone: &Zone) -> Result<(), Error> {
        Err(Error::Refused("not ready".into()))
    }

    pub fn remove_zone(&self, _network: &str) -> Result<(), Error> {
        Err(Error::Refused("not ready".into()))
    }

    /// The sandboxes that the process holds, by id: what a restarted daemon compares with.
    pub fn sandboxes(&self) -> Result<std::collections::BTreeMap<String, Ports>, Error> {
        Err(Error::Refused("not ready".into()))
    }
}

/// The body of `skep resolver`: returns only when it cannot go on.
pub fn run(_exec_root: &Path) -> Result<(), Error> {
    Err(Error::Refused("not ready".into()))
}

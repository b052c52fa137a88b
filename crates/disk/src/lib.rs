//! What a node keeps: the raft log and its snapshots (sealed), its certificate and key, small records.

pub mod certificates;
mod checksum;
pub mod log;
pub mod records;
mod seal;

pub use certificates::{Certificates, NodeKey};
pub use log::{Prepared, RaftLog, SnapshotWriter};
pub use seal::{DataKey, SealError};

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {action}: {cause}", path = .path.display())]
    Io { path: PathBuf, action: &'static str, cause: std::io::Error },
    #[error("{path}: damaged at byte {offset}: restore it from a copy, or join the swarm anew", path = .path.display())]
    Damaged { path: PathBuf, offset: u64 },
    #[error("{path}: not readable: {detail}", path = .path.display())]
    Unreadable { path: PathBuf, detail: String },
    /// The key file is sealed and no unlock key was given.
    #[error("the swarm's key is locked")]
    Locked,
    #[error("invalid key")]
    WrongKey,
    #[error(transparent)]
    Seal(#[from] SealError),
}

pub(crate) fn io(
    path: &std::path::Path,
    action: &'static str,
) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::Io { path, action, cause }
}

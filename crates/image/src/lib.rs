//! Registries, layers, root file systems: from a reference to a mounted directory.
//!
//! Calls block unless they are `async`; the engine puts the blocking ones on its own threads.

mod error;
mod digest;
mod reference;
mod config;
mod store;
mod rootfs;
mod progress;
mod registry;

pub use config::{Config, Health, History, RunConfig};
pub use digest::{Digest, Hashing};
pub use error::{Error, Kind, Result};
pub use progress::{PROGRESS_QUEUE_MAX, Progress, ProgressSender};
pub use reference::Reference;
pub use registry::{Credentials, Distribution, Registries};
pub use rootfs::{Change, ChangeKind, PathStat, RootFs, copy};
pub use store::{
    Commit, Deleted, HistoryEntry, Image, Import, LayerUsage, Options, Platform, Pruned, Remove,
    Store, Usage, User,
};

//! Registries, layers, root file systems: from a reference to a mounted directory.
//!
//! Calls block unless they are `async`; the engine puts the blocking ones on its own threads.

mod error;
mod digest;
mod reference;
mod config;
mod changes;
mod types;
mod progress;
mod store;
mod layers;
mod tarball;
mod unpack;
mod recipe;
mod rootfs;
mod stack;
mod changed;
mod pack;
pub mod copy;
pub mod tree;
pub mod walk;
mod registry;
#[doc(hidden)]
pub mod fuzz;

pub use changed::{Change, ChangeKind};
pub use config::{Config, Health, History, LayerList, RunConfig};
pub use copy::PathStat;
pub use digest::{Digest, Hashing};
pub use error::{Error, Kind, Result};
pub use progress::{PROGRESS_QUEUE_MAX, Progress, ProgressSender, human};
pub use reference::Reference;
pub use registry::{Credentials, Distribution, Proxies, Registries};
pub use rootfs::{RootFs, Visit};
pub use store::Store;
pub use types::{
    Commit, Deleted, HistoryEntry, Image, ImageUsage, Import, LayerUsage, Options, Platform,
    Pruned, Remove, Usage, User,
};

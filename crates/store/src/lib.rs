//! The cluster's tables: what every manager holds in memory, the transactions that become raft
//! entries, and the snapshot of it all.
//!
//! Nothing changes a [`Store`] but [`Store::apply`] of committed actions and [`Store::restore`].
//! Who wants a change fills a [`Transaction`], proposes its actions, and applies them once committed.

pub mod access;
pub mod object;
pub mod template;
pub mod tables;
pub mod transaction;
mod snapshot;

pub use object::{Held, Kind, Object, Target};
pub use snapshot::Frozen;
pub use tables::{Store, Touched};
pub use transaction::{ACTIONS_MAX, Change, Error, Transaction};

#[cfg(test)]
mod tests;

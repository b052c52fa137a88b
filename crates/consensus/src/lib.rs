//! One raft member: raft-rs driven by events, in etcd's wire format.
//!
//! Peers' bytes are decoded with our own types and translated field by field: the fields that
//! raft-rs and etcd number differently never reach the other side, and raft-rs never parses what a
//! peer sent.

// Messages of generated code are filled field by field: they have more fields than are ours to set.
#![allow(clippy::field_reassign_with_default)]

pub mod write;
mod alone;
mod mark;
mod member;
mod raft;
mod sane;
mod storage;
mod translate;

pub use mark::Mark;
pub use member::{MemberChange, Members};
pub use raft::{
    ENTRIES_FOR_SLOW_FOLLOWERS, Effect, Error, Event, PROPOSAL_BYTES_MAX, Proposed, Raft,
    SNAPSHOT_INTERVAL,
};
pub use write::{Recovered, Write};

#[cfg(test)]
mod tests;

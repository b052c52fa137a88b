//! One raft member: raft-rs driven by events, in etcd's wire format.

pub mod write;

pub use write::{Recovered, Write};

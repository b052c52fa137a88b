//! One module per kind of bytes; each function returns for any input.

pub mod api;
pub mod ca;
pub mod dns;
pub mod gossip;
pub mod image;
pub mod raft;
pub mod swarmkit;

//! gRPC with mutual TLS: the server of a manager, and the calls that a node makes to managers.
//!
//! It carries values: who may call is checked here, what a call does is decided elsewhere.

pub mod identity;
pub mod tls;
pub mod gate;
pub mod call;
pub mod server;
mod services;
pub mod client;
pub mod join;
pub mod raft;
pub mod gossip;

pub use call::{Call, Reply, Stream};
pub use gate::{Gate, Peer, Route};
pub use identity::{Identity, Refused};
pub use tls::Keys;
pub use tonic::{Code, Status};

/// SwarmKit's services as generated; their messages are `wire::swarmkit`.
#[allow(clippy::all)]
pub mod grpc {
    include!(concat!(env!("OUT_DIR"), "/docker.swarmkit.v1.rs"));
}

/// A message larger than this is refused (SwarmKit's limit for gRPC messages).
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

//! Typed ids, names, instants; total accessors over the cluster's objects.

pub mod agenda;
pub mod id;
pub mod instant;

pub use agenda::Agenda;
pub use id::{ConfigId, ContainerId, NetworkId, NodeId, SecretId, ServiceId, TaskId, swarm_id};
pub use instant::Instant;

//! Hosts in network namespaces for demo, e2e and bench: N machines on one, each with a real engine.
//!
//! A host is a set of network, UTS, PID, IPC and mount namespaces kept by a tiny init; a router
//! namespace joins the hosts and leads nowhere. A guard process takes everything down when the lab
//! is dropped, and also when its owner is killed.

pub mod plan;
pub mod reach;
pub mod lab;
pub mod host;
pub mod cable;
pub mod image;
pub mod registry;
pub mod guard;
pub mod capture;
pub mod command;
pub mod interrupt;
pub mod terminal;

pub use host::Host;
pub use lab::Lab;
pub use plan::{Engine, Plan};

//! The network of one host: local networks, sandboxes, published ports, the data plane of overlays.
//!
//! One thread owns the view and the kernel; a `Network` is a handle on it. Every change is: alter
//! the view, apply the difference. A sweep every few seconds applies it again and counts repairs.

pub mod api;
pub mod handle;
mod controller;
mod state;
mod local;
mod ipam;
mod sandboxes;
mod ports;
mod publish;
mod names;
mod neighbours;
mod overlays;
mod obstacles;
#[cfg(test)]
mod tests;

pub use api::*;
pub use handle::Network;

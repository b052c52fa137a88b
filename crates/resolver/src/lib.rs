//! The embedded resolver's sockets: one process per daemon that outlives it.
//!
//! [`run`] is the body of `skep resolver`; [`Client`] is how the daemon speaks to it.

pub mod client;
pub mod message;

pub use client::{Client, Error, run};
pub use message::{Ports, Sandbox};

//! The embedded resolver's sockets: one process per daemon that outlives it.
//!
//! [`run`] is the body of `skep resolver`; [`Client`] is how the daemon speaks to it. The sockets
//! are opened inside each sandbox's namespace, so the names a container asks for are answered
//! whatever the daemon does.

pub mod client;
pub mod message;
mod control;
mod state;
mod server;
mod forward;
mod kernel;
mod netns;
mod relay;

pub use client::{Client, Error};
pub use control::run;
pub use message::{Ports, Relay, Sandbox};

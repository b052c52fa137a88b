//! The Engine API, a module per resource, JSON to objects, once.

pub mod swarm;

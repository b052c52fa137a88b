//! One host's engine: containers, images, volumes and local networks.

pub mod network;

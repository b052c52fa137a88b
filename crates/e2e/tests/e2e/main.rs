//! The docker CLI against real daemons on lab hosts; each module is a part of the product.

mod local;
mod networks;
mod restart;
mod swarm;

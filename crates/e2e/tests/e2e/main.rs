//! The docker CLI against real daemons on lab hosts; each module is a part of the product.

mod cut;
mod life;
mod crash;
mod daemon;
mod full;
mod images;
mod local;
mod mixed;
mod names;
mod networks;
mod ports;
mod repair;
mod overlay;
mod restart;
mod swarm;
mod volumes;

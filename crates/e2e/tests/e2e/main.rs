//! The docker CLI against real daemons on lab hosts; each module is a part of the product.

mod containers;
mod cut;
mod life;
mod crash;
mod daemon;
mod full;
mod images;
mod local;
mod managers;
mod mixed;
mod names;
mod networks;
mod outlive;
mod overlay;
mod overlay_paths;
mod ports;
mod refusals;
mod questions;
mod repair;
mod repair_by_kind;
mod restart;
mod sets;
mod swarm;
mod terminals;
mod volumes;

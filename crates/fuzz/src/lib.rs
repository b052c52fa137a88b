//! Fuzz targets for everything that reads bytes from outside, their corpora, and a driver that needs no nightly compiler.
//!
//! A target is a function that must return for any bytes. The same functions run in `cargo xtask test` (a bounded
//! number of mutations of the committed corpus, under a fixed seed) and under libFuzzer (`cargo xtask fuzz TARGET`).

mod chunks;
mod driver;
mod mutate;
pub mod seeds;
mod targets;

pub use driver::{Outcome, Plan, run};

use std::path::PathBuf;

/// One decoder, or the state machine behind it.
pub struct Target {
    /// Also the name of its corpus's folder and of its dictionary.
    pub name: &'static str,
    /// Returns for any bytes. A panic is a finding.
    pub run: fn(&[u8]),
    /// Mutations in `cargo xtask test`: those that touch the disk are slower.
    pub rounds: u32,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "tar-layer", run: targets::image::layer, rounds: 400 },
    Target { name: "image-archive", run: targets::image::archive, rounds: 150 },
    Target { name: "image-manifest", run: targets::image::manifest, rounds: 20_000 },
    Target { name: "engine-api", run: targets::api::body, rounds: 4_000 },
    Target { name: "dns-message", run: targets::dns::message, rounds: 40_000 },
    Target { name: "gossip", run: targets::gossip::events, rounds: 3_000 },
    Target { name: "memberlist", run: targets::gossip::codec, rounds: 20_000 },
    Target { name: "raft-message", run: targets::raft::messages, rounds: 2_000 },
    Target { name: "swarmkit-message", run: targets::swarmkit::message, rounds: 20_000 },
    Target { name: "raft-log", run: targets::raft::log, rounds: 1_000 },
    Target { name: "join-token", run: targets::ca::token, rounds: 20_000 },
    Target { name: "certificate", run: targets::ca::certificate, rounds: 4_000 },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The folder with the committed inputs of a target.
pub fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// The file with the words of a target's language, in libFuzzer's form.
pub fn dictionary(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dictionaries").join(format!("{name}.dict"))
}

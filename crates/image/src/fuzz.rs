//! Doors for the fuzz targets: the readers of outside bytes, without a registry around them.

use std::path::Path;

use reqwest::StatusCode;

use crate::layers::{Layers, decompressed};
use crate::registry;
use crate::{Config, Options, Platform, ProgressSender, Reference, Store};

/// Registers a layer below `root`; one that was taken must come back as the same tar.
pub fn layer(root: &Path, tar: &[u8]) {
    let Ok(layers) = Layers::open(root) else { return };
    let Ok(tar) = decompressed(tar) else { return };
    if let Ok(held) = layers.register(tar) {
        let written = layers.write_tar(&held.info.diff_id, std::io::sink());
        assert!(written.is_ok(), "a layer that was taken is not given back: {written:?}");
    }
}

/// Loads an archive into a new store; the store must open again afterwards.
pub fn load(root: &Path, tar: &[u8]) {
    let Ok(store) = Store::open(root, Options::default()) else { return };
    let _ = store.load(tar, true, &ProgressSender::nobody());
    drop(store);
    let again = Store::open(root, Options::default());
    assert!(again.is_ok(), "the store does not open after a load: {:?}", again.err());
}

/// Manifests, configurations, challenges, refusals, references and platforms.
pub fn registry(data: &[u8]) {
    if let Ok(config) = Config::parse(data) {
        let _ = config.run();
    }
    registry::fuzz::manifest(data, &Platform::host());
    registry::fuzz::refusal(StatusCode::UNAUTHORIZED, data);
    let text = String::from_utf8_lossy(data);
    registry::fuzz::challenge(&text);
    let _ = Platform::parse(&text);
    if let Ok(reference) = Reference::parse(&text) {
        let again = Reference::parse(&reference.to_string());
        assert!(again.is_ok_and(|again| again == reference), "{reference} is another reference");
    }
}

//! Doors for the fuzz targets to what reads a registry's answers.

use reqwest::StatusCode;

use super::auth::Challenge;
use super::client::Refusal;
use super::manifest::{self, Manifest, OCI_INDEX};
use crate::Platform;

pub(crate) fn manifest(raw: &[u8], platform: &Platform) {
    for content_type in ["", OCI_INDEX] {
        if let Ok(Manifest::Index(entries)) = Manifest::parse(raw, content_type) {
            let _ = manifest::choose(&entries, platform);
        }
    }
}

pub(crate) fn challenge(header: &str) {
    let _ = Challenge::parse(header);
}

pub(crate) fn refusal(status: StatusCode, body: &[u8]) {
    let refusal = Refusal::parse(status, body);
    let _ = (refusal.may_pass(), refusal.text());
}

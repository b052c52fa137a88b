//! Registries: which exist, how they are reached and what they may be told.

mod client;
mod auth;
mod manifest;
mod blobs;
mod pull;
mod push;
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use blobs::Blobs;
pub(crate) use client::Client;

/// The daemon's registry settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registries {
    /// `--insecure-registry`: host[:port] or a CIDR; loopback is always one.
    pub insecure: Vec<String>,
    /// `--registry-mirror`: URLs asked before docker.io.
    pub mirrors: Vec<String>,
    pub proxies: Proxies,
}

/// `--http-proxy` and its siblings. Where none is set, the environment's count.
#[derive(Clone, Default, PartialEq)]
pub struct Proxies {
    pub http: Option<String>,
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached directly, with commas between.
    pub except: Option<String>,
}

/// A proxy's URL may hold a password.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies")
    }
}

/// From the `X-Registry-Auth` header; never printed.
#[derive(Clone, Default, PartialEq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
    pub server_address: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// `/distribution/{name}/json`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platforms: Vec<crate::Platform>,
}

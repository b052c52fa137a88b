//! Join tokens, certificates, renewal, rotation: what the swarm's certificate authority decides.

pub mod certificate;
pub mod pem;
pub mod token;

pub use certificate::{Error, Identity, Issued, Key, Root, Verified};
pub use token::{JoinToken, TokenError, join_token, root_digest};

/// The organizational unit of a worker's certificate.
pub const WORKER_UNIT: &str = "swarm-worker";
/// The organizational unit of a manager's certificate.
pub const MANAGER_UNIT: &str = "swarm-manager";
/// The name that a root carries, and that callers without a certificate ask for.
pub const CA_NAME: &str = "swarm-ca";

#[cfg(test)]
mod tests;

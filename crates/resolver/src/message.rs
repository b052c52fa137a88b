//! What the daemon tells the resolver and what it hears back: JSON, one message per line.

use std::path::PathBuf;

use dns::{Upstream, Zone};
use serde::{Deserialize, Serialize};

/// Where a sandbox's questions are answered: 127.0.0.11, these ports. Port 53 is redirected to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub udp: u16,
    pub tcp: u16,
}

/// All that is to be known about one sandbox; set as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The network namespace's file, bound where it outlives its processes.
    pub netns: PathBuf,
    /// Names that only this sandbox knows.
    pub own: Zone,
    /// Ids of the networks whose names it sees, see [`crate::Client::set_zone`].
    pub zones: Vec<String>,
    /// Whom to ask for other names; none on an internal network.
    pub upstreams: Vec<Upstream>,
}

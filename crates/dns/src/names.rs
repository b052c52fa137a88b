//! The names of a network and of a sandbox.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The names of one network, as every sandbox on it sees them. Names are lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The network's name: `web` is also known as `web.<network>`.
    pub network: String,
    /// A name's addresses; more than one are given in random order.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// An address's name, without the network's.
    pub pointers: BTreeMap<IpAddr, String>,
}

impl Zone {
    pub fn new(network: impl Into<String>) -> Self {
        Self { network: network.into().to_ascii_lowercase(), ..Self::default() }
    }

    /// Adds an address to a name.
    pub fn add(&mut self, name: &str, address: IpAddr) {
        let addresses = self.names.entry(name.to_ascii_lowercase()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    /// The name that a question about the address gets: `<name>.<network>`.
    pub fn point(&mut self, address: IpAddr, name: &str) {
        self.pointers.insert(address, name.to_owned());
    }
}

/// A server that is asked for all other names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub address: SocketAddr,
    /// Asked from the host's namespace rather than the sandbox's: the host's own loopback resolver.
    pub from_host: bool,
}

/// All that one sandbox can resolve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Names that only this sandbox knows, such as links.
    pub own: Zone,
    /// The networks that it is on, the most specific first.
    pub zones: Vec<Arc<Zone>>,
    /// Whom to ask for the rest; none on an internal network.
    pub upstreams: Vec<Upstream>,
}

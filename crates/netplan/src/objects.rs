//! What a network namespace holds, as plain values: the same type is desired and observed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use model::NetworkId;

use crate::addr::{Cidr, Mac};
use crate::table::Table;
use crate::view::SandboxId;

/// A network namespace in which skep owns something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespace {
    Host,
    Overlay(NetworkId),
    Sandbox(SandboxId),
}

impl Namespace {
    /// Name of the file under `<exec-root>/netns` that holds it; none for the host's own.
    /// Docker's own scheme for overlays, so that its users' tools find them.
    pub fn file_name(&self) -> Option<String> {
        match self {
            Self::Host => None,
            Self::Overlay(id) => Some(format!("1-{}", id.chars().take(10).collect::<String>())),
            Self::Sandbox(id) => Some(id.0.chars().take(12).collect()),
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file_name() {
            None => f.write_str("host"),
            Some(name) => f.write_str(&name),
        }
    }
}

/// Everything, by namespace. A namespace that is not in the map does not exist (or shall not).
pub type World = BTreeMap<Namespace, Objects>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// The file that keeps the namespace is gone while we hold it open. Observed only.
    pub lost: bool,
    pub links: BTreeMap<String, LinkObject>,
    pub addresses: BTreeSet<(String, Cidr)>,
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// Forwarding entries of VXLAN devices: where a MAC is.
    pub fdb: BTreeMap<(String, Mac), IpAddr>,
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<Rule>,
    /// Paths under /proc/sys.
    pub sysctls: BTreeMap<String, String>,
    pub table: Option<Arc<Table>>,
    /// Where flows may end; compared by nobody, used when the table has been replaced.
    pub flows: Flows,
}

/// Which tracked connections are right under the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flows {
    /// Virtual address -> addresses that answer for it. Any other answer is stale.
    pub virtual_addresses: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
    /// (protocol, port) on any local address -> who answers.
    pub ports: BTreeMap<(u8, u16), BTreeSet<IpAddr>>,
    /// Addresses of containers reached through this namespace; when one goes, so do its flows.
    pub containers: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkObject {
    pub kind: LinkKind,
    /// None: any.
    pub mac: Option<Mac>,
    /// Zero: any.
    pub mtu: u32,
    pub master: Option<String>,
    pub port: BridgePort,
    pub up: bool,
    /// The link gives itself a link-local IPv6 address.
    pub link_local: bool,
}

/// How a bridge treats this link when it is a port of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// A frame may leave by the port it came in: a container reaches its own published port.
    pub hairpin: bool,
    /// It cannot reach other isolated ports: `enable_icc=false`.
    pub isolated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    Vxlan {
        vni: u32,
        local: IpAddr,
        port: u16,
    },
    /// One end of a pair; this is the end that is made, the other comes with it.
    Veth {
        peer_namespace: Namespace,
        peer: String,
    },
    /// The other end of a `Veth`.
    VethPeer,
    /// Observed only: something else has this name.
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub table: u32,
    pub dst: Cidr,
    pub via: Option<IpAddr>,
    pub dev: String,
}

pub const TABLE_MAIN: u32 = 254;
/// What is in it is this host's own address.
pub const TABLE_LOCAL: u32 = 255;

/// `fwmark MARK lookup TABLE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub v6: bool,
    pub fwmark: u32,
    pub table: u32,
}

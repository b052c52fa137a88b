//! The view: everything this host's network should serve, as values. What follows from it is
//! in `desired`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::NetworkId;
use serde::{Deserialize, Serialize};

use crate::addr::{Cidr, Mac};

/// Names one network namespace that containers live in: a container id, or `ingress_sbox`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SandboxId(pub String);

/// The namespace through which published ports reach the ingress network.
pub const INGRESS_SANDBOX: &str = "ingress_sbox";

impl SandboxId {
    pub fn ingress() -> Self {
        Self(INGRESS_SANDBOX.to_owned())
    }
}

/// The whole desired network of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    pub host: Host,
    pub bridges: BTreeMap<NetworkId, Bridge>,
    pub overlays: BTreeMap<NetworkId, Overlay>,
    pub sandboxes: BTreeMap<SandboxId, Sandbox>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// False with `--iptables=false`: no IPv4 rule of ours in the host's namespace.
    pub firewall: bool,
    /// False with `--ip6tables=false`: no IPv6 rule of ours in the host's namespace.
    pub firewall6: bool,
    /// Switches `net.ipv4.ip_forward` on (`--ip-forward`).
    pub ip_forward: bool,
    /// Masquerades what leaves a bridge (`--ip-masq`).
    pub masquerade: bool,
    /// Where overlays' outer packets start: the data-path address.
    pub data_path: Option<IpAddr>,
    /// UDP port of VXLAN, the cluster's `DataPathPort`.
    pub vxlan_port: u16,
    /// Bridged packets pass the IP hooks (`bridge-nf-call-iptables`).
    pub bridge_netfilter: bool,
    /// The kernel has that switch (`br_netfilter` is loaded): it is on in each new namespace.
    pub bridge_hooks: bool,
    /// Flows can be kept apart that have the same addresses and ports (`CONFIG_NF_CONNTRACK_ZONES`).
    pub flow_zones: bool,
    /// MTU of the link that carries the data-path address.
    pub uplink_mtu: u32,
    /// The kernel has IPv6 and it is not switched off.
    pub ipv6: bool,
    /// Links whose default route comes from router advertisements: a host that forwards listens
    /// to those only when told so.
    pub advertised: BTreeSet<String>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            firewall: true,
            firewall6: true,
            ip_forward: true,
            masquerade: true,
            data_path: None,
            vxlan_port: 4789,
            bridge_netfilter: false,
            bridge_hooks: false,
            flow_zones: false,
            uplink_mtu: 1500,
            ipv6: false,
            advertised: BTreeSet::new(),
        }
    }
}

/// A network of this host alone: `docker0`, `docker_gwbridge`, or one the user made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    pub ifname: String,
    /// Gateways with their prefix; the bridge's own addresses.
    pub addresses: Vec<Cidr>,
    pub mtu: u32,
    /// No way out and none in.
    pub internal: bool,
    /// Containers on it may talk to each other (`enable_icc`).
    pub icc: bool,
    pub masquerade: bool,
    /// The user's own bridge (`--bridge`): it is used, never made, altered or removed.
    pub foreign: bool,
}

/// A container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub links: Vec<Link>,
    /// Where 127.0.0.11:53 really listens inside the namespace.
    pub resolver: Option<ResolverPorts>,
    /// Host ports that lead here.
    pub published: Vec<PublishedPort>,
    /// Ports of the routing mesh this task serves: published -> target.
    pub ingress: Vec<IngressTarget>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverPorts {
    pub udp: u16,
    pub tcp: u16,
}

/// A virtual Ethernet pair between a sandbox and a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Bridge or overlay; unknown ids are left out of the plan until the network appears.
    pub network: NetworkId,
    /// Name inside the sandbox: `eth0`.
    pub ifname: String,
    /// Name of the other end, in the host's or the overlay's namespace.
    pub peer: String,
    pub mac: Mac,
    pub addresses: Vec<Cidr>,
    /// Default routes through this link; at most one per family in a sandbox.
    pub gateways: Vec<IpAddr>,
    /// The network's further subnets, reached over this link: (subnet, via).
    #[serde(default)]
    pub routes: Vec<(Cidr, Option<IpAddr>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl Proto {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// `-p host_ip:host_port:port/proto`, one port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    pub proto: Proto,
    /// `0.0.0.0` or `::` is every local address of that family.
    pub host_ip: IpAddr,
    pub host_port: u16,
    /// The container's address, of the same family as `host_ip`.
    pub address: IpAddr,
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IngressTarget {
    pub proto: Proto,
    pub published: u16,
    pub target: u16,
}

/// A network of the swarm, as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    pub subnets: Vec<OverlaySubnet>,
    /// Zero: taken from the uplink.
    pub mtu: u32,
    pub internal: bool,
    /// Every remote endpoint, by address.
    pub peers: BTreeMap<IpAddr, Peer>,
    pub services: Vec<Service>,
    /// Set on the ingress network alone.
    pub ingress: Option<Ingress>,
    /// Address of this node's own load balancer on this network (`lb-<network>`).
    pub lb_address: Option<Cidr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlaySubnet {
    pub subnet: Cidr,
    pub gateway: Option<IpAddr>,
    pub vni: u32,
}

/// Where a remote endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub mac: Mac,
    /// The node's data-path address.
    pub vtep: IpAddr,
}

/// A virtual address and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub vips: Vec<IpAddr>,
    pub backends: Vec<Backend>,
}

/// One that is listed but not ready gets no new connection and keeps the ones it has; one that
/// is no longer listed has its connections reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    pub address: IpAddr,
    pub ready: bool,
}

/// What the routing mesh serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    pub ports: Vec<IngressPort>,
    /// Every node on the ingress network, this one included: its ingress address.
    pub nodes: Vec<IngressNode>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressPort {
    pub proto: Proto,
    pub published: u16,
    pub backends: Vec<IngressBackend>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IngressBackend {
    /// The task's address on the ingress network.
    pub address: IpAddr,
    pub ready: bool,
    /// A task on a Docker Engine node cannot send replies back through the receiving node:
    /// towards it the source is translated to the receiving node's ingress address.
    pub engine: NodeEngine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IngressNode {
    pub address: IpAddr,
    pub engine: NodeEngine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeEngine {
    Skep,
    Docker,
}

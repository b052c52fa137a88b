//! What the network controller takes and gives.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use model::{ContainerId, NetworkId};
pub use netplan::{
    Backend, Cidr, Ingress, IngressBackend, IngressNode, IngressPort, IngressTarget, Mac,
    NodeEngine, Overlay, OverlaySubnet, Peer, Proto, ResolverPorts, Service,
};
use serde::{Deserialize, Serialize};

/// Names of the networks every host has.
pub const BRIDGE: &str = "bridge";
pub const HOST: &str = "host";
pub const NONE: &str = "none";
/// The way out of the host for containers on overlays.
pub const GATEWAY_BRIDGE: &str = "docker_gwbridge";

/// The daemon's flags that concern the network.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    /// `--bridge`: the name of the default network's bridge (`none` switches it off).
    pub bridge: Option<String>,
    /// `--bip`: address and prefix of the default bridge.
    pub bip: Option<Cidr>,
    pub fixed_cidr: Option<Cidr>,
    /// `--ipv6`: the default bridge has a subnet of IPv6 too.
    pub ipv6: bool,
    /// Its subnet; without one a unique local prefix is made up and kept (RFC 4193).
    pub fixed_cidr_v6: Option<Cidr>,
    /// `--default-gateway` and `--default-gateway-v6`: where containers on the default bridge
    /// send what leaves it, instead of the bridge.
    pub gateways: Vec<IpAddr>,
    /// `--default-address-pool base=…,size=…`; empty: Docker's own.
    pub pools: Vec<AddressPool>,
    /// `--iptables`, `--ip6tables`, `--ip-forward`, `--ip-masq`, `--icc`.
    pub firewall: bool,
    pub firewall6: bool,
    pub ip_forward: bool,
    pub ip_masq: bool,
    pub icc: bool,
    /// `--ip`: host address of ports published without one.
    pub default_host_ip: Option<IpAddr>,
    /// `--mtu`: of the default bridge; 0 is 1500.
    pub mtu: u32,
    /// `--userland-proxy`: IPv6 addresses of the host lead to containers without one, and `::1` to all.
    pub userland_proxy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPool {
    pub base: Cidr,
    pub size: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkErrorKind {
    /// 400
    Invalid,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 409
    Conflict,
    /// 500
    Internal,
    /// 501
    Unsupported,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct NetworkError {
    pub kind: NetworkErrorKind,
    pub message: String,
}

impl NetworkError {
    pub fn new(kind: NetworkErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    Bridge,
    Host,
    Null,
}

impl Driver {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

/// One entry of `IPAM.Config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamPool {
    pub subnet: Option<Cidr>,
    pub ip_range: Option<Cidr>,
    pub gateway: Option<IpAddr>,
    #[serde(default)]
    pub aux_addresses: BTreeMap<String, IpAddr>,
    /// The daemon chose the subnet: it may be another one when the network is made again, so nobody may ask for an
    /// address of it.
    #[serde(default)]
    pub automatic: bool,
}

/// `docker network create`, for the drivers of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub name: String,
    pub driver: Driver,
    pub internal: bool,
    pub attachable: bool,
    pub ipv6: bool,
    pub ipam_driver: String,
    pub ipam_options: BTreeMap<String, String>,
    pub pools: Vec<IpamPool>,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// A network of this host, as `docker network inspect` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalNetwork {
    pub id: NetworkId,
    pub name: String,
    pub driver: Driver,
    /// RFC 3339, UTC.
    pub created: String,
    pub internal: bool,
    #[serde(default)]
    pub attachable: bool,
    #[serde(default)]
    pub ipv6: bool,
    pub ipam_driver: String,
    #[serde(default)]
    pub ipam_options: BTreeMap<String, String>,
    pub pools: Vec<IpamPool>,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// How a container is attached to the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxMode {
    /// A namespace of its own, with the endpoints given. `--network none` has no endpoint.
    Own,
    /// The host's namespace.
    Host,
    /// Another container's namespace.
    Container(ContainerId),
}

/// What a starting container wants of the network.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    pub container: ContainerId,
    /// Without the slash.
    pub container_name: String,
    pub mode: SandboxMode,
    /// In the order in which they are to become `eth0`, `eth1`, …
    pub endpoints: Vec<EndpointSpec>,
    pub ports: Vec<PortSpec>,
    /// Ports of the routing mesh (tasks only).
    pub ingress: Vec<IngressTarget>,
    /// `--dns`; empty: the host's resolvers.
    pub dns: Vec<IpAddr>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    /// `--link`: (container name, alias).
    pub links: Vec<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Name, id or id prefix of a local network, or the id of an overlay that is already in
    /// `set_overlays`.
    pub network: String,
    /// `--ip`, `--ip6` on a local network; on an overlay what the manager allocated, with the
    /// subnet's prefix. Without a prefix (/32, /128) the subnet's is taken.
    pub addresses: Vec<Cidr>,
    pub mac: Option<Mac>,
    pub aliases: Vec<String>,
    pub links: Vec<(String, String)>,
    pub driver_opts: BTreeMap<String, String>,
}

/// `-p`, one port; ranges are expanded by the caller except a dynamic host port range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    pub proto: Proto,
    pub port: u16,
    /// None: `0.0.0.0` and `::`.
    pub host_ip: Option<IpAddr>,
    /// First and last host port to try; (0, 0) is the dynamic range.
    pub host_ports: (u16, u16),
}

/// What `docker inspect` shows of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// 64 hex digits.
    pub endpoint_id: String,
    pub network_id: NetworkId,
    pub network_name: String,
    pub ifname: String,
    pub mac: Mac,
    pub addresses: Vec<Cidr>,
    pub gateways: Vec<IpAddr>,
    pub aliases: Vec<String>,
    /// Names other containers of the network can resolve it by.
    pub dns_names: Vec<String>,
    #[serde(default)]
    pub driver_opts: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    pub proto: Proto,
    pub port: u16,
    pub host_ip: IpAddr,
    pub host_port: u16,
}

/// A running container's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    pub container: ContainerId,
    pub container_name: String,
    /// 64 hex digits.
    pub sandbox_id: String,
    /// The namespace to join, for the OCI specification; none for the host's.
    pub netns: Option<PathBuf>,
    /// By network name. `docker_gwbridge` is not listed, as in Docker.
    pub endpoints: BTreeMap<String, EndpointState>,
    pub ports: Vec<PortState>,
    /// The text of the container's /etc/resolv.conf.
    pub resolv_conf: String,
    /// The endpoint on `docker_gwbridge`, for a container on overlays alone.
    #[serde(default)]
    pub gateway_endpoint: Option<EndpointState>,
    /// Lines for /etc/hosts beyond localhost: the container's own addresses and name(s) are added
    /// by the caller from `endpoints`.
    pub hosts: Vec<(IpAddr, String)>,
}

/// What the controller has counted since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    /// Objects put right that nobody had asked to change.
    pub repairs: u64,
    pub steps_applied: u64,
    pub steps_failed: u64,
    pub sweeps: u64,
    /// Connections ended because their backend had gone.
    pub flows_reset: u64,
}

/// A change worth an event on `docker events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkEvent {
    /// `create`, `connect`, `disconnect`, `destroy`.
    pub action: &'static str,
    pub network: NetworkId,
    pub name: String,
    pub driver: &'static str,
    pub container: Option<ContainerId>,
}

/// What this node needs to know to carry overlays; set as a whole by the cluster wiring.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayState {
    pub overlays: BTreeMap<NetworkId, Overlay>,
    /// `docker network` names of the overlays.
    pub names: BTreeMap<NetworkId, String>,
    /// The data-path address; none outside a swarm.
    pub data_path: Option<IpAddr>,
    /// Zero: 4789.
    pub vxlan_port: u16,
    /// Makes `docker_gwbridge` exist although no container needs it yet.
    pub in_swarm: bool,
}

//! What the controller knows: networks, sandboxes, overlays; and the view that follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{ContainerId, NetworkId};
use netplan::{Bridge, Host, Link, PublishedPort, Sandbox, SandboxId, View};
use serde::{Deserialize, Serialize};

use super::api::*;

pub const OPTION_NAME: &str = "com.docker.network.bridge.name";
pub const OPTION_ICC: &str = "com.docker.network.bridge.enable_icc";
pub const OPTION_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
pub const OPTION_HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
pub const OPTION_DEFAULT: &str = "com.docker.network.bridge.default_bridge";
pub const OPTION_MTU: &str = "com.docker.network.driver.mtu";

/// Ethernet's.
pub const MTU: u32 = 1500;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    pub networks: BTreeMap<NetworkId, LocalNetwork>,
    #[serde(skip)]
    pub sandboxes: BTreeMap<ContainerId, Record>,
    #[serde(skip)]
    pub overlays: OverlayState,
    #[serde(skip)]
    pub host: Host,
    /// Ports of the routing mesh that something else has on this host.
    #[serde(skip)]
    pub mesh_taken: BTreeSet<(Proto, u16)>,
    /// Networks that this host reaches or is on.
    #[serde(skip)]
    pub host_networks: Vec<Cidr>,
    /// What overlays hide of the host's networks, in words.
    #[serde(skip)]
    pub shadowed: BTreeSet<String>,
    /// What of others stands in the way of this host's networks, in words.
    #[serde(skip)]
    pub obstacles: BTreeSet<String>,
    /// What could not be done the last time, in words.
    #[serde(skip)]
    pub failing: Vec<String>,
    /// The address at which other nodes reach this one, while the host does not have it.
    #[serde(skip)]
    pub lost_address: Option<IpAddr>,
    /// The ingress namespace's address on `docker_gwbridge`.
    #[serde(default)]
    pub ingress_gateway: Option<Cidr>,
}

/// One container's sandbox, as it is kept for the next daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub state: SandboxState,
    /// In the order in which they were connected.
    pub endpoints: Vec<Endpoint>,
    /// What the kernel translates: follows from the state's ports and the endpoint that is the way out.
    pub published: Vec<PublishedPort>,
    /// What the resolver process carries, see [`resolver::Relay`].
    #[serde(default)]
    pub relays: Vec<resolver::Relay>,
    /// What was asked for with `-p`.
    #[serde(default)]
    pub wanted_ports: Vec<PortSpec>,
    pub ingress: Vec<IngressTarget>,
    pub resolver: Option<ResolverPorts>,
    /// The endpoint on `docker_gwbridge`.
    pub gateway: Option<Endpoint>,
    pub dns: Vec<IpAddr>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    pub links: Vec<(String, String)>,
    /// False for a container in the host's or another container's namespace.
    pub own: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoint {
    pub state: EndpointState,
    /// Name of the outer end.
    pub peer: String,
    pub links: Vec<(String, String)>,
}

impl State {
    /// What somebody should know who looks at this host, for `docker info`.
    pub fn warnings(&self) -> Vec<String> {
        let taken = self.mesh_taken.iter().map(|(proto, port)| {
            format!(
                "WARNING: port {port}/{} is published by a service, and something else on this node has it: connections reach the service",
                proto.name()
            )
        });
        let others = self.shadowed.iter().chain(&self.obstacles).chain(&self.failing);
        taken.chain(others.map(|text| format!("WARNING: {text}"))).collect()
    }

    pub fn by_name(&self, name: &str) -> Option<&LocalNetwork> {
        self.networks.values().find(|network| network.name == name)
    }

    pub fn find(&self, name_or_id: &str) -> Result<&LocalNetwork, NetworkError> {
        if let Some(network) = self.networks.get(name_or_id) {
            return Ok(network);
        }
        if let Some(network) = self.by_name(name_or_id) {
            return Ok(network);
        }
        let mut fits = self.networks.values().filter(|network| {
            !name_or_id.is_empty() && network.id.as_str().starts_with(name_or_id)
        });
        match (fits.next(), fits.next()) {
            (Some(network), None) => Ok(network),
            (Some(_), Some(_)) => Err(NetworkError::new(
                NetworkErrorKind::Invalid,
                format!("network {name_or_id} is ambiguous (2 matches found based on ID prefix)"),
            )),
            _ => Err(NetworkError::new(
                NetworkErrorKind::NotFound,
                format!("network {name_or_id} not found"),
            )),
        }
    }

    /// An overlay by its id or its name.
    pub fn find_overlay(&self, name_or_id: &str) -> Option<(&NetworkId, &Overlay)> {
        let by_id = self.overlays.overlays.get_key_value(name_or_id);
        by_id.or_else(|| {
            let named = self.overlays.names.iter().find(|(_, name)| *name == name_or_id)?;
            self.overlays.overlays.get_key_value(named.0)
        })
    }

    /// Every endpoint on the network, those on `docker_gwbridge` included.
    pub fn endpoints_on<'a>(
        &'a self,
        id: &'a NetworkId,
    ) -> impl Iterator<Item = (&'a Record, &'a Endpoint)> {
        self.sandboxes.values().flat_map(move |record| {
            let all = record.endpoints.iter().chain(&record.gateway);
            all.filter(move |one| one.state.network_id == *id).map(move |one| (record, one))
        })
    }

    pub fn addresses_on(&self, network: &LocalNetwork) -> BTreeSet<IpAddr> {
        let endpoints = self.endpoints_on(&network.id);
        let mut used: BTreeSet<IpAddr> =
            endpoints.flat_map(|(_, one)| &one.state.addresses).map(|cidr| cidr.addr).collect();
        if network.name == GATEWAY_BRIDGE {
            used.extend(self.ingress_gateway.map(|cidr| cidr.addr));
        }
        used
    }

    pub fn view(&self, config: &NetworkConfig) -> View {
        let mut view = View { host: self.host.clone(), ..View::default() };
        view.host.firewall = config.firewall;
        view.host.firewall6 = config.firewall6;
        view.host.ip_forward = config.ip_forward;
        view.host.masquerade = config.ip_masq;
        view.host.data_path = self.overlays.data_path;
        if self.overlays.vxlan_port != 0 {
            view.host.vxlan_port = self.overlays.vxlan_port;
        }
        for network in self.networks.values() {
            if network.driver == Driver::Bridge {
                view.bridges.insert(network.id.clone(), bridge(network, config));
            }
        }
        view.overlays = self.overlays.overlays.clone();
        for record in self.sandboxes.values().filter(|record| record.own) {
            let id = SandboxId(record.state.container.to_string());
            view.sandboxes.insert(id, self.sandbox(record));
        }
        if let Some(sandbox) = self.ingress_sandbox() {
            view.sandboxes.insert(SandboxId::ingress(), sandbox);
        }
        view
    }

    fn sandbox(&self, record: &Record) -> Sandbox {
        let mut links = Vec::new();
        let mut given = (false, false);
        for endpoint in record.endpoints.iter().chain(&record.gateway) {
            let state = &endpoint.state;
            let mut gateways = Vec::new();
            for gateway in self.default_gateways(state) {
                let taken = if gateway.is_ipv4() { &mut given.0 } else { &mut given.1 };
                if !std::mem::replace(taken, true) {
                    gateways.push(gateway);
                }
            }
            links.push(Link {
                network: state.network_id.clone(),
                ifname: state.ifname.clone(),
                peer: endpoint.peer.clone(),
                mac: state.mac,
                addresses: state.addresses.clone(),
                gateways,
                routes: self.further_subnets(state),
            });
        }
        Sandbox {
            links,
            resolver: record.resolver,
            published: record.published.clone(),
            ingress: record.ingress.clone(),
        }
    }

    /// An overlay never is the way out, nor is an internal network.
    fn default_gateways(&self, endpoint: &EndpointState) -> Vec<IpAddr> {
        match self.networks.get(&endpoint.network_id) {
            Some(network) if !network.internal => endpoint.gateways.clone(),
            _ => Vec::new(),
        }
    }

    fn further_subnets(&self, endpoint: &EndpointState) -> Vec<(Cidr, Option<IpAddr>)> {
        let Some(overlay) = self.overlays.overlays.get(&endpoint.network_id) else {
            return Vec::new();
        };
        let own = |subnet: &OverlaySubnet| {
            endpoint.addresses.iter().any(|cidr| subnet.subnet.contains(cidr.addr))
        };
        let others = overlay.subnets.iter().filter(|subnet| !own(subnet));
        let gateway = |v4: bool| {
            let mut same = overlay.subnets.iter().filter(|subnet| own(subnet));
            same.find(|subnet| subnet.subnet.is_v4() == v4).and_then(|subnet| subnet.gateway)
        };
        others
            .filter_map(|subnet| Some((subnet.subnet, Some(gateway(subnet.subnet.is_v4())?))))
            .collect()
    }

    fn ingress_sandbox(&self) -> Option<Sandbox> {
        let mut ingress =
            self.overlays.overlays.iter().filter(|(_, overlay)| overlay.ingress.is_some());
        let (id, overlay) = ingress.next()?;
        let (lb, outer) = (overlay.lb_address?, self.ingress_gateway?);
        let gwbridge = self.by_name(GATEWAY_BRIDGE)?;
        let link = |network: &NetworkId, n: u8, address: Cidr, gateways: Vec<IpAddr>| Link {
            network: network.clone(),
            ifname: format!("eth{n}"),
            peer: format!("vethingr{n}"),
            mac: Mac::for_ip(address.addr),
            addresses: vec![address],
            gateways,
            routes: Vec::new(),
        };
        // IPv6 has its own way in and out there.
        let gateways = gwbridge.pools.iter().filter_map(|pool| pool.gateway);
        let gateways = gateways.filter(IpAddr::is_ipv4).collect();
        Some(Sandbox {
            links: vec![link(id, 0, lb, Vec::new()), link(&gwbridge.id, 1, outer, gateways)],
            resolver: None,
            published: Vec::new(),
            ingress: Vec::new(),
        })
    }
}

/// An option that is absent or not a boolean is the default.
pub fn switch(network: &LocalNetwork, option: &str, default: bool) -> bool {
    match network.options.get(option).map(|text| text.to_ascii_lowercase()).as_deref() {
        Some("true" | "1" | "t") => true,
        Some("false" | "0" | "f") => false,
        _ => default,
    }
}

pub fn ifname(network: &LocalNetwork) -> String {
    match network.options.get(OPTION_NAME).filter(|name| !name.is_empty()) {
        Some(name) => name.clone(),
        None => format!("br-{}", network.id.chars().take(12).collect::<String>()),
    }
}

pub fn mtu(network: &LocalNetwork) -> u32 {
    let own = network.options.get(OPTION_MTU).and_then(|text| text.parse().ok());
    own.filter(|mtu| *mtu != 0).unwrap_or(MTU)
}

fn bridge(network: &LocalNetwork, config: &NetworkConfig) -> Bridge {
    let gateways =
        network.pools.iter().filter_map(|pool| Some(Cidr::new(pool.gateway?, pool.subnet?.prefix)));
    let ifname = ifname(network);
    Bridge {
        addresses: gateways.collect(),
        mtu: mtu(network),
        internal: network.internal,
        icc: switch(network, OPTION_ICC, true),
        masquerade: switch(network, OPTION_MASQUERADE, true),
        foreign: network.name == BRIDGE
            && config.bridge.as_deref().is_some_and(|name| name == ifname && name != "docker0"),
        ifname,
    }
}

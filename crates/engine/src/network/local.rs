//! Networks of this host: the predefined ones, those that users make and remove.

use std::net::IpAddr;

use model::NetworkId;
use rand::RngCore;

use super::api::*;
use super::controller::{Controller, internal};
use super::ipam;
use super::state::{
    OPTION_DEFAULT, OPTION_HOST_BINDING, OPTION_ICC, OPTION_MASQUERADE, OPTION_MTU, OPTION_NAME,
    ifname,
};

/// Longest name of a link in Linux.
const IFNAME_MAX: usize = 15;
/// libnetwork's names of the auxiliary addresses that `--default-gateway` reserves.
const GATEWAY_NAMES: [&str; 2] = ["DefaultGatewayIPv4", "DefaultGatewayIPv6"];

impl Controller {
    /// `bridge`, `host` and `none` are on every host.
    pub(super) fn add_predefined(&mut self) -> Result<(), NetworkError> {
        for (name, driver) in [(HOST, Driver::Host), (NONE, Driver::Null)] {
            if self.state.by_name(name).is_none() {
                let network = blank(name, driver);
                self.state.networks.insert(network.id.clone(), network);
            }
        }
        let there = self.state.by_name(BRIDGE).map(|network| network.id.clone());
        if self.config.bridge.as_deref() == Some(NONE) {
            there.map(|id| self.state.networks.remove(&id));
            return Ok(());
        }
        let wanted = self.default_bridge(there.clone())?;
        self.state.networks.insert(wanted.id.clone(), wanted);
        Ok(())
    }

    /// The default network follows the daemon's flags; its identity and subnet are kept.
    fn default_bridge(&mut self, there: Option<NetworkId>) -> Result<LocalNetwork, NetworkError> {
        let config = self.config.clone();
        let kept = there.and_then(|id| self.state.networks.remove(&id));
        let mut network = kept.unwrap_or_else(|| blank(BRIDGE, Driver::Bridge));
        let name = config.bridge.clone().filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| "docker0".to_owned());
        let mtu = if config.mtu == 0 { super::state::MTU } else { config.mtu };
        network.options = [
            (OPTION_DEFAULT, "true".to_owned()),
            (OPTION_ICC, config.icc.to_string()),
            (OPTION_MASQUERADE, config.ip_masq.to_string()),
            (
                OPTION_HOST_BINDING,
                config.default_host_ip.map_or("0.0.0.0".to_owned(), |ip| ip.to_string()),
            ),
            (OPTION_NAME, name.clone()),
            (OPTION_MTU, mtu.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let own = if name == "docker0" { None } else { self.foreign_address(&name)? };
        let bip = config.bip.or(own);
        let kept_v4 = network.pools.iter().find(|pool| pool.subnet.is_some_and(|s| s.is_v4()));
        let pool = match (bip, kept_v4) {
            (Some(bip), _) => IpamPool {
                subnet: Some(bip.network()),
                gateway: Some(bip.addr),
                ip_range: config.fixed_cidr,
                ..IpamPool::default()
            },
            (None, Some(pool)) => IpamPool { ip_range: config.fixed_cidr, ..pool.clone() },
            (None, None) => {
                let pool = IpamPool { ip_range: config.fixed_cidr, ..IpamPool::default() };
                self.complete_pool(pool)?
            }
        };
        let v6 = network.pools.iter().find(|pool| pool.subnet.is_some_and(|s| !s.is_v4())).cloned();
        network.pools = vec![pool];
        network.ipv6 = config.ipv6;
        if config.ipv6 {
            network.pools.push(default_v6(&network.id, config.fixed_cidr_v6, v6)?);
        }
        for pool in &mut network.pools {
            set_default_gateway(pool, &config.gateways);
        }
        let foreign = config.gateways.iter().find(|gateway| {
            !network.pools.iter().any(|pool| pool.subnet.is_some_and(|s| s.contains(**gateway)))
        });
        match foreign {
            Some(gateway) => Err(NetworkError::new(
                NetworkErrorKind::Invalid,
                format!("default gateway ip {gateway} must be part of the bridge subnet"),
            )),
            None => Ok(network),
        }
    }

    /// With `--bridge` the user's own bridge is used as it is: it has to be there.
    fn foreign_address(&mut self, name: &str) -> Result<Option<Cidr>, NetworkError> {
        let addresses = self.kernel.addresses_of(name).map_err(|_| {
            internal(format!("bridge device with non default name {name} must be created manually"))
        })?;
        Ok(addresses.into_iter().find(Cidr::is_v4))
    }

    pub(super) fn create(&mut self, spec: NetworkSpec) -> Result<LocalNetwork, NetworkError> {
        let error = |kind, text: String| Err(NetworkError::new(kind, text));
        if [BRIDGE, HOST, NONE].contains(&spec.name.as_str()) {
            let text = format!("operation is not permitted on predefined {} network", spec.name);
            return error(NetworkErrorKind::Forbidden, text);
        }
        if self.state.by_name(&spec.name).is_some() {
            let text = format!("network with name {} already exists", spec.name);
            return error(NetworkErrorKind::Conflict, text);
        }
        if spec.driver != Driver::Bridge {
            let text =
                format!("only one instance of \"{}\" network is allowed", spec.driver.name());
            return error(NetworkErrorKind::Forbidden, text);
        }
        check_options(&spec.options)?;
        let mut network = blank(&spec.name, spec.driver);
        network.internal = spec.internal;
        network.attachable = spec.attachable;
        network.ipv6 = spec.ipv6;
        network.ipam_driver = spec.ipam_driver;
        network.ipam_options = spec.ipam_options;
        network.options = spec.options;
        network.labels = spec.labels;
        let name = ifname(&network);
        if name.len() > IFNAME_MAX || name.contains(['/', ' ']) {
            let text = format!("invalid bridge name {name:?}: at most {IFNAME_MAX} characters");
            return error(NetworkErrorKind::Invalid, text);
        }
        if self.state.networks.values().any(|n| n.driver == Driver::Bridge && ifname(n) == name) {
            let text = format!("bridge name {name} is already used by another network");
            return error(NetworkErrorKind::Forbidden, text);
        }
        network.pools = self.complete_pools(spec.pools, spec.ipv6)?;
        self.install(network)
    }

    pub(super) fn install(&mut self, network: LocalNetwork) -> Result<LocalNetwork, NetworkError> {
        self.state.networks.insert(network.id.clone(), network.clone());
        let done = self.save_networks().and_then(|()| self.reconcile(None));
        if let Err(error) = done {
            self.state.networks.remove(&network.id);
            let _ = self.reconcile(None);
            self.save_networks()?;
            return Err(error);
        }
        self.tell("create", &network, None);
        Ok(network)
    }

    fn complete_pools(
        &mut self,
        mut pools: Vec<IpamPool>,
        ipv6: bool,
    ) -> Result<Vec<IpamPool>, NetworkError> {
        let v4 = |pool: &IpamPool| pool.subnet.is_none_or(|subnet| subnet.is_v4());
        if !pools.iter().any(v4) {
            pools.insert(0, IpamPool::default());
        }
        if ipv6 && pools.iter().all(v4) {
            return Err(NetworkError::new(
                NetworkErrorKind::Invalid,
                "could not find an available, non-overlapping IPv6 address pool among the defaults to assign to the network: name a subnet with --subnet",
            ));
        }
        let mut complete: Vec<IpamPool> = Vec::new();
        for pool in pools {
            let pool = self.complete_pool(pool)?;
            let overlaps = complete.iter().any(|other: &IpamPool| {
                matches!((other.subnet, pool.subnet), (Some(a), Some(b)) if a.overlaps(&b))
            });
            if overlaps {
                return Err(overlapping());
            }
            complete.push(pool);
        }
        Ok(complete)
    }

    /// Checks what the user named and fills in what he did not.
    fn complete_pool(&mut self, mut pool: IpamPool) -> Result<IpamPool, NetworkError> {
        let invalid = |text: String| NetworkError::new(NetworkErrorKind::Invalid, text);
        let networks = self.state.networks.values();
        let mut taken: Vec<Cidr> =
            networks.flat_map(|n| &n.pools).filter_map(|pool| pool.subnet).collect();
        let subnet = match pool.subnet {
            Some(subnet) => {
                let subnet = subnet.network();
                if taken.iter().any(|other| other.overlaps(&subnet)) {
                    return Err(overlapping());
                }
                subnet
            }
            None => {
                let host = self.kernel.host_networks();
                taken.extend(host.map_err(|error| internal(error.to_string()))?);
                pool.automatic = true;
                let pools = &self.config.pools;
                let defaults = ipam::default_pools();
                ipam::free_subnet(if pools.is_empty() { &defaults } else { pools }, &taken)?
            }
        };
        if let Some(range) = pool.ip_range.filter(|range| !subnet.contains_net(range)) {
            return Err(invalid(format!("no matching subnet for range {range}")));
        }
        if let Some(gateway) = pool.gateway.filter(|gateway| !subnet.contains(*gateway)) {
            return Err(invalid(format!("no matching subnet for gateway {gateway}")));
        }
        if let Some(aux) = pool.aux_addresses.values().find(|aux| !subnet.contains(**aux)) {
            return Err(invalid(format!("no matching subnet for aux-address {aux}")));
        }
        pool.subnet = Some(subnet);
        if pool.gateway.is_none() {
            pool.gateway = first_free(&subnet, &pool);
        }
        Ok(pool)
    }

    pub(super) fn remove(&mut self, id: &NetworkId) -> Result<(), NetworkError> {
        let network = self.state.find(id)?.clone();
        let forbidden = |text: String| Err(NetworkError::new(NetworkErrorKind::Forbidden, text));
        if [BRIDGE, HOST, NONE].contains(&network.name.as_str()) {
            return forbidden(format!(
                "{} is a pre-defined network and cannot be removed",
                network.name
            ));
        }
        let ingress = network.name == GATEWAY_BRIDGE && self.state.ingress_gateway.is_some();
        if ingress || self.state.endpoints_on(&network.id).next().is_some() {
            return forbidden(format!(
                "error while removing network: network {} id {} has active endpoints",
                network.name, network.id
            ));
        }
        self.state.networks.remove(&network.id);
        self.save_networks()?;
        self.reconcile(None)?;
        self.tell("destroy", &network, None);
        Ok(())
    }

    /// Makes `docker_gwbridge` if it is not there.
    pub(super) fn gateway_bridge(&mut self) -> Result<LocalNetwork, NetworkError> {
        if let Some(network) = self.state.by_name(GATEWAY_BRIDGE) {
            return Ok(network.clone());
        }
        let mut network = blank(GATEWAY_BRIDGE, Driver::Bridge);
        network.options =
            [(OPTION_ICC, "false"), (OPTION_MASQUERADE, "true"), (OPTION_NAME, GATEWAY_BRIDGE)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        let mut wanted = Vec::new();
        if super::controller::has_ipv6() {
            network.ipv6 = true;
            wanted.push(IpamPool { subnet: own_prefix(&network.id), ..IpamPool::default() });
        }
        network.pools = self.complete_pools(wanted, network.ipv6)?;
        self.install(network)
    }

    pub(super) fn tell(
        &self,
        action: &'static str,
        network: &LocalNetwork,
        container: Option<&model::ContainerId>,
    ) {
        // Nobody may be listening.
        let _ = self.events.send(NetworkEvent {
            action,
            network: network.id.clone(),
            name: network.name.clone(),
            driver: network.driver.name(),
            container: container.cloned(),
        });
    }
}

/// A /64 of RFC 4193 for a network that nobody gave one: its random bits are the network's id's.
fn own_prefix(id: &NetworkId) -> Option<Cidr> {
    let digits = id.get(..14)?;
    let (site, subnet) = digits.split_at(10);
    format!("fd{}:{}:{}:{subnet}::/64", &site[..2], &site[2..6], &site[6..]).parse().ok()
}

/// The default bridge's IPv6 side: the daemon's prefix, else the one it had, else a new one.
fn default_v6(
    id: &NetworkId,
    fixed: Option<Cidr>,
    kept: Option<IpamPool>,
) -> Result<IpamPool, NetworkError> {
    if fixed.is_some_and(|subnet| subnet.is_v4()) {
        let text = "--fixed-cidr-v6: not a subnet of IPv6";
        return Err(NetworkError::new(NetworkErrorKind::Invalid, text));
    }
    let kept_subnet = kept.as_ref().and_then(|pool| pool.subnet);
    let subnet = fixed.map(|fixed| fixed.network()).or(kept_subnet);
    let subnet = subnet.or_else(|| own_prefix(id));
    let subnet = subnet.ok_or_else(|| internal(format!("no prefix can be made of id {id}")))?;
    match kept {
        Some(pool) if pool.subnet == Some(subnet) => Ok(pool),
        _ => Ok(IpamPool {
            subnet: Some(subnet),
            gateway: ipam::first_host(&subnet),
            ..IpamPool::default()
        }),
    }
}

/// Keeps the address for the router behind it, under the name that dockerd keeps it.
fn set_default_gateway(pool: &mut IpamPool, gateways: &[IpAddr]) {
    pool.aux_addresses.retain(|name, _| !GATEWAY_NAMES.contains(&name.as_str()));
    let Some(subnet) = pool.subnet else { return };
    if let Some(gateway) = gateways.iter().find(|gateway| subnet.contains(**gateway)) {
        let name = GATEWAY_NAMES[usize::from(gateway.is_ipv6())];
        pool.aux_addresses.insert(name.to_owned(), *gateway);
    }
}

/// Where containers on a network send what leaves it.
pub(super) fn way_out(pool: &IpamPool) -> Option<IpAddr> {
    let other = GATEWAY_NAMES.iter().find_map(|name| pool.aux_addresses.get(*name));
    other.copied().or(pool.gateway)
}

fn overlapping() -> NetworkError {
    NetworkError::new(
        NetworkErrorKind::Forbidden,
        "Pool overlaps with other one on this address space",
    )
}

fn first_free(subnet: &Cidr, pool: &IpamPool) -> Option<IpAddr> {
    let first = ipam::first_host(subnet)?;
    if !pool.aux_addresses.values().any(|aux| *aux == first) {
        return Some(first);
    }
    let whole = IpamPool { subnet: Some(*subnet), ip_range: None, ..pool.clone() };
    ipam::free_address(&whole, &Default::default()).map(|cidr| cidr.addr)
}

fn blank(name: &str, driver: Driver) -> LocalNetwork {
    LocalNetwork {
        id: NetworkId::new(random_id()),
        name: name.to_owned(),
        driver,
        created: now(),
        internal: false,
        attachable: false,
        ipv6: false,
        ipam_driver: "default".to_owned(),
        ipam_options: Default::default(),
        pools: Vec::new(),
        options: Default::default(),
        labels: Default::default(),
    }
}

/// 64 hex digits.
pub fn random_id() -> String {
    let mut bytes = [0u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// What the driver has to read as a number or as a switch (moby libnetwork bridge, `fromLabels`).
fn check_options(options: &std::collections::BTreeMap<String, String>) -> Result<(), NetworkError> {
    let refused = |key: &str, value: &str, how: &str| {
        let text = format!(
            "failed to parse {key} value: {value} (strconv.{how}: parsing {value:?}: invalid syntax)"
        );
        NetworkError::new(NetworkErrorKind::Invalid, text)
    };
    for (key, value) in options {
        match key.as_str() {
            OPTION_MTU if value.parse::<u32>().is_err() => {
                return Err(refused(key, value, "Atoi"));
            }
            OPTION_ICC | OPTION_MASQUERADE | OPTION_DEFAULT if !is_switch(value) => {
                return Err(refused(key, value, "ParseBool"));
            }
            OPTION_HOST_BINDING if value.parse::<IpAddr>().is_err() => {
                let text = format!("failed to parse {key} value: {value} (invalid ipv4 address)");
                return Err(NetworkError::new(NetworkErrorKind::Invalid, text));
            }
            _ => {}
        }
    }
    Ok(())
}

/// As Go reads a boolean.
fn is_switch(value: &str) -> bool {
    let words = ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];
    words.contains(&value)
}

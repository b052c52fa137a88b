//! Names of local networks and of sandboxes, as the resolver process gets them; resolv.conf.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dns::{Upstream, Zone};
use model::NetworkId;

use super::api::*;
use super::state::{Record, State};

const DNS_PORT: u16 = 53;
/// Where the host's resolvers are of no use to a container (Docker's choice).
const PUBLIC: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

pub struct Names {
    client: Arc<resolver::Client>,
    /// What the process was told last, by network and by sandbox.
    zones: BTreeMap<NetworkId, Zone>,
    sandboxes: BTreeMap<String, resolver::Sandbox>,
    /// Whether the process may carry ports: asked again at every sweep, for it may be another one.
    relays: bool,
    /// The connection over which all this was told: what listens behind another one may be another process, which
    /// knows only what the one before it had written down.
    connection: u64,
}

impl Names {
    pub fn new(client: Arc<resolver::Client>) -> Self {
        let relays = client.has_run();
        Self { client, zones: BTreeMap::new(), sandboxes: BTreeMap::new(), relays, connection: 0 }
    }

    /// Tells the resolver what has changed, and gives the sandboxes the ports it listens on.
    /// True when a sandbox's ports are new: its translations have to be written.
    pub fn settle(&mut self, state: &mut State) -> bool {
        let zones = zones(state);
        for (id, zone) in &zones {
            if self.zones.get(id) != Some(zone) {
                match self.client.set_zone(id, zone) {
                    Ok(()) => drop(self.zones.insert(id.clone(), zone.clone())),
                    Err(error) => {
                        tracing::warn!(network = %id, %error, "names are not told");
                        if hangs(&error) {
                            return false;
                        }
                    }
                }
            }
        }
        let wanted = sandboxes(state);
        let mut altered = false;
        for (id, sandbox) in &wanted {
            if self.sandboxes.get(id) == Some(sandbox) {
                continue;
            }
            match self.client.set_sandbox(id, sandbox) {
                Ok(ports) => {
                    self.sandboxes.insert(id.clone(), sandbox.clone());
                    altered |= set_ports(state, id, ports);
                }
                Err(error) => {
                    tracing::warn!(sandbox = %id, %error, "names are not answered");
                    if hangs(&error) {
                        return altered;
                    }
                }
            }
        }
        self.forget(&zones, &wanted);
        altered
    }

    /// Has the process carry these ports and no others; gives those that it cannot.
    pub fn relay(
        &mut self,
        relays: &BTreeSet<resolver::Relay>,
    ) -> Result<Vec<(resolver::Relay, String)>, NetworkError> {
        // Without any there is no need for a process.
        if relays.is_empty() && !self.relays {
            return Ok(Vec::new());
        }
        let answer = self.client.set_relays(relays);
        let refused = answer.map_err(|error| super::controller::internal(error.to_string()))?;
        self.relays = !relays.is_empty();
        Ok(refused)
    }

    fn forget(
        &mut self,
        zones: &BTreeMap<NetworkId, Zone>,
        sandboxes: &BTreeMap<String, resolver::Sandbox>,
    ) {
        let gone: Vec<_> =
            self.sandboxes.keys().filter(|id| !sandboxes.contains_key(*id)).cloned().collect();
        let some = !gone.is_empty();
        for id in gone {
            if self.client.remove_sandbox(&id).is_ok() {
                self.sandboxes.remove(&id);
            }
        }
        if some {
            self.drop_old_zones();
        }
        let gone: Vec<_> =
            self.zones.keys().filter(|id| !zones.contains_key(*id)).cloned().collect();
        for id in gone {
            if self.client.remove_zone(&id).is_ok() {
                self.zones.remove(&id);
            }
        }
    }

    /// A resolver process that was started anew may know nothing, or what is no longer so: it is told everything again.
    /// True when translations have to be written.
    pub fn sweep(&mut self, state: &mut State) -> bool {
        let wanted = sandboxes(state);
        if wanted.is_empty() && self.sandboxes.is_empty() && !self.client.has_run() {
            return false;
        }
        match self.client.ensure() {
            Ok(connection) if connection == self.connection => {}
            Ok(connection) => self.meet(connection, &wanted),
            Err(error) => {
                tracing::warn!(%error, "the resolver does not answer");
                self.connection = 0;
            }
        }
        self.settle(state)
    }

    /// What another process has kept of the one before it: the sandboxes that are gone since go there, too.
    fn meet(&mut self, connection: u64, wanted: &BTreeMap<String, resolver::Sandbox>) {
        let Ok(there) = self.client.sandboxes() else { return };
        for id in there.keys().filter(|id| !wanted.contains_key(*id)) {
            if self.client.remove_sandbox(id).is_err() {
                return;
            }
        }
        self.sandboxes.clear();
        self.zones.clear();
        self.drop_old_zones();
        // A process of an earlier version ends the connection over a call that it does not know.
        self.connection = self.client.ensure().unwrap_or(connection);
    }

    /// What it keeps costs a little memory and is tried again with the next sandbox that goes.
    fn drop_old_zones(&self) {
        if let Err(error) = self.client.drop_old_zones() {
            tracing::debug!(%error, "zones of networks that are gone are kept");
        }
    }
}

/// Every further call would wait as long, and containers with it: the next sweep goes on.
fn hangs(error: &resolver::Error) -> bool {
    matches!(error, resolver::Error::Unreachable { .. } | resolver::Error::Start { .. })
}

fn set_ports(state: &mut State, id: &str, ports: resolver::Ports) -> bool {
    let Some(record) = state.sandboxes.get_mut(id) else { return false };
    let ports = Some(ResolverPorts { udp: ports.udp, tcp: ports.tcp });
    let altered = record.resolver != ports;
    record.resolver = ports;
    altered
}

/// The default bridge has no names; every other network of this host has.
fn has_names(network: &LocalNetwork) -> bool {
    network.driver == Driver::Bridge && network.name != BRIDGE && network.name != GATEWAY_BRIDGE
}

fn zones(state: &State) -> BTreeMap<NetworkId, Zone> {
    let mut zones = BTreeMap::new();
    for network in state.networks.values().filter(|network| has_names(network)) {
        let mut zone = Zone::new(network.name.as_str());
        let mut any = false;
        for (record, endpoint) in state.endpoints_on(&network.id) {
            any = true;
            for cidr in &endpoint.state.addresses {
                for name in &endpoint.state.dns_names {
                    zone.add(name, cidr.addr);
                }
                zone.point(cidr.addr, &record.state.container_name);
            }
        }
        if any {
            zones.insert(network.id.clone(), zone);
        }
    }
    zones
}

/// Does the container ask 127.0.0.11?
pub fn uses_resolver(state: &State, record: &Record) -> bool {
    record.own
        && record.endpoints.iter().any(|endpoint| {
            let network = state.networks.get(&endpoint.state.network_id);
            network.is_none_or(has_names)
        })
}

fn sandboxes(state: &State) -> BTreeMap<String, resolver::Sandbox> {
    let mut sandboxes = BTreeMap::new();
    for (id, record) in &state.sandboxes {
        let Some(netns) = record.state.netns.clone().filter(|_| uses_resolver(state, record))
        else {
            continue;
        };
        let sandbox = resolver::Sandbox {
            netns,
            own: own_names(state, record),
            zones: record.endpoints.iter().map(|e| e.state.network_id.to_string()).collect(),
            upstreams: upstreams(state, record),
        };
        sandboxes.insert(id.to_string(), sandbox);
    }
    sandboxes
}

/// Links: an alias for another container of the same network.
fn own_names(state: &State, record: &Record) -> Zone {
    let mut zone = Zone::default();
    for endpoint in &record.endpoints {
        for (name, alias) in record.links.iter().chain(&endpoint.links) {
            for (other, there) in state.endpoints_on(&endpoint.state.network_id) {
                let short: String = other.state.container.chars().take(12).collect();
                let meant = other.state.container_name == *name
                    || *other.state.container == **name
                    || short == *name;
                if meant {
                    there.state.addresses.iter().for_each(|cidr| zone.add(alias, cidr.addr));
                }
            }
        }
    }
    zone
}

fn upstreams(state: &State, record: &Record) -> Vec<Upstream> {
    let internal = |endpoint: &super::state::Endpoint| {
        let id = &endpoint.state.network_id;
        let local = state.networks.get(id).map(|network| network.internal);
        local.or(state.overlays.overlays.get(id).map(|overlay| overlay.internal)).unwrap_or(false)
    };
    // An internal network leads nowhere, its names neither.
    if record.endpoints.iter().all(internal) {
        return Vec::new();
    }
    let (servers, host) = match record.dns.as_slice() {
        [] => (host_resolv_conf().servers, true),
        own => (own.to_vec(), false),
    };
    servers
        .into_iter()
        .map(|addr| Upstream {
            address: SocketAddr::new(addr, DNS_PORT),
            from_host: host && addr.is_loopback(),
        })
        .collect()
}

#[derive(Default)]
pub struct ResolvConf {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

fn host_resolv_conf() -> ResolvConf {
    parse_resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

pub fn parse_resolv_conf(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let word = words.next().unwrap_or_default();
                let addr: Result<IpAddr, _> = word.split('%').next().unwrap_or_default().parse();
                conf.servers.extend(addr.ok());
            }
            Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
            Some("options") => conf.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    conf
}

/// The container's /etc/resolv.conf.
pub fn resolv_conf(state: &State, record: &Record) -> String {
    let host = host_resolv_conf();
    let embedded = uses_resolver(state, record);
    let servers: Vec<String> = if embedded {
        vec![netplan::RESOLVER.to_string()]
    } else if !record.dns.is_empty() {
        record.dns.iter().map(IpAddr::to_string).collect()
    } else {
        let usable = host.servers.iter().filter(|addr| !addr.is_loopback());
        let usable: Vec<_> = usable.map(IpAddr::to_string).collect();
        if usable.is_empty() { PUBLIC.map(str::to_owned).to_vec() } else { usable }
    };
    let search = if record.dns_search.is_empty() { &host.search } else { &record.dns_search };
    let mut options =
        if record.dns_options.is_empty() { host.options } else { record.dns_options.clone() };
    if embedded && !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut text = String::new();
    if !search.is_empty() && search.iter().all(|domain| domain != ".") {
        text += &format!("search {}\n", search.join(" "));
    }
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    if !options.is_empty() {
        text += &format!("options {}\n", options.join(" "));
    }
    text
}

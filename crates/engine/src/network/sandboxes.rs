//! Containers' sandboxes: started, connected, disconnected, stopped.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::ContainerId;
use netplan::{Namespace, SandboxId};

use super::api::*;
use super::controller::{Controller, internal};
use super::ipam;
use super::local::{random_id, way_out};
use super::names;
use super::state::{Endpoint, Record};

impl Controller {
    pub(super) fn start(&mut self, spec: SandboxSpec) -> Result<SandboxState, NetworkError> {
        if let Some(record) = self.state.sandboxes.get(&spec.container) {
            return Ok(record.state.clone());
        }
        let mut record = self.blank_record(&spec)?;
        if record.own {
            self.fill(&spec, &mut record)?;
        }
        record.state.resolv_conf = names::resolv_conf(&self.state, &record);
        let id = spec.container.clone();
        self.state.sandboxes.insert(id.clone(), record);
        let done = self.settle(&id).and_then(|()| self.save_sandboxes());
        if let Err(error) = done {
            self.drop_sandbox(&id);
            return Err(error);
        }
        let record = self.record(&id)?;
        for endpoint in &record.endpoints {
            if let Some(network) = self.state.networks.get(&endpoint.state.network_id) {
                self.tell("connect", network, Some(&id));
            }
        }
        Ok(record.state.clone())
    }

    fn blank_record(&mut self, spec: &SandboxSpec) -> Result<Record, NetworkError> {
        let id = SandboxId(spec.container.to_string());
        let (netns, own) = match &spec.mode {
            SandboxMode::Own => (self.kernel.path(&Namespace::Sandbox(id)), true),
            SandboxMode::Host => (None, false),
            SandboxMode::Container(other) => {
                let joined = self.state.sandboxes.get(other);
                let joined = joined.ok_or_else(|| {
                    let text = format!("cannot join network of a non running container: {other}");
                    NetworkError::new(NetworkErrorKind::Conflict, text)
                })?;
                (joined.state.netns.clone(), false)
            }
        };
        Ok(Record {
            state: SandboxState {
                container: spec.container.clone(),
                container_name: spec.container_name.clone(),
                sandbox_id: random_id(),
                netns,
                endpoints: BTreeMap::new(),
                ports: Vec::new(),
                resolv_conf: String::new(),
                gateway_endpoint: None,
                hosts: Vec::new(),
            },
            endpoints: Vec::new(),
            published: Vec::new(),
            relays: Vec::new(),
            wanted_ports: spec.ports.clone(),
            ingress: spec.ingress.clone(),
            resolver: None,
            gateway: None,
            dns: spec.dns.clone(),
            dns_search: spec.dns_search.clone(),
            dns_options: spec.dns_options.clone(),
            links: spec.links.clone(),
            own,
        })
    }

    /// Endpoints, the way out, published ports; nothing is taken when it fails.
    fn fill(&mut self, spec: &SandboxSpec, record: &mut Record) -> Result<(), NetworkError> {
        for endpoint in &spec.endpoints {
            let made = self.endpoint(record, endpoint)?;
            record.state.endpoints.insert(made.state.network_name.clone(), made.state.clone());
            record.endpoints.push(made);
        }
        self.settle_gateway(record)?;
        record.state.hosts = self.link_hosts(record);
        self.publish(record)
    }

    pub(super) fn record(&self, id: &ContainerId) -> Result<&Record, NetworkError> {
        self.state.sandboxes.get(id).ok_or_else(|| {
            let text = format!("container {id} is not running");
            NetworkError::new(NetworkErrorKind::Conflict, text)
        })
    }

    /// Brings kernel and resolver to the sandbox's state.
    fn settle(&mut self, id: &ContainerId) -> Result<(), NetworkError> {
        let sandbox = SandboxId(id.to_string());
        self.reconcile(Some(&sandbox))?;
        if self.names.settle(&mut self.state) {
            self.reconcile(Some(&sandbox))?;
        }
        self.relay(id)
    }

    /// Allocates one endpoint; it counts as taken once its record is in the state.
    fn endpoint(&mut self, record: &Record, spec: &EndpointSpec) -> Result<Endpoint, NetworkError> {
        let (network_id, network_name, addresses, gateways) =
            match self.state.find_overlay(&spec.network) {
                Some((id, overlay)) => {
                    let addresses = overlay_addresses(id, overlay, &spec.addresses)?;
                    let name = self.state.overlays.names.get(id);
                    let name = name.cloned().unwrap_or_else(|| id.to_string());
                    (id.clone(), name, addresses, Vec::new())
                }
                None => self.local_endpoint(spec)?,
            };
        if record.endpoints.iter().any(|one| one.state.network_id == network_id) {
            return Err(NetworkError::new(
                NetworkErrorKind::Forbidden,
                format!(
                    "endpoint with name {} already exists in network {network_name}",
                    record.state.container_name
                ),
            ));
        }
        let endpoint_id = random_id();
        let first = addresses.first().map(|cidr| cidr.addr);
        let mac = spec.mac.or(first.map(Mac::for_ip)).unwrap_or(Mac([2, 0x42, 0, 0, 0, 0]));
        let short: String = record.state.container.chars().take(12).collect();
        let mut aliases = spec.aliases.clone();
        if network_name != BRIDGE && !aliases.contains(&short) {
            aliases.push(short);
        }
        let mut dns_names = vec![record.state.container_name.clone()];
        dns_names.extend(aliases.iter().cloned());
        Ok(Endpoint {
            peer: format!("veth{}", &endpoint_id[..7]),
            links: spec.links.clone(),
            state: EndpointState {
                endpoint_id,
                network_id,
                network_name,
                ifname: free_ifname(record),
                mac,
                addresses,
                gateways,
                aliases,
                dns_names,
                driver_opts: spec.driver_opts.clone(),
            },
        })
    }

    fn local_endpoint(
        &self,
        spec: &EndpointSpec,
    ) -> Result<(model::NetworkId, String, Vec<Cidr>, Vec<IpAddr>), NetworkError> {
        let network = self.state.find(&spec.network)?;
        if network.driver != Driver::Bridge {
            return Err(NetworkError::new(
                NetworkErrorKind::Forbidden,
                format!(
                    "container cannot be connected to network {}: its driver is {}",
                    network.name,
                    network.driver.name()
                ),
            ));
        }
        let used = self.state.addresses_on(network);
        let mut addresses = Vec::new();
        for wanted in &spec.addresses {
            addresses.push(ipam::take_address(&network.pools, wanted.addr, &used)?);
        }
        for v4 in [true, false] {
            let of_family = |pool: &&IpamPool| pool.subnet.is_some_and(|s| s.is_v4() == v4);
            let mut pools = network.pools.iter().filter(of_family).peekable();
            if pools.peek().is_none() || addresses.iter().any(|cidr| cidr.is_v4() == v4) {
                continue;
            }
            match pools.find_map(|pool| ipam::free_address(pool, &used)) {
                Some(cidr) => addresses.push(cidr),
                None => {
                    return Err(internal(format!(
                        "no available IPv{} addresses on this network's address pools: {} ({})",
                        if v4 { 4 } else { 6 },
                        network.name,
                        network.id
                    )));
                }
            }
        }
        addresses.sort_by_key(|cidr| !cidr.is_v4());
        let gateways = match network.internal {
            true => Vec::new(),
            false => network.pools.iter().filter_map(way_out).collect(),
        };
        Ok((network.id.clone(), network.name.clone(), addresses, gateways))
    }

    /// A container on overlays alone leaves the host by `docker_gwbridge`, and goes on doing so while it is on one; on
    /// internal ones alone it does not, whatever it publishes.
    fn settle_gateway(&mut self, record: &mut Record) -> Result<(), NetworkError> {
        let way_out = record.endpoints.iter().any(|one| !one.state.gateways.is_empty());
        let overlay = record.endpoints.iter().any(|one| {
            let overlay = self.state.overlays.overlays.get(&one.state.network_id);
            overlay.is_some_and(|overlay| !overlay.internal)
        });
        if !overlay || (way_out && record.gateway.is_none()) {
            record.gateway = None;
            record.state.gateway_endpoint = None;
            return Ok(());
        }
        if record.gateway.is_none() {
            let network = self.gateway_bridge()?;
            let spec = EndpointSpec { network: network.name, ..EndpointSpec::default() };
            record.gateway = Some(self.endpoint(record, &spec)?);
        }
        record.state.gateway_endpoint = record.gateway.as_ref().map(|one| one.state.clone());
        Ok(())
    }

    pub(super) fn connect(
        &mut self,
        id: &ContainerId,
        spec: EndpointSpec,
    ) -> Result<EndpointState, NetworkError> {
        let before = self.own_record(id)?;
        let mut record = before.clone();
        let made = self.endpoint(&record, &spec)?;
        let state = made.state.clone();
        record.state.endpoints.insert(state.network_name.clone(), state.clone());
        record.endpoints.push(made);
        self.settle_gateway(&mut record)?;
        self.publish(&mut record)?;
        self.replace(id, before, record)?;
        if let Some(network) = self.state.networks.get(&state.network_id) {
            self.tell("connect", network, Some(id));
        }
        Ok(state)
    }

    pub(super) fn disconnect(
        &mut self,
        id: &ContainerId,
        network: &str,
    ) -> Result<(), NetworkError> {
        let before = self.own_record(id)?;
        // An endpoint may be there before its network: a daemon that starts hears of overlays later.
        let own = before.endpoints.iter().find(|one| {
            one.state.network_name == network || one.state.network_id.as_str() == network
        });
        let network_id = match (own, self.state.find_overlay(network)) {
            (Some(endpoint), _) => endpoint.state.network_id.clone(),
            (None, Some((id, _))) => id.clone(),
            (None, None) => self.state.find(network)?.id.clone(),
        };
        let mut record = before.clone();
        record.endpoints.retain(|one| one.state.network_id != network_id);
        if record.endpoints.len() == before.endpoints.len() {
            return Err(NetworkError::new(
                NetworkErrorKind::Forbidden,
                format!("container {id} is not connected to network {network}"),
            ));
        }
        record.state.endpoints.retain(|_, state| state.network_id != network_id);
        self.settle_gateway(&mut record)?;
        self.publish(&mut record)?;
        self.replace(id, before, record)?;
        if let Some(network) = self.state.networks.get(&network_id) {
            self.tell("disconnect", network, Some(id));
        }
        Ok(())
    }

    fn own_record(&self, id: &ContainerId) -> Result<Record, NetworkError> {
        let record = self.record(id)?;
        if !record.own {
            return Err(NetworkError::new(
                NetworkErrorKind::Forbidden,
                "container sharing network namespace with another container or host cannot be connected to any other network",
            ));
        }
        Ok(record.clone())
    }

    /// Puts the new record in place of the old one, or leaves the old one.
    fn replace(
        &mut self,
        id: &ContainerId,
        before: Record,
        mut record: Record,
    ) -> Result<(), NetworkError> {
        record.state.resolv_conf = names::resolv_conf(&self.state, &record);
        self.state.sandboxes.insert(id.clone(), record);
        let done = self.settle(id).and_then(|()| self.save_sandboxes());
        if done.is_err() {
            let first = before.state.ports.is_empty();
            let undone = self.state.sandboxes.insert(id.clone(), before);
            // Ports are taken once, with the first way out.
            if let Some(undone) = undone.filter(|_| first) {
                self.release(&undone);
            }
            let _ = self.settle(id);
        }
        done
    }

    pub(super) fn rename(&mut self, id: &ContainerId, name: &str) -> Result<(), NetworkError> {
        let Some(record) = self.state.sandboxes.get_mut(id) else { return Ok(()) };
        let old = std::mem::replace(&mut record.state.container_name, name.to_owned());
        for endpoint in &mut record.endpoints {
            for known in endpoint.state.dns_names.iter_mut().filter(|known| **known == old) {
                *known = name.to_owned();
            }
            let state = endpoint.state.clone();
            record.state.endpoints.insert(state.network_name.clone(), state);
        }
        self.settle(id)?;
        self.save_sandboxes()
    }

    /// Forgets the sandbox; `clear_away` takes it out of the kernel.
    pub(super) fn stop(&mut self, id: &ContainerId) -> Result<(), NetworkError> {
        let Some(record) = self.state.sandboxes.remove(id) else { return Ok(()) };
        self.release(&record);
        for endpoint in &record.endpoints {
            if let Some(network) = self.state.networks.get(&endpoint.state.network_id) {
                self.tell("disconnect", network, Some(id));
            }
        }
        self.save_sandboxes()
    }

    pub(super) fn clear_away(&mut self) {
        // What fails is named in the log, and tried again by the sweep.
        let _ = self.reconcile(None);
        if self.names.settle(&mut self.state) {
            let _ = self.reconcile(None);
        }
        self.relay_or_warn();
    }

    fn drop_sandbox(&mut self, id: &ContainerId) {
        let Some(record) = self.state.sandboxes.remove(id) else { return };
        self.release(&record);
        if let Err(error) = self.settle(id) {
            tracing::warn!(container = %id, %error, "network of the container is not removed yet");
        }
    }

    pub(super) fn retain(&mut self, running: &[ContainerId]) -> Result<(), NetworkError> {
        let gone: Vec<_> =
            self.state.sandboxes.keys().filter(|id| !running.contains(id)).cloned().collect();
        for id in gone {
            self.drop_sandbox(&id);
        }
        self.save_sandboxes()
    }

    /// `--link` on the default bridge: lines for /etc/hosts.
    fn link_hosts(&self, record: &Record) -> Vec<(IpAddr, String)> {
        let mut lines = Vec::new();
        if names::uses_resolver(&self.state, record) {
            return lines;
        }
        for (name, alias) in &record.links {
            let other = self.state.sandboxes.values().find(|other| {
                other.state.container_name == *name || *other.state.container == **name
            });
            let Some(other) = other else { continue };
            let short: String = other.state.container.chars().take(12).collect();
            let words = if alias == name { short } else { format!("{short} {name}") };
            for cidr in other.endpoints.iter().flat_map(|one| &one.state.addresses) {
                lines.push((cidr.addr, format!("{alias} {words}")));
            }
        }
        lines
    }
}

/// What the manager allocated, with the subnet's prefix.
fn overlay_addresses(
    id: &model::NetworkId,
    overlay: &Overlay,
    given: &[Cidr],
) -> Result<Vec<Cidr>, NetworkError> {
    let with_prefix = |cidr: &Cidr| {
        let subnet = overlay.subnets.iter().find(|subnet| subnet.subnet.contains(cidr.addr));
        Cidr::new(cidr.addr, subnet.map_or(cidr.prefix, |subnet| subnet.subnet.prefix))
    };
    if given.is_empty() {
        return Err(internal(format!("network {id}: the manager has given no address")));
    }
    Ok(given.iter().map(with_prefix).collect())
}

fn free_ifname(record: &Record) -> String {
    let taken = |name: &str| {
        record.endpoints.iter().chain(&record.gateway).any(|one| one.state.ifname == name)
    };
    let mut names = (0..u16::MAX).map(|n| format!("eth{n}"));
    names.find(|name| !taken(name)).unwrap_or_default()
}

//! Published ports: which addresses of the host they take, and by which way they lead to the container.
//!
//! The kernel translates within a family. An IPv6 address that leads to a container with IPv4 only, and `::1`, are
//! relayed by the resolver process, which outlives the daemon as the translations do.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use model::ContainerId;
use netplan::PublishedPort;
use resolver::Relay;

use super::api::*;
use super::controller::{Controller, internal};
use super::ports::{Taken, every_address};
use super::state::{OPTION_HOST_BINDING, Record};

impl Controller {
    /// Leads the ports to the endpoint that is the way out now, and takes them from the host when that is the first.
    pub(super) fn publish(&mut self, record: &mut Record) -> Result<(), NetworkError> {
        let outward = record.endpoints.iter().chain(&record.gateway);
        let endpoint = outward.map(|one| &one.state).find(|one| !one.gateways.is_empty()).cloned();
        record.published.clear();
        record.relays.clear();
        // As Docker: on an internal network there is nobody to publish for.
        let Some(endpoint) = endpoint else { return Ok(()) };
        if record.state.ports.is_empty() {
            let mut wanted = record.wanted_ports.clone();
            // A port that is named must not be given away as a free one before.
            wanted.sort_by_key(|spec| spec.host_ports.0 == 0);
            for spec in wanted {
                if let Err(error) = self.take(record, &endpoint, &spec) {
                    self.release(record);
                    return Err(error);
                }
            }
        }
        for port in record.state.ports.clone() {
            self.lead(record, &endpoint, &port);
        }
        Ok(())
    }

    /// Takes one port of the host, on every address that it is to be reached at.
    fn take(
        &mut self,
        record: &mut Record,
        endpoint: &EndpointState,
        spec: &PortSpec,
    ) -> Result<(), NetworkError> {
        let relayed = self.config.userland_proxy && spec.proto != Proto::Sctp && has_ipv6();
        let reached = |v4: bool| of_family(endpoint, v4).is_some() || (!v4 && relayed);
        let host_ips = match spec.host_ip.or(self.default_host_ip(endpoint)) {
            Some(ip) => vec![ip],
            None => every_address(reached(true), reached(false)),
        };
        if let Some(ip) = host_ips.iter().find(|ip| !reached(ip.is_ipv4())) {
            let text = format!(
                "cannot publish {ip}:{}: the container has no address of that family",
                spec.port
            );
            return Err(NetworkError::new(NetworkErrorKind::Invalid, text));
        }
        let port = self.ports.take_one_of(spec.proto, &host_ips, spec.host_ports).map_err(
            |(ip, taken)| port_error(record, endpoint, spec.proto, ip, spec.host_ports.0, &taken),
        )?;
        for host_ip in host_ips {
            let (proto, host_port) = (spec.proto, port);
            if self.is_relayed(endpoint, proto, host_ip) {
                // The process that relays listens there itself.
                self.ports.let_go(proto, host_ip, port);
            }
            record.state.ports.push(PortState { proto, port: spec.port, host_ip, host_port });
        }
        Ok(())
    }

    /// By translation, by relay, or by both: no packet to `::1` leaves the host.
    fn lead(&self, record: &mut Record, endpoint: &EndpointState, port: &PortState) {
        let same = of_family(endpoint, port.host_ip.is_ipv4());
        if let Some(address) = same.filter(|_| port.host_ip != IpAddr::V6(Ipv6Addr::LOCALHOST)) {
            record.published.push(PublishedPort {
                proto: port.proto,
                host_ip: port.host_ip,
                host_port: port.host_port,
                address,
                port: port.port,
            });
        }
        let to = same.or(of_family(endpoint, true));
        if let Some(to) = to.filter(|_| self.is_relayed(endpoint, port.proto, port.host_ip)) {
            record.relays.push(Relay {
                udp: port.proto == Proto::Udp,
                listen: SocketAddr::new(port.host_ip, port.host_port),
                to: SocketAddr::new(to, port.port),
            });
        }
    }

    fn is_relayed(&self, endpoint: &EndpointState, proto: Proto, host_ip: IpAddr) -> bool {
        let other_family = of_family(endpoint, false).is_none();
        self.config.userland_proxy
            && proto != Proto::Sctp
            && host_ip.is_ipv6()
            && (other_family || host_ip.is_unspecified() || host_ip.is_loopback())
    }

    fn default_host_ip(&self, endpoint: &EndpointState) -> Option<IpAddr> {
        let network = self.state.networks.get(&endpoint.network_id)?;
        let text = network.options.get(OPTION_HOST_BINDING)?;
        text.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified())
    }

    pub(super) fn release(&mut self, record: &Record) {
        for port in &record.state.ports {
            self.ports.release(port.proto, port.host_ip, port.host_port);
        }
    }

    /// Tells the relaying process what it should carry; an error when one of this container's cannot be.
    pub(super) fn relay(&mut self, id: &ContainerId) -> Result<(), NetworkError> {
        let refused = self.names.relay(&self.relays())?;
        let Ok(record) = self.record(id) else { return Ok(()) };
        let own = refused.into_iter().find(|(relay, _)| record.relays.contains(relay));
        own.map_or(Ok(()), |(relay, reason)| {
            let proto = if relay.udp { Proto::Udp } else { Proto::Tcp };
            let family = if relay.listen.is_ipv4() { 4 } else { 6 };
            Err(internal(format!(
                "driver failed programming external connectivity on endpoint {}: Error starting userland proxy: listen {}{family} {}: bind: {reason}",
                record.state.container_name,
                proto.name(),
                relay.listen
            )))
        })
    }

    /// The same when nobody waits for an answer: what fails is tried again by the sweep.
    pub(super) fn relay_or_warn(&mut self) {
        match self.names.relay(&self.relays()) {
            Ok(refused) => {
                for (relay, reason) in refused {
                    tracing::warn!(listen = %relay.listen, to = %relay.to, reason, "port is not relayed");
                }
            }
            Err(error) => tracing::warn!(%error, "ports are not relayed"),
        }
    }

    fn relays(&self) -> BTreeSet<Relay> {
        self.state.sandboxes.values().flat_map(|record| record.relays.iter().copied()).collect()
    }
}

fn of_family(endpoint: &EndpointState, v4: bool) -> Option<IpAddr> {
    endpoint.addresses.iter().find(|cidr| cidr.is_v4() == v4).map(|cidr| cidr.addr)
}

/// Whether this namespace has IPv6 at all.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

/// Docker's sentences, which people search for.
fn port_error(
    record: &Record,
    endpoint: &EndpointState,
    proto: Proto,
    ip: IpAddr,
    port: u16,
    taken: &Taken,
) -> NetworkError {
    let head = format!(
        "driver failed programming external connectivity on endpoint {} ({})",
        record.state.container_name, endpoint.endpoint_id
    );
    let at = SocketAddr::new(ip, port);
    match taken {
        Taken::Allocated => {
            internal(format!("{head}: Bind for {at} failed: port is already allocated"))
        }
        Taken::InUse(errno) => {
            let family = if ip.is_ipv4() { 4 } else { 6 };
            let reason = std::io::Error::from(*errno).to_string();
            let reason = reason.split(" (os error").next().unwrap_or_default().to_lowercase();
            internal(format!(
                "{head}: Error starting userland proxy: listen {}{family} {at}: bind: {reason}",
                proto.name()
            ))
        }
    }
}

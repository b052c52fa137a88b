//! Networks and ports of a container: from Docker's objects to what the network controller takes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bollard_stubs::models::{EndpointSettings, PortBinding};

use super::container::Spec;
use super::create::CreateRequest;
use crate::Engine;
use crate::error::{Error, Result};
use crate::network::{Cidr, EndpointSpec, Mac, PortSpec, Proto, SandboxMode, SandboxSpec};

/// The endpoints by network, the one of `--network` always among them.
pub(crate) fn wanted(request: &CreateRequest) -> Result<BTreeMap<String, EndpointSettings>> {
    let mode = request.host_config.network_mode.clone().unwrap_or_else(|| "bridge".into());
    let given = request.networking.endpoints_config.clone().unwrap_or_default();
    if mode.starts_with("container:") {
        if !given.is_empty() {
            return Err(Error::bad_parameter(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
            ));
        }
        return Ok(BTreeMap::new());
    }
    let mut wanted: BTreeMap<String, EndpointSettings> = given
        .into_iter()
        .map(|(name, settings)| (if name == "default" { "bridge".into() } else { name }, settings))
        .collect();
    // A task of the swarm brings its own.
    if request.task.as_ref().is_none_or(|task| task.endpoints.is_empty()) {
        wanted.entry(mode.clone()).or_default();
    }
    if matches!(mode.as_str(), "host" | "none") && wanted.len() > 1 {
        return Err(Error::bad_parameter(format!(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes: {mode}"
        )));
    }
    for (name, settings) in &mut wanted {
        if *name == mode && settings.mac_address.as_deref().unwrap_or_default().is_empty() {
            settings.mac_address = None;
        }
        check_endpoint(name, settings)?;
    }
    Ok(wanted)
}

/// The first network that has a way out is the container's; which one that is cannot be asked for.
pub fn refuse_priority(network: &str, settings: &EndpointSettings) -> Result<()> {
    match settings.gw_priority {
        None | Some(0) => Ok(()),
        Some(number) => Err(Error::unsupported(format!(
            "gw-priority {number} for network {network}; leave it out"
        ))),
    }
}

fn check_endpoint(network: &str, settings: &EndpointSettings) -> Result<()> {
    refuse_priority(network, settings)?;
    let predefined = matches!(network, "bridge" | "host" | "none");
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    for (version, address) in [(4, &ipam.ipv4_address), (6, &ipam.ipv6_address)] {
        let address = address.as_deref().unwrap_or_default();
        if address.is_empty() {
            continue;
        }
        if address.parse::<IpAddr>().ok().is_none_or(|ip| ip.is_ipv4() != (version == 4)) {
            return Err(Error::bad_parameter(format!(
                "invalid config for network {network}: invalid endpoint settings:\ninvalid IPv{version} address: {address}"
            )));
        }
        if predefined {
            return Err(Error::bad_parameter(
                "invalid config for network bridge: invalid endpoint settings:\nuser specified IP address is supported on user defined networks only",
            ));
        }
    }
    if let Some(mac) = settings.mac_address.as_deref().filter(|mac| !mac.is_empty()) {
        parse_mac(mac)?;
    }
    Ok(())
}

pub(crate) fn parse_mac(text: &str) -> Result<Mac> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect();
    let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.map(Mac).ok_or_else(|| {
        Error::bad_parameter(format!("invalid MAC address: address {text}: invalid MAC address"))
    })
}

/// One endpoint as the controller takes it.
pub fn endpoint(
    network: &str,
    settings: &EndpointSettings,
    container_mac: Option<&str>,
) -> Result<EndpointSpec> {
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    let mut addresses = Vec::new();
    for address in [ipam.ipv4_address, ipam.ipv6_address].into_iter().flatten() {
        if address.is_empty() {
            continue;
        }
        let address: IpAddr = address
            .parse()
            .map_err(|_| Error::bad_parameter(format!("invalid IP address: {address}")))?;
        addresses.push(Cidr::host(address));
    }
    let mac = settings.mac_address.as_deref().filter(|mac| !mac.is_empty()).or(container_mac);
    Ok(EndpointSpec {
        network: network.to_owned(),
        addresses,
        mac: mac.map(parse_mac).transpose()?,
        aliases: settings.aliases.clone().unwrap_or_default(),
        links: links(settings.links.as_deref().unwrap_or_default()),
        driver_opts: settings.driver_opts.clone().unwrap_or_default().into_iter().collect(),
    })
}

/// `container:alias`, or the name for both.
fn links(texts: &[String]) -> Vec<(String, String)> {
    texts
        .iter()
        .map(|text| {
            let (name, alias) = text.split_once(':').unwrap_or((text, text));
            (
                name.trim_start_matches('/').to_owned(),
                alias.rsplit('/').next().unwrap_or(alias).to_owned(),
            )
        })
        .collect()
}

impl Engine {
    /// What a starting container wants of the network.
    pub(super) fn sandbox_spec(&self, spec: &Spec) -> Result<SandboxSpec> {
        let host = &spec.host_config;
        let mode_text = host.network_mode.as_deref().unwrap_or("bridge");
        let mode = match mode_text {
            "host" => SandboxMode::Host,
            text => match text.strip_prefix("container:") {
                Some(other) => SandboxMode::Container(self.joined(other)?),
                None => SandboxMode::Own,
            },
        };
        let ports = match mode {
            SandboxMode::Own if mode_text != "none" => ports(spec)?,
            _ => Vec::new(),
        };
        Ok(SandboxSpec {
            container: spec.id.clone(),
            container_name: spec.name.clone(),
            endpoints: match mode {
                SandboxMode::Own => sandbox_endpoints(spec, &self.known_network(mode_text))?,
                _ => Vec::new(),
            },
            mode,
            ports,
            ingress: spec.task.as_ref().map(|task| task.ingress.clone()).unwrap_or_default(),
            dns: parse_dns(host.dns.as_deref(), &self.config().dns)?,
            dns_search: or_default(&host.dns_search, &self.config().dns_search),
            dns_options: or_default(&host.dns_options, &self.config().dns_opts),
            links: links(host.links.as_deref().unwrap_or_default()),
        })
    }

    /// The container whose namespace `container:X` names: it has to run.
    fn joined(&self, other: &str) -> Result<model::ContainerId> {
        let other = self.container(other)?;
        if !other.is_running() {
            return Err(Error::conflict(format!(
                "cannot join network of a non running container: {}",
                other.id()
            )));
        }
        Ok(other.id().clone())
    }
}

fn or_default(own: &Option<Vec<String>>, daemon: &[String]) -> Vec<String> {
    own.clone().filter(|own| !own.is_empty()).unwrap_or_else(|| daemon.to_vec())
}

fn parse_dns(own: Option<&[String]>, daemon: &[String]) -> Result<Vec<IpAddr>> {
    let texts = own.filter(|own| !own.is_empty()).unwrap_or(daemon);
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|_| {
                Error::bad_parameter(format!("invalid IP address for nameserver: {text}"))
            })
        })
        .collect()
}

/// Those of the task, then the one of `--network`, then the others.
fn sandbox_endpoints(spec: &Spec, first: &str) -> Result<Vec<EndpointSpec>> {
    let mut endpoints: Vec<EndpointSpec> = spec
        .task
        .iter()
        .flat_map(|task| &task.endpoints)
        .map(|endpoint| EndpointSpec {
            network: endpoint.network.clone(),
            addresses: endpoint.addresses.clone(),
            mac: endpoint.mac,
            aliases: endpoint.aliases.clone(),
            links: Vec::new(),
            driver_opts: endpoint.driver_opts.clone(),
        })
        .collect();
    let (before, others): (Vec<_>, Vec<_>) =
        spec.networks.iter().partition(|(name, _)| *name == first);
    for (name, settings) in before.into_iter().chain(others).filter(|(name, _)| *name != "none") {
        endpoints.push(endpoint(name, settings, None)?);
    }
    Ok(endpoints)
}

/// `80/tcp`, `53/udp`, `80`.
pub fn parse_port(text: &str) -> Result<(u16, Proto)> {
    let (port, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let proto = match proto.to_ascii_lowercase().as_str() {
        "tcp" => Proto::Tcp,
        "udp" => Proto::Udp,
        "sctp" => Proto::Sctp,
        _ => return Err(Error::bad_parameter(format!("invalid proto: {proto}"))),
    };
    let port = port
        .parse()
        .map_err(|_| Error::bad_parameter(format!("invalid port specification: \"{text}\"")))?;
    Ok((port, proto))
}

/// Every published port: bindings as given, and with `-P` one for each exposed port.
fn ports(spec: &Spec) -> Result<Vec<PortSpec>> {
    let host = &spec.host_config;
    let mut ports = Vec::new();
    let bindings: BTreeMap<&String, &Option<Vec<PortBinding>>> =
        host.port_bindings.iter().flatten().collect();
    for (text, bindings) in &bindings {
        let (port, proto) = parse_port(text)?;
        for binding in bindings.iter().flatten() {
            ports.push(PortSpec {
                proto,
                port,
                host_ip: host_ip(binding)?,
                host_ports: host_ports(binding.host_port.as_deref().unwrap_or_default())?,
            });
        }
    }
    if host.publish_all_ports.unwrap_or_default() {
        for text in spec.config.exposed_ports.iter().flatten() {
            if bindings.get(text).is_some_and(|list| list.iter().flatten().next().is_some()) {
                continue;
            }
            let (port, proto) = parse_port(text)?;
            ports.push(PortSpec { proto, port, host_ip: None, host_ports: (0, 0) });
        }
    }
    ports.sort_by_key(|port| (port.port, port.proto, port.host_ports));
    Ok(ports)
}

fn host_ip(binding: &PortBinding) -> Result<Option<IpAddr>> {
    match binding.host_ip.as_deref().unwrap_or_default() {
        "" => Ok(None),
        text => text.trim_matches(['[', ']']).parse().map(Some).map_err(|_| {
            Error::bad_parameter(format!("invalid port binding: invalid host IP address: {text}"))
        }),
    }
}

fn host_ports(text: &str) -> Result<(u16, u16)> {
    let invalid = || Error::bad_parameter(format!("invalid port specification: \"{text}\""));
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: u16 = first.parse().map_err(|_| invalid())?;
    let last: u16 = last.parse().map_err(|_| invalid())?;
    if last < first {
        return Err(invalid());
    }
    Ok((first, last))
}

/// Refuses malformed ports at create, before anything exists.
pub(crate) fn check_ports(request: &CreateRequest) -> Result<()> {
    for text in request.config.exposed_ports.iter().flatten() {
        parse_port(text)?;
    }
    for (text, bindings) in request.host_config.port_bindings.iter().flatten() {
        parse_port(text)?;
        for binding in bindings.iter().flatten() {
            host_ip(binding)?;
            host_ports(binding.host_port.as_deref().unwrap_or_default())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_all_forms() {
        assert_eq!(parse_port("80").expect("a port"), (80, Proto::Tcp));
        assert_eq!(parse_port("53/UDP").expect("a port"), (53, Proto::Udp));
        assert!(parse_port("x/tcp").is_err() && parse_port("80/ip").is_err());
        assert_eq!(host_ports("8000-8010").expect("a range"), (8000, 8010));
        assert!(host_ports("9-8").is_err() && host_ports("70000").is_err());
    }

    #[test]
    fn a_mac_address_is_six_bytes() {
        assert_eq!(parse_mac("02:42:0a:00:00:01").expect("an address").0, [2, 0x42, 10, 0, 0, 1]);
        assert!(parse_mac("02:42:0a:00:00").is_err() && parse_mac("nonsense").is_err());
    }
}

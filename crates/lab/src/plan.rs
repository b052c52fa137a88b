//! What a lab should look like.

use std::path::PathBuf;

/// The engine that a host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Skep,
    /// A real Docker Engine, from the `dockerd` on PATH.
    Dockerd,
}

/// What to build: addresses are those of the user's document, 192.168.68.109 and up.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One engine per host, in order.
    pub engines: Vec<Engine>,
    /// Hosts on different subnets behind the router rather than on one switch.
    pub routed: bool,
    /// Hosts also have IPv6 addresses (fd00:68::/64, or one /64 each when routed).
    pub ipv6: bool,
    /// MTU of the hosts' cables.
    pub uplink_mtu: u32,
    /// The skep binary.
    pub skep: PathBuf,
    /// The `lab` binary, which serves as init, DNS responder and guard.
    pub lab: PathBuf,
    /// Extra arguments of every skep daemon.
    pub daemon_args: Vec<String>,
}

impl Plan {
    /// `hosts` hosts with skep, the binaries taken from beside the running one.
    pub fn skep(hosts: usize) -> anyhow::Result<Plan> {
        let folder = binaries()?;
        Ok(Plan {
            engines: vec![Engine::Skep; hosts],
            routed: false,
            ipv6: false,
            uplink_mtu: 1500,
            skep: std::env::var_os("SKEP_BIN").map_or(folder.join("skep"), PathBuf::from),
            lab: folder.join("lab"),
            daemon_args: Vec::new(),
        })
    }

    /// The IPv4 address of host `number`, counted from 1.
    pub fn address(&self, number: usize) -> String {
        if self.routed {
            format!("192.168.{}.109", 67 + number)
        } else {
            format!("192.168.68.{}", 108 + number)
        }
    }

    /// The router's IPv4 address as host `number` sees it.
    pub fn gateway(&self, number: usize) -> String {
        if self.routed { format!("192.168.{}.1", 67 + number) } else { "192.168.68.1".into() }
    }

    /// The IPv6 address of host `number`.
    pub fn address6(&self, number: usize) -> String {
        if self.routed {
            format!("fd00:{}::109", 67 + number)
        } else {
            format!("fd00:68::{}", 108 + number)
        }
    }

    /// The router's IPv6 address as host `number` sees it.
    pub fn gateway6(&self, number: usize) -> String {
        if self.routed { format!("fd00:{}::1", 67 + number) } else { "fd00:68::1".into() }
    }
}

/// The folder of the workspace's binaries: tests run one level below it, in `deps`.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut folder = own.parent().map(PathBuf::from).unwrap_or_default();
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_hosts_have_the_documents_addresses() {
        let plan = Plan::skep(2).expect("a binary folder");
        assert_eq!(
            (plan.address(1), plan.address(2)),
            ("192.168.68.109".into(), "192.168.68.110".into())
        );
    }

    #[test]
    fn routed_hosts_have_a_subnet_each() {
        let plan = Plan { routed: true, ..Plan::skep(2).expect("a binary folder") };
        assert_eq!(
            (plan.address(2), plan.gateway(2)),
            ("192.168.69.109".into(), "192.168.69.1".into())
        );
    }
}

//! What others have on the host that stands in the way of its networks, in words that say what to do.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use netlink::Failure;
use netplan::{LinkKind, Namespace, Step};

use super::api::*;
use super::controller::Controller;
use super::neighbours;
use super::state::ifname;

/// Of the steps that fail, causes come before what follows from them.
const FAILING_SHOWN: usize = 3;

impl Controller {
    /// For whoever asks this host how it is.
    pub(super) fn note_failing(&mut self, failures: &[Failure]) {
        let failing = failures.iter().take(FAILING_SHOWN);
        self.state.failing = failing.map(|failure| self.in_words(failure)).collect();
    }

    /// The kernel's words, where they say enough.
    pub(super) fn in_words(&mut self, failure: &Failure) -> String {
        let Step::AddLink(Namespace::Overlay(id), _, link, _) = &failure.step else {
            return failure.to_string();
        };
        let LinkKind::Vxlan { vni, port, .. } = link.kind else { return failure.to_string() };
        match failure.source.kind() {
            ErrorKind::AlreadyExists => {
                let holder = self.kernel.segment_link(vni, port).ok().flatten();
                let holder = holder.map_or("something else".to_owned(), |it| format!("link {it}"));
                let name = self.state.overlays.names.get(id).map_or(&**id, String::as_str);
                format!(
                    "VXLAN id {vni} of network {name} is taken by {holder} on this host: remove that, or make the network with another id (--opt com.docker.network.driver.overlay.vxlanid_list)"
                )
            }
            ErrorKind::AddrInUse => format!(
                "UDP port {port}, which overlay networks use, is taken by another process on this host: end it, or begin the swarm with another --data-path-port"
            ),
            _ => failure.to_string(),
        }
    }

    /// What is said in `docker info` for as long as it is so.
    pub(super) fn look_for_obstacles(&mut self) {
        let mut obstacles = BTreeSet::new();
        if !self.state.overlays.overlays.is_empty() {
            obstacles.extend(neighbours::make_room(Path::new("/proc/sys/net")));
        }
        if let Some(address) = self.state.lost_address {
            obstacles.insert(format!(
                "address {address}, at which the other nodes reach this one, is on no link of this host: give it back, or have the node leave the swarm and join it again"
            ));
        }
        match self.kernel.closed() {
            Ok(closed) => {
                for bridge in self.forwarding_bridges() {
                    let shut = closed.iter().filter(|chain| !chain.knows(&bridge));
                    obstacles.extend(shut.map(|closed| shut_words(&closed.chain, &bridge)));
                }
            }
            Err(error) => tracing::warn!(%error, "filters of the host cannot be read"),
        }
        for new in obstacles.difference(&self.state.obstacles) {
            tracing::warn!("{new}");
        }
        self.state.obstacles = obstacles;
    }

    /// Bridges by which somebody on this host is reached, or reaches others.
    fn forwarding_bridges(&self) -> BTreeSet<String> {
        let mesh = self.state.ingress_gateway.is_some();
        let used = |network: &&LocalNetwork| {
            let mut records = self.state.sandboxes.values();
            let on = |id| id == &network.id;
            records.any(|record| {
                let mut all = record.endpoints.iter().chain(&record.gateway);
                all.any(|endpoint| on(&endpoint.state.network_id))
            }) || (mesh && network.name == GATEWAY_BRIDGE)
        };
        let bridges =
            self.state.networks.values().filter(|network| network.driver == Driver::Bridge);
        bridges.filter(|network| !network.internal).filter(used).map(ifname).collect()
    }
}

fn shut_words(chain: &str, bridge: &str) -> String {
    format!(
        "firewall chain {chain} drops what is forwarded and has no rule for {bridge}: published ports and the way out of containers fail there; accept it (nft insert rule {chain} iifname {bridge} accept; nft insert rule {chain} oifname {bridge} accept)"
    )
}

//! The swarm's part: overlays come as a whole, the ingress namespace follows from them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::api::*;
use super::controller::{Controller, internal};
use super::ipam;

/// Where a published port is held on this host.
fn every(ipv6: bool) -> Vec<IpAddr> {
    super::ports::every_address(true, ipv6)
}

impl Controller {
    pub(super) fn set_overlays(&mut self, wanted: OverlayState) -> Result<(), NetworkError> {
        if wanted == self.state.overlays {
            return Ok(());
        }
        self.state.overlays = wanted;
        self.save_overlays()?;
        self.look_at_host();
        self.hold_mesh_ports();
        self.look_for_shadows();
        let gateway = self.ingress_gateway();
        let applied = self.reconcile(None);
        if self.names.settle(&mut self.state) {
            self.reconcile(None)?;
        }
        gateway.and(applied)
    }

    /// Published ports of services are taken on every node. One that another process has is
    /// translated all the same, named to who asks, and taken when the other lets go of it.
    pub(super) fn hold_mesh_ports(&mut self) {
        let now = mesh_ports(&self.state.overlays);
        let gone: Vec<_> = self.mesh_held.difference(&now).copied().collect();
        for (proto, port) in gone {
            self.mesh_held.remove(&(proto, port));
            for address in every(true) {
                self.ports.release(proto, address, port);
            }
        }
        let every = every(self.state.host.ipv6);
        let mut taken = BTreeSet::new();
        for (proto, port) in now {
            if self.mesh_held.contains(&(proto, port)) {
                continue;
            }
            let set = match self.ports.take(proto, &every, port) {
                Ok(()) => &mut self.mesh_held,
                Err(_) => &mut taken,
            };
            set.insert((proto, port));
        }
        for (proto, port) in taken.difference(&self.state.mesh_taken) {
            tracing::warn!(port, proto = proto.name(), "published port is something else's here");
        }
        self.state.mesh_taken = taken;
    }

    /// Networks that the host reaches and a container on an overlay does not, since the overlay
    /// has their addresses.
    pub(super) fn look_for_shadows(&mut self) {
        let host = &self.state.host_networks;
        let overlays = &self.state.overlays;
        let mut shadowed = BTreeSet::new();
        for (id, overlay) in &overlays.overlays {
            let name = overlays.names.get(id).map_or(&**id, String::as_str);
            for subnet in overlay.subnets.iter().map(|subnet| subnet.subnet) {
                let hidden = host.iter().filter(|other| other.overlaps(&subnet));
                shadowed.extend(hidden.map(|other| {
                    format!("subnet {subnet} of network {name} hides {other}, which this host reaches, from the containers on it")
                }));
            }
        }
        for new in shadowed.difference(&self.state.shadowed) {
            tracing::warn!("{new}");
        }
        self.state.shadowed = shadowed;
    }

    /// The ingress namespace needs an address on `docker_gwbridge`, and keeps it.
    fn ingress_gateway(&mut self) -> Result<(), NetworkError> {
        let overlays = &self.state.overlays;
        let ingress = overlays.overlays.values().any(|overlay| overlay.ingress.is_some());
        if !ingress && !overlays.in_swarm {
            if self.state.ingress_gateway.take().is_some() {
                self.save_networks()?;
            }
            return Ok(());
        }
        let network = self.gateway_bridge()?;
        if !ingress || self.state.ingress_gateway.is_some() {
            return Ok(());
        }
        let used = self.state.addresses_on(&network);
        let free = network.pools.iter().find_map(|pool| ipam::free_address(pool, &used));
        self.state.ingress_gateway = Some(free.ok_or_else(|| {
            internal(format!("no available IPv4 addresses on network {}", network.name))
        })?);
        self.save_networks()
    }
}

fn mesh_ports(state: &OverlayState) -> BTreeSet<(Proto, u16)> {
    let ingress = state.overlays.values().filter_map(|overlay| overlay.ingress.as_ref());
    ingress.flat_map(|ingress| &ingress.ports).map(|port| (port.proto, port.published)).collect()
}

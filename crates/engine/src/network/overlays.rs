//! The swarm's part: overlays come as a whole, the ingress namespace follows from them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::api::*;
use super::controller::{Controller, internal};
use super::ipam;

const EVERY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Controller {
    pub(super) fn set_overlays(&mut self, wanted: OverlayState) -> Result<(), NetworkError> {
        if wanted == self.state.overlays {
            return Ok(());
        }
        let before = mesh_ports(&self.state.overlays);
        self.state.overlays = wanted;
        self.save_overlays()?;
        self.look_at_host();
        let held = self.hold_mesh_ports(&before);
        let gateway = self.ingress_gateway();
        let applied = self.reconcile(None);
        if self.names.settle(&mut self.state) {
            self.reconcile(None)?;
        }
        held.and(gateway).and(applied)
    }

    /// Published ports of services are taken on every node. One that another process has is
    /// translated all the same, and named.
    fn hold_mesh_ports(&mut self, before: &BTreeSet<(Proto, u16)>) -> Result<(), NetworkError> {
        let now = mesh_ports(&self.state.overlays);
        for (proto, port) in before.difference(&now) {
            self.ports.release(*proto, EVERY, *port);
        }
        let mut taken = Vec::new();
        for (proto, port) in now.difference(before) {
            if self.ports.take(*proto, &[EVERY], *port).is_err() {
                taken.push(format!("{port}/{}", proto.name()));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        Err(internal(format!(
            "published ports in use on this node by something else: {}",
            taken.join(", ")
        )))
    }

    pub(super) fn adopt_mesh_ports(&mut self) {
        for (proto, port) in mesh_ports(&self.state.overlays) {
            self.ports.adopt(proto, EVERY, port);
        }
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

//! The namespace of an overlay: for each IPv4 subnet a bridge with the gateway and a VXLAN device, or
//! with IPv6 one bridge for all of these.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::NetworkId;

use super::{bridge_link, loopback, mesh6, outer_end};
use crate::addr::{Cidr, Mac};
use crate::objects::{BridgePort, LinkKind, LinkObject, Namespace, Objects};
use crate::view::{Host, Link, Overlay, OverlaySubnet, View};

// Outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348 section 5); IPv6 is 20 longer.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// Kernel documentation, networking/ip-sysctl.rst, "/proc/sys/net/bridge/*".
const BRIDGE_HOOKS: [&str; 2] =
    ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
/// Source ports of the outer packets, one for each inner flow by chance (RFC 7348, section 5). Of the kernel's own
/// 28,000 each new connection would be another flow for every firewall on the way, and for this host's: 4,000 a
/// second fill its table. A thousand still spread flows over all queues and paths.
const SOURCE_PORTS: (&str, &str) = ("net/ipv4/ip_local_port_range", "49152\t50175");
/// The least an IPv6 link may have; IPv4 works too.
const MTU_MIN: u32 = 1280;

/// The network's own MTU, or what the uplink leaves.
pub fn mtu(host: &Host, overlay: &Overlay) -> u32 {
    if overlay.mtu != 0 {
        return overlay.mtu;
    }
    let overhead = match host.data_path {
        Some(IpAddr::V6(_)) => OVERHEAD_V6,
        _ => OVERHEAD_V4,
    };
    let left = host.uplink_mtu.saturating_sub(overhead);
    if has_v6(overlay) {
        // Below its least there is no IPv6; then the outer packets are what is fragmented.
        return left.max(MTU_MIN);
    }
    if left < MTU_MIN.saturating_sub(OVERHEAD_V6) { MTU_MIN } else { left }
}

/// Can this host carry it: there is a data path and a segment.
pub(super) fn carried(host: &Host, overlay: &Overlay) -> bool {
    host.data_path.is_some() && !overlay.subnets.is_empty()
}

/// Which subnet's segment an address is on.
fn segment(overlay: &Overlay, addr: IpAddr) -> usize {
    let own = segments(overlay).position(|(_, subnet)| subnet.subnet.contains(addr));
    own.unwrap_or(0)
}

/// Which segment each remote endpoint is on, by its link: the one of its IPv4 address.
fn segments_of_peers(overlay: &Overlay) -> BTreeMap<Mac, usize> {
    let v4 = overlay.peers.iter().filter(|(addr, _)| addr.is_ipv4());
    v4.map(|(addr, peer)| (peer.mac, segment(overlay, *addr))).collect()
}

fn segments(overlay: &Overlay) -> impl Iterator<Item = (usize, &OverlaySubnet)> {
    let v4 = overlay.subnets.iter().any(|subnet| subnet.subnet.is_v4());
    overlay.subnets.iter().filter(move |subnet| subnet.subnet.is_v4() == v4).enumerate()
}

fn has_v6(overlay: &Overlay) -> bool {
    overlay.subnets.iter().any(|subnet| !subnet.subnet.is_v4())
}

/// A subnet of IPv6 is no segment of its own: whoever has an address in it is on the segment of its
/// IPv4 address. So that it is one link all the same, its network's segments share a bridge.
fn bridge_name(overlay: &Overlay, segment: usize) -> String {
    format!("br{}", if has_v6(overlay) { 0 } else { segment })
}

/// Of several segments.
fn share_a_bridge(overlay: &Overlay) -> bool {
    has_v6(overlay) && segments(overlay).count() > 1
}

fn vxlan_name(segment: usize) -> String {
    format!("vxlan{segment}")
}

/// The segment of a link: that of its first address.
fn link_segment(overlay: &Overlay, link: &Link) -> usize {
    let v4 = link.addresses.iter().find(|cidr| cidr.is_v4());
    v4.or(link.addresses.first()).map_or(0, |cidr| segment(overlay, cidr.addr))
}

/// None while no sandbox of this host is on it.
pub(super) fn objects(view: &View, id: &NetworkId, overlay: &Overlay) -> Option<Objects> {
    let local = view.host.data_path.filter(|_| carried(&view.host, overlay))?;
    let mut objects = Objects::default();
    for (sandbox, link) in links(view, id) {
        let master = bridge_name(overlay, link_segment(overlay, link));
        let inside = Namespace::Sandbox(sandbox.clone());
        let end = outer_end(inside, link, mtu(&view.host, overlay), master, BridgePort::default());
        objects.links.insert(link.peer.clone(), end);
    }
    if objects.links.is_empty() {
        return None;
    }
    objects.links.insert("lo".to_owned(), loopback());
    for (n, subnet) in segments(overlay) {
        add_segment(&mut objects, view, overlay, n, subnet, local);
    }
    for subnet in &overlay.subnets {
        if let Some(gateway) = subnet.gateway {
            let bridge = bridge_name(overlay, segment(overlay, subnet.subnet.addr));
            objects.addresses.insert((bridge, Cidr::new(gateway, subnet.subnet.prefix)));
        }
    }
    let places = segments_of_peers(overlay);
    for (addr, peer) in &overlay.peers {
        let place = places.get(&peer.mac).copied().filter(|_| addr.is_ipv6());
        let place = place.unwrap_or_else(|| segment(overlay, *addr));
        let device = vxlan_name(place);
        objects.neighbours.insert((device.clone(), *addr), peer.mac);
        for (n, _) in segments(overlay).filter(|(n, _)| *n == place || has_v6(overlay)) {
            // On a bridge of several the answer goes by the segment that the question came by.
            objects.fdb.insert((vxlan_name(n), peer.mac), peer.vtep);
        }
        if let Some(twin) = mesh6::twin(*addr).filter(|_| mesh6::carried(&view.host, overlay)) {
            objects.neighbours.insert((device, twin), peer.mac);
        }
    }
    objects.sysctls.insert(SOURCE_PORTS.0.to_owned(), SOURCE_PORTS.1.to_owned());
    // Between the subnets of one network this namespace is the router, also where they share a bridge:
    // who is told to go there himself is heard by nobody.
    objects.sysctls.insert("net/ipv4/ip_forward".to_owned(), "1".to_owned());
    if share_a_bridge(overlay) {
        for of in ["all", "br0"] {
            let path = format!("net/ipv4/conf/{of}/send_redirects");
            objects.sysctls.insert(path, "0".to_owned());
        }
    }
    if overlay.subnets.iter().filter(|subnet| !subnet.subnet.is_v4()).count() > 1 {
        objects.sysctls.insert("net/ipv6/conf/all/forwarding".to_owned(), "1".to_owned());
    }
    // No rule of ours looks at bridged packets here, and each costs its way through the hooks.
    for switch in BRIDGE_HOOKS.iter().filter(|_| view.host.bridge_hooks) {
        objects.sysctls.insert((*switch).to_owned(), "0".to_owned());
    }
    Some(objects)
}

fn add_segment(
    objects: &mut Objects,
    view: &View,
    overlay: &Overlay,
    n: usize,
    subnet: &OverlaySubnet,
    local: IpAddr,
) {
    let mtu = mtu(&view.host, overlay);
    let mac = subnet.gateway.map(Mac::for_ip);
    let bridge = bridge_name(overlay, n);
    let link = || bridge_link(mac, mtu, has_v6(overlay));
    objects.links.entry(bridge.clone()).or_insert_with(link);
    objects.links.insert(
        vxlan_name(n),
        LinkObject {
            kind: LinkKind::Vxlan { vni: subnet.vni, local, port: view.host.vxlan_port },
            mac: None,
            mtu,
            master: Some(bridge),
            // No frame goes on to another host: two that each take a link for the other's would send it round.
            port: BridgePort { isolated: share_a_bridge(overlay), ..BridgePort::default() },
            up: true,
            link_local: false,
        },
    );
}

fn links<'a>(
    view: &'a View,
    id: &'a NetworkId,
) -> impl Iterator<Item = (&'a crate::view::SandboxId, &'a Link)> {
    view.sandboxes.iter().flat_map(move |(sandbox, content)| {
        content
            .links
            .iter()
            .filter(move |link| link.network == *id)
            .map(move |link| (sandbox, link))
    })
}

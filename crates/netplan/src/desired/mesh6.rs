//! The routing mesh over IPv6: a cable of its own from the host to the ingress namespace, and on the
//! ingress network an IPv6 address for every IPv4 one. Nobody allocates or announces those: they
//! follow from the IPv4 ones, so that the managers and the Docker Engine need not know of them.

use std::net::{IpAddr, Ipv6Addr};

use super::{any, overlay};
use crate::addr::{Cidr, Mac};
use crate::objects::{
    BridgePort, LinkKind, LinkObject, Namespace, Objects, Route, TABLE_LOCAL, TABLE_MAIN,
};
use crate::view::{Host, Link, Overlay, SandboxId, View};

/// The least MTU of a link with IPv6 (RFC 8200 section 5).
const MTU_MIN: u32 = 1280;
/// A prefix of RFC 4193, drawn once; it never leaves the host and the overlay.
const PREFIX: [u16; 3] = [0xfd9b, 0x5f2e, 0x71c4];
/// The host's end of the cable. Not a bridge: where bridged packets pass the table, an answer to
/// ::1 would be translated back before the kernel looks at it, and be dropped.
pub const CABLE: &str = "vethingr2";
const CABLE_INSIDE: &str = "eth2";

const fn prefixed(subnet: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(PREFIX[0], PREFIX[1], PREFIX[2], subnet, 0, 0, 0, last)
}

const HOST_END: IpAddr = IpAddr::V6(prefixed(0, 1));
/// Where the host leads published ports to.
pub const INNER_END: IpAddr = IpAddr::V6(prefixed(0, 2));
pub const LOOPBACK: Cidr = Cidr { addr: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 };

/// The ingress network's links can carry IPv6 on this host.
pub fn carried(host: &Host, overlay: &Overlay) -> bool {
    host.ipv6
        && overlay.ingress.is_some()
        && overlay::carried(host, overlay)
        && overlay::mtu(host, overlay) >= MTU_MIN
}

/// The mesh's IPv6 side stands on this host.
pub fn stands(view: &View) -> bool {
    view.sandboxes.contains_key(&SandboxId::ingress())
        && view.overlays.values().any(|overlay| carried(&view.host, overlay))
}

/// The IPv6 address on the ingress network that goes with an IPv4 one.
pub fn twin(addr: IpAddr) -> Option<IpAddr> {
    let IpAddr::V4(v4) = addr else { return None };
    let [a, b, c, d] = v4.octets();
    let mut segments = prefixed(1, 0).segments();
    (segments[6], segments[7]) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(IpAddr::V6(segments.into()))
}

/// The addresses that a link on the ingress network has besides its own.
pub fn twins(view: &View, link: &Link) -> Vec<Cidr> {
    const EMBEDDED: u8 = 96;
    let overlay = view.overlays.get(&link.network);
    if !overlay.is_some_and(|overlay| carried(&view.host, overlay)) {
        return Vec::new();
    }
    let twins = link.addresses.iter().filter_map(|cidr| twin(cidr.addr));
    twins.map(|addr| Cidr::new(addr, EMBEDDED)).collect()
}

fn end(kind: LinkKind, mac: IpAddr, mtu: u32) -> LinkObject {
    LinkObject {
        kind,
        mac: Some(Mac::for_ip(mac)),
        mtu,
        master: None,
        port: BridgePort::default(),
        up: true,
        link_local: true,
    }
}

fn cable_end(objects: &mut Objects, name: &str, addr: IpAddr) {
    objects.addresses.insert((name.to_owned(), Cidr::new(addr, 126)));
}

/// On the host's side.
pub fn add_host_end(view: &View, objects: &mut Objects) {
    let peer_namespace = Namespace::Sandbox(SandboxId::ingress());
    let kind = LinkKind::Veth { peer_namespace, peer: CABLE_INSIDE.to_owned() };
    objects.links.insert(CABLE.to_owned(), end(kind, HOST_END, view.host.uplink_mtu));
    cable_end(objects, CABLE, HOST_END);
    // An answer to ::1 counts as local only where a route says so of its link: IPv6 has no
    // route_localnet. The loopback's own route is of a lower metric and stays the first.
    objects.routes.insert(Route {
        table: TABLE_LOCAL,
        dst: LOOPBACK,
        via: None,
        dev: CABLE.to_owned(),
    });
}

/// In the ingress namespace.
pub fn add_inner_end(view: &View, objects: &mut Objects) {
    objects
        .links
        .insert(CABLE_INSIDE.to_owned(), end(LinkKind::VethPeer, INNER_END, view.host.uplink_mtu));
    cable_end(objects, CABLE_INSIDE, INNER_END);
    objects.routes.insert(Route {
        table: TABLE_MAIN,
        dst: any(false),
        via: Some(HOST_END),
        dev: CABLE_INSIDE.to_owned(),
    });
    objects.sysctls.insert("net/ipv6/conf/all/forwarding".to_owned(), "1".to_owned());
}

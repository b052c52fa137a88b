//! rtnetlink: links, addresses, neighbours, forwarding entries, routes and rules, both ways.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netplan::{BridgePort, Cidr, LinkKind, LinkObject, Mac, Route, Rule};

use crate::message::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Received};

/// Written into the group of links and the protocol of routes and rules: they are skep's.
pub const OWNER_GROUP: u32 = u32::from_be_bytes(*b"skep");
pub const OWNER_PROTOCOL: u8 = 0x5b;

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_SETLINK: u16 = 19;
pub const RTM_NEWADDR: u16 = 20;
pub const RTM_DELADDR: u16 = 21;
pub const RTM_GETADDR: u16 = 22;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_DELROUTE: u16 = 25;
pub const RTM_GETROUTE: u16 = 26;
pub const RTM_NEWNEIGH: u16 = 28;
pub const RTM_DELNEIGH: u16 = 29;
pub const RTM_GETNEIGH: u16 = 30;
pub const RTM_NEWRULE: u16 = 32;
pub const RTM_DELRULE: u16 = 33;
pub const RTM_GETRULE: u16 = 34;

const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
const ARPHRD_LOOPBACK: u16 = 772;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const BRPORT_MODE: u16 = 4;
const BRPORT_ISOLATED: u16 = 33;
const INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;

pub fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn link_header(family: u8, index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&change.to_ne_bytes());
    body
}

/// The other end of a pair: the namespace it is born in and what it is.
pub struct PeerEnd<'a> {
    pub namespace: BorrowedFd<'a>,
    pub name: &'a str,
    pub link: Option<&'a LinkObject>,
}

/// One message makes a bridge, a VXLAN device in `namespace`, or both ends of a pair.
pub fn add_link(
    name: &str,
    link: &LinkObject,
    master: Option<u32>,
    namespace: Option<BorrowedFd<'_>>,
    peer: Option<PeerEnd<'_>>,
) -> Message {
    let flags = if link.up { IFF_UP } else { 0 };
    let mut message =
        Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL).body(&link_header(0, 0, flags, flags));
    message.put_str(IFLA_IFNAME, name);
    let mut born = link.clone();
    if link.kind == LinkKind::Bridge {
        // A bridge's MTU follows its ports' unless it was set after the bridge was made.
        born.mtu = 0;
    }
    link_attributes(&mut message, &born, master);
    if let Some(namespace) = namespace {
        message.put_u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
    }
    message.begin(IFLA_LINKINFO);
    match &link.kind {
        LinkKind::Bridge => message.put_str(INFO_KIND, "bridge"),
        LinkKind::Vxlan { vni, local, port } => {
            message.put_str(INFO_KIND, "vxlan");
            vxlan_data(&mut message, *vni, *local, *port);
        }
        LinkKind::Veth { .. } | LinkKind::VethPeer => {
            message.put_str(INFO_KIND, "veth");
            if let Some(peer) = peer {
                peer_data(&mut message, peer);
            }
        }
        LinkKind::Other(kind) => message.put_str(INFO_KIND, kind),
    }
    message.end();
    message
}

fn link_attributes(message: &mut Message, link: &LinkObject, master: Option<u32>) {
    if let Some(mac) = link.mac {
        message.put(IFLA_ADDRESS, &mac.0);
    }
    if link.mtu != 0 {
        message.put_u32(IFLA_MTU, link.mtu);
    }
    message.put_u32(IFLA_GROUP, OWNER_GROUP);
    if let Some(master) = master {
        message.put_u32(IFLA_MASTER, master);
    }
}

fn vxlan_data(message: &mut Message, vni: u32, local: IpAddr, port: u16) {
    const ID: u16 = 1;
    const LOCAL: u16 = 4;
    const LEARNING: u16 = 7;
    const PROXY: u16 = 11;
    const PORT: u16 = 15;
    const LOCAL6: u16 = 17;
    message.begin(INFO_DATA);
    message.put_u32(ID, vni);
    message.put_ip(if local.is_ipv4() { LOCAL } else { LOCAL6 }, local);
    message.put_u8(LEARNING, 0);
    message.put_u8(PROXY, 1);
    message.put_u16_be(PORT, port);
    message.end();
}

fn peer_data(message: &mut Message, peer: PeerEnd<'_>) {
    message.begin(INFO_DATA);
    message.begin(VETH_INFO_PEER);
    message.raw(&link_header(0, 0, 0, 0));
    message.put_str(IFLA_IFNAME, peer.name);
    if let Some(link) = peer.link {
        if let Some(mac) = link.mac {
            message.put(IFLA_ADDRESS, &mac.0);
        }
        if link.mtu != 0 {
            message.put_u32(IFLA_MTU, link.mtu);
        }
    }
    message.put_u32(IFLA_GROUP, OWNER_GROUP);
    message.put_u32(IFLA_NET_NS_FD, peer.namespace.as_raw_fd() as u32);
    message.end();
    message.end();
}

/// Sets what can be altered on a link that exists.
pub fn set_link(name: &str, link: &LinkObject, master: Option<u32>) -> Vec<Message> {
    let flags = if link.up { IFF_UP } else { 0 };
    let mut message = Message::new(RTM_NEWLINK, 0).body(&link_header(0, 0, flags, IFF_UP));
    message.put_str(IFLA_IFNAME, name);
    if !matches!(link.kind, LinkKind::Other(_)) {
        link_attributes(&mut message, link, Some(master.unwrap_or(0)));
    }
    let mut messages = Vec::new();
    if !link.link_local {
        messages.push(no_link_local(name));
    }
    messages.push(message);
    messages
}

/// The kernel gives the link no address of its own; said before the link goes up.
fn no_link_local(name: &str) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0).body(&link_header(0, 0, 0, 0));
    message.put_str(IFLA_IFNAME, name);
    message.begin(IFLA_AF_SPEC);
    message.begin(libc::AF_INET6 as u16);
    message.put_u8(INET6_ADDR_GEN_MODE, ADDR_GEN_NONE);
    message.end();
    message.end();
    message
}

/// How its bridge treats a port.
pub fn set_port(index: u32, port: BridgePort) -> Message {
    let mut message = Message::new(RTM_SETLINK, 0).body(&link_header(AF_BRIDGE, index, 0, 0));
    message.begin(IFLA_PROTINFO);
    message.put_u8(BRPORT_MODE, u8::from(port.hairpin));
    message.put_u8(BRPORT_ISOLATED, u8::from(port.isolated));
    message.end();
    message
}

pub fn remove_link(name: &str) -> Message {
    let mut message = Message::new(RTM_DELLINK, 0).body(&link_header(0, 0, 0, 0));
    message.put_str(IFLA_IFNAME, name);
    message
}

pub fn get_link(name: &str) -> Message {
    let mut message = Message::new(RTM_GETLINK, 0).body(&link_header(0, 0, 0, 0));
    message.put_str(IFLA_IFNAME, name);
    message
}

pub fn dump_links() -> Message {
    Message::new(RTM_GETLINK, 0).body(&link_header(0, 0, 0, 0))
}

/// A link as the kernel tells it.
pub struct SeenLink {
    pub index: u32,
    pub name: String,
    pub master: Option<u32>,
    pub group: u32,
    pub object: LinkObject,
}

pub fn read_link(message: &Received) -> Option<SeenLink> {
    let body = message.body(16)?;
    let index = u32::from_ne_bytes(body[4..8].try_into().ok()?);
    let flags = u32::from_ne_bytes(body[8..12].try_into().ok()?);
    let attributes = message.attributes(16);
    let info = attributes.nested(IFLA_LINKINFO);
    let port = info.nested(INFO_SLAVE_DATA);
    let mac = attributes.find(IFLA_ADDRESS).and_then(|bytes| bytes.try_into().ok()).map(Mac);
    let master = attributes.u32(IFLA_MASTER);
    Some(SeenLink {
        index,
        name: attributes.text(IFLA_IFNAME)?,
        master,
        group: attributes.u32(IFLA_GROUP).unwrap_or(0),
        object: LinkObject {
            kind: if body[2..4] == ARPHRD_LOOPBACK.to_ne_bytes() {
                LinkKind::Other("loopback".to_owned())
            } else {
                read_kind(&info.text(INFO_KIND).unwrap_or_default(), info.nested(INFO_DATA))
            },
            mac,
            mtu: attributes.u32(IFLA_MTU).unwrap_or(0),
            master: None,
            port: BridgePort {
                hairpin: port.u8(BRPORT_MODE) == Some(1),
                isolated: port.u8(BRPORT_ISOLATED) == Some(1),
            },
            up: flags & IFF_UP != 0,
            link_local: false,
        },
    })
}

/// Name, segment and port of a VXLAN device, whoever made it.
pub fn read_segment(message: &Received) -> Option<(String, u32, u16)> {
    let attributes = message.attributes(16);
    let info = attributes.nested(IFLA_LINKINFO);
    if info.text(INFO_KIND)? != "vxlan" {
        return None;
    }
    let data = info.nested(INFO_DATA);
    Some((attributes.text(IFLA_IFNAME)?, data.u32(1)?, data.u16_be(15)?))
}

fn read_kind(kind: &str, data: crate::message::Attributes<'_>) -> LinkKind {
    match kind {
        "bridge" => LinkKind::Bridge,
        "veth" => LinkKind::VethPeer,
        "vxlan" if data.u8(7) == Some(0) && data.u8(11) == Some(1) => LinkKind::Vxlan {
            vni: data.u32(1).unwrap_or(0),
            local: data
                .ip(4)
                .or(data.ip(17))
                .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
            port: data.u16_be(15).unwrap_or(0),
        },
        other => LinkKind::Other(other.to_owned()),
    }
}

fn address_body(cidr: &Cidr, index: u32) -> Vec<u8> {
    // Duplicate address detection would hold an IPv6 address back for a second.
    const IFA_F_NODAD: u8 = 0x02;
    let flags = if cidr.is_v4() { 0 } else { IFA_F_NODAD };
    let mut body = vec![family(cidr.addr), cidr.prefix, flags, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body
}

pub fn add_address(index: u32, cidr: &Cidr) -> Message {
    let mut message =
        Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE).body(&address_body(cidr, index));
    message.put_ip(2, cidr.addr);
    message.put_ip(1, cidr.addr);
    if let (IpAddr::V4(_), true) = (cidr.addr, cidr.prefix < 31)
        && let Some(last) = cidr.nth(cidr.size() - 1)
    {
        message.put_ip(4, last);
    }
    message
}

pub fn remove_address(index: u32, cidr: &Cidr) -> Message {
    let mut message = Message::new(RTM_DELADDR, 0).body(&address_body(cidr, index));
    message.put_ip(2, cidr.addr);
    message
}

/// The route to the address's own network, as the kernel makes it when an address comes; none
/// for an address alone.
pub fn add_connected(index: u32, cidr: &Cidr) -> Option<Message> {
    const KERNEL: u8 = 2;
    const UNICAST: u8 = 1;
    const SCOPE_LINK: u8 = 253;
    const METRIC6: u32 = 256;
    let network = cidr.network();
    if network == Cidr::host(network.addr) {
        return None;
    }
    let scope = if cidr.is_v4() { SCOPE_LINK } else { 0 };
    let body =
        [family(cidr.addr), cidr.prefix, 0, 0, netplan::TABLE_MAIN as u8, KERNEL, scope, UNICAST];
    let mut message =
        Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL).body(&[&body[..], &[0; 4]].concat());
    message.put_ip(1, network.addr);
    message.put_u32(4, index);
    match cidr.is_v4() {
        true => message.put_ip(7, cidr.addr),
        false => message.put_u32(6, METRIC6),
    }
    Some(message)
}

pub fn dump_addresses() -> Message {
    Message::new(RTM_GETADDR, 0).body(&[0; 8])
}

/// (link index, address); link-local ones, which the kernel gives itself, are left out.
pub fn read_address(message: &Received) -> Option<(u32, Cidr)> {
    const SCOPE_LINK: u8 = 253;
    let body = message.body(8)?;
    if body[3] == SCOPE_LINK {
        return None;
    }
    let index = u32::from_ne_bytes(body[4..8].try_into().ok()?);
    let attributes = message.attributes(8);
    let addr = attributes.ip(2).or(attributes.ip(1))?;
    Some((index, Cidr::new(addr, body[1])))
}

fn neighbour_body(family: u8, index: u32, flags: u8) -> Vec<u8> {
    const NUD_PERMANENT: u16 = 0x80;
    let mut body = vec![family, 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    body.extend_from_slice(&[flags, 0]);
    body
}

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_SELF: u8 = 0x02;

pub fn set_neighbour(index: u32, addr: IpAddr, mac: Mac) -> Message {
    let mut message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
        .body(&neighbour_body(family(addr), index, 0));
    message.put_ip(NDA_DST, addr);
    message.put(NDA_LLADDR, &mac.0);
    message
}

pub fn remove_neighbour(index: u32, addr: IpAddr) -> Message {
    let mut message = Message::new(RTM_DELNEIGH, 0).body(&neighbour_body(family(addr), index, 0));
    message.put_ip(NDA_DST, addr);
    message
}

pub fn set_forwarding(index: u32, mac: Mac, vtep: IpAddr) -> Message {
    let mut message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
        .body(&neighbour_body(AF_BRIDGE, index, NTF_SELF));
    message.put(NDA_LLADDR, &mac.0);
    message.put_ip(NDA_DST, vtep);
    message
}

pub fn remove_forwarding(index: u32, mac: Mac, vtep: IpAddr) -> Message {
    let mut message =
        Message::new(RTM_DELNEIGH, 0).body(&neighbour_body(AF_BRIDGE, index, NTF_SELF));
    message.put(NDA_LLADDR, &mac.0);
    message.put_ip(NDA_DST, vtep);
    message
}

pub fn dump_neighbours(bridge: bool) -> Message {
    let family = if bridge { AF_BRIDGE } else { 0 };
    Message::new(RTM_GETNEIGH, 0).body(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

pub enum SeenNeighbour {
    Neighbour(u32, IpAddr, Mac),
    Forwarding(u32, Mac, IpAddr),
}

/// Permanent ones only.
pub fn read_neighbour(message: &Received) -> Option<SeenNeighbour> {
    let body = message.body(12)?;
    let index = u32::from_ne_bytes(body[4..8].try_into().ok()?);
    let state = u16::from_ne_bytes(body[8..10].try_into().ok()?);
    if state & 0x80 == 0 {
        return None;
    }
    let attributes = message.attributes(12);
    let mac = Mac(attributes.find(NDA_LLADDR)?.try_into().ok()?);
    let addr = attributes.ip(NDA_DST)?;
    if body[0] == AF_BRIDGE {
        return (body[10] & NTF_SELF != 0).then_some(SeenNeighbour::Forwarding(index, mac, addr));
    }
    Some(SeenNeighbour::Neighbour(index, addr, mac))
}

fn route_message(kind: u16, flags: u16, route: &Route, index: u32) -> Message {
    const UNICAST: u8 = 1;
    const LOCAL: u8 = 2;
    const SCOPE_UNIVERSE: u8 = 0;
    const SCOPE_LINK: u8 = 253;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_TABLE: u16 = 15;
    const RTNH_F_ONLINK: u32 = 4;
    let scope = if route.via.is_none() && route.dst.is_v4() { SCOPE_LINK } else { SCOPE_UNIVERSE };
    let onlink = if route.via.is_some() { RTNH_F_ONLINK } else { 0 };
    let table = if route.table < 256 { route.table as u8 } else { 0 };
    let kind_of_route = if route.table == netplan::TABLE_LOCAL { LOCAL } else { UNICAST };
    let mut body = vec![
        family(route.dst.addr),
        route.dst.prefix,
        0,
        0,
        table,
        OWNER_PROTOCOL,
        scope,
        kind_of_route,
    ];
    body.extend_from_slice(&onlink.to_ne_bytes());
    let mut message = Message::new(kind, flags).body(&body);
    if route.dst.prefix != 0 {
        message.put_ip(RTA_DST, route.dst.addr);
    }
    message.put_u32(RTA_OIF, index);
    if let Some(via) = route.via {
        message.put_ip(RTA_GATEWAY, via);
    }
    message.put_u32(RTA_TABLE, route.table);
    message
}

pub fn add_route(route: &Route, index: u32) -> Message {
    route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, index)
}

pub fn remove_route(route: &Route, index: u32) -> Message {
    route_message(RTM_DELROUTE, 0, route, index)
}

pub fn dump_routes() -> Message {
    Message::new(RTM_GETROUTE, 0).body(&[0; 12])
}

/// (link index, route without its link's name) of routes that are skep's.
pub fn read_route(message: &Received) -> Option<(u32, Route)> {
    let body = message.body(12)?;
    if body[5] != OWNER_PROTOCOL {
        return None;
    }
    let attributes = message.attributes(12);
    let unspecified = if body[0] == libc::AF_INET as u8 { ip_zero(4) } else { ip_zero(16) };
    let dst = attributes.ip(1).or(unspecified)?;
    let route = Route {
        table: attributes.u32(15).unwrap_or(u32::from(body[4])),
        dst: Cidr::new(dst, body[1]),
        via: attributes.ip(5),
        dev: String::new(),
    };
    Some((attributes.u32(4)?, route))
}

/// Where a route of the main table leads, whoever made it.
pub fn read_main_destination(message: &Received) -> Option<Cidr> {
    let body = message.body(12)?;
    let attributes = message.attributes(12);
    let table = attributes.u32(15).unwrap_or(u32::from(body[4]));
    let dst = attributes.ip(1)?;
    (table == netplan::TABLE_MAIN).then(|| Cidr::new(dst, body[1]))
}

fn ip_zero(length: usize) -> Option<IpAddr> {
    crate::message::bytes_ip(&vec![0; length])
}

fn rule_message(kind: u16, flags: u16, rule: &Rule) -> Message {
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    const FRA_FWMASK: u16 = 16;
    const FRA_PROTOCOL: u16 = 21;
    const TO_TABLE: u8 = 1;
    let family = if rule.v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let mut message =
        Message::new(kind, flags).body(&[family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0]);
    message.put_u32(FRA_FWMARK, rule.fwmark);
    message.put_u32(FRA_FWMASK, u32::MAX);
    message.put_u32(FRA_TABLE, rule.table);
    message.put_u8(FRA_PROTOCOL, OWNER_PROTOCOL);
    message
}

pub fn add_rule(rule: &Rule) -> Message {
    rule_message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule)
}

pub fn remove_rule(rule: &Rule) -> Message {
    rule_message(RTM_DELRULE, 0, rule)
}

pub fn dump_rules() -> Message {
    Message::new(RTM_GETRULE, 0).body(&[0; 12])
}

/// Rules that are skep's.
pub fn read_rule(message: &Received) -> Option<Rule> {
    let body = message.body(12)?;
    let attributes = message.attributes(12);
    if attributes.u8(21) != Some(OWNER_PROTOCOL) {
        return None;
    }
    Some(Rule {
        v6: body[0] == libc::AF_INET6 as u8,
        fwmark: attributes.u32(10)?,
        table: attributes.u32(15)?,
    })
}

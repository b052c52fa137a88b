//! The host's own namespace: bridges, the outer ends of pairs, one table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Plug, bridge_link, link_mtu, mesh6, outer_end, plug};
use crate::addr::{Cidr, Mac};
use crate::diff::ACCEPT_ADVERTISEMENTS;
use crate::objects::{BridgePort, Flows, Namespace, Objects};
use crate::table::{
    Action, Chain, ChainKind, Hook, Match, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_RAW,
    PRIORITY_SRCNAT, Table,
};
use crate::view::{Bridge, Proto, PublishedPort, SandboxId, View};

const LOOPBACK_NET: Cidr = Cidr { addr: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 };

pub(super) fn objects(view: &View) -> Objects {
    let mut objects = Objects::default();
    for bridge in view.bridges.values() {
        add_bridge(&mut objects, bridge);
    }
    for (id, sandbox) in &view.sandboxes {
        for link in &sandbox.links {
            let Some(Plug::Bridge(bridge)) = plug(view, link) else { continue };
            let port = bridge_port(view, bridge, id);
            let mtu = link_mtu(&view.host, &Plug::Bridge(bridge));
            let inside = Namespace::Sandbox(id.clone());
            let end = outer_end(inside, link, mtu, bridge.ifname.clone(), port);
            objects.links.insert(link.peer.clone(), end);
            objects.flows.containers.extend(link.addresses.iter().map(|cidr| cidr.addr));
        }
    }
    if mesh6::stands(view) {
        mesh6::add_host_end(view, &mut objects);
    }
    add_sysctls(&mut objects, view);
    let (v4, v6) = (view.host.firewall, view.host.firewall6);
    // The daemon's rules for IPv6 alone are wanted only where there is IPv6.
    if !view.bridges.is_empty() && (v4 || v6 && view.bridges.values().any(has_v6)) {
        objects.table = Some(Arc::new(of_families(table(view), v4, v6)));
        add_flows(&mut objects.flows, view);
    }
    objects
}

fn has_v6(bridge: &Bridge) -> bool {
    bridge.addresses.iter().any(|cidr| !cidr.is_v4())
}

/// Without the rules of a family that is left to the user (`--iptables=false`, `--ip6tables=false`).
fn of_families(mut table: Table, v4: bool, v6: bool) -> Table {
    if v4 && v6 {
        return table;
    }
    for chain in &mut table.chains {
        chain.rules.retain_mut(|rule| match rule.matches.iter().find_map(family) {
            Some(is_v4) => is_v4 == v4,
            None => {
                rule.matches.insert(0, if v4 { Match::V4 } else { Match::V6 });
                true
            }
        });
    }
    table
}

/// The family that a match is for, if it is for one: true is IPv4.
fn family(part: &Match) -> Option<bool> {
    match part {
        Match::V4 => Some(true),
        Match::V6 => Some(false),
        Match::Saddr(cidr) | Match::Daddr(cidr) | Match::DaddrNot(cidr) => Some(cidr.is_v4()),
        _ => None,
    }
}

fn add_bridge(objects: &mut Objects, bridge: &Bridge) {
    if bridge.foreign {
        return;
    }
    let mac = bridge.addresses.first().map(|cidr| Mac::for_ip(cidr.addr));
    objects.links.insert(bridge.ifname.clone(), bridge_link(mac, bridge.mtu, has_v6(bridge)));
    for address in &bridge.addresses {
        objects.addresses.insert((bridge.ifname.clone(), *address));
    }
}

fn bridge_port(view: &View, bridge: &Bridge, id: &SandboxId) -> BridgePort {
    // Where bridged packets pass the table, a rule keeps containers apart and still lets them
    // reach each other's published ports.
    let isolated = !bridge.icc && !view.host.bridge_netfilter && *id != SandboxId::ingress();
    BridgePort { hairpin: true, isolated }
}

fn add_sysctls(objects: &mut Objects, view: &View) {
    if view.bridges.is_empty() || !view.host.ip_forward {
        return;
    }
    let mut set = |path: String, value: &str| objects.sysctls.insert(path, value.to_owned());
    set("net/ipv4/ip_forward".to_owned(), "1");
    if view.bridges.values().any(has_v6) || mesh6::stands(view) {
        set("net/ipv6/conf/all/forwarding".to_owned(), "1");
        for link in &view.host.advertised {
            set(format!("net/ipv6/conf/{link}/{ACCEPT_ADVERTISEMENTS}"), "2");
        }
    }
    for bridge in view.bridges.values().filter(|bridge| !bridge.foreign && !bridge.internal) {
        // A port published on 127.0.0.1 is reached from the host through the bridge.
        set(format!("net/ipv4/conf/{}/route_localnet", bridge.ifname), "1");
    }
}

fn table(view: &View) -> Table {
    let mut chains = vec![published(view)];
    let into = |name: &str, hook| {
        let mut chain = Chain::base(name, ChainKind::Nat, hook, PRIORITY_DSTNAT);
        chain.rule(vec![Match::DaddrLocal], Action::Jump("published".to_owned()));
        chain
    };
    chains.push(into("prerouting", Hook::Prerouting));
    chains.push(into("output", Hook::Output));
    chains.push(postrouting(view));
    chains.push(forward(view));
    chains.push(loopback_guard(view));
    Table { chains }
}

/// Every published port of this host, those on one address first.
pub(super) fn ports(view: &View) -> Vec<&PublishedPort> {
    let mut ports: Vec<_> =
        view.sandboxes.values().flat_map(|sandbox| &sandbox.published).collect();
    ports.sort_by_key(|port| (port.host_ip.is_unspecified(), *port));
    ports
}

/// (protocol, port) of the routing mesh, and the ingress namespace's address on the host's side.
pub(super) fn mesh_ports(view: &View) -> Option<(IpAddr, BTreeSet<(Proto, u16)>)> {
    let sandbox = view.sandboxes.get(&SandboxId::ingress())?;
    let outer = sandbox.links.iter().find(|link| view.bridges.contains_key(&link.network))?;
    let address = outer.addresses.iter().find(|cidr| cidr.is_v4())?.addr;
    let ports = view.overlays.values().filter_map(|overlay| overlay.ingress.as_ref());
    let ports = ports.flat_map(|ingress| &ingress.ports).map(|port| (port.proto, port.published));
    Some((address, ports.collect()))
}

fn published(view: &View) -> Chain {
    let mut chain = Chain::new("published");
    for port in ports(view) {
        let mut matches = vec![if port.host_ip.is_ipv4() { Match::V4 } else { Match::V6 }];
        if !port.host_ip.is_unspecified() {
            matches.push(Match::Daddr(Cidr::host(port.host_ip)));
        } else if port.host_ip.is_ipv6() {
            // Translated it would be a packet from ::1 on a bridge, which nobody takes: such ports are relayed.
            matches.push(Match::DaddrNot(Cidr::host(IpAddr::V6(Ipv6Addr::LOCALHOST))));
        }
        matches.push(Match::Dport(port.proto, port.host_port));
        chain.rule(matches, Action::Dnat(vec![port.address], Some(port.port)));
    }
    if let Some((address, ports)) = mesh_ports(view) {
        for (proto, port) in ports {
            let matches = vec![Match::V4, Match::Dport(proto, port)];
            chain.rule(matches, Action::Dnat(vec![address], None));
        }
    }
    for (proto, port) in mesh_ports6(view) {
        let matches = vec![Match::V6, Match::Dport(proto, port)];
        chain.rule(matches, Action::Dnat(vec![mesh6::INNER_END], None));
    }
    chain
}

fn mesh_ports6(view: &View) -> BTreeSet<(Proto, u16)> {
    let ports = mesh_ports(view).filter(|_| mesh6::stands(view));
    ports.map(|(_, ports)| ports).unwrap_or_default()
}

fn postrouting(view: &View) -> Chain {
    let mut chain = Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, PRIORITY_SRCNAT);
    if mesh6::stands(view) {
        let out = Match::OifName(mesh6::CABLE.to_owned());
        chain.rule(vec![Match::Saddr(mesh6::LOOPBACK), out], Action::Masquerade);
    }
    for bridge in view.bridges.values().filter(|bridge| !bridge.internal) {
        let out = Match::OifName(bridge.ifname.clone());
        chain.rule(vec![Match::Saddr(LOOPBACK_NET), out.clone()], Action::Masquerade);
        for address in &bridge.addresses {
            let own = Match::Saddr(address.network());
            // A container that asks for a port of the host and is led back onto its own bridge:
            // the answer has to come by the host.
            chain.rule(vec![own.clone(), out.clone(), Match::Translated], Action::Masquerade);
            if bridge.masquerade && view.host.masquerade {
                let away = Match::OifNameNot(bridge.ifname.clone());
                chain.rule(vec![own, away], Action::Masquerade);
            }
        }
    }
    chain
}

fn forward(view: &View) -> Chain {
    let mut chain = Chain::base("forward", ChainKind::Filter, Hook::Forward, PRIORITY_FILTER);
    chain.rule(vec![Match::Established], Action::Accept);
    // Nor does a port that is published lead out of an internal network, by whichever address of
    // the host it is asked for.
    for bridge in view.bridges.values().filter(|bridge| bridge.internal) {
        let name = || bridge.ifname.clone();
        chain.rule(vec![Match::IifName(name()), Match::OifNameNot(name())], Action::Drop);
    }
    chain.rule(vec![Match::Translated], Action::Accept);
    for bridge in view.bridges.values() {
        let name = || bridge.ifname.clone();
        chain.rule(vec![Match::OifName(name()), Match::IifNameNot(name())], Action::Drop);
        if !bridge.icc && view.host.bridge_netfilter {
            chain.rule(vec![Match::IifName(name()), Match::OifName(name())], Action::Drop);
        }
    }
    if mesh6::stands(view) {
        let cable = || mesh6::CABLE.to_owned();
        chain.rule(vec![Match::OifName(cable()), Match::IifNameNot(cable())], Action::Drop);
    }
    chain
}

/// Bridges route 127.0.0.0/8 for the host's sake; nobody on them may use that.
fn loopback_guard(view: &View) -> Chain {
    let mut chain = Chain::base("guard", ChainKind::Filter, Hook::Prerouting, PRIORITY_RAW);
    for bridge in view.bridges.values() {
        let matches = vec![Match::IifName(bridge.ifname.clone()), Match::Daddr(LOOPBACK_NET)];
        chain.rule(matches, Action::Drop);
    }
    if mesh6::stands(view) {
        let from = Match::IifName(mesh6::CABLE.to_owned());
        chain.rule(vec![from, Match::Daddr(mesh6::LOOPBACK)], Action::Drop);
    }
    chain
}

fn add_flows(flows: &mut Flows, view: &View) {
    for port in ports(view) {
        let key = (port.proto.number(), port.host_port);
        flows.ports.entry(key).or_default().insert(port.address);
    }
    if let Some((address, ports)) = mesh_ports(view) {
        for (proto, port) in ports {
            flows.ports.entry((proto.number(), port)).or_default().insert(address);
        }
    }
    for (proto, port) in mesh_ports6(view) {
        flows.ports.entry((proto.number(), port)).or_default().insert(mesh6::INNER_END);
    }
}

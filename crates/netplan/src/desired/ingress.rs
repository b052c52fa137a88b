//! The routing mesh: the namespace that receives published ports, and the way back from tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{any, host, mesh6, sandbox};
use crate::addr::{Cidr, Mac};
use crate::objects::{Objects, Route, Rule};
use crate::table::{
    Action, Chain, ChainKind, Hook, Match, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_MANGLE,
    PRIORITY_RAW, PRIORITY_SRCNAT, Table,
};
use crate::view::{
    Ingress, IngressBackend, IngressNode, IngressPort, Link, NodeEngine, Overlay, Proto, Sandbox,
    View,
};

/// The mark of flows that came in through a node, and the table that leads back: the node's
/// ingress address as a number, which is above every table the kernel or a person names.
pub fn mark_of(node: IpAddr) -> Option<u32> {
    match node {
        IpAddr::V4(v4) => Some(v4.to_bits()).filter(|mark| *mark > 0xffff),
        IpAddr::V6(_) => None,
    }
}

fn ingress_link<'a>(
    view: &'a View,
    sandbox: &'a Sandbox,
) -> Option<(&'a Link, &'a Overlay, &'a Ingress)> {
    sandbox.links.iter().find_map(|link| {
        let overlay = view.overlays.get(&link.network)?;
        Some((link, overlay, overlay.ingress.as_ref()?))
    })
}

/// In `ingress_sbox`: a published port goes to a task, with the client's address kept.
pub(super) fn add_router(view: &View, sandbox: &Sandbox, objects: &mut Objects, table: &mut Table) {
    for path in ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"] {
        objects.sysctls.insert(path.to_owned(), "1".to_owned());
    }
    loosen_source_check(objects, sandbox);
    let Some((link, overlay, ingress)) = ingress_link(view, sandbox) else { return };
    let Some((own, _)) = host::mesh_ports(view) else { return };
    let mut dnat = Chain::base("mesh", ChainKind::Nat, Hook::Prerouting, PRIORITY_DSTNAT);
    let mut refuse = Chain::base("refuse", ChainKind::Filter, Hook::Prerouting, PRIORITY_MANGLE);
    let mut snat = Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, PRIORITY_SRCNAT);
    let v6 = mesh6::carried(&view.host, overlay);
    if v6 {
        mesh6::add_inner_end(view, objects);
    }
    for port in &ingress.ports {
        let own_of = |backend: &IngressBackend| Some(backend.address);
        add_port(objects, &mut dnat, &mut refuse, (link, own), (port, &own_of));
        if v6 {
            let own = (link, mesh6::INNER_END);
            add_port(objects, &mut dnat, &mut refuse, own, (port, &twin_of));
        }
    }
    if let Some(lb) = overlay.lb_address.or(link.addresses.first().copied()) {
        for address in docker_tasks(ingress) {
            let out = Match::OifName(link.ifname.clone());
            let to = Match::Daddr(Cidr::host(address));
            snat.rule(vec![out, to, Match::Translated], Action::Snat(lb.addr));
        }
    }
    // What this namespace says by itself ends connections; it is not to look like the beginning of one.
    let mut says = Chain::base("says", ChainKind::Filter, Hook::Output, PRIORITY_RAW);
    if !ingress.ports.is_empty() {
        says.rule(vec![Match::Proto(Proto::Tcp)], Action::Untracked);
    }
    for chain in [dnat, refuse, snat, says] {
        if !chain.rules.is_empty() {
            table.chains.push(chain);
        }
    }
}

/// A task on a Docker Engine node has no address but the one it was given.
fn twin_of(backend: &IngressBackend) -> Option<IpAddr> {
    mesh6::twin(backend.address).filter(|_| backend.engine == NodeEngine::Skep)
}

type AddressOf<'a> = &'a dyn Fn(&IngressBackend) -> Option<IpAddr>;

/// What comes to `own` on a published port goes to a task, by its address of the same family.
fn add_port(
    objects: &mut Objects,
    dnat: &mut Chain,
    refuse: &mut Chain,
    (link, own): (&Link, IpAddr),
    (port, address_of): (&IngressPort, AddressOf<'_>),
) {
    let ready = port.backends.iter().filter(|backend| backend.ready);
    let ready: BTreeSet<IpAddr> = ready.filter_map(address_of).collect();
    let all: Vec<IpAddr> = port.backends.iter().filter_map(address_of).collect();
    let draining = !all.is_empty();
    let key = (port.proto.number(), port.published);
    objects.flows.ports.entry(key).or_default().extend(all);
    let matches = || vec![Match::Daddr(Cidr::host(own)), Match::Dport(port.proto, port.published)];
    if !ready.is_empty() {
        let ready = sandbox::turned(ready.into_iter().collect(), &link.mac.0);
        dnat.rule(matches(), Action::Dnat(ready, None));
        return;
    }
    if draining {
        let mut held = matches();
        held.push(Match::Established);
        refuse.rule(held, Action::Accept);
    }
    let reset = matches!(port.proto, Proto::Tcp);
    let action = if reset { Action::RejectReset } else { Action::RejectUnreachable };
    refuse.rule(matches(), action);
}

fn docker_tasks(ingress: &Ingress) -> BTreeSet<IpAddr> {
    let backends = ingress.ports.iter().flat_map(|port| &port.backends);
    backends.filter(|b| b.engine == NodeEngine::Docker).map(|b| b.address).collect()
}

/// In a task: published -> target, and replies go back through the node the flow came in by.
///
/// A client may use one port of its own towards several nodes at a time, and an address of a bridge
/// is one that every node has: what is two flows for them must not be one here. So flows are looked up
/// by node, also those of a node that is not known (any more); where two would be one for the task's socket,
/// the kernel gives the second another port of the client's address.
pub(super) fn add_task(view: &View, sandbox: &Sandbox, objects: &mut Objects, table: &mut Table) {
    let Some((link, overlay, ingress)) = ingress_link(view, sandbox) else { return };
    loosen_source_check(objects, sandbox);
    let name = || link.ifname.clone();
    let v6 = mesh6::carried(&view.host, overlay);
    let mut marks = BTreeMap::new();
    for node in &ingress.nodes {
        let Some(mark) = mark_of(node.address) else { continue };
        marks.insert(Mac::for_ip(node.address), mark);
        for via in ways_back(node, v6) {
            let dst = any(via.is_ipv4());
            objects.rules.insert(Rule { v6: !via.is_ipv4(), fwmark: mark, table: mark });
            objects.routes.insert(Route { table: mark, dst, via: Some(via), dev: name() });
        }
    }
    let mut apart = Chain::base("apart", ChainKind::Filter, Hook::Prerouting, PRIORITY_RAW);
    if view.host.flow_zones {
        apart.rule(vec![Match::IifName(name())], Action::CtZoneBySource);
    }
    let mut mark = Chain::base("mark", ChainKind::Filter, Hook::Prerouting, PRIORITY_MANGLE);
    if !marks.is_empty() {
        // Not by the state: a first packet that comes before its host is known here makes the flow, and
        // the ones that are sent again belong to it.
        mark.rule(vec![Match::IifName(name()), Match::CtUnmarked], Action::CtMarkBySource(marks));
    }
    let mut redirect = Chain::base("redirect", ChainKind::Nat, Hook::Prerouting, PRIORITY_DSTNAT);
    let twins = mesh6::twins(view, link);
    let answering = [true, false].map(|v4| (v4, answering(view, sandbox, v4)));
    let answering = BTreeMap::from(answering);
    for own in link.addresses.iter().filter(|cidr| cidr.is_v4()).chain(&twins) {
        for port in &sandbox.ingress {
            let to = Match::Daddr(Cidr::host(own.addr));
            let matches =
                vec![Match::IifName(name()), to, Match::Dport(port.proto, port.published)];
            let udp = port.proto == Proto::Udp;
            let ways = if udp { answering[&own.is_v4()].as_slice() } else { &[] };
            for (clients, answers_from) in ways {
                let mut matches = matches.clone();
                matches.extend((clients.prefix != 0).then_some(Match::Saddr(*clients)));
                redirect.rule(matches, Action::Dnat(vec![*answers_from], Some(port.target)));
            }
            if ways.last().is_none_or(|(clients, _)| clients.prefix != 0) {
                redirect.rule(matches, Action::Redirect(port.target));
            }
        }
    }
    // On the ingress network a task offers its published ports and nothing else.
    let mut guard = Chain::base("guard", ChainKind::Filter, Hook::Input, PRIORITY_FILTER);
    guard.rule(vec![Match::IifName(name()), Match::Established], Action::Accept);
    guard.rule(vec![Match::IifName(name()), Match::Translated], Action::Accept);
    guard.rule(vec![Match::IifName(name()), Match::Icmp], Action::Accept);
    // A port that is published under its own number is not altered, so it does not count as
    // translated.
    for port in sandbox.ingress.iter().filter(|port| port.published == port.target) {
        let matches = vec![Match::IifName(name()), Match::Dport(port.proto, port.target)];
        guard.rule(matches, Action::Accept);
    }
    guard.rule(vec![Match::IifName(name())], Action::Drop);
    let mut back = Chain::base("back", ChainKind::Route, Hook::Output, PRIORITY_MANGLE);
    back.rule(vec![Match::CtMarked], Action::MarkFromCt);
    for chain in [apart, mark, redirect, guard, back] {
        if !chain.rules.is_empty() {
            table.chains.push(chain);
        }
    }
}

/// Clients, and the address from which a UDP server that is bound to every address answers them: its
/// kernel chooses it by the route to the client (ip(7)), before the flow's mark can tell of another.
/// A request has to arrive at that address, or its answer does not belong to its flow.
fn answering(view: &View, sandbox: &Sandbox, v4: bool) -> Vec<(Cidr, IpAddr)> {
    let mut ways = Vec::new();
    for link in &sandbox.links {
        let twins = mesh6::twins(view, link);
        let own: Vec<&Cidr> =
            link.addresses.iter().chain(&twins).filter(|own| own.is_v4() == v4).collect();
        let Some(first) = own.first() else { continue };
        ways.extend(own.iter().map(|own| (own.network(), own.addr)));
        let further = link.routes.iter().map(|(subnet, _)| subnet.network());
        let out = link.gateways.iter().map(|gateway| any(gateway.is_ipv4()));
        let led = further.chain(out).filter(|dst| dst.is_v4() == v4);
        ways.extend(led.map(|dst| (dst, first.addr)));
    }
    ways.sort_by_key(|(dst, _)| std::cmp::Reverse(dst.prefix));
    ways
}

/// The addresses by which a node takes replies back.
fn ways_back(node: &IngressNode, v6: bool) -> impl Iterator<Item = IpAddr> {
    let twin = mesh6::twin(node.address).filter(|_| v6 && node.engine == NodeEngine::Skep);
    std::iter::once(node.address).chain(twin)
}

/// Clients' addresses come in by a link that does not lead to them.
fn loosen_source_check(objects: &mut Objects, sandbox: &Sandbox) {
    let names = sandbox.links.iter().map(|link| link.ifname.as_str());
    for name in names.chain(["all"]) {
        objects.sysctls.insert(format!("net/ipv4/conf/{name}/rp_filter"), "0".to_owned());
    }
}

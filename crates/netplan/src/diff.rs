//! The steps from what is to what shall be, in an order that can be applied from top to bottom.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::{Cidr, Mac};
use crate::objects::{Flows, LinkKind, LinkObject, Namespace, Objects, Route, Rule, World};
use crate::table::Table;

/// Per link: does a host listen to router advertisements (2: also one that forwards).
pub const ACCEPT_ADVERTISEMENTS: &str = "accept_ra";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    RemoveRule(Namespace, Rule),
    RemoveRoute(Namespace, Route),
    RemoveNeighbour(Namespace, String, IpAddr),
    RemoveForwarding(Namespace, String, Mac, IpAddr),
    RemoveAddress(Namespace, String, Cidr),
    RemoveLink(Namespace, String),
    RemoveNamespace(Namespace),
    AddNamespace(Namespace),
    /// Gives the namespace that is held open its file again.
    KeepNamespace(Namespace),
    /// Bridge or VXLAN device, or a pair (with both ends' content, so that one message makes it).
    AddLink(Namespace, String, LinkObject, Option<LinkObject>),
    SetLink(Namespace, String, LinkObject),
    AddAddress(Namespace, String, Cidr),
    SetNeighbour(Namespace, String, IpAddr, Mac),
    SetForwarding(Namespace, String, Mac, IpAddr),
    /// Says on a bridge who has the address. A container that asked before anybody knew asks again
    /// only after a second (the kernel's `retrans_time_ms`), and its packets wait for that.
    Advertise(Namespace, String, IpAddr, Mac),
    AddRoute(Namespace, Route),
    AddRule(Namespace, Rule),
    SetSysctl(Namespace, String, String),
    SetTable(Namespace, Arc<Table>),
    RemoveTable(Namespace),
    /// Ends tracked connections whose answering address is not right under the new table.
    SettleFlows(Namespace, Flows),
    /// Forgets every tracked connection from or to these addresses.
    ForgetFlows(Namespace, Vec<IpAddr>),
}

impl Step {
    pub fn namespace(&self) -> &Namespace {
        match self {
            Self::RemoveRule(ns, ..)
            | Self::RemoveRoute(ns, ..)
            | Self::RemoveNeighbour(ns, ..)
            | Self::RemoveForwarding(ns, ..)
            | Self::RemoveAddress(ns, ..)
            | Self::RemoveLink(ns, ..)
            | Self::RemoveNamespace(ns)
            | Self::AddNamespace(ns)
            | Self::KeepNamespace(ns)
            | Self::AddLink(ns, ..)
            | Self::SetLink(ns, ..)
            | Self::AddAddress(ns, ..)
            | Self::SetNeighbour(ns, ..)
            | Self::SetForwarding(ns, ..)
            | Self::Advertise(ns, ..)
            | Self::AddRoute(ns, ..)
            | Self::AddRule(ns, ..)
            | Self::SetSysctl(ns, ..)
            | Self::SetTable(ns, ..)
            | Self::RemoveTable(ns)
            | Self::SettleFlows(ns, ..)
            | Self::ForgetFlows(ns, ..) => ns,
        }
    }

    /// Steps of a lower phase come first. Within a phase they do not depend on each other.
    pub fn phase(&self) -> u8 {
        match self {
            Self::RemoveRule(..) | Self::RemoveRoute(..) => 0,
            Self::RemoveNeighbour(..) | Self::RemoveForwarding(..) | Self::RemoveAddress(..) => 1,
            Self::RemoveLink(..) => 2,
            Self::RemoveNamespace(..) => 3,
            Self::AddNamespace(..) | Self::KeepNamespace(..) => 4,
            Self::AddLink(_, _, link, _) if link.master.is_none() => 5,
            Self::AddLink(_, _, link, _) if !matches!(link.kind, LinkKind::Veth { .. }) => 6,
            Self::AddLink(..) => 7,
            Self::SetLink(..) => 8,
            Self::AddAddress(..) => 9,
            Self::SetNeighbour(..) | Self::SetForwarding(..) => 10,
            Self::AddRoute(..) | Self::AddRule(..) => 11,
            Self::SetSysctl(..) => 12,
            Self::SetTable(..) | Self::RemoveTable(..) => 13,
            Self::SettleFlows(..) | Self::ForgetFlows(..) | Self::Advertise(..) => 14,
        }
    }
}

/// What has to happen to `observed` for it to become `desired`.
pub fn diff(observed: &World, desired: &World) -> Vec<Step> {
    let mut steps = Vec::new();
    let empty = Objects::default();
    for ns in observed.keys().filter(|ns| !desired.contains_key(*ns)) {
        if *ns == Namespace::Host {
            objects(ns, &observed[ns], &empty, &mut steps);
        } else {
            // Links die with their namespace, but only some time later: until then nobody else
            // can have the segment, and a container keeps the other end.
            if let Namespace::Overlay(_) = ns {
                let ours = |link: &LinkObject| !matches!(link.kind, LinkKind::Other(_));
                let links = observed[ns].links.iter().filter(|(_, link)| ours(link));
                steps.extend(links.map(|(name, _)| Step::RemoveLink(ns.clone(), name.clone())));
            }
            steps.push(Step::RemoveNamespace(ns.clone()));
        }
    }
    for (ns, wanted) in desired {
        match observed.get(ns) {
            Some(found) => {
                if found.lost {
                    steps.push(Step::KeepNamespace(ns.clone()));
                }
                objects(ns, found, wanted, &mut steps);
            }
            None => {
                if *ns != Namespace::Host {
                    steps.push(Step::AddNamespace(ns.clone()));
                }
                let found = if *ns == Namespace::Host { &empty } else { &fresh() };
                objects(ns, found, wanted, &mut steps);
            }
        }
    }
    pair(&mut steps, observed, desired);
    steps.sort_by_key(Step::phase);
    steps
}

/// What a new namespace holds: a loopback link that is down.
fn fresh() -> Objects {
    let mut objects = Objects::default();
    let lo = LinkObject {
        kind: LinkKind::Other("loopback".to_owned()),
        mac: None,
        mtu: 0,
        master: None,
        port: Default::default(),
        up: false,
        link_local: true,
    };
    objects.links.insert("lo".to_owned(), lo);
    objects
}

fn objects(ns: &Namespace, found: &Objects, wanted: &Objects, steps: &mut Vec<Step>) {
    links(ns, found, wanted, steps);
    let found = &without_remade(found, wanted);
    let gone = |name: &str| found.links.contains_key(name) && !wanted.links.contains_key(name);
    for (link, address) in found.addresses.difference(&wanted.addresses) {
        // A container may give its own links more addresses; what the kernel gives itself stays.
        if !gone(link) && !matches!(ns, Namespace::Sandbox(_)) {
            steps.push(Step::RemoveAddress(ns.clone(), link.clone(), *address));
        }
    }
    for (link, address) in wanted.addresses.difference(&found.addresses) {
        steps.push(Step::AddAddress(ns.clone(), link.clone(), *address));
    }
    neighbours(ns, found, wanted, steps, &gone);
    for route in found.routes.difference(&wanted.routes) {
        // One that is only altered is replaced by the step that adds it.
        let altered = wanted.routes.iter().any(|w| w.table == route.table && w.dst == route.dst);
        if !gone(&route.dev) && !altered {
            steps.push(Step::RemoveRoute(ns.clone(), route.clone()));
        }
    }
    for route in wanted.routes.difference(&found.routes) {
        steps.push(Step::AddRoute(ns.clone(), route.clone()));
    }
    for rule in found.rules.difference(&wanted.rules) {
        steps.push(Step::RemoveRule(ns.clone(), rule.clone()));
    }
    for rule in wanted.rules.difference(&found.rules) {
        steps.push(Step::AddRule(ns.clone(), rule.clone()));
    }
    // Forwarding alone would take away the routes that advertisements had given.
    let (first, rest): (Vec<_>, Vec<_>) =
        wanted.sysctls.iter().partition(|(path, _)| path.ends_with(ACCEPT_ADVERTISEMENTS));
    for (path, value) in first.into_iter().chain(rest) {
        if found.sysctls.get(path) != Some(value) {
            steps.push(Step::SetSysctl(ns.clone(), path.clone(), value.clone()));
        }
    }
    table(ns, found, wanted, steps);
}

fn links(ns: &Namespace, found: &Objects, wanted: &Objects, steps: &mut Vec<Step>) {
    for (name, link) in &found.links {
        // In a container's namespace only the other end is ours to remove.
        let ours = !matches!(ns, Namespace::Sandbox(_)) && !matches!(link.kind, LinkKind::Other(_));
        if ours && !wanted.links.contains_key(name) {
            steps.push(Step::RemoveLink(ns.clone(), name.clone()));
        }
    }
    for (name, link) in &wanted.links {
        let add = || Step::AddLink(ns.clone(), name.clone(), link.clone(), None);
        match found.links.get(name) {
            None => steps.push(add()),
            Some(there) if !same_kind(&there.kind, &link.kind) => {
                steps.push(Step::RemoveLink(ns.clone(), name.clone()));
                steps.push(add());
            }
            Some(there) => {
                if differs(there, link) {
                    steps.push(Step::SetLink(ns.clone(), name.clone(), link.clone()));
                }
            }
        }
    }
}

/// What hangs on a link that is made anew goes with the old one.
fn without_remade<'a>(found: &'a Objects, wanted: &Objects) -> Cow<'a, Objects> {
    let kind = |objects: &'a Objects, name| objects.links.get(name).map(|link| &link.kind);
    let remade: BTreeSet<&String> = wanted
        .links
        .iter()
        .filter(|(name, link)| kind(found, *name).is_some_and(|is| !same_kind(is, &link.kind)))
        .map(|(name, _)| name)
        .collect();
    if remade.is_empty() {
        return Cow::Borrowed(found);
    }
    let mut rest = found.clone();
    rest.addresses.retain(|(link, _)| !remade.contains(link));
    rest.routes.retain(|route| !remade.contains(&route.dev));
    rest.neighbours.retain(|(link, _), _| !remade.contains(link));
    rest.fdb.retain(|(link, _), _| !remade.contains(link));
    Cow::Owned(rest)
}

fn same_kind(found: &LinkKind, wanted: &LinkKind) -> bool {
    match (found, wanted) {
        // Which namespace the other end is in is known of pairs that we made; of those that were
        // seen it is not: `pair` looks there.
        (LinkKind::VethPeer, LinkKind::Veth { .. } | LinkKind::VethPeer)
        | (LinkKind::Veth { .. }, LinkKind::VethPeer) => true,
        (found, wanted) => found == wanted,
    }
}

fn differs(found: &LinkObject, wanted: &LinkObject) -> bool {
    (wanted.mac.is_some() && wanted.mac != found.mac)
        || (wanted.mtu != 0 && wanted.mtu != found.mtu)
        || wanted.master != found.master
        || (wanted.master.is_some() && wanted.port != found.port)
        || wanted.up != found.up
}

fn neighbours(
    ns: &Namespace,
    found: &Objects,
    wanted: &Objects,
    steps: &mut Vec<Step>,
    gone: &dyn Fn(&str) -> bool,
) {
    for (link, addr) in found.neighbours.keys() {
        if !gone(link) && !wanted.neighbours.contains_key(&(link.clone(), *addr)) {
            steps.push(Step::RemoveNeighbour(ns.clone(), link.clone(), *addr));
        }
    }
    for ((link, addr), mac) in &wanted.neighbours {
        if found.neighbours.get(&(link.clone(), *addr)) != Some(mac) {
            steps.push(Step::SetNeighbour(ns.clone(), link.clone(), *addr, *mac));
            let bridge = wanted.links.get(link).and_then(|link| link.master.as_ref());
            // On a bridge that is only made now nobody has asked yet.
            if let Some(bridge) = bridge.filter(|bridge| found.links.contains_key(*bridge)) {
                steps.push(Step::Advertise(ns.clone(), bridge.clone(), *addr, *mac));
            }
        }
    }
    for ((link, mac), vtep) in &found.fdb {
        if !gone(link) && !wanted.fdb.contains_key(&(link.clone(), *mac)) {
            steps.push(Step::RemoveForwarding(ns.clone(), link.clone(), *mac, *vtep));
        }
    }
    for ((link, mac), vtep) in &wanted.fdb {
        if found.fdb.get(&(link.clone(), *mac)) != Some(vtep) {
            steps.push(Step::SetForwarding(ns.clone(), link.clone(), *mac, *vtep));
        }
    }
}

fn table(ns: &Namespace, found: &Objects, wanted: &Objects, steps: &mut Vec<Step>) {
    let gone: Vec<IpAddr> =
        found.flows.containers.difference(&wanted.flows.containers).copied().collect();
    if !gone.is_empty() {
        steps.push(Step::ForgetFlows(ns.clone(), gone));
    }
    match (&found.table, &wanted.table) {
        (Some(_), None) => steps.push(Step::RemoveTable(ns.clone())),
        (found_table, Some(table)) if found_table.as_ref() != Some(table) => {
            steps.push(Step::SetTable(ns.clone(), table.clone()));
            steps.push(Step::SettleFlows(ns.clone(), settled(&found.flows, &wanted.flows)));
        }
        // One that drained was in the table no longer, and had its flows until now.
        (Some(_), Some(_)) if has_lost(&found.flows, &wanted.flows) => {
            steps.push(Step::SettleFlows(ns.clone(), settled(&found.flows, &wanted.flows)));
        }
        _ => {}
    }
}

/// Somebody who answered before no longer does.
fn has_lost(before: &Flows, after: &Flows) -> bool {
    let gone = |was: &BTreeSet<IpAddr>, is: Option<&BTreeSet<IpAddr>>| {
        was.iter().any(|one| is.is_none_or(|is| !is.contains(one)))
    };
    let (vips, ports) = (&after.virtual_addresses, &after.ports);
    before.virtual_addresses.iter().any(|(vip, was)| gone(was, vips.get(vip)))
        || before.ports.iter().any(|(port, was)| gone(was, ports.get(port)))
}

/// The new flows, and for what was there before and is no longer: nobody answers.
fn settled(before: &Flows, after: &Flows) -> Flows {
    let mut flows = after.clone();
    for vip in before.virtual_addresses.keys() {
        flows.virtual_addresses.entry(*vip).or_default();
    }
    for port in before.ports.keys() {
        flows.ports.entry(*port).or_default();
    }
    flows
}

/// Pairs are made whole: gives each new pair its inner end, drops the inner end's own step, and
/// makes a pair anew when one end is missing.
fn pair(steps: &mut Vec<Step>, observed: &World, desired: &World) {
    let mut inner: BTreeMap<(Namespace, String), (Namespace, String)> = BTreeMap::new();
    for (ns, objects) in desired {
        for (name, link) in &objects.links {
            if let LinkKind::Veth { peer_namespace, peer } = &link.kind {
                inner.insert((peer_namespace.clone(), peer.clone()), (ns.clone(), name.clone()));
            }
        }
    }
    let missing: Vec<(Namespace, String)> = steps
        .iter()
        .filter_map(|step| match step {
            Step::AddLink(ns, name, link, _) if link.kind == LinkKind::VethPeer => {
                inner.get(&(ns.clone(), name.clone())).cloned()
            }
            Step::AddLink(ns, name, link, _) if matches!(link.kind, LinkKind::Veth { .. }) => {
                Some((ns.clone(), name.clone()))
            }
            _ => None,
        })
        .collect();
    steps.retain(|step| match step {
        Step::AddLink(ns, name, link, _) => {
            link.kind != LinkKind::VethPeer && !missing.contains(&(ns.clone(), name.clone()))
        }
        Step::SetLink(ns, name, _) => !missing.contains(&(ns.clone(), name.clone())),
        _ => true,
    });
    let mut made = BTreeSet::new();
    for (ns, name) in missing {
        if !made.insert((ns.clone(), name.clone())) {
            continue;
        }
        let link = &desired[&ns].links[&name];
        let LinkKind::Veth { peer_namespace, peer } = &link.kind else { continue };
        let there = |ns: &Namespace, name: &String| {
            observed.get(ns).is_some_and(|objects| objects.links.contains_key(name))
        };
        for (ns, name) in [(&ns, &name), (peer_namespace, peer)] {
            let removed = Step::RemoveLink(ns.clone(), name.clone());
            if there(ns, name) && desired.contains_key(ns) && !steps.contains(&removed) {
                steps.push(removed);
            }
        }
        let other = desired.get(peer_namespace).and_then(|o| o.links.get(peer)).cloned();
        refill(steps, observed, desired, peer_namespace, peer);
        steps.push(Step::AddLink(ns.clone(), name.clone(), link.clone(), other));
    }
}

/// A link that is made anew has lost its addresses and routes.
fn refill(steps: &mut Vec<Step>, observed: &World, desired: &World, ns: &Namespace, name: &String) {
    let (Some(found), Some(wanted)) = (observed.get(ns), desired.get(ns)) else { return };
    for (link, address) in wanted.addresses.iter().filter(|(link, _)| link == name) {
        if found.addresses.contains(&(link.clone(), *address)) {
            steps.push(Step::AddAddress(ns.clone(), link.clone(), *address));
        }
    }
    for route in wanted.routes.iter().filter(|route| route.dev == *name) {
        if found.routes.contains(route) {
            steps.push(Step::AddRoute(ns.clone(), route.clone()));
        }
    }
}

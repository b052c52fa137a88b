//! A container's namespace: its links, routes, the resolver's redirect, virtual addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::{Plug, any, ingress, link_mtu, loopback, mesh6, plug};
use crate::addr::Cidr;
use crate::objects::{BridgePort, Flows, LinkKind, LinkObject, Objects, Route, TABLE_MAIN};
use crate::table::{
    Action, Chain, ChainKind, Hook, Match, PRIORITY_DSTNAT, PRIORITY_MANGLE, PRIORITY_RAW, Table,
};
use crate::view::{Link, Proto, ResolverPorts, Sandbox, SandboxId, Service, View};

/// Where every container believes its resolver to be.
pub const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
const DNS_PORT: u16 = 53;

pub(super) fn objects(view: &View, id: &SandboxId, sandbox: &Sandbox) -> Objects {
    let mut objects = Objects::default();
    objects.links.insert("lo".to_owned(), loopback());
    for link in &sandbox.links {
        if let Some(plug) = plug(view, link) {
            add_link(&mut objects, view, link, &plug);
        }
    }
    let mut table = Table::default();
    if *id == SandboxId::ingress() {
        ingress::add_router(view, sandbox, &mut objects, &mut table);
    } else {
        add_services(view, (id, sandbox), &mut objects.flows, &mut table);
        ingress::add_task(view, sandbox, &mut objects, &mut table);
    }
    let flows = &objects.flows;
    let leads = !flows.virtual_addresses.is_empty() || !flows.ports.is_empty();
    if leads || !sandbox.ingress.is_empty() {
        keep_silent_flows(&mut objects);
    }
    if !table.chains.is_empty() {
        objects.table = Some(Arc::new(table));
    }
    objects
}

/// A translation lives as long as the connection, however long its ends are silent: without it an
/// answer would find no socket. Five days, the kernel's own limit, is less than some wait; more than
/// this cannot be said on every kernel (`INT_MAX / HZ`). Where one end has finished and still listens,
/// the kernel's minute becomes a day.
fn keep_silent_flows(objects: &mut Objects) {
    for (state, seconds) in [("established", 2_000_000), ("close_wait", 86_400)] {
        let path = format!("net/netfilter/nf_conntrack_tcp_timeout_{state}");
        objects.sysctls.insert(path, seconds.to_string());
    }
}

fn add_link(objects: &mut Objects, view: &View, link: &Link, plug: &Plug<'_>) {
    let twins = mesh6::twins(view, link);
    let v6 = link.addresses.iter().chain(&twins).any(|cidr| !cidr.is_v4());
    objects.links.insert(
        link.ifname.clone(),
        LinkObject {
            kind: LinkKind::VethPeer,
            mac: Some(link.mac),
            mtu: link_mtu(&view.host, plug),
            master: None,
            port: BridgePort::default(),
            up: true,
            link_local: v6,
        },
    );
    for address in link.addresses.iter().chain(&twins) {
        objects.addresses.insert((link.ifname.clone(), *address));
    }
    let route = |dst: Cidr, via: Option<IpAddr>| Route {
        table: TABLE_MAIN,
        dst,
        via,
        dev: link.ifname.clone(),
    };
    for gateway in &link.gateways {
        objects.routes.insert(route(any(gateway.is_ipv4()), Some(*gateway)));
    }
    for (subnet, via) in &link.routes {
        objects.routes.insert(route(subnet.network(), *via));
    }
}

/// Virtual addresses of the sandbox's overlays, translated where the connection starts.
fn add_services(
    view: &View,
    (id, sandbox): (&SandboxId, &Sandbox),
    flows: &mut Flows,
    table: &mut Table,
) {
    let services = services(view, sandbox);
    let mut output = Chain::base("output", ChainKind::Nat, Hook::Output, PRIORITY_DSTNAT);
    let mut refuse = Chain::base("refuse", ChainKind::Filter, Hook::Output, PRIORITY_MANGLE);
    if let Some(ports) = sandbox.resolver {
        table.chains.push(redirect_names(ports));
    }
    for v4 in [true, false] {
        let mut map = BTreeMap::new();
        for (vip, service) in services.iter().filter(|(vip, _)| vip.is_ipv4() == v4) {
            let (all, ready) = backends(service, *vip);
            if ready.is_empty() {
                refuse_address(&mut refuse, *vip, &all);
            } else {
                let mut chain = Chain::new(format!("vip-{vip}").replace(':', "."));
                chain.rule(translatable(), Action::Dnat(turned(ready, id.0.as_bytes()), None));
                map.insert(*vip, chain.name.clone());
                table.chains.push(chain);
            }
            flows.virtual_addresses.insert(*vip, all);
        }
        if !map.is_empty() {
            output.rule(vec![if v4 { Match::V4 } else { Match::V6 }], Action::GotoByDaddr(map));
        }
    }
    for chain in [output, refuse] {
        if !chain.rules.is_empty() {
            table.chains.push(chain);
        }
    }
}

/// Everything that has flows is translated; there is no port to look at.
fn translatable() -> Vec<Match> {
    Vec::new()
}

/// Questions go to the resolver's own ports and answers come back from 53. Without flows: a question
/// would leave one behind for each asker's port, and looking them up is a tenth of an answer's time.
pub fn redirect_names(ports: ResolverPorts) -> Chain {
    let mut chain = Chain::base("names", ChainKind::Filter, Hook::Output, PRIORITY_RAW);
    chain.rule(vec![Match::OifNameNot("lo".to_owned())], Action::Accept);
    for (proto, port) in [(Proto::Udp, ports.udp), (Proto::Tcp, ports.tcp)] {
        let asked = vec![Match::Daddr(Cidr::host(RESOLVER)), Match::Dport(proto, DNS_PORT)];
        chain.rule(asked, Action::SetDport(proto, port));
        let answered = vec![Match::Saddr(Cidr::host(RESOLVER)), Match::Sport(proto, port)];
        chain.rule(answered, Action::SetSport(proto, DNS_PORT));
    }
    chain
}

fn services<'a>(view: &'a View, sandbox: &Sandbox) -> Vec<(IpAddr, &'a Service)> {
    let networks: BTreeSet<_> = sandbox.links.iter().map(|link| &link.network).collect();
    let overlays = networks.into_iter().filter_map(|id| view.overlays.get(id));
    let services = overlays.filter(|overlay| overlay.ingress.is_none()).flat_map(|o| &o.services);
    let mut pairs: Vec<_> =
        services.flat_map(|service| service.vips.iter().map(move |vip| (*vip, service))).collect();
    pairs.sort_by_key(|(vip, _)| *vip);
    pairs.dedup_by_key(|(vip, _)| *vip);
    pairs
}

/// Those that may answer, and those that get new connections, of the virtual address's family.
fn backends(service: &Service, vip: IpAddr) -> (BTreeSet<IpAddr>, Vec<IpAddr>) {
    let same = || service.backends.iter().filter(|b| b.address.is_ipv4() == vip.is_ipv4());
    let all = same().map(|backend| backend.address).collect();
    let ready: BTreeSet<_> = same().filter(|b| b.ready).map(|b| b.address).collect();
    (all, ready.into_iter().collect())
}

/// The round of one caller. The kernel begins it anew with each table, and callers that call more seldom than
/// something changes would all meet the same backend: so each begins at another.
pub(super) fn turned(mut ready: Vec<IpAddr>, caller: &[u8]) -> Vec<IpAddr> {
    let number = caller
        .iter()
        .fold(0u32, |number, byte| number.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    let begin = number as usize % ready.len().max(1);
    ready.rotate_left(begin);
    ready
}

/// A service without a ready task says so at once. What a draining task still holds lives on.
fn refuse_address(chain: &mut Chain, vip: IpAddr, draining: &BTreeSet<IpAddr>) {
    let to = Match::Daddr(Cidr::host(vip));
    if !draining.is_empty() {
        chain.rule(vec![to.clone(), Match::Established], Action::Accept);
    }
    chain.rule(vec![to.clone(), Match::Proto(Proto::Tcp)], Action::RejectReset);
    chain.rule(vec![to], Action::RejectUnreachable);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_begin_their_rounds_at_different_backends() {
        let ready: Vec<IpAddr> = (1..=4).map(|last| IpAddr::from([10, 0, 1, last])).collect();
        let mut first = BTreeMap::new();
        for caller in 0..100 {
            let round = turned(ready.clone(), format!("{caller:064x}").as_bytes());
            assert_eq!(round.iter().collect::<BTreeSet<_>>().len(), 4, "every backend once");
            *first.entry(round[0]).or_insert(0) += 1;
        }
        assert!(ready.iter().all(|backend| first[backend] > 10), "{first:?}");
        assert!(turned(Vec::new(), b"caller").is_empty());
    }
}

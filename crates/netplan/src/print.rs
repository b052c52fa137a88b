//! Steps in the words of `ip`, `bridge`, `sysctl`, `nft` and `conntrack`, for people and tests.

use std::fmt;

use crate::diff::Step;
use crate::objects::{LinkKind, LinkObject, Namespace, TABLE_MAIN};

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = prefix(self.namespace());
        match self {
            Self::RemoveRule(_, rule) => {
                let v6 = if rule.v6 { " -6" } else { "" };
                write!(f, "ip{on}{v6} rule del fwmark {:#x} lookup {}", rule.fwmark, rule.table)
            }
            Self::AddRule(_, rule) => {
                let v6 = if rule.v6 { " -6" } else { "" };
                write!(f, "ip{on}{v6} rule add fwmark {:#x} lookup {}", rule.fwmark, rule.table)
            }
            Self::RemoveRoute(_, route) => write!(f, "ip{on} route del {}", route_text(route)),
            Self::AddRoute(_, route) => write!(f, "ip{on} route replace {}", route_text(route)),
            Self::RemoveNeighbour(_, dev, addr) => write!(f, "ip{on} neigh del {addr} dev {dev}"),
            Self::SetNeighbour(_, dev, addr, mac) => {
                write!(f, "ip{on} neigh replace {addr} lladdr {mac} dev {dev} nud permanent")
            }
            Self::RemoveForwarding(_, dev, mac, vtep) => {
                write!(f, "bridge{on} fdb del {mac} dev {dev} dst {vtep} self")
            }
            Self::SetForwarding(_, dev, mac, vtep) => {
                write!(f, "bridge{on} fdb replace {mac} dev {dev} dst {vtep} self permanent")
            }
            Self::Advertise(_, bridge, addr, mac) => {
                write!(f, "advertise{on} {addr} at {mac} on {bridge}")
            }
            Self::RemoveAddress(_, dev, cidr) => write!(f, "ip{on} addr del {cidr} dev {dev}"),
            Self::AddAddress(_, dev, cidr) => write!(f, "ip{on} addr replace {cidr} dev {dev}"),
            Self::RemoveLink(_, name) => write!(f, "ip{on} link del {name}"),
            Self::RemoveNamespace(ns) => write!(f, "ip netns del {ns}"),
            Self::AddNamespace(ns) => write!(f, "ip netns add {ns}"),
            Self::KeepNamespace(ns) => write!(f, "ip netns attach {ns}"),
            Self::AddLink(_, name, link, peer) => {
                write!(f, "ip{on} link add {name}{}", added(link, peer.as_ref()))
            }
            Self::SetLink(_, name, link) => write!(f, "ip{on} link set {name}{}", content(link)),
            Self::SetSysctl(_, path, value) => {
                write!(f, "{}sysctl -w {}={value}", exec(self.namespace()), path.replace('/', "."))
            }
            Self::SetTable(ns, table) => write!(f, "{}nft -f - <<.\n{table}.", exec(ns)),
            Self::RemoveTable(ns) => write!(f, "{}nft delete table inet skep", exec(ns)),
            Self::SettleFlows(ns, flows) => write!(
                f,
                "{}conntrack: settle {} addresses, {} ports",
                exec(ns),
                flows.virtual_addresses.len(),
                flows.ports.len()
            ),
            Self::ForgetFlows(ns, addresses) => {
                write!(f, "{}conntrack: forget {addresses:?}", exec(ns))
            }
        }
    }
}

fn prefix(ns: &Namespace) -> String {
    if *ns == Namespace::Host { String::new() } else { format!(" -n {ns}") }
}

fn exec(ns: &Namespace) -> String {
    if *ns == Namespace::Host { String::new() } else { format!("ip netns exec {ns} ") }
}

fn route_text(route: &crate::objects::Route) -> String {
    let mut text = if route.dst.prefix == 0 { "default".to_owned() } else { route.dst.to_string() };
    if let Some(via) = route.via {
        text += &format!(" via {via}");
    }
    text += &format!(" dev {}", route.dev);
    if route.table != TABLE_MAIN {
        text += &format!(" table {}", route.table);
    }
    text
}

fn added(link: &LinkObject, peer: Option<&LinkObject>) -> String {
    let kind = match &link.kind {
        LinkKind::Bridge => " type bridge".to_owned(),
        LinkKind::Vxlan { vni, local, port } => {
            format!(" type vxlan id {vni} local {local} dstport {port} nolearning proxy")
        }
        LinkKind::Veth { peer_namespace, peer: name } => {
            let inner = peer.map(content).unwrap_or_default();
            format!(" type veth peer {name} netns {peer_namespace}{inner}")
        }
        LinkKind::VethPeer => " type veth".to_owned(),
        LinkKind::Other(kind) => format!(" type {kind}"),
    };
    content(link) + &kind
}

fn content(link: &LinkObject) -> String {
    let mut text = String::new();
    if let Some(mac) = link.mac {
        text += &format!(" address {mac}");
    }
    if link.mtu != 0 {
        text += &format!(" mtu {}", link.mtu);
    }
    if let Some(master) = &link.master {
        text += &format!(" master {master}");
        for (set, name) in [(link.port.hairpin, "hairpin"), (link.port.isolated, "isolated")] {
            if set {
                text += &format!(" {name} on");
            }
        }
    }
    text += if link.up { " up" } else { " down" };
    text
}

//! An nf_tables table of skep's own, as a value; printed as `nft` prints it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::IpAddr;

use crate::addr::{Cidr, Mac};
use crate::view::Proto;

/// Every table of skep's has this name and family `inet`.
pub const TABLE_NAME: &str = "skep";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// A chain stands before the chains that jump to it.
    pub chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub base: Option<Base>,
    pub rules: Vec<NftRule>,
}

impl Chain {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), base: None, rules: Vec::new() }
    }

    pub fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { name: name.to_owned(), base: Some(Base { kind, hook, priority }), rules: Vec::new() }
    }

    pub fn rule(&mut self, matches: Vec<Match>, action: Action) {
        self.rules.push(NftRule { matches, action });
    }
}

/// Where a chain hangs; the policy is always accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
    Route,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

pub const PRIORITY_RAW: i32 = -300;
/// After connection tracking (-200), before translation of destinations (-100).
pub const PRIORITY_MANGLE: i32 = -150;
pub const PRIORITY_DSTNAT: i32 = -100;
pub const PRIORITY_FILTER: i32 = 0;
pub const PRIORITY_SRCNAT: i32 = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftRule {
    pub matches: Vec<Match>,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    IifName(String),
    IifNameNot(String),
    OifName(String),
    OifNameNot(String),
    V4,
    V6,
    Saddr(Cidr),
    Daddr(Cidr),
    DaddrNot(Cidr),
    Proto(Proto),
    Icmp,
    Dport(Proto, u16),
    Sport(Proto, u16),
    DaddrLocal,
    SaddrLocal,
    /// `ct state established,related`
    Established,
    /// The flow's destination was translated.
    Translated,
    /// `ct mark != 0`
    CtMarked,
    /// `ct mark 0`
    CtUnmarked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Accept,
    Drop,
    Return,
    Jump(String),
    /// No flow is made for the packet.
    Untracked,
    Masquerade,
    Snat(IpAddr),
    /// One after another; every target is of one family. The port stays when there is none.
    Dnat(Vec<IpAddr>, Option<u16>),
    Redirect(u16),
    /// A port rewritten in every packet by itself, without a flow to look up.
    SetDport(Proto, u16),
    SetSport(Proto, u16),
    RejectReset,
    RejectUnreachable,
    /// `ip daddr vmap { … : goto chain }`; one family.
    GotoByDaddr(BTreeMap<IpAddr, String>),
    /// `ct mark set ether saddr map { … }`
    CtMarkBySource(BTreeMap<Mac, u32>),
    /// The flow's first direction is looked up among those whose packets come from a MAC with the
    /// same last 16 bits.
    CtZoneBySource,
    /// `meta mark set ct mark`
    MarkFromCt,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE_NAME} {{")?;
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(base) = &chain.base {
                writeln!(
                    f,
                    "\t\ttype {} hook {} priority {}; policy accept;",
                    base.kind.name(),
                    base.hook.name(),
                    base.priority
                )?;
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl ChainKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

impl Hook {
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

impl fmt::Display for NftRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            write!(f, "{one} ")?;
        }
        write!(f, "{}", self.action)
    }
}

fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "ip" } else { "ip6" }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IifName(name) => write!(f, "iifname \"{name}\""),
            Self::IifNameNot(name) => write!(f, "iifname != \"{name}\""),
            Self::OifName(name) => write!(f, "oifname \"{name}\""),
            Self::OifNameNot(name) => write!(f, "oifname != \"{name}\""),
            Self::V4 => f.write_str("meta nfproto ipv4"),
            Self::V6 => f.write_str("meta nfproto ipv6"),
            Self::Saddr(cidr) => write!(f, "{} saddr {}", family(cidr.addr), short(cidr)),
            Self::Daddr(cidr) => write!(f, "{} daddr {}", family(cidr.addr), short(cidr)),
            Self::DaddrNot(cidr) => write!(f, "{} daddr != {}", family(cidr.addr), short(cidr)),
            Self::Proto(proto) => write!(f, "meta l4proto {}", proto.name()),
            Self::Icmp => f.write_str("meta l4proto { icmp, ipv6-icmp }"),
            Self::Dport(proto, port) => write!(f, "{} dport {port}", proto.name()),
            Self::Sport(proto, port) => write!(f, "{} sport {port}", proto.name()),
            Self::DaddrLocal => f.write_str("fib daddr type local"),
            Self::SaddrLocal => f.write_str("fib saddr type local"),
            Self::Established => f.write_str("ct state established,related"),
            Self::Translated => f.write_str("ct status dnat"),
            Self::CtMarked => f.write_str("ct mark != 0x00000000"),
            Self::CtUnmarked => f.write_str("ct mark 0x00000000"),
        }
    }
}

/// `nft` leaves out the prefix of a single address.
fn short(cidr: &Cidr) -> String {
    if *cidr == Cidr::host(cidr.addr) { cidr.addr.to_string() } else { cidr.to_string() }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Untracked => f.write_str("notrack"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Snat(addr) => write!(f, "snat {} to {addr}", family(*addr)),
            Self::Dnat(targets, port) => f.write_str(&dnat(targets, *port)),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::SetDport(proto, port) => write!(f, "notrack {} dport set {port}", proto.name()),
            Self::SetSport(proto, port) => write!(f, "notrack {} sport set {port}", proto.name()),
            Self::RejectReset => f.write_str("reject with tcp reset"),
            Self::RejectUnreachable => f.write_str("reject"),
            Self::GotoByDaddr(map) => {
                let word = map.keys().next().map_or("ip", |addr| family(*addr));
                write!(f, "{word} daddr vmap {{ ")?;
                list(f, map.iter().map(|(addr, chain)| format!("{addr} : goto {chain}")))
            }
            Self::CtMarkBySource(map) => {
                f.write_str("ct mark set ether saddr map { ")?;
                list(f, map.iter().map(|(mac, mark)| format!("{mac} : 0x{mark:08x}")))
            }
            Self::CtZoneBySource => f.write_str("ct original zone set @ll,80,16"),
            Self::MarkFromCt => f.write_str("meta mark set ct mark"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = String>) -> fmt::Result {
    f.write_str(&items.collect::<Vec<_>>().join(", "))?;
    f.write_str(" }")
}

fn dnat(targets: &[IpAddr], port: Option<u16>) -> String {
    let mut text = String::from("dnat ");
    let word = targets.first().map_or("ip", |addr| family(*addr));
    let _ = write!(text, "{word} to ");
    match targets {
        [one] => {
            let _ = match (port, one.is_ipv4()) {
                (None, _) => write!(text, "{one}"),
                (Some(port), true) => write!(text, "{one}:{port}"),
                (Some(port), false) => write!(text, "[{one}]:{port}"),
            };
        }
        many => {
            let _ = write!(text, "numgen inc mod {} map {{ ", many.len());
            let items = many.iter().enumerate().map(|(n, addr)| format!("{n} : {addr}"));
            let _ = write!(text, "{} }}", items.collect::<Vec<_>>().join(", "));
            if let Some(port) = port {
                let _ = write!(text, ":{port}");
            }
        }
    }
    text
}

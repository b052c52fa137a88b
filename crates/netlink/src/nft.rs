//! Our own encoder of nf_tables transactions: a `netplan::Table` becomes one atomic batch.

use std::net::IpAddr;

use netplan::table::{Action, ChainKind, Hook, Match, NftRule};
use netplan::{Cidr, Proto, TABLE_NAME, Table};

use crate::expressions::{Expressions, REG_1, REG_2, SetId};
use crate::message::{Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, ip_bytes};

const SUBSYS: u16 = 10 << 8;
const NEWTABLE: u16 = SUBSYS;
const GETTABLE: u16 = SUBSYS | 1;
const DELTABLE: u16 = SUBSYS | 2;
const NEWCHAIN: u16 = SUBSYS | 3;
const GETCHAIN: u16 = SUBSYS | 4;
const NEWRULE: u16 = SUBSYS | 6;
const GETRULE: u16 = SUBSYS | 7;
pub const NEWSET: u16 = SUBSYS | 9;
const GETSET: u16 = SUBSYS | 10;
const NEWSETELEM: u16 = SUBSYS | 12;
const GETSETELEM: u16 = SUBSYS | 13;
const GETGEN: u16 = SUBSYS | 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

pub const NFPROTO_INET: u8 = 1;
/// Where the ports stand in TCP's, UDP's and SCTP's headers.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
/// Elements in one message: the list is one attribute of at most 64 KiB.
const ELEMENTS_MAX: usize = 500;

fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags).body(&header(NFPROTO_INET, 0))
}

/// Replaces skep's table by this one, or takes it away: all or nothing.
pub fn replace(table: Option<&Table>) -> Vec<Message> {
    let mut batch = vec![Message::new(BATCH_BEGIN, 0).body(&header(0, 10))];
    // Made if it is not there, so that the removal cannot fail.
    batch.push(named_table(NEWTABLE, NLM_F_CREATE));
    batch.push(named_table(DELTABLE, 0));
    if let Some(table) = table {
        batch.push(named_table(NEWTABLE, NLM_F_CREATE));
        batch.extend(table.chains.iter().map(chain));
        let mut sets = 0;
        for chain in &table.chains {
            for one in &chain.rules {
                rule(&mut batch, &chain.name, one, &mut sets);
            }
        }
    }
    if let Some(last) = batch.last_mut() {
        last.add_flags(NLM_F_ACK);
    }
    batch.push(Message::new(BATCH_END, 0).body(&header(0, 10)));
    batch
}

fn named_table(kind: u16, flags: u16) -> Message {
    let mut message = message(kind, flags);
    message.put_str(1, TABLE_NAME);
    message
}

fn chain(chain: &netplan::table::Chain) -> Message {
    let mut message = message(NEWCHAIN, NLM_F_CREATE);
    message.put_str(1, TABLE_NAME);
    message.put_str(3, &chain.name);
    if let Some(base) = &chain.base {
        message.begin(4);
        message.put_u32_be(1, hook_number(base.hook));
        message.put_u32_be(2, base.priority as u32);
        message.end();
        const ACCEPT: u32 = 1;
        message.put_u32_be(5, ACCEPT);
        message.put_str(7, kind_name(base.kind));
    }
    message
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn kind_name(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    }
}

/// The rule, after the anonymous sets it looks things up in.
fn rule(batch: &mut Vec<Message>, chain: &str, rule: &NftRule, sets: &mut u32) {
    let mut head = message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    head.put_str(1, TABLE_NAME);
    head.put_str(2, chain);
    head.begin(4);
    let mut body = Expressions::new(head);
    for one in &rule.matches {
        encode_match(batch, &mut body, one, sets);
    }
    encode_action(batch, &mut body, &rule.action, sets);
    let mut message = body.into_message();
    message.end();
    batch.push(message);
}

fn encode_match(batch: &mut Vec<Message>, body: &mut Expressions, one: &Match, sets: &mut u32) {
    const META_IIFNAME: u32 = 6;
    const META_OIFNAME: u32 = 7;
    const CT_STATE: u32 = 0;
    const CT_STATUS: u32 = 2;
    const CT_MARK: u32 = 3;
    match one {
        Match::IifName(name) => body.meta_equals(META_IIFNAME, &padded(name), true),
        Match::IifNameNot(name) => body.meta_equals(META_IIFNAME, &padded(name), false),
        Match::OifName(name) => body.meta_equals(META_OIFNAME, &padded(name), true),
        Match::OifNameNot(name) => body.meta_equals(META_OIFNAME, &padded(name), false),
        Match::V4 => body.family(true),
        Match::V6 => body.family(false),
        Match::Saddr(cidr) => address(body, cidr, true, true),
        Match::Daddr(cidr) => address(body, cidr, false, true),
        Match::DaddrNot(cidr) => address(body, cidr, false, false),
        Match::Proto(proto) => body.protocol(proto.number()),
        Match::Icmp => {
            let set = lookup_set(batch, sets, &[vec![1], vec![58]]);
            body.load_protocol();
            body.lookup(&set, REG_1, None);
        }
        Match::Dport(proto, port) => match_port(body, *proto, DESTINATION_PORT, *port),
        Match::Sport(proto, port) => match_port(body, *proto, SOURCE_PORT, *port),
        Match::DaddrLocal => body.fib_local(false),
        Match::SaddrLocal => body.fib_local(true),
        Match::Established => body.ct_bits(CT_STATE, 2 | 4),
        Match::Translated => body.ct_bits(CT_STATUS, 0x20),
        Match::CtMarked | Match::CtUnmarked => {
            body.load_ct(CT_MARK);
            body.compare(REG_1, &0u32.to_ne_bytes(), *one == Match::CtUnmarked);
        }
    }
}

fn match_port(body: &mut Expressions, proto: Proto, offset: u32, port: u16) {
    body.protocol(proto.number());
    body.load_transport(offset, 2);
    body.compare(REG_1, &port.to_be_bytes(), true);
}

/// A packet that no flow is kept for gets another port and a checksum that fits.
fn set_port(body: &mut Expressions, proto: Proto, offset: u32, port: u16) {
    // The kind of checksum, the internet's or SCTP's, and where it stands.
    let checksum = match proto {
        Proto::Tcp => (1, 16),
        Proto::Udp => (1, 6),
        Proto::Sctp => (2, 8),
    };
    body.untracked();
    body.immediate(REG_1, &port.to_be_bytes());
    body.store_transport(offset, 2, checksum);
}

fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0u8; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bytes
}

fn address(body: &mut Expressions, cidr: &Cidr, source: bool, equal: bool) {
    body.family(cidr.is_v4());
    load_address(body, cidr.is_v4(), source);
    if *cidr != Cidr::host(cidr.addr) {
        let ones = Cidr::new(all_ones(cidr.is_v4()), cidr.prefix).network();
        body.mask(&ip_bytes(ones.addr));
    }
    body.compare(REG_1, &ip_bytes(cidr.network().addr), equal);
}

fn all_ones(v4: bool) -> IpAddr {
    if v4 { IpAddr::from([0xff; 4]) } else { IpAddr::from([0xff; 16]) }
}

fn load_address(body: &mut Expressions, v4: bool, source: bool) {
    let (offset, length) = match (v4, source) {
        (true, true) => (12, 4),
        (true, false) => (16, 4),
        (false, true) => (8, 16),
        (false, false) => (24, 16),
    };
    body.load_network(offset, length);
}

fn encode_action(
    batch: &mut Vec<Message>,
    body: &mut Expressions,
    action: &Action,
    sets: &mut u32,
) {
    const CT_MARK: u32 = 3;
    const META_MARK: u32 = 3;
    match action {
        Action::Accept => body.verdict(1, None),
        Action::Untracked => body.untracked(),
        Action::Drop => body.verdict(0, None),
        Action::Return => body.verdict(-5, None),
        Action::Jump(chain) => body.verdict(-3, Some(chain)),
        Action::Masquerade => body.masquerade(),
        Action::Snat(addr) => {
            body.immediate(REG_1, &ip_bytes(*addr));
            body.nat(false, addr.is_ipv4(), None);
        }
        Action::Dnat(targets, port) => {
            let Some(first) = targets.first() else { return };
            if targets.len() == 1 {
                body.immediate(REG_1, &ip_bytes(*first));
            } else {
                let map = numbered_map(batch, sets, targets);
                body.numgen(targets.len() as u32);
                body.lookup(&map, REG_1, Some(REG_1));
            }
            if let Some(port) = port {
                body.immediate(REG_2, &port.to_be_bytes());
            }
            body.nat(true, first.is_ipv4(), port.map(|_| REG_2));
        }
        Action::Redirect(port) => {
            body.immediate(REG_1, &port.to_be_bytes());
            body.redirect();
        }
        Action::SetDport(proto, port) => set_port(body, *proto, DESTINATION_PORT, *port),
        Action::SetSport(proto, port) => set_port(body, *proto, SOURCE_PORT, *port),
        Action::RejectReset => body.reject(1, 0),
        Action::RejectUnreachable => body.reject(2, 1),
        Action::GotoByDaddr(map) => {
            let Some(first) = map.keys().next() else { return };
            let elements: Vec<_> =
                map.iter().map(|(addr, chain)| (ip_bytes(*addr), Data::Goto(chain))).collect();
            let (kind, length) = if first.is_ipv4() { (7, 4) } else { (8, 16) };
            let set = map_set(batch, sets, kind, length, None, &elements);
            load_address(body, first.is_ipv4(), false);
            body.lookup(&set, REG_1, Some(0));
        }
        Action::CtMarkBySource(map) => {
            let elements: Vec<_> = map
                .iter()
                .map(|(mac, mark)| (mac.0.to_vec(), Data::Value(mark.to_ne_bytes().to_vec())))
                .collect();
            let set = map_set(batch, sets, 9, 6, Some((19, 4)), &elements);
            body.load_source_mac();
            body.lookup(&set, REG_1, Some(REG_1));
            body.store_ct(CT_MARK);
        }
        Action::CtZoneBySource => {
            body.load_source_mac_end();
            body.store_original_zone();
        }
        Action::MarkFromCt => {
            body.load_ct(CT_MARK);
            body.store_meta(META_MARK);
        }
    }
}

enum Data<'a> {
    None,
    Value(Vec<u8>),
    Goto(&'a str),
}

fn numbered_map(batch: &mut Vec<Message>, sets: &mut u32, targets: &[IpAddr]) -> SetId {
    let elements: Vec<_> = targets
        .iter()
        .enumerate()
        .map(|(n, addr)| ((n as u32).to_ne_bytes().to_vec(), Data::Value(ip_bytes(*addr))))
        .collect();
    let data = if targets[0].is_ipv4() { (7, 4) } else { (8, 16) };
    map_set(batch, sets, 4, 4, Some(data), &elements)
}

fn lookup_set(batch: &mut Vec<Message>, sets: &mut u32, keys: &[Vec<u8>]) -> SetId {
    let elements: Vec<_> = keys.iter().map(|key| (key.clone(), Data::None)).collect();
    let id = next_set(sets, "__set%d");
    let length = keys.first().map_or(1, Vec::len) as u32;
    // inet_proto
    let mut message = new_set(&id, 1 | 2, 12, length);
    message.put_u32_be(10, id.number);
    batch.push(message);
    push_elements(batch, &id, &elements);
    id
}

/// An anonymous map; without a data type its values are verdicts.
fn map_set(
    batch: &mut Vec<Message>,
    sets: &mut u32,
    key_kind: u32,
    key_length: u32,
    data: Option<(u32, u32)>,
    elements: &[(Vec<u8>, Data<'_>)],
) -> SetId {
    const VERDICT: u32 = 0xffff_ff00;
    let id = next_set(sets, "__map%d");
    let mut message = new_set(&id, 1 | 2 | 8, key_kind, key_length);
    match data {
        Some((kind, length)) => {
            message.put_u32_be(6, kind);
            message.put_u32_be(7, length);
        }
        None => {
            message.put_u32_be(6, VERDICT);
            message.put_u32_be(7, 0);
        }
    }
    message.put_u32_be(10, id.number);
    if key_kind == 4 {
        // For those who print it: the key is a number in the host's byte order.
        message.put(13, &[0, 4, 1, 0, 0, 0]);
    }
    batch.push(message);
    push_elements(batch, &id, elements);
    id
}

fn next_set(sets: &mut u32, name: &'static str) -> SetId {
    *sets += 1;
    SetId { number: *sets, name }
}

fn new_set(id: &SetId, flags: u32, key_kind: u32, key_length: u32) -> Message {
    let mut message = message(NEWSET, NLM_F_CREATE);
    message.put_str(1, TABLE_NAME);
    message.put_str(2, id.name);
    message.put_u32_be(3, flags);
    message.put_u32_be(4, key_kind);
    message.put_u32_be(5, key_length);
    message
}

fn push_elements(batch: &mut Vec<Message>, id: &SetId, elements: &[(Vec<u8>, Data<'_>)]) {
    for part in elements.chunks(ELEMENTS_MAX) {
        let mut message = message(NEWSETELEM, NLM_F_CREATE);
        message.put_str(1, TABLE_NAME);
        message.put_str(2, id.name);
        message.put_u32_be(4, id.number);
        message.begin(3);
        for (key, data) in part {
            message.begin(1);
            message.begin(1);
            message.put(1, key);
            message.end();
            match data {
                Data::None => {}
                Data::Value(value) => {
                    message.begin(2);
                    message.put(1, value);
                    message.end();
                }
                Data::Goto(chain) => {
                    message.begin(2);
                    crate::expressions::put_verdict(&mut message, -4, Some(chain));
                    message.end();
                }
            }
            message.end();
        }
        message.end();
        batch.push(message);
    }
}

// ---- observing

/// The namespace's generation: it grows with every transaction of anybody's.
pub fn get_generation() -> Message {
    Message::new(GETGEN, 0).body(&header(0, 0))
}

pub fn read_generation(message: &crate::message::Received) -> Option<u32> {
    message.attributes(4).u32_be(1)
}

pub fn dump_tables() -> Message {
    message(GETTABLE, 0)
}

pub fn dump_chains() -> Message {
    message(GETCHAIN, 0)
}

pub fn dump_rules() -> Message {
    let mut message = message(GETRULE, 0);
    message.put_str(1, TABLE_NAME);
    message
}

pub fn dump_sets() -> Message {
    let mut message = message(GETSET, 0);
    message.put_str(1, TABLE_NAME);
    message
}

pub fn dump_elements(set: &str) -> Message {
    let mut message = message(GETSETELEM, 0);
    message.put_str(1, TABLE_NAME);
    message.put_str(2, set);
    message
}

pub fn dump_chains_of_all() -> Message {
    Message::new(GETCHAIN, 0).body(&header(0, 0))
}

pub fn dump_rules_of(family: u8, table: &str) -> Message {
    let mut message = Message::new(GETRULE, 0).body(&header(family, 0));
    message.put_str(1, table);
    message
}

/// Family, table and name of a chain that drops what is forwarded unless a rule accepts it.
pub fn read_closed(message: &crate::message::Received) -> Option<(u8, String, String)> {
    const DROP: u32 = 0;
    let family = message.body(4)?[0];
    let attributes = message.attributes(4);
    let forwards = attributes.nested(4).u32_be(1) == Some(hook_number(Hook::Forward));
    let closed = forwards && attributes.u32_be(5) == Some(DROP);
    let routed = ["ip", "ip6", "inet"].contains(&family_name(family));
    if closed && routed { Some((family, attributes.text(1)?, attributes.text(3)?)) } else { None }
}

pub fn family_name(family: u8) -> &'static str {
    match family {
        NFPROTO_INET => "inet",
        2 => "ip",
        10 => "ip6",
        _ => "other",
    }
}

/// Tables, chains, rules and sets name their table in the same attribute.
pub fn is_ours(message: &crate::message::Received) -> bool {
    message.body(4).is_some_and(|body| body[0] == NFPROTO_INET)
        && message.attributes(4).text(1).as_deref() == Some(TABLE_NAME)
}

pub fn set_name(message: &crate::message::Received) -> Option<String> {
    message.attributes(4).text(2)
}

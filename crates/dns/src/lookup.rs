//! From a question to an answer: total, without sockets and without chance.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::message::{Kind, Question};
use crate::{Answer, Names};

/// What a sandbox's question gets. The order of several addresses is as in the table.
pub fn answer(names: &Names, question: &Question) -> Answer {
    if !question.internet {
        return elsewhere(names);
    }
    if let Some(address) = pointed_at(&question.name) {
        return match (pointer(names, address), question.kind) {
            (Some(name), Kind::Ptr | Kind::Any) => Answer::Pointers(vec![name]),
            (Some(_), _) => Answer::Addresses(Vec::new()),
            (None, _) => elsewhere(names),
        };
    }
    let Some(addresses) = find(names, &question.name) else { return elsewhere(names) };
    let of_kind = |address: &&IpAddr| match question.kind {
        Kind::A => address.is_ipv4(),
        Kind::Aaaa => address.is_ipv6(),
        Kind::Any => true,
        // A known name has no mail server and no service record here, and nobody else knows better.
        Kind::Ptr | Kind::Other(_) => false,
    };
    Answer::Addresses(addresses.iter().filter(of_kind).copied().collect())
}

fn elsewhere(names: &Names) -> Answer {
    if names.upstreams.is_empty() { Answer::Refuse } else { Answer::Forward }
}

/// The addresses of a lower-case name: the sandbox's own names first, then its networks in order.
fn find<'n>(names: &'n Names, name: &str) -> Option<&'n [IpAddr]> {
    let zones = || std::iter::once(&names.own).chain(names.zones.iter().map(|zone| &**zone));
    if let Some(addresses) = zones().find_map(|zone| zone.names.get(name)) {
        return Some(addresses);
    }
    zones().find_map(|zone| {
        let short = name.strip_suffix(zone.network.as_str())?.strip_suffix('.')?;
        zone.names.get(short).map(Vec::as_slice)
    })
}

fn pointer(names: &Names, address: IpAddr) -> Option<String> {
    let zones = std::iter::once(&names.own).chain(names.zones.iter().map(|zone| &**zone));
    zones.into_iter().find_map(|zone| {
        let name = zone.pointers.get(&address)?;
        Some(if zone.network.is_empty() {
            name.clone()
        } else {
            format!("{name}.{}", zone.network)
        })
    })
}

/// The address in a name of `in-addr.arpa` or `ip6.arpa`, if it is a whole one.
fn pointed_at(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut parts = digits.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut nibbles = Vec::with_capacity(32);
    for part in digits.split('.') {
        let mut letters = part.chars();
        let nibble = letters.next()?.to_digit(16)?;
        if letters.next().is_some() {
            return None;
        }
        nibbles.push(nibble as u8);
    }
    if nibbles.len() != 32 {
        return None;
    }
    let mut octets = [0u8; 16];
    for (octet, pair) in octets.iter_mut().rev().zip(nibbles.chunks(2)) {
        *octet = pair[1] << 4 | pair[0];
    }
    Some(IpAddr::V6(Ipv6Addr::from(octets)))
}

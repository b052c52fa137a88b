//! Tracked connections: finding those that may not live on, ending them.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netplan::Flows;

use crate::message::{Attributes, Message, Received, ip_bytes};
use crate::socket::Socket;

const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
const GET_STATISTICS: u16 = (1 << 8) | 5;
const STATISTICS_ENTRIES: u16 = 1;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOINFO: u16 = 4;
const ID: u16 = 12;
/// `TCP_CONNTRACK_SYN_RECV` and `TCP_CONNTRACK_ESTABLISHED`: both ends know of each other. Whoever has
/// had no answer yet asks again within a second, and is then led to one that lives.
const TCP_ALIVE: std::ops::RangeInclusive<u8> = 2..=3;
const NESTED: u16 = 0x8000;
const SOCK_DESTROY: u16 = 21;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
}

pub struct Flow {
    pub original: Tuple,
    pub reply: Tuple,
    /// Somebody waits for more packets of it. What is over is kept for minutes, and its port may have been
    /// taken for a new connection.
    alive: bool,
    family: u8,
    reply_raw: Vec<u8>,
    id: Option<Vec<u8>>,
}

/// The namespace's flows. All namespaces share one table, and the kernel goes through the whole of it for each
/// list, some milliseconds: where its counter says that there are none it is not asked for one.
pub fn dump(socket: &mut Socket) -> io::Result<Vec<Flow>> {
    if count(socket)? == Some(0) {
        return Ok(Vec::new());
    }
    let message = Message::new(GET, 0).body(&[0, 0, 0, 0]);
    Ok(socket.dump(message)?.iter().filter_map(read).collect())
}

/// How many flows the namespace has; `None` from a kernel that does not say.
pub fn count(socket: &mut Socket) -> io::Result<Option<u32>> {
    match socket.request(Message::new(GET_STATISTICS, 0).body(&[0, 0, 0, 0])) {
        Ok(answers) => {
            Ok(answers.iter().find_map(|it| it.attributes(4).u32_be(STATISTICS_ENTRIES)))
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(message: &Received) -> Option<Flow> {
    let attributes = message.attributes(4);
    Some(Flow {
        original: tuple(attributes.nested(TUPLE_ORIGINAL))?,
        reply: tuple(attributes.nested(TUPLE_REPLY))?,
        alive: attributes
            .nested(PROTOINFO)
            .nested(1)
            .u8(1)
            .is_some_and(|it| TCP_ALIVE.contains(&it)),
        family: message.body(4)?[0],
        reply_raw: attributes.find(TUPLE_REPLY)?.to_vec(),
        id: attributes.find(ID).map(<[u8]>::to_vec),
    })
}

fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let ip = attributes.nested(1);
    let proto = attributes.nested(2);
    Some(Tuple {
        src: ip.ip(1).or(ip.ip(3))?,
        dst: ip.ip(2).or(ip.ip(4))?,
        protocol: proto.u8(1)?,
        src_port: proto.u16_be(2).unwrap_or(0),
        dst_port: proto.u16_be(3).unwrap_or(0),
    })
}

/// Which flows' answers come from where they should not, under the new table.
pub fn is_stale(flow: &Flow, right: &Flows) -> bool {
    if let Some(allowed) = right.virtual_addresses.get(&flow.original.dst) {
        return !allowed.contains(&flow.reply.src);
    }
    let key = (flow.original.protocol, flow.original.dst_port);
    let Some(allowed) = right.ports.get(&key) else { return false };
    let translated = flow.reply.src != flow.original.dst;
    let udp = i32::from(flow.original.protocol) == libc::IPPROTO_UDP;
    // What goes out under the host's address is for a server elsewhere: no port of ours.
    let masqueraded = flow.reply.dst != flow.original.src;
    // A datagram flow that began before the port was published is not translated and would
    // never be; a connection to the host's own server of that port is none of ours.
    (translated && !allowed.contains(&flow.reply.src))
        || (!translated && udp && !masqueraded && !allowed.is_empty())
}

pub fn touches(flow: &Flow, addresses: &[IpAddr]) -> bool {
    [flow.original.src, flow.original.dst, flow.reply.src, flow.reply.dst]
        .iter()
        .any(|addr| addresses.contains(addr))
}

/// Forgets the flows and answers with those that were still there; one that has ended by itself is fine.
///
/// By where their answers come from: a client may have taken the port again since they were listed, for a connection
/// that is led elsewhere. The number does not tell the two apart, as it is made of the place in memory, which is taken
/// again as well, and of the first direction (`nf_ct_get_id`).
pub fn forget<'a>(socket: &mut Socket, flows: &[&'a Flow]) -> io::Result<Vec<&'a Flow>> {
    let messages = flows
        .iter()
        .map(|flow| {
            let mut message = Message::new(DELETE, 0).body(&[flow.family, 0, 0, 0]);
            message.put(TUPLE_REPLY | NESTED, &flow.reply_raw);
            if let Some(id) = &flow.id {
                message.put(ID, id);
            }
            message
        })
        .collect();
    let failures = socket.batch(messages)?;
    let mut gone = BTreeSet::new();
    for (index, error) in failures {
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error);
        }
        gone.insert(index);
    }
    let ended = flows.iter().enumerate().filter(|(index, _)| !gone.contains(index));
    Ok(ended.map(|(_, flow)| *flow).collect())
}

/// Ends the local sockets of these flows at once, so that nobody waits for a dead peer, and says
/// which connections are held elsewhere.
pub fn abort_sockets(socket: &mut Socket, flows: &[&Flow]) -> io::Result<Vec<Tuple>> {
    let tcp = |flow: &Flow| i32::from(flow.original.protocol) == libc::IPPROTO_TCP;
    let alive = flows.iter().filter(|flow| tcp(flow) && flow.alive);
    let alive: Vec<Tuple> = alive.map(|flow| flow.original).collect();
    if alive.is_empty() {
        return Ok(alive);
    }
    let missing = socket.batch(alive.iter().map(destroy).collect())?;
    Ok(missing.iter().filter_map(|(index, _)| alive.get(*index).copied()).collect())
}

fn destroy(tuple: &Tuple) -> Message {
    let family = if tuple.src.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&tuple.src_port.to_be_bytes());
    body.extend_from_slice(&tuple.dst_port.to_be_bytes());
    for addr in [tuple.src, tuple.dst] {
        let mut bytes = ip_bytes(addr);
        bytes.resize(16, 0);
        body.extend_from_slice(&bytes);
    }
    body.extend_from_slice(&0u32.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]);
    Message::new(SOCK_DESTROY, 0).body(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u8 = libc::IPPROTO_UDP as u8;
    const CLIENT: &str = "192.0.2.9";
    const HOST: &str = "192.0.2.1";
    const CONTAINER: &str = "172.17.0.2";

    fn tuple(src: &str, dst: &str) -> Tuple {
        let addr = |text: &str| text.parse().expect("an address");
        Tuple { src: addr(src), dst: addr(dst), protocol: UDP, src_port: 40_000, dst_port: 53 }
    }

    fn stale(original: (&str, &str), reply: (&str, &str)) -> bool {
        let (original, reply) = (tuple(original.0, original.1), tuple(reply.0, reply.1));
        let flow = Flow { original, reply, alive: false, family: 2, reply_raw: vec![], id: None };
        let mut right = Flows::default();
        right.ports.insert((UDP, 53), BTreeSet::from([CONTAINER.parse().expect("an address")]));
        is_stale(&flow, &right)
    }

    #[test]
    fn a_published_port_ends_what_it_should_have_answered_and_nothing_else() {
        // Before it was published, and to a container that was there before.
        assert!(stale((CLIENT, HOST), (HOST, CLIENT)));
        assert!(stale((CLIENT, HOST), ("172.17.0.7", CLIENT)));
        assert!(!stale((CLIENT, HOST), (CONTAINER, CLIENT)));
        // A container's question to a name server elsewhere, which leaves under the host's address.
        assert!(!stale((CONTAINER, "203.0.113.53"), ("203.0.113.53", HOST)));
    }
}

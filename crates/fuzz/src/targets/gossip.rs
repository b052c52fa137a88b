//! What arrives on 7946: memberlist's packets and streams, NetworkDB's messages inside.

use std::net::SocketAddr;

use gossip::{Config, Event, Gossip, Key, StreamId};
use model::{Instant, NetworkId};
use wire::memberlist::{self, Cipher, Message, StreamMessage};

use crate::chunks;

pub const SECRET: [u8; 16] = [9; 16];
pub const NETWORK: &str = "network0000000000000000000";
/// Kinds of chunks: plain bytes of a packet, of a stream's first frame, of an answer, a user message,
/// bytes as they come from the wire. Anything else lets time pass.
pub const PACKET: u8 = 0;
pub const STREAM: u8 = 1;
pub const USER: u8 = 2;
pub const RAW: u8 = 3;
const CHUNKS_MAX: usize = 32;
/// memberlist's kind of a user message.
const USER_KIND: u8 = 8;

pub fn node(number: u8) -> Gossip {
    let address = SocketAddr::from(([192, 0, 2, number], 7946));
    Gossip::new(Config::new(format!("{number:012x}"), address, [number; 32]))
}

/// A node with keys, a network and a row of its own hears what a member of the cluster may send.
pub fn events(data: &[u8]) {
    let mut gossip = node(1);
    let mut now = Instant::from_nanos(1_000_000_000);
    let network = NetworkId::new(NETWORK);
    let begin = [
        Event::SetKeys(vec![Key { lamport: 1, secret: SECRET }]),
        Event::JoinNetwork { network: network.clone() },
        Event::PutRow {
            network: network.clone(),
            table: gossip::ENDPOINT_TABLE.into(),
            key: "own".into(),
            value: vec![1, 2, 3],
        },
    ];
    for event in begin {
        let _ = gossip.step(now, event);
    }
    let Some(cipher) = Cipher::new(&SECRET) else { return };
    let from = SocketAddr::from(([192, 0, 2, 2], 7946));
    for (number, (kind, body)) in chunks::split(data).into_iter().take(CHUNKS_MAX).enumerate() {
        let nonce = [number as u8; memberlist::NONCE_BYTES];
        let packet = |plain: &[u8]| memberlist::seal_packet(&cipher, nonce, plain);
        let event = match kind {
            PACKET => Event::Packet { from, bytes: packet(body) },
            USER => Event::Packet { from, bytes: packet(&[&[USER_KIND], body].concat()) },
            RAW => Event::Packet { from, bytes: body.to_vec() },
            STREAM => Event::StreamRequest {
                stream: StreamId(number as u64),
                from,
                bytes: memberlist::seal_frame(&cipher, nonce, body),
            },
            _ => Event::Deadline,
        };
        if matches!(event, Event::Deadline) {
            now = gossip.deadline().unwrap_or(now).max(now);
        }
        let _ = gossip.step(now, event);
    }
    let own = gossip.rows(&network, gossip::ENDPOINT_TABLE);
    let own = own.values().find(|row| row.owner == gossip.name());
    assert!(own.is_none_or(|row| row.value == [1, 2, 3]), "another node changed this node's row");
}

/// The codec alone: what can be read can be written and read again.
pub fn codec(data: &[u8]) {
    let (messages, _) = memberlist::unpack(data);
    for message in messages {
        let again = Message::decode(&message.encode());
        assert!(again.as_ref() == Ok(&message), "{message:?} became {again:?}");
    }
    if let Ok(message) = StreamMessage::decode(data) {
        let again = StreamMessage::decode(&message.encode());
        assert!(again.as_ref() == Ok(&message), "{message:?} became {again:?}");
    }
    let Some(cipher) = Cipher::new(&SECRET) else { return };
    let ciphers = [cipher];
    let _ = memberlist::open_packet(&ciphers, data);
    let _ = memberlist::open_frame(&ciphers, data);
}

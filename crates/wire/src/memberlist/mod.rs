//! memberlist's bytes, protocol 2, as Docker Engine speaks it: messages, packets and stream frames.

mod lzw;
mod msgpack;
pub mod packet;
pub mod seal;
pub mod stream;

pub use packet::{compound, unpack};
pub use seal::{Cipher, NONCE_BYTES, open_frame, open_packet, seal_frame, seal_packet};
pub use stream::{NodeState, StreamMessage};

use std::net::{IpAddr, SocketAddr};

use msgpack::{Fields, MapWriter, read_map};

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed memberlist message")]
pub struct Malformed;

/// Protocol versions: smallest, largest and spoken, of memberlist and of its delegate.
pub const VSN: [u8; 6] = [1, 5, 2, 0, 0, 0];

pub(crate) mod kind {
    pub const PING: u8 = 0;
    pub const INDIRECT_PING: u8 = 1;
    pub const ACK: u8 = 2;
    pub const SUSPECT: u8 = 3;
    pub const ALIVE: u8 = 4;
    pub const DEAD: u8 = 5;
    pub const PUSH_PULL: u8 = 6;
    pub const COMPOUND: u8 = 7;
    pub const USER: u8 = 8;
    pub const COMPRESS: u8 = 9;
    pub const ENCRYPT: u8 = 10;
    pub const NACK: u8 = 11;
    pub const HAS_CRC: u8 = 12;
    pub const ERR: u8 = 13;
}

/// A message that travels in a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Ping(Ping),
    IndirectPing {
        seq: u32,
        /// Whom to ask.
        target: SocketAddr,
        node: String,
        /// Whether the asker wants to hear that there was no answer.
        nack: bool,
        source: Source,
    },
    Ack {
        seq: u32,
        payload: Vec<u8>,
    },
    Nack {
        seq: u32,
    },
    Suspect(Accusation),
    Alive(Alive),
    Dead(Accusation),
    User(Vec<u8>),
}

/// "Are you there, `node`?"
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    pub seq: u32,
    pub node: String,
    pub source: Source,
}

/// Who asks, where the asker says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub address: Option<SocketAddr>,
    pub node: String,
}

/// `from` says that `node` does not answer, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accusation {
    pub incarnation: u32,
    pub node: String,
    pub from: String,
}

/// A node says that it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alive {
    pub incarnation: u32,
    pub node: String,
    pub address: SocketAddr,
    pub meta: Vec<u8>,
    pub vsn: [u8; 6],
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        match self {
            Message::Ping(ping) => ping.encode(&mut out),
            Message::IndirectPing { seq, target, node, nack, source } => {
                out.push(kind::INDIRECT_PING);
                let map = MapWriter::new(&mut out, 8)
                    .bool("Nack", *nack)
                    .raw("Node", node.as_bytes())
                    .number("Port", target.port())
                    .number("SeqNo", *seq);
                source.encode(map).raw("Target", &address_bytes(target.ip()));
            }
            Message::Ack { seq, payload } => {
                out.push(kind::ACK);
                MapWriter::new(&mut out, 2).raw("Payload", payload).number("SeqNo", *seq);
            }
            Message::Nack { seq } => {
                out.push(kind::NACK);
                MapWriter::new(&mut out, 1).number("SeqNo", *seq);
            }
            Message::Suspect(accusation) => accusation.encode(kind::SUSPECT, &mut out),
            Message::Dead(accusation) => accusation.encode(kind::DEAD, &mut out),
            Message::Alive(alive) => alive.encode(&mut out),
            Message::User(bytes) => {
                out.push(kind::USER);
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    /// Reads one message that is none of the wrappings.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (first, mut rest) = bytes.split_first().ok_or(Malformed)?;
        if *first == kind::USER {
            return Ok(Message::User(rest.to_vec()));
        }
        let fields = read_map(&mut rest)?;
        Ok(match *first {
            kind::PING => Message::Ping(Ping::decode(&fields)?),
            kind::INDIRECT_PING => Message::IndirectPing {
                seq: fields.number("SeqNo")?,
                target: SocketAddr::new(
                    address(fields.raw("Target")?).ok_or(Malformed)?,
                    fields.number("Port")?,
                ),
                node: fields.text("Node")?,
                nack: fields.bool("Nack")?,
                source: Source::decode(&fields)?,
            },
            kind::ACK => Message::Ack {
                seq: fields.number("SeqNo")?,
                payload: fields.raw("Payload")?.to_vec(),
            },
            kind::NACK => Message::Nack { seq: fields.number("SeqNo")? },
            kind::SUSPECT => Message::Suspect(Accusation::decode(&fields)?),
            kind::DEAD => Message::Dead(Accusation::decode(&fields)?),
            kind::ALIVE => Message::Alive(Alive::decode(&fields)?),
            _ => return Err(Malformed),
        })
    }
}

impl Ping {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(kind::PING);
        let map =
            MapWriter::new(out, 5).raw("Node", self.node.as_bytes()).number("SeqNo", self.seq);
        self.source.encode(map);
    }

    fn decode(fields: &Fields<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            seq: fields.number("SeqNo")?,
            node: fields.text("Node")?,
            source: Source::decode(fields)?,
        })
    }
}

impl Source {
    fn encode<'o>(&self, map: MapWriter<'o>) -> MapWriter<'o> {
        let bytes = self.address.map_or(Vec::new(), |address| address_bytes(address.ip()));
        map.raw("SourceAddr", &bytes)
            .raw("SourceNode", self.node.as_bytes())
            .number("SourcePort", self.address.map_or(0, |address| address.port()))
    }

    fn decode(fields: &Fields<'_>) -> Result<Self, Malformed> {
        let port = fields.number("SourcePort")?;
        let address = address(fields.raw("SourceAddr")?).map(|ip| SocketAddr::new(ip, port));
        Ok(Self { address, node: fields.text("SourceNode")? })
    }
}

impl Accusation {
    fn encode(&self, kind: u8, out: &mut Vec<u8>) {
        out.push(kind);
        MapWriter::new(out, 3)
            .raw("From", self.from.as_bytes())
            .number("Incarnation", self.incarnation)
            .raw("Node", self.node.as_bytes());
    }

    fn decode(fields: &Fields<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            incarnation: fields.number("Incarnation")?,
            node: fields.text("Node")?,
            from: fields.text("From")?,
        })
    }
}

impl Alive {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(kind::ALIVE);
        MapWriter::new(out, 6)
            .raw("Addr", &address_bytes(self.address.ip()))
            .number("Incarnation", self.incarnation)
            .raw("Meta", &self.meta)
            .raw("Node", self.node.as_bytes())
            .number("Port", self.address.port())
            .raw("Vsn", &self.vsn);
    }

    fn decode(fields: &Fields<'_>) -> Result<Self, Malformed> {
        let ip = address(fields.raw("Addr")?).ok_or(Malformed)?;
        Ok(Self {
            incarnation: fields.number("Incarnation")?,
            node: fields.text("Node")?,
            address: SocketAddr::new(ip, fields.number("Port")?),
            meta: fields.raw("Meta")?.to_vec(),
            vsn: fields.raw("Vsn")?.try_into().map_err(|_| Malformed)?,
        })
    }
}

/// 4 or 16 raw bytes; an IPv4 address in its 16-byte form is the same address.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|octets| IpAddr::from(octets).to_canonical()),
        _ => None,
    }
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests;

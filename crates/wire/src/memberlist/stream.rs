//! Messages that travel over TCP: the exchange of all nodes, user messages, pings of the last resort.

use std::net::SocketAddr;

use super::msgpack::{MapWriter, read_map};
use super::packet::{compress, decompress};
use super::seal::FRAME_BYTES_MAX;
use super::{Malformed, Message, Ping, address, address_bytes, kind};

/// Below this compression saves nothing worth its time.
const COMPRESS_BYTES_MIN: usize = 512;

/// One message of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamMessage {
    PushPull {
        join: bool,
        nodes: Vec<NodeState>,
        user: Vec<u8>,
    },
    User(Vec<u8>),
    Ping(Ping),
    Ack {
        seq: u32,
    },
    /// The other side says why it does not go on.
    Error(String),
}

/// What a node knows of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    pub name: String,
    pub address: SocketAddr,
    pub meta: Vec<u8>,
    pub incarnation: u32,
    pub state: State,
    /// May be missing for nodes that are gone.
    pub vsn: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Alive = 0,
    Suspect = 1,
    Dead = 2,
    Left = 3,
}

impl StreamMessage {
    /// The plain bytes, compressed when that pays.
    pub fn encode(&self) -> Vec<u8> {
        let plain = self.encode_plain();
        if plain.len() < COMPRESS_BYTES_MIN {
            return plain;
        }
        let packed = compress(&plain);
        if packed.len() < plain.len() { packed } else { plain }
    }

    fn encode_plain(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            StreamMessage::PushPull { join, nodes, user } => {
                out.push(kind::PUSH_PULL);
                MapWriter::new(&mut out, 3)
                    .bool("Join", *join)
                    .number("Nodes", nodes.len() as u64)
                    .number("UserStateLen", user.len() as u64);
                nodes.iter().for_each(|node| node.encode(&mut out));
                out.extend_from_slice(user);
            }
            StreamMessage::User(bytes) => {
                out.push(kind::USER);
                MapWriter::new(&mut out, 1).number("UserMsgLen", bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
            StreamMessage::Ping(ping) => return Message::Ping(ping.clone()).encode(),
            StreamMessage::Ack { seq } => {
                return Message::Ack { seq: *seq, payload: Vec::new() }.encode();
            }
            StreamMessage::Error(text) => {
                out.push(kind::ERR);
                MapWriter::new(&mut out, 1).raw("Error", text.as_bytes());
            }
        }
        out
    }

    pub fn decode(plain: &[u8]) -> Result<Self, Malformed> {
        if plain.first() == Some(&kind::COMPRESS) {
            return Self::decode_plain(&decompress(plain, FRAME_BYTES_MAX)?);
        }
        Self::decode_plain(plain)
    }

    fn decode_plain(plain: &[u8]) -> Result<Self, Malformed> {
        let (first, mut rest) = plain.split_first().ok_or(Malformed)?;
        match *first {
            kind::PUSH_PULL => {
                let header = read_map(&mut rest)?;
                let count: usize = header.number("Nodes")?;
                let mut nodes = Vec::new();
                for _ in 0..count {
                    nodes.push(NodeState::decode(&mut rest)?);
                }
                let length: usize = header.number("UserStateLen")?;
                let user = rest.get(..length).ok_or(Malformed)?.to_vec();
                Ok(StreamMessage::PushPull { join: header.bool("Join")?, nodes, user })
            }
            kind::USER => {
                let length: usize = read_map(&mut rest)?.number("UserMsgLen")?;
                Ok(StreamMessage::User(rest.get(..length).ok_or(Malformed)?.to_vec()))
            }
            kind::PING | kind::ACK => match Message::decode(plain)? {
                Message::Ping(ping) => Ok(StreamMessage::Ping(ping)),
                Message::Ack { seq, .. } => Ok(StreamMessage::Ack { seq }),
                _ => Err(Malformed),
            },
            kind::ERR => Ok(StreamMessage::Error(read_map(&mut rest)?.text("Error")?)),
            _ => Err(Malformed),
        }
    }
}

impl NodeState {
    fn encode(&self, out: &mut Vec<u8>) {
        MapWriter::new(out, 7)
            .raw("Addr", &address_bytes(self.address.ip()))
            .number("Incarnation", self.incarnation)
            .raw("Meta", &self.meta)
            .raw("Name", self.name.as_bytes())
            .number("Port", self.address.port())
            .number("State", self.state as u8)
            .raw("Vsn", &self.vsn);
    }

    fn decode(rest: &mut &[u8]) -> Result<Self, Malformed> {
        let fields = read_map(rest)?;
        Ok(Self {
            name: fields.text("Name")?,
            address: SocketAddr::new(
                address(fields.raw("Addr")?).ok_or(Malformed)?,
                fields.number("Port")?,
            ),
            meta: fields.raw("Meta")?.to_vec(),
            incarnation: fields.number("Incarnation")?,
            state: match fields.number::<u8>("State")? {
                0 => State::Alive,
                1 => State::Suspect,
                2 => State::Dead,
                3 => State::Left,
                _ => return Err(Malformed),
            },
            vsn: fields.raw("Vsn")?.to_vec(),
        })
    }
}

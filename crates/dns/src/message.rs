//! DNS messages: reading a question, writing its reply (RFC 1035, RFC 6891). Written here because
//! a resolver for a dozen record types needs one page of it, and no allocation per record.

use std::net::IpAddr;

use crate::prebuilt::Reply;

const HEADER: usize = 12;
/// Of a record before its data: a pointer to the name, type, class, TTL, length.
const RECORD: usize = 12;
/// The bit of a reply that says that records were left out (TC), in the third byte.
pub(crate) const TRUNCATED: u8 = 0x02;
/// RFC 1035 section 2.3.4.
const NAME_BYTES_MAX: usize = 255;
/// What a reply over UDP may hold when the asker does not say (RFC 1035 section 4.2.1).
const UDP_BYTES_MIN: usize = 512;
/// The largest reply over UDP: the path is loopback, so the only bound is the usual buffer size.
const UDP_BYTES_MAX: usize = 4_096;
const TCP_BYTES_MAX: usize = 65_535;
/// Seconds that an answer may be kept: a task's address is news for about as long.
pub const TTL_SECONDS: u32 = 3;

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// The type of record asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    A,
    Aaaa,
    Ptr,
    Any,
    Other(u16),
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Lower case, without the last dot; bytes that no name of ours can hold are escaped.
    pub name: String,
    pub kind: Kind,
    /// Class IN.
    pub internet: bool,
}

/// A message that asks something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    pub question: Question,
    recursion_desired: bool,
    /// The question's bytes as they came, so that the reply repeats the asker's spelling.
    asked: Vec<u8>,
    /// The UDP payload size that the asker's OPT record allows.
    edns: Option<u16>,
}

/// How a reply ends when there are no records to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NotImplemented = 4,
    Refused = 5,
}

/// A message that is no question we can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Not worth a reply: too short, or itself a reply.
    Drop,
    /// Worth a header that says why.
    Reply { id: u16, code: Code },
}

/// Over what the question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Udp,
    Tcp,
}

/// Reads a question; anything else is rejected without a panic, whatever the bytes.
pub fn parse(packet: &[u8]) -> Result<Query, Reject> {
    if packet.len() < HEADER || packet[2] & 0x80 != 0 {
        return Err(Reject::Drop);
    }
    let id = u16::from_be_bytes([packet[0], packet[1]]);
    let reject = |code| Reject::Reply { id, code };
    if packet[2] & 0x78 != 0 {
        return Err(reject(Code::NotImplemented));
    }
    let count = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if count(4) != 1 {
        return Err(reject(Code::FormatError));
    }
    let (name, kind, internet, end) = read_question(packet).ok_or(reject(Code::FormatError))?;
    let records = count(6) + count(8) + count(10);
    let edns = read_edns(packet, end, records).ok_or(reject(Code::FormatError))?;
    Ok(Query {
        id,
        question: Question { name, kind, internet },
        recursion_desired: packet[2] & 1 != 0,
        asked: packet[HEADER..end].to_vec(),
        edns,
    })
}

fn read_question(packet: &[u8]) -> Option<(String, Kind, bool, usize)> {
    let mut name = String::with_capacity(64);
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Lengths from 64 are compression, which has nothing to point at in a question.
        if length > 63 || at + length - HEADER > NAME_BYTES_MAX {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in packet.get(at..at + length)? {
            match byte {
                b'.' | b'\\' | 0..=0x20 | 0x7f.. => name.push_str(&format!("\\{byte:03}")),
                byte => name.push(char::from(byte.to_ascii_lowercase())),
            }
        }
        at += length;
    }
    let fixed = packet.get(at..at + 4)?;
    let kind = match u16::from_be_bytes([fixed[0], fixed[1]]) {
        TYPE_A => Kind::A,
        TYPE_AAAA => Kind::Aaaa,
        TYPE_PTR => Kind::Ptr,
        TYPE_ANY => Kind::Any,
        other => Kind::Other(other),
    };
    let class = u16::from_be_bytes([fixed[2], fixed[3]]);
    Some((name, kind, class == CLASS_IN, at + 4))
}

/// The payload size of the OPT record among the records after the question. `None` is malformed.
fn read_edns(packet: &[u8], mut at: usize, records: usize) -> Option<Option<u16>> {
    let mut edns = None;
    for _ in 0..records {
        loop {
            let length = usize::from(*packet.get(at)?);
            at += 1;
            match length {
                0 => break,
                1..=63 => at += length,
                _ => {
                    at += 1;
                    break;
                }
            }
        }
        let fixed = packet.get(at..at + 10)?;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        if u16::from_be_bytes([fixed[0], fixed[1]]) == TYPE_OPT {
            edns = Some(u16::from_be_bytes([fixed[2], fixed[3]]));
        }
        at += 10 + length;
        if at > packet.len() {
            return None;
        }
    }
    Some(edns)
}

impl Query {
    /// The question's bytes on the wire: name, type, class.
    pub fn asked(&self) -> &[u8] {
        &self.asked
    }

    /// How many bytes the reply may have.
    fn room(&self, carrier: Carrier) -> usize {
        match (carrier, self.edns) {
            (Carrier::Tcp, _) => TCP_BYTES_MAX,
            (Carrier::Udp, None) => UDP_BYTES_MIN,
            (Carrier::Udp, Some(size)) => usize::from(size).clamp(UDP_BYTES_MIN, UDP_BYTES_MAX),
        }
    }

    /// A reply without records.
    pub fn reply(&self, code: Code) -> Vec<u8> {
        Writer::new(self, usize::MAX, code).finish(self).bytes
    }

    /// A reply with addresses; those that do not fit are left out and the reply says so.
    pub fn reply_addresses(&self, addresses: &[IpAddr], carrier: Carrier) -> Reply {
        let mut reply = Writer::new(self, self.room(carrier), Code::NoError);
        for address in addresses {
            let fits = match address {
                IpAddr::V4(address) => reply.push(TYPE_A, &address.octets()),
                IpAddr::V6(address) => reply.push(TYPE_AAAA, &address.octets()),
            };
            if !fits {
                break;
            }
        }
        reply.finish(self)
    }

    /// A reply with names.
    pub fn reply_pointers(&self, names: &[String], carrier: Carrier) -> Reply {
        let mut reply = Writer::new(self, self.room(carrier), Code::NoError);
        for name in names {
            if let Some(data) = name_bytes(name)
                && !reply.push(TYPE_PTR, &data)
            {
                break;
            }
        }
        reply.finish(self)
    }
}

impl Reject {
    /// The bytes to send back, if any.
    pub fn reply(self) -> Option<Vec<u8>> {
        let Reject::Reply { id, code } = self else { return None };
        let [high, low] = id.to_be_bytes();
        Some(vec![high, low, 0x80, 0x80 | code as u8, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}

/// A name in labels; `None` if a label or the whole is too long or empty.
fn name_bytes(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_BYTES_MAX).then_some(bytes)
}

/// A reply being written.
struct Writer {
    bytes: Vec<u8>,
    room: usize,
    records: u16,
    /// The bytes of each record so far; `None` once they differ.
    record: Option<usize>,
}

impl Writer {
    fn new(query: &Query, room: usize, code: Code) -> Self {
        let mut bytes = Vec::with_capacity(HEADER + query.asked.len() + 64);
        bytes.extend_from_slice(&query.id.to_be_bytes());
        // A reply, recursion available; not authoritative, as Docker's is not.
        bytes.push(0x80 | u8::from(query.recursion_desired));
        bytes.push(0x80 | code as u8);
        bytes.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&query.asked);
        let opt = if query.edns.is_some() { OPT_RECORD.len() } else { 0 };
        Self { bytes, room: room.saturating_sub(opt), records: 0, record: Some(0) }
    }

    /// Adds a record for the name asked about; false, with the truncation bit set, if it does not fit.
    fn push(&mut self, kind: u16, data: &[u8]) -> bool {
        if self.bytes.len() + RECORD + data.len() > self.room {
            self.bytes[2] |= TRUNCATED;
            return false;
        }
        // A pointer to the question's name.
        self.bytes.extend_from_slice(&[0xc0, HEADER as u8]);
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.bytes.extend_from_slice(&TTL_SECONDS.to_be_bytes());
        self.bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(data);
        let size = RECORD + data.len();
        self.record = self.record.filter(|before| self.records == 0 || *before == size);
        self.record = self.record.map(|_| size);
        self.records += 1;
        true
    }

    fn finish(mut self, query: &Query) -> Reply {
        self.bytes[6..8].copy_from_slice(&self.records.to_be_bytes());
        let records = HEADER + query.asked.len()..self.bytes.len();
        if query.edns.is_some() {
            self.bytes[11] = 1;
            self.bytes.extend_from_slice(&OPT_RECORD);
        }
        Reply { bytes: self.bytes, records, record: self.record.unwrap_or_default() }
    }
}

/// Root name, OPT, our payload size, no extended code, version 0, no flags, no data.
const OPT_RECORD: [u8; 11] = [
    0,
    0,
    TYPE_OPT as u8,
    (UDP_BYTES_MAX >> 8) as u8,
    (UDP_BYTES_MAX & 0xff) as u8,
    0,
    0,
    0,
    0,
    0,
    0,
];

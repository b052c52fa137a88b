//! Netlink messages as bytes: a writer of headers and attributes, and a reader that never panics.

use std::net::IpAddr;

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;

pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;

const NESTED: u16 = 0x8000;
pub const HEADER: usize = 16;

/// One message under construction. Lengths are filled in as attributes are added.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    open: Vec<usize>,
}

impl Message {
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes, open: Vec::new() }
    }

    /// The family's fixed header, before any attribute.
    pub fn body(mut self, body: &[u8]) -> Self {
        self.bytes.extend_from_slice(body);
        self.pad();
        self
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = 4 + value.len();
        // An attribute's length has 16 bits; nothing that skep sends in one comes near.
        self.bytes.extend_from_slice(&(length.min(0xffff) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub fn put_u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }

    pub fn put_u16_be(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    pub fn put_u32_be(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// With the closing zero.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    pub fn put_ip(&mut self, kind: u16, addr: IpAddr) {
        self.put(kind, &ip_bytes(addr));
    }

    pub fn begin(&mut self, kind: u16) {
        self.open.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    }

    /// A fixed header inside a nested attribute.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    pub fn end(&mut self) {
        if let Some(start) = self.open.pop() {
            let length = (self.bytes.len() - start).min(0xffff) as u16;
            self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn add_flags(&mut self, flags: u16) {
        let old = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// The finished bytes with their sequence number.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        while !self.open.is_empty() {
            self.end();
        }
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

pub fn ip_bytes(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub fn bytes_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// One received message.
#[derive(Debug, Clone)]
pub struct Received {
    pub kind: u16,
    flags: u16,
    pub sequence: u32,
    /// After the header.
    pub payload: Vec<u8>,
}

impl Received {
    /// The errno of an error message; 0 is an acknowledgement.
    pub fn error(&self) -> Option<i32> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        Some(self.code().unwrap_or(-libc::EBADMSG).saturating_neg())
    }

    /// The end of a dump, with the errno of what cut it short or 0.
    pub fn end(&self) -> Option<i32> {
        (self.kind == NLMSG_DONE).then(|| self.code().unwrap_or(0).min(0).saturating_neg())
    }

    /// What is dumped has changed meanwhile: something may have been passed over.
    pub fn interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    fn code(&self) -> Option<i32> {
        self.payload.get(0..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes)
    }

    pub fn body(&self, length: usize) -> Option<&[u8]> {
        self.payload.get(0..length)
    }

    pub fn attributes(&self, body: usize) -> Attributes<'_> {
        Attributes(self.payload.get(body.next_multiple_of(4)..).unwrap_or(&[]))
    }
}

/// Splits a datagram into messages; stops at the first that does not fit.
pub fn split(mut bytes: &[u8]) -> Vec<Received> {
    let mut messages = Vec::new();
    while bytes.len() >= HEADER {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let length = word(0) as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        messages.push(Received {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: word(8),
            payload: bytes[HEADER..length].to_vec(),
        });
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    messages
}

/// Attributes in order: (kind without flags, value).
#[derive(Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        Iterator::find(&mut all, |(k, _)| *k == kind).map(|(_, value)| value)
    }

    pub fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or(&[]))
    }

    pub fn u32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }

    pub fn u16_be(self, kind: u16) -> Option<u16> {
        self.find(kind)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub fn u32_be(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub fn u8(self, kind: u16) -> Option<u8> {
        self.find(kind)?.first().copied()
    }

    pub fn ip(self, kind: u16) -> Option<IpAddr> {
        bytes_ip(self.find(kind)?)
    }

    pub fn text(self, kind: u16) -> Option<String> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0;
        if bytes.len() < 4 {
            return None;
        }
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        if length < 4 || length > bytes.len() {
            return None;
        }
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        self.0 = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some((kind, &bytes[4..length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_as_written() {
        let mut message = Message::new(16, NLM_F_ACK).body(&[1, 2, 3, 4]);
        message.put_str(3, "eth0");
        message.begin(18);
        message.put_u32(1, 77);
        message.end();
        let bytes = message.finish(9);
        let received = split(&bytes);
        assert_eq!(received.len(), 1);
        let attributes = received[0].attributes(4);
        assert_eq!(attributes.text(3).as_deref(), Some("eth0"));
        assert_eq!(attributes.nested(18).u32(1), Some(77));
        assert_eq!(received[0].sequence, 9);
    }

    #[test]
    fn cut_and_hostile_bytes_end_the_reading_quietly() {
        let mut message = Message::new(16, 0);
        message.put_u32(1, 7);
        let bytes = message.finish(1);
        for cut in 0..bytes.len() {
            let _ = split(&bytes[..cut]);
            let _ = Attributes(&bytes[..cut]).count();
        }
        for length in [0u16, 3, 5, 0xffff] {
            let mut bytes = [0u8; 8];
            bytes[0..2].copy_from_slice(&length.to_ne_bytes());
            assert!(Attributes(&bytes).count() <= 1);
        }
    }
}

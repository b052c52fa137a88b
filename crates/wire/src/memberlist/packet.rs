//! What wraps messages inside a packet: checksum, compression, several in one.

use weezl::{BitOrder, LzwStatus, decode::Decoder};

use super::msgpack::{MapWriter, read_map};
use super::{Malformed, Message, kind};

/// The count of parts is one byte.
pub const PARTS_MAX: usize = 255;
/// A packet that grows beyond this when unpacked is no packet of ours: UDP carries 64 KiB at most.
const PACKET_BYTES_MAX: usize = 1 << 20;
/// A checksum around a compression around parts: nothing nests deeper.
const DEPTH_MAX: usize = 4;

/// The messages of a packet's plain bytes, and how many parts could not be read.
pub fn unpack(plain: &[u8]) -> (Vec<Message>, usize) {
    let mut messages = Vec::new();
    let mut malformed = 0;
    unpack_part(plain, DEPTH_MAX, &mut messages, &mut malformed);
    (messages, malformed)
}

fn unpack_part(plain: &[u8], depth: usize, messages: &mut Vec<Message>, malformed: &mut usize) {
    if depth == 0 || messages.len() > PARTS_MAX {
        *malformed += 1;
        return;
    }
    match plain.first() {
        Some(&kind::HAS_CRC) => match checked(plain) {
            Ok(body) => unpack_part(body, depth - 1, messages, malformed),
            Err(Malformed) => *malformed += 1,
        },
        Some(&kind::COMPRESS) => match decompress(plain, PACKET_BYTES_MAX) {
            Ok(body) => unpack_part(&body, depth - 1, messages, malformed),
            Err(Malformed) => *malformed += 1,
        },
        Some(&kind::COMPOUND) => match parts(plain) {
            Ok(parts) => {
                for part in parts {
                    unpack_part(part, depth - 1, messages, malformed);
                }
            }
            Err(Malformed) => *malformed += 1,
        },
        _ => match Message::decode(plain) {
            Ok(message) => messages.push(message),
            Err(Malformed) => *malformed += 1,
        },
    }
}

/// The body behind a checksum that holds.
fn checked(plain: &[u8]) -> Result<&[u8], Malformed> {
    let sum: [u8; 4] = plain.get(1..5).and_then(|sum| sum.try_into().ok()).ok_or(Malformed)?;
    let body = &plain[5..];
    if crc32fast::hash(body) == u32::from_be_bytes(sum) { Ok(body) } else { Err(Malformed) }
}

/// Puts a checksum before a body, for peers that speak protocol 5.
pub fn with_checksum(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 5);
    out.push(kind::HAS_CRC);
    out.extend_from_slice(&crc32fast::hash(body).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn parts(plain: &[u8]) -> Result<Vec<&[u8]>, Malformed> {
    let count = usize::from(*plain.get(1).ok_or(Malformed)?);
    let lengths = plain.get(2..2 + 2 * count).ok_or(Malformed)?;
    let mut rest = &plain[2 + 2 * count..];
    let mut parts = Vec::with_capacity(count);
    for length in lengths.chunks_exact(2) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let (part, behind) = rest.split_at_checked(length).ok_or(Malformed)?;
        parts.push(part);
        rest = behind;
    }
    Ok(parts)
}

/// Several messages as one; a single one stays as it is. At most [`PARTS_MAX`], each below 64 KiB.
pub fn compound(messages: &[impl AsRef<[u8]>]) -> Vec<u8> {
    debug_assert!(messages.len() <= PARTS_MAX);
    if let [message] = messages {
        return message.as_ref().to_vec();
    }
    let messages = || messages.iter().take(PARTS_MAX).map(AsRef::as_ref);
    let size: usize = messages().map(|message| message.len() + size_of::<u16>()).sum();
    let mut out = Vec::with_capacity(size + 2);
    out.extend([kind::COMPOUND, messages().count() as u8]);
    messages().for_each(|message| out.extend((message.len() as u16).to_be_bytes()));
    messages().for_each(|message| out.extend_from_slice(message));
    out
}

/// A message in LZW, as Go's `compress/lzw` with the least significant bit first and 8-bit literals.
pub fn compress(message: &[u8]) -> Vec<u8> {
    let packed = super::lzw::encode(message);
    let mut out = Vec::with_capacity(packed.len() + 16);
    out.push(kind::COMPRESS);
    MapWriter::new(&mut out, 2).number("Algo", 0u8).raw("Buf", &packed);
    out
}

/// The message inside a compression, if it is not larger than `limit`.
pub fn decompress(plain: &[u8], limit: usize) -> Result<Vec<u8>, Malformed> {
    let mut rest = plain.get(1..).ok_or(Malformed)?;
    let fields = read_map(&mut rest)?;
    if fields.number::<u8>("Algo")? != 0 {
        return Err(Malformed);
    }
    let mut packed = fields.raw("Buf")?;
    let mut decoder = Decoder::new(BitOrder::Lsb, 8);
    let mut out = Vec::new();
    let mut chunk = vec![0; 16 << 10];
    loop {
        let result = decoder.decode_bytes(packed, &mut chunk);
        packed = &packed[result.consumed_in..];
        out.extend_from_slice(&chunk[..result.consumed_out]);
        if out.len() > limit {
            return Err(Malformed);
        }
        match result.status {
            Ok(LzwStatus::Ok) => {}
            Ok(LzwStatus::Done) => return Ok(out),
            // The stream ends without its end mark.
            Ok(LzwStatus::NoProgress) | Err(_) => return Err(Malformed),
        }
    }
}

//! AES-128-GCM around packets and stream frames. Nonces are given: cores have no dice of their own here.

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{Malformed, kind};

pub const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// Encryption version 1: no padding.
const VERSION: u8 = 1;
/// Kind and length before a sealed stream frame; also what the seal vouches for.
pub const FRAME_HEADER_BYTES: usize = 5;
/// memberlist's largest push/pull.
pub const FRAME_BYTES_MAX: usize = 20 << 20;
/// What sealing adds to a packet.
pub const OVERHEAD_BYTES: usize = 1 + NONCE_BYTES + TAG_BYTES;

/// One key, ready for use. Not `Debug`: keys are never printed.
#[derive(Clone)]
pub struct Cipher(LessSafeKey);

impl Cipher {
    pub fn new(secret: &[u8; 16]) -> Option<Self> {
        UnboundKey::new(&AES_128_GCM, secret).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    fn seal(&self, nonce: [u8; NONCE_BYTES], vouched: &[u8], plain: &[u8], out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed =
            self.0.seal_in_place_separate_tag(nonce, Aad::from(vouched), &mut out[start..]);
        match sealed {
            Ok(tag) => out.extend_from_slice(tag.as_ref()),
            // Only bodies beyond 64 GiB fail: an empty body without a tag opens nowhere.
            Err(_) => out.truncate(start),
        }
    }

    fn open(&self, vouched: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (version, rest) = sealed.split_first()?;
        let (nonce, body) = rest.split_at_checked(NONCE_BYTES)?;
        if *version != VERSION || body.len() < TAG_BYTES {
            return None;
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let length = self.0.open_in_place(nonce, Aad::from(vouched), &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

/// A packet as it goes out.
pub fn seal_packet(cipher: &Cipher, nonce: [u8; NONCE_BYTES], plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
    cipher.seal(nonce, &[], plain, &mut out);
    out
}

/// A packet's plain bytes, if one of the keys opens it.
pub fn open_packet(ciphers: &[Cipher], sealed: &[u8]) -> Result<Vec<u8>, Malformed> {
    ciphers.iter().find_map(|cipher| cipher.open(&[], sealed)).ok_or(Malformed)
}

/// A stream's message as it goes out.
pub fn seal_frame(cipher: &Cipher, nonce: [u8; NONCE_BYTES], plain: &[u8]) -> Vec<u8> {
    let length = (plain.len() + OVERHEAD_BYTES) as u32;
    let mut header = [kind::ENCRYPT, 0, 0, 0, 0];
    header[1..].copy_from_slice(&length.to_be_bytes());
    let mut out = Vec::with_capacity(plain.len() + OVERHEAD_BYTES + FRAME_HEADER_BYTES);
    out.extend_from_slice(&header);
    cipher.seal(nonce, &header, plain, &mut out);
    out
}

/// How many bytes follow a frame's header, if it is one and not too large.
pub fn frame_length(header: &[u8; FRAME_HEADER_BYTES]) -> Result<usize, Malformed> {
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if header[0] == kind::ENCRYPT && length <= FRAME_BYTES_MAX {
        Ok(length)
    } else {
        Err(Malformed)
    }
}

/// A frame's plain bytes, if it is whole and one of the keys opens it.
pub fn open_frame(ciphers: &[Cipher], frame: &[u8]) -> Result<Vec<u8>, Malformed> {
    let (header, body) = frame.split_first_chunk::<FRAME_HEADER_BYTES>().ok_or(Malformed)?;
    if frame_length(header)? != body.len() {
        return Err(Malformed);
    }
    ciphers.iter().find_map(|cipher| cipher.open(header, body)).ok_or(Malformed)
}

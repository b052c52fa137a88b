//! A cache of whole replies in the kernel, beside [`crate::Prebuilt`]: what its entries look like, and
//! what the resolver asks of whoever keeps them there.
//!
//! The kernel knows nothing of DNS. A question that has the same bytes as an earlier one, its id aside,
//! gets the bytes that the resolver answered then, until the resolver says that they are no longer true.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub mod assembler;
pub mod program;

/// Where a message's id ends.
const ID_BYTES: usize = 2;
/// Bytes of a question after its id: a name of some seventy bytes.
pub const QUESTION_BYTES_MAX: usize = 92;
/// Bytes of a reply after its id.
pub const REPLY_BYTES_MAX: usize = 176;
/// The shortest message after its id: the rest of the header.
const MESSAGE_BYTES_MIN: usize = 10;
/// The question's length, then its bytes, then zeros. Without the length, zeros that somebody
/// appended to a question would make it the same as the one without.
pub const KEY_BYTES: usize = 4 + QUESTION_BYTES_MAX;
/// Before a reply's bytes: the generation of the names that gave it, its length, room.
pub const VALUE_HEADER: usize = 16;
pub const VALUE_BYTES: usize = VALUE_HEADER + REPLY_BYTES_MAX;

/// A question as the kernel looks it up. `None` is too long for it, or no message at all.
pub fn key(packet: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let question = packet.get(ID_BYTES..)?;
    let mut key = [0; KEY_BYTES];
    let fits = (MESSAGE_BYTES_MIN..=QUESTION_BYTES_MAX).contains(&question.len());
    let length = u32::try_from(question.len()).ok().filter(|_| fits)?;
    key[..4].copy_from_slice(&length.to_ne_bytes());
    key[4..4 + question.len()].copy_from_slice(question);
    Some(key)
}

/// A reply as the kernel holds it.
pub fn value(generation: u64, reply: &[u8]) -> Option<[u8; VALUE_BYTES]> {
    let reply = reply.get(ID_BYTES..)?;
    let mut value = [0; VALUE_BYTES];
    let fits = (MESSAGE_BYTES_MIN..=REPLY_BYTES_MAX).contains(&reply.len());
    let length = u32::try_from(reply.len()).ok().filter(|_| fits)?;
    value[..8].copy_from_slice(&generation.to_ne_bytes());
    value[8..12].copy_from_slice(&length.to_ne_bytes());
    value[VALUE_HEADER..VALUE_HEADER + reply.len()].copy_from_slice(reply);
    Some(value)
}

/// What became of a reply that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Now,
    /// It had been there already: the question came all the same.
    Before,
    /// Too long, or the kernel had no room.
    Not,
}

/// The caches of all sandboxes. Errors mean that there is none; nothing else is lost.
pub trait Caches: Send + Sync {
    /// Makes a socket one for which caches of this process may speak. Those of a process before it,
    /// which stay in the kernel, may not, and have nothing to say any more.
    fn sign(&self, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// Takes the signature back: no cache speaks for the socket any more, whatever it holds.
    fn silence(&self, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// Puts one before the signed socket with this port of 127.0.0.11, in the namespace of the calling thread.
    fn attach(&self, port: u16) -> io::Result<Arc<dyn Cache>>;

    /// Questions answered so far.
    fn answered(&self) -> u64;
}

/// The cache of one sandbox. What is dropped answers nothing any more.
pub trait Cache: Send + Sync {
    /// Keeps a reply until the cache is emptied.
    fn keep(&self, packet: &[u8], reply: &[u8]) -> Kept;

    /// Empties it. When this returns, nothing that was kept before is given to questions that come after.
    fn clear(&self) -> io::Result<()>;

    /// Puts it back in its place if somebody took it away.
    fn attach_again(&self) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_and_one_with_zeros_behind_it_have_different_keys() {
        let question = [7u8; 40];
        let padded = [&question[..], &[0, 0]].concat();
        assert_ne!(key(&question), key(&padded));
        let other_id = [&[9, 9], &question[2..]].concat();
        assert_eq!(key(&question), key(&other_id));
    }

    #[test]
    fn what_is_too_short_or_too_long_is_not_kept() {
        let bytes = [1u8; 400];
        for (length, fits) in [(0, false), (11, false), (12, true), (94, true), (95, false)] {
            assert_eq!(key(&bytes[..length]).is_some(), fits, "a question of {length}");
        }
        for (length, fits) in [(0, false), (11, false), (12, true), (178, true), (179, false)] {
            assert_eq!(value(1, &bytes[..length]).is_some(), fits, "a reply of {length}");
        }
    }
}

//! Replies kept in wire form, so that a question asked before costs one look-up and no memory.

use std::collections::HashMap;
use std::ops::Range;

use crate::message::TRUNCATED;

/// Where a message's id ends and the question's own bytes begin.
const ID_BYTES: usize = 2;
/// Longer questions are read anew each time: they are rare, and memory is for those that are not.
const QUESTION_BYTES_MAX: usize = 320;
/// Every spelling of a name is a question of its own; who invents spellings only empties the table.
const REPLIES_MAX: usize = 2_048;

/// Replies by the bytes of their questions. Valid for one set of names: [`Prebuilt::clear`].
#[derive(Default)]
pub struct Prebuilt {
    replies: HashMap<Box<[u8]>, Reply>,
}

/// A reply, and where in it the records are that may stand in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub bytes: Vec<u8>,
    pub(crate) records: Range<usize>,
    /// The bytes of each; 0 when they are not alike.
    pub(crate) record: usize,
}

impl Prebuilt {
    /// The reply to a packet that has the same words as an earlier one, under the packet's own id.
    pub fn get(&mut self, packet: &[u8]) -> Option<&mut Reply> {
        let reply = self.replies.get_mut(packet.get(ID_BYTES..)?)?;
        reply.bytes[..ID_BYTES].copy_from_slice(&packet[..ID_BYTES]);
        Some(reply)
    }

    /// Keeps the reply to a packet for the next that asks the same.
    pub fn keep(&mut self, packet: &[u8], reply: Reply) {
        let Some(question) = packet.get(ID_BYTES..) else { return };
        // Which records are left out is decided anew for every asker.
        if question.len() > QUESTION_BYTES_MAX || reply.is_truncated() {
            return;
        }
        if self.replies.len() >= REPLIES_MAX {
            self.replies.clear();
        }
        self.replies.insert(question.into(), reply);
    }

    /// How many replies are kept.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Forgets every reply: the names have changed.
    pub fn clear(&mut self) {
        self.replies.clear();
    }
}

impl Reply {
    fn is_truncated(&self) -> bool {
        self.bytes.get(2).is_some_and(|flags| flags & TRUNCATED != 0)
    }

    /// Whether every asker gets the same bytes: there are no records to put in another order.
    pub fn has_one_order(&self) -> bool {
        self.records.len().checked_div(self.record).is_none_or(|count| count < 2)
    }

    /// Puts the records in another order; `below(n)` is a number below `n` by chance.
    pub fn shuffle(&mut self, mut below: impl FnMut(usize) -> usize) {
        let Some(count) = self.records.len().checked_div(self.record) else { return };
        let records = &mut self.bytes[self.records.clone()];
        for last in (1..count).rev() {
            let chosen = below(last + 1);
            if chosen < last {
                let (front, back) = records.split_at_mut(last * self.record);
                let from = chosen * self.record;
                front[from..from + self.record].swap_with_slice(&mut back[..self.record]);
            }
        }
    }
}

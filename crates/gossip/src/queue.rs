//! Messages that are told to a few nodes at a time, each often enough to reach all of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

/// memberlist's and NetworkDB's own factor.
const RETRANSMIT_FACTOR: u32 = 4;
/// Beyond this the message that was told most often is forgotten; push/pull and bulk sync still carry it.
const MESSAGES_MAX: usize = 16_384;

/// How often a message is told in a cluster of so many nodes.
pub(crate) fn retransmit_limit(nodes: usize) -> u32 {
    RETRANSMIT_FACTOR * ((nodes as f64 + 1.0).log10().ceil() as u32).max(1)
}

/// The rank of a message: told least often first, then the newest.
type Rank = (u32, Reverse<u64>);

/// A message and what it is about.
struct Item {
    subject: Arc<str>,
    message: Arc<[u8]>,
}

/// Messages by rank. A newer message about the same subject replaces the older one.
#[derive(Default)]
pub(crate) struct Queue {
    messages: BTreeMap<Rank, Item>,
    subjects: HashMap<Arc<str>, Rank, BuildHasherDefault<DefaultHasher>>,
    next: u64,
    /// No message is smaller: where it does not fit, none does.
    smallest: usize,
}

impl Queue {
    pub fn push(&mut self, subject: impl Into<Arc<str>>, message: impl Into<Arc<[u8]>>) {
        self.push_told(subject, message, 0);
    }

    /// Adds a message that was told `told` times already.
    pub fn push_told(
        &mut self,
        subject: impl Into<Arc<str>>,
        message: impl Into<Arc<[u8]>>,
        told: u32,
    ) {
        let item = Item { subject: subject.into(), message: message.into() };
        let size = item.message.len();
        self.next += 1;
        let rank = (told, Reverse(self.next));
        self.smallest = match self.is_empty() {
            true => size,
            false => self.smallest.min(size),
        };
        if let Some(old) = self.subjects.insert(item.subject.clone(), rank) {
            self.messages.remove(&old);
        }
        self.messages.insert(rank, item);
        if self.messages.len() > MESSAGES_MAX
            && let Some((_, item)) = self.messages.pop_last()
        {
            self.subjects.remove(&item.subject);
        }
    }

    /// Messages for one packet of `room` bytes, each with `overhead` around it. A message that is
    /// larger than any packet goes out alone, for the network to fragment.
    pub fn take(&mut self, room: usize, overhead: usize, nodes: usize) -> Vec<Arc<[u8]>> {
        let limit = retransmit_limit(nodes);
        let taken = self.take_out(room, overhead, true).into_iter();
        taken.map(|(rank, item)| self.put_back(rank, item, limit)).collect()
    }

    /// Up to so many packets for a few nodes, of several queues in the order of their weight. No
    /// message is in two of them: told again to the same nodes it would reach nobody else, and each
    /// telling is to be worth one to other nodes.
    pub fn take_round<const N: usize>(
        mut queues: [&mut Self; N],
        room: usize,
        overhead: usize,
        nodes: usize,
        packets_max: usize,
    ) -> Vec<Vec<Arc<[u8]>>> {
        let limit = retransmit_limit(nodes);
        let mut told: [Vec<(Rank, Item)>; N] = std::array::from_fn(|_| Vec::new());
        let mut packets = Vec::new();
        while packets.len() < packets_max {
            let (mut packet, mut used) = (Vec::new(), 0);
            for (queue, told) in queues.iter_mut().zip(&mut told) {
                if used >= room {
                    break;
                }
                let taken = queue.take_out(room - used, overhead, packet.is_empty());
                used += taken.iter().map(|(_, item)| item.message.len() + overhead).sum::<usize>();
                packet.extend(taken.iter().map(|(_, item)| item.message.clone()));
                told.extend(taken);
            }
            if packet.is_empty() {
                break;
            }
            packets.push(packet);
        }
        for (queue, told) in queues.into_iter().zip(told) {
            told.into_iter().for_each(|(rank, item)| drop(queue.put_back(rank, item, limit)));
        }
        packets
    }

    /// Takes the messages for the room in one packet out of the queue; only a packet of its own may
    /// be larger.
    fn take_out(&mut self, room: usize, overhead: usize, own: bool) -> Vec<(Rank, Item)> {
        let mut free = room;
        let mut taken = Vec::new();
        for (rank, item) in &self.messages {
            let size = item.message.len() + overhead;
            if size <= free {
                free -= size;
                taken.push(*rank);
            } else if own && size > room && taken.is_empty() {
                taken.push(*rank);
                break;
            }
            if free < self.smallest + overhead || taken.len() == wire::memberlist::packet::PARTS_MAX
            {
                break;
            }
        }
        taken.into_iter().filter_map(|rank| Some((rank, self.messages.remove(&rank)?))).collect()
    }

    /// Counts one telling and drops the message after its last.
    fn put_back(&mut self, rank: Rank, item: Item, limit: u32) -> Arc<[u8]> {
        let message = item.message.clone();
        let next = (rank.0 + 1, rank.1);
        if next.0 < limit {
            if let Some(known) = self.subjects.get_mut(&item.subject) {
                *known = next;
            }
            self.messages.insert(next, item);
        } else {
            self.subjects.remove(&item.subject);
        }
        message
    }

    /// Whether a message was told less often.
    pub fn has_told_less(&self, times: usize) -> bool {
        self.messages.keys().next().is_some_and(|(told, _)| (*told as usize) < times)
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_as_often_as_the_cluster_needs() {
        for (nodes, times) in [(1, 4), (9, 4), (10, 8), (99, 8), (100, 12)] {
            let mut queue = Queue::default();
            queue.push("a", vec![1]);
            let told = std::iter::repeat_with(|| queue.take(100, 2, nodes))
                .take_while(|taken| !taken.is_empty())
                .count();
            assert_eq!(told, times, "{nodes} nodes");
        }
    }

    #[test]
    fn in_one_round_the_same_nodes_are_told_nothing_twice() {
        let (mut own, mut heard) = (Queue::default(), Queue::default());
        (0..3u8).for_each(|number| own.push(number.to_string(), vec![number]));
        (3..9u8).for_each(|number| heard.push(number.to_string(), vec![number]));
        let mut round = |heard: &mut Queue, packets| {
            Queue::take_round([&mut own, heard], 4, 1, 500, packets)
                .iter()
                .map(|packet| packet.iter().map(|message| message[0]).collect())
                .collect::<Vec<Vec<u8>>>()
        };
        for _ in 0..12 {
            let all = [vec![2, 1], vec![0, 8], vec![7, 6], vec![5, 4], vec![3]];
            assert_eq!(round(&mut heard, 16), all);
        }
        assert!(round(&mut heard, 16).is_empty());
        // What found no room in a round comes first in the next one.
        (0..5u8).for_each(|number| heard.push(number.to_string(), vec![number]));
        assert_eq!(round(&mut heard, 2), [[4, 3], [2, 1]]);
        assert_eq!(round(&mut heard, 1), [[0, 4]]);
    }

    #[test]
    fn the_newest_of_a_subject_is_told_and_the_least_told_comes_first() {
        let mut queue = Queue::default();
        queue.push("a", vec![1]);
        assert_eq!(queue.take(100, 0, 1), [[1].into()]);
        queue.push("b", vec![2]);
        queue.push("b", vec![3]);
        assert_eq!(queue.take(1, 0, 1), [[3].into()]);
        assert_eq!(queue.take(100, 0, 1), [[3].into(), [1].into()]);
    }

    #[test]
    fn a_message_beyond_a_packet_goes_alone() {
        let mut queue = Queue::default();
        queue.push("a", vec![1; 2_000]);
        queue.push("b", vec![2; 100]);
        assert_eq!(queue.take(1_400, 2, 1), [vec![2; 100].into()]);
        assert_eq!(queue.take(1_400, 2, 1), [vec![1; 2_000].into()]);
    }

    #[test]
    fn at_its_bound_the_most_told_is_forgotten() {
        let mut queue = Queue::default();
        queue.push("told", vec![1]);
        let _ = queue.take(100, 0, 1);
        for number in 0..MESSAGES_MAX {
            queue.push(number.to_string(), vec![0]);
        }
        assert_eq!(queue.messages.len(), MESSAGES_MAX);
        assert!(!queue.subjects.contains_key("told"));
    }
}

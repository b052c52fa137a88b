//! Messages that are told to a few nodes at a time, each often enough to reach all of them.

use std::collections::BTreeMap;

/// memberlist's and NetworkDB's own factor.
const RETRANSMIT_FACTOR: u32 = 4;
/// Beyond this the message that was told most often is forgotten; push/pull and bulk sync still carry it.
const MESSAGES_MAX: usize = 16_384;

/// How often a message is told in a cluster of so many nodes.
pub(crate) fn retransmit_limit(nodes: usize) -> u32 {
    RETRANSMIT_FACTOR * ((nodes as f64 + 1.0).log10().ceil() as u32).max(1)
}

/// The rank of a message: told least often first, then the newest.
type Rank = (u32, std::cmp::Reverse<u64>);

/// Messages by rank. A newer message about the same subject replaces the older one.
#[derive(Default)]
pub(crate) struct Queue {
    messages: BTreeMap<Rank, (String, Vec<u8>)>,
    subjects: BTreeMap<String, Rank>,
    next: u64,
}

impl Queue {
    pub fn push(&mut self, subject: String, message: Vec<u8>) {
        self.push_told(subject, message, 0);
    }

    /// Adds a message that was told `told` times already.
    pub fn push_told(&mut self, subject: String, message: Vec<u8>, told: u32) {
        self.next += 1;
        let rank = (told, std::cmp::Reverse(self.next));
        if let Some(old) = self.subjects.insert(subject.clone(), rank) {
            self.messages.remove(&old);
        }
        self.messages.insert(rank, (subject, message));
        if self.messages.len() > MESSAGES_MAX
            && let Some((_, (subject, _))) = self.messages.pop_last()
        {
            self.subjects.remove(&subject);
        }
    }

    /// Messages for one packet of `room` bytes, each with `overhead` around it. A message that is
    /// larger than any packet goes out alone, for the network to fragment.
    pub fn take(&mut self, room: usize, overhead: usize, nodes: usize) -> Vec<Vec<u8>> {
        let mut free = room;
        let mut taken = Vec::new();
        for (rank, (_, message)) in &self.messages {
            let size = message.len() + overhead;
            if size <= free {
                free -= size;
                taken.push(*rank);
            } else if size > room && taken.is_empty() {
                taken.push(*rank);
                break;
            }
            if free <= overhead || taken.len() == wire::memberlist::packet::PARTS_MAX {
                break;
            }
        }
        let limit = retransmit_limit(nodes);
        taken.into_iter().filter_map(|rank| self.told(rank, limit)).collect()
    }

    /// Counts one telling and drops the message after its last.
    fn told(&mut self, rank: Rank, limit: u32) -> Option<Vec<u8>> {
        let (subject, message) = self.messages.remove(&rank)?;
        let next = (rank.0 + 1, rank.1);
        if next.0 < limit {
            self.subjects.insert(subject.clone(), next);
            self.messages.insert(next, (subject, message.clone()));
        } else {
            self.subjects.remove(&subject);
        }
        Some(message)
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
            queue.push("a".into(), vec![1]);
            let told = std::iter::repeat_with(|| queue.take(100, 2, nodes))
                .take_while(|taken| !taken.is_empty())
                .count();
            assert_eq!(told, times, "{nodes} nodes");
        }
    }

    #[test]
    fn the_newest_of_a_subject_is_told_and_the_least_told_comes_first() {
        let mut queue = Queue::default();
        queue.push("a".into(), vec![1]);
        assert_eq!(queue.take(100, 0, 1), [[1]]);
        queue.push("b".into(), vec![2]);
        queue.push("b".into(), vec![3]);
        assert_eq!(queue.take(1, 0, 1), [[3]]);
        assert_eq!(queue.take(100, 0, 1), [[3], [1]]);
    }

    #[test]
    fn a_message_beyond_a_packet_goes_alone() {
        let mut queue = Queue::default();
        queue.push("a".into(), vec![1; 2_000]);
        queue.push("b".into(), vec![2; 100]);
        assert_eq!(queue.take(1_400, 2, 1), [vec![2; 100]]);
        assert_eq!(queue.take(1_400, 2, 1), [vec![1; 2_000]]);
    }

    #[test]
    fn at_its_bound_the_most_told_is_forgotten() {
        let mut queue = Queue::default();
        queue.push("told".into(), vec![1]);
        let _ = queue.take(100, 0, 1);
        for number in 0..MESSAGES_MAX {
            queue.push(number.to_string(), vec![0]);
        }
        assert_eq!(queue.messages.len(), MESSAGES_MAX);
        assert!(!queue.subjects.contains_key("told"));
    }
}

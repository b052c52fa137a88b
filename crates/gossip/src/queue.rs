//! Messages that are told to a few nodes at a time, each often enough to reach all of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

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

/// A message, what it is about, and how often others told it to this node.
struct Item {
    subject: Arc<str>,
    message: Arc<[u8]>,
    echoes: Option<Echoes>,
}

/// Counts the echoes of a message. Shared by the queue and by whoever knows an echo for one.
#[derive(Clone, Default)]
pub(crate) struct Echoes(Arc<AtomicU8>);

impl Echoes {
    pub fn heard(&self) {
        // A core runs in one thread; that the count stays at its end is all that matters.
        self.0.store(self.0.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    /// Two echoes are worth a telling: whoever hears them knows that many know already.
    fn tellings(&self) -> u32 {
        u32::from(self.0.swap(0, Ordering::Relaxed) / 2)
    }
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
        self.insert(Item { subject: subject.into(), message: message.into(), echoes: None }, told);
    }

    /// Adds a message of which echoes are counted, in clusters of so many nodes that it is told far
    /// more often than every node needs.
    pub fn push_with_echoes(
        &mut self,
        subject: impl Into<Arc<str>>,
        message: impl Into<Arc<[u8]>>,
        echoes: &Echoes,
    ) {
        let echoes = Some(echoes.clone());
        self.insert(Item { subject: subject.into(), message: message.into(), echoes }, 0);
    }

    fn insert(&mut self, item: Item, told: u32) {
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
        let mut free = room;
        let mut taken = Vec::new();
        for (rank, item) in &self.messages {
            let size = item.message.len() + overhead;
            if size <= free {
                free -= size;
                taken.push(*rank);
            } else if size > room && taken.is_empty() {
                taken.push(*rank);
                break;
            }
            if free < self.smallest + overhead || taken.len() == wire::memberlist::packet::PARTS_MAX
            {
                break;
            }
        }
        let limit = retransmit_limit(nodes);
        taken.into_iter().filter_map(|rank| self.told(rank, limit)).collect()
    }

    /// Counts one telling and drops the message after its last.
    fn told(&mut self, rank: Rank, limit: u32) -> Option<Arc<[u8]>> {
        let item = self.messages.remove(&rank)?;
        let message = item.message.clone();
        let next = (rank.0 + 1 + item.echoes.as_ref().map_or(0, Echoes::tellings), rank.1);
        if next.0 < limit {
            if let Some(known) = self.subjects.get_mut(&item.subject) {
                *known = next;
            }
            self.messages.insert(next, item);
        } else {
            self.subjects.remove(&item.subject);
        }
        Some(message)
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
    fn of_a_message_that_is_heard_from_others_less_is_told() {
        for (heard, times) in [(0, 12), (1, 12), (2, 6), (6, 3)] {
            let (mut queue, echoes) = (Queue::default(), Echoes::default());
            queue.push_with_echoes("a", vec![1], &echoes);
            let mut told = 0;
            while !queue.is_empty() {
                (0..heard).for_each(|_| echoes.heard());
                told += queue.take(100, 2, 500).len();
            }
            assert_eq!(told, times, "{heard} echoes between two tellings");
        }
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

//! What the parts of the gossip are lent for one step: time, dice, and where results go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::event::{DialId, Effect, StreamId};
use model::Instant;
use rand::Rng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;

/// A result in plain bytes; it is sealed on its way out.
pub(crate) enum Out {
    Packet { to: SocketAddr, messages: Vec<Arc<[u8]>> },
    Dial { dial: DialId, to: SocketAddr, message: Arc<[u8]>, reply: bool },
    Reply { stream: StreamId, message: Arc<[u8]> },
    Effect(Effect),
}

pub(crate) struct Io<'s> {
    pub now: Instant,
    pub dice: &'s mut ChaCha8Rng,
    pub out: &'s mut Vec<Out>,
    pub counters: &'s mut Counters,
}

impl Io<'_> {
    pub fn send(&mut self, to: SocketAddr, messages: Vec<Arc<[u8]>>) {
        self.out.push(Out::Packet { to, messages });
    }

    pub fn effect(&mut self, effect: Effect) {
        self.out.push(Out::Effect(effect));
    }

    pub fn count(&mut self, what: &'static str) {
        self.counters.add(what, 1);
    }

    /// Up to `count` of the candidates, in random order.
    pub fn pick<T>(&mut self, mut candidates: Vec<T>, count: usize) -> Vec<T> {
        let (picked, _) = candidates.partial_shuffle(self.dice, count);
        let picked = picked.len();
        // The picked ones stand at the end.
        candidates.drain(..candidates.len() - picked);
        candidates
    }

    /// The same of a list that stays; only those that are picked are looked at.
    pub fn pick_of<'c, T>(&mut self, candidates: &'c [T], count: usize) -> Vec<&'c T> {
        let picked = index::sample(self.dice, candidates.len(), count.min(candidates.len()));
        picked.into_iter().map(|at| &candidates[at]).collect()
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { self.dice.random_range(0..bound) }
    }
}

/// How often each thing happened, by a fixed name.
#[derive(Default)]
pub(crate) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    pub fn add(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    pub fn of(&self, what: &'static str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    pub fn table(&self) -> BTreeMap<&'static str, u64> {
        self.0.clone()
    }
}

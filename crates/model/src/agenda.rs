//! Who is due when: the next of thousands is known without a look at all of them.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use crate::Instant;

pub struct Agenda<N = String> {
    at: BTreeMap<N, Instant>,
    order: BTreeSet<(Instant, N)>,
}

impl<N> Default for Agenda<N> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<N: Ord + Clone> Agenda<N> {
    /// A name is due at one time: the last that was said.
    pub fn set(&mut self, name: impl Into<N>, at: Instant) {
        let name = name.into();
        self.remove(&name);
        self.at.insert(name.clone(), at);
        self.order.insert((at, name));
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, name: &Q)
    where
        N: Borrow<Q>,
    {
        if let Some((name, at)) = self.at.remove_entry(name) {
            self.order.remove(&(at, name));
        }
    }

    pub fn has<Q: Ord + ?Sized>(&self, name: &Q) -> bool
    where
        N: Borrow<Q>,
    {
        self.at.contains_key(name)
    }

    pub fn first(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Those whose time has come, in the order of their times; they are due no more.
    pub fn take_due(&mut self, now: Instant) -> Vec<N> {
        let mut due = Vec::new();
        while let Some((at, _)) = self.order.first()
            && *at <= now
            && let Some((_, name)) = self.order.pop_first()
        {
            self.at.remove(&name);
            due.push(name);
        }
        due
    }

    /// Gives everyone another time.
    pub fn change_all(&mut self, change: impl Fn(Instant) -> Instant) {
        self.at.values_mut().for_each(|at| *at = change(*at));
        self.order = self.at.iter().map(|(name, at)| (*at, name.clone())).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_due_once_at_the_last_time_that_was_said() {
        let mut agenda = Agenda::<String>::default();
        let at = Instant::from_nanos;
        for (name, time) in [("a", 5), ("b", 3), ("a", 2), ("c", 9), ("d", 1)] {
            agenda.set(name, at(time));
        }
        agenda.remove("d");
        assert!(agenda.has("a") && !agenda.has("d"));
        assert_eq!(agenda.first(), Some(at(2)));
        assert_eq!(agenda.take_due(at(4)), ["a", "b"]);
        assert_eq!(agenda.take_due(at(4)), [""; 0]);
        agenda.change_all(|_| at(12));
        assert_eq!(agenda.first(), Some(at(12)));
        assert_eq!(agenda.take_due(at(12)), ["c"]);
        assert_eq!(agenda.first(), None);
    }
}

//! Who is due when: the next of thousands is known without a look at all of them.

use std::collections::{BTreeMap, BTreeSet};

use model::Instant;

#[derive(Default)]
pub struct Agenda {
    at: BTreeMap<String, Instant>,
    order: BTreeSet<(Instant, String)>,
}

impl Agenda {
    /// A name is due at one time: the last that was said.
    pub fn set(&mut self, name: &str, at: Instant) {
        self.remove(name);
        self.at.insert(name.to_owned(), at);
        self.order.insert((at, name.to_owned()));
    }

    pub fn remove(&mut self, name: &str) {
        if let Some((name, at)) = self.at.remove_entry(name) {
            self.order.remove(&(at, name));
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.at.contains_key(name)
    }

    pub fn first(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Those whose time has come, in the order of their times; they are due no more.
    pub fn take_due(&mut self, now: Instant) -> Vec<String> {
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
        let mut agenda = Agenda::default();
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

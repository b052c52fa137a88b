//! The rows of one network, and a digest of the live ones that follows every change.

use std::collections::BTreeMap;

use crate::database::{Entry, RowKey, fnv};

#[derive(Default)]
pub(crate) struct Rows {
    by_key: BTreeMap<RowKey, Entry>,
    digest: Digest,
}

/// How many live rows there are, and a number that differs when they do: a sum, so that their order
/// does not count and one of them can be taken out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub rows: u64,
    pub sum: u64,
}

impl Digest {
    fn enter(&mut self, key: &RowKey, entry: &Entry) {
        if entry.reap_at.is_none() {
            self.rows += 1;
            self.sum = self.sum.wrapping_add(print(key, entry));
        }
    }

    fn leave(&mut self, key: &RowKey, entry: &Entry) {
        if entry.reap_at.is_none() {
            self.rows -= 1;
            self.sum = self.sum.wrapping_sub(print(key, entry));
        }
    }
}

fn print(key: &RowKey, entry: &Entry) -> u64 {
    fnv(&[key.0.as_bytes(), key.1.as_bytes(), &entry.ltime.to_be_bytes()])
}

impl Rows {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn get(&self, key: &RowKey) -> Option<&Entry> {
        self.by_key.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&RowKey, &Entry)> {
        self.by_key.iter()
    }

    /// In the order of their keys, from this one on.
    pub fn from(&self, key: RowKey) -> impl Iterator<Item = (&RowKey, &Entry)> {
        self.by_key.range(key..)
    }

    pub fn insert(&mut self, key: RowKey, entry: Entry) -> Option<Entry> {
        self.digest.enter(&key, &entry);
        let old = self.by_key.insert(key.clone(), entry);
        if let Some(old) = &old {
            self.digest.leave(&key, old);
        }
        old
    }

    pub fn remove(&mut self, key: &RowKey) -> Option<Entry> {
        let old = self.by_key.remove(key)?;
        self.digest.leave(key, &old);
        Some(old)
    }

    /// The row as it is after the change; `None` when there is none.
    pub fn change(&mut self, key: &RowKey, change: impl FnOnce(&mut Entry)) -> Option<&Entry> {
        let entry = self.by_key.get_mut(key)?;
        self.digest.leave(key, entry);
        change(entry);
        self.digest.enter(key, entry);
        Some(entry)
    }

    /// Takes out the rows that are chosen.
    pub fn take(&mut self, chosen: impl Fn(&Entry) -> bool) -> Vec<(RowKey, Entry)> {
        let taken: Vec<_> = self.by_key.extract_if(.., |_, entry| chosen(entry)).collect();
        taken.iter().for_each(|(key, entry)| self.digest.leave(key, entry));
        taken
    }
}

#[cfg(test)]
mod tests {
    use model::Instant;

    use super::*;

    fn entry(ltime: u64, dead: bool) -> Entry {
        let reap_at = dead.then(|| Instant::from_nanos(ltime));
        Entry { owner: "a".into(), ltime, value: Vec::new(), reap_at }
    }

    #[test]
    fn the_digest_is_that_of_the_rows_however_they_came_to_be() {
        let key = |name: u64| ("t".to_owned(), name.to_string());
        let mut rows = Rows::default();
        for name in 0..9 {
            rows.insert(key(name), entry(name, name % 4 == 3));
        }
        rows.insert(key(1), entry(20, false));
        rows.insert(key(3), entry(21, false));
        rows.change(&key(2), |entry| entry.reap_at = Some(Instant::from_nanos(1)));
        rows.change(&key(4), |entry| entry.ltime = 22);
        rows.remove(&key(5));
        rows.take(|entry| entry.ltime == 6);
        let mut plain = Rows::default();
        for (name, ltime) in [(8, 8), (4, 22), (3, 21), (1, 20), (0, 0)] {
            plain.insert(key(name), entry(ltime, false));
        }
        assert_eq!(rows.digest(), plain.digest());
        assert_eq!(rows.digest().rows, 5);
        plain.change(&key(0), |entry| entry.ltime = 1);
        assert_ne!(rows.digest(), plain.digest());
    }
}

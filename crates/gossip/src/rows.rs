//! The rows of one network, and a digest of the live ones that follows every change.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

use model::Instant;

use crate::database::{Entry, RowKey, fnv, spread};

/// One table's rows. Most of what a node hears it knows, so that the look-up is what costs; who
/// needs an order sorts.
type Table = HashMap<String, Entry, BuildHasherDefault<DefaultHasher>>;

#[derive(Default)]
pub(crate) struct Rows {
    tables: BTreeMap<String, Table>,
    count: usize,
    digest: Digest,
    /// No row may be forgotten sooner.
    reap_at: Option<Instant>,
}

/// How many live rows there are, and a number that differs when they do: a sum, so that their order
/// does not count and one of them can be taken out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub rows: u64,
    pub sum: u64,
}

impl Digest {
    fn enter(&mut self, table: &str, key: &str, entry: &Entry) {
        if entry.reap_at.is_none() {
            self.rows += 1;
            self.sum = self.sum.wrapping_add(print(table, key, entry));
        }
    }

    fn leave(&mut self, table: &str, key: &str, entry: &Entry) {
        if entry.reap_at.is_none() {
            self.rows -= 1;
            self.sum = self.sum.wrapping_sub(print(table, key, entry));
        }
    }
}

fn print(table: &str, key: &str, entry: &Entry) -> u64 {
    spread(fnv(&[table.as_bytes(), key.as_bytes(), &entry.ltime.to_be_bytes()]))
}

fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

impl Rows {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn get(&self, table: &str, key: &str) -> Option<&Entry> {
        self.tables.get(table)?.get(key)
    }

    /// A table's rows in no order.
    pub fn of(&self, table: &str) -> impl Iterator<Item = (&String, &Entry)> {
        self.tables.get(table).into_iter().flatten()
    }

    /// All rows in the order of their tables and keys.
    pub fn sorted(&self) -> impl Iterator<Item = (&str, &str, &Entry)> {
        self.tables.iter().flat_map(|(table, rows)| {
            let mut rows: Vec<_> = rows.iter().collect();
            rows.sort_unstable_by_key(|(key, _)| *key);
            rows.into_iter().map(move |(key, entry)| (table.as_str(), key.as_str(), entry))
        })
    }

    pub fn insert(&mut self, (table, key): RowKey, entry: Entry) -> Option<Entry> {
        self.digest.enter(&table, &key, &entry);
        self.reap_at = sooner(self.reap_at, entry.reap_at);
        let old = match self.tables.get_mut(&table) {
            Some(rows) => match rows.get_mut(&key) {
                Some(old) => Some(std::mem::replace(old, entry)),
                None => rows.insert(key.clone(), entry),
            },
            None => self.tables.entry(table.clone()).or_default().insert(key.clone(), entry),
        };
        match &old {
            Some(old) => self.digest.leave(&table, &key, old),
            None => self.count += 1,
        }
        old
    }

    /// The row as it is after the change; `None` when there is none.
    pub fn change(
        &mut self,
        (table, key): &RowKey,
        change: impl FnOnce(&mut Entry),
    ) -> Option<&Entry> {
        let entry = self.tables.get_mut(table)?.get_mut(key)?;
        self.digest.leave(table, key, entry);
        change(entry);
        self.digest.enter(table, key, entry);
        self.reap_at = sooner(self.reap_at, entry.reap_at);
        Some(entry)
    }

    /// Takes out the rows that are chosen, and gives them in the order of their keys.
    pub fn take(&mut self, chosen: impl Fn(&Entry) -> bool) -> Vec<(RowKey, Entry)> {
        let mut taken = Vec::new();
        for (table, rows) in &mut self.tables {
            let gone = rows.extract_if(|_, entry| chosen(entry));
            taken.extend(gone.map(|(key, entry)| ((table.clone(), key), entry)));
        }
        taken.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        self.tables.retain(|_, rows| !rows.is_empty());
        taken.iter().for_each(|((table, key), entry)| self.digest.leave(table, key, entry));
        self.count -= taken.len();
        taken
    }

    /// Forgets the deleted rows whose time has come.
    pub fn reap(&mut self, now: Instant) {
        if self.reap_at.is_none_or(|at| at > now) {
            return;
        }
        self.take(|entry| entry.reap_at.is_some_and(|at| at <= now));
        let left = self.tables.values().flat_map(HashMap::values);
        self.reap_at = left.filter_map(|entry| entry.reap_at).min();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn entry(ltime: u64, dead: bool) -> Entry {
        let reap_at = dead.then(|| Instant::from_nanos(ltime));
        Entry { owner: "a".into(), ltime, value: Vec::new(), reap_at }
    }

    fn key(name: u64) -> RowKey {
        ("t".to_owned(), name.to_string())
    }

    #[test]
    fn the_digest_is_that_of_the_rows_however_they_came_to_be() {
        let mut rows = Rows::default();
        for name in 0..9 {
            rows.insert(key(name), entry(name, name % 4 == 3));
        }
        rows.insert(key(1), entry(20, false));
        rows.insert(key(3), entry(21, false));
        rows.change(&key(2), |entry| entry.reap_at = Some(Instant::from_nanos(1)));
        rows.change(&key(4), |entry| entry.ltime = 22);
        rows.take(|entry| entry.ltime == 5);
        rows.take(|entry| entry.ltime == 6);
        let mut plain = Rows::default();
        for (name, ltime) in [(8, 8), (4, 22), (3, 21), (1, 20), (0, 0)] {
            plain.insert(key(name), entry(ltime, false));
        }
        assert_eq!(rows.digest(), plain.digest());
        assert_eq!(rows.digest().rows, 5);
        assert_eq!(rows.len(), 7, "the deleted ones are still remembered");
        plain.change(&key(0), |entry| entry.ltime = 1);
        assert_ne!(rows.digest(), plain.digest());
    }

    #[test]
    fn what_two_missed_rows_lack_does_not_cancel_out() {
        // Times as they are when a row was announced first and is changed soon afterwards.
        let key = |name: u64| ("endpoint_table".to_owned(), format!("{name:025x}"));
        let sum = |name, ltime| {
            let mut rows = Rows::default();
            rows.insert(key(name), entry(ltime, false));
            rows.digest().sum
        };
        let mut lacks = HashSet::new();
        for name in 0..40 {
            for (old, new) in (1..5).flat_map(|old| (30..60).map(move |new| (old, new))) {
                let lack = sum(name, new).wrapping_sub(sum(name, old));
                assert!(!lacks.contains(&lack.wrapping_neg()), "{name}: {old} for {new}");
                lacks.insert(lack);
            }
        }
    }

    #[test]
    fn deleted_rows_are_forgotten_each_at_its_time() {
        let mut rows = Rows::default();
        (0..9).for_each(|name| drop(rows.insert(key(name), entry(name, name % 2 == 0))));
        let left = |rows: &mut Rows, now| {
            rows.reap(Instant::from_nanos(now));
            rows.sorted().map(|(_, key, _)| key.parse().unwrap()).collect::<Vec<u64>>()
        };
        assert_eq!(left(&mut rows, 3), [1, 3, 4, 5, 6, 7, 8]);
        rows.change(&key(7), |entry| entry.reap_at = Some(Instant::from_nanos(5)));
        assert_eq!(left(&mut rows, 5), [1, 3, 5, 6, 8]);
        assert_eq!(left(&mut rows, 8), [1, 3, 5]);
        assert_eq!((rows.len(), rows.digest().rows), (3, 3));
    }
}

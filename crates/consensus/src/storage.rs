//! The log as raft-rs reads it: in memory, the same as on disk.

use std::collections::VecDeque;

use ::raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use ::raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

/// Bytes of the entries that are kept before a snapshot.
const KEPT_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Default)]
pub struct Log {
    pub hard_state: HardState,
    /// The set as of the last applied entry.
    pub conf_state: ConfState,
    snapshot: Snapshot,
    /// The entry before the first one that is kept.
    floor: (u64, u64),
    entries: VecDeque<Entry>,
    /// Of the entries' data, taken in since the last snapshot.
    bytes: u64,
}

impl Log {
    pub fn restore(snapshot: Option<Snapshot>, hard_state: HardState, entries: Vec<Entry>) -> Self {
        let mut log = Self { hard_state, ..Self::default() };
        if let Some(snapshot) = snapshot {
            let metadata = snapshot.get_metadata();
            log.conf_state = metadata.get_conf_state().clone();
            log.floor = (metadata.index, metadata.term);
            log.snapshot = snapshot;
        }
        // Older entries are kept for slow followers; the first one's predecessor may be unknown.
        if let Some(first) = entries.first()
            && first.index <= log.floor.0
        {
            log.floor = (first.index, first.term);
        }
        let floor = log.floor.0;
        log.entries = entries.into_iter().filter(|entry| entry.index > floor).collect();
        let snapshot_index = log.snapshot.get_metadata().index;
        log.hard_state.commit = log.hard_state.commit.max(snapshot_index).min(log.last());
        log
    }

    pub fn first(&self) -> u64 {
        self.floor.0 + 1
    }

    pub fn last(&self) -> u64 {
        self.entries.back().map_or(self.floor.0, |entry| entry.index)
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    /// Takes entries in; they replace what stands at their indexes and behind.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|entry| entry.index >= first.index) {
            self.entries.pop_back();
        }
        self.bytes += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Bytes taken in since the last snapshot.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of the last snapshot.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot.data.len() as u64
    }

    /// The last entry that may go once a snapshot stands at `index`: the last `keep` before it stay,
    /// unless they are so large that the snapshot itself serves a late follower as well.
    pub fn forgettable(&self, index: u64, keep: u64) -> u64 {
        let before = self.entries.iter().rev().skip_while(|entry| entry.index > index);
        let kept =
            before.take(usize::try_from(keep).unwrap_or(usize::MAX)).scan(0, |bytes, entry| {
                *bytes += entry.data.len() as u64;
                (*bytes <= KEPT_BYTES_MAX).then_some(entry.index)
            });
        kept.last().map_or(index, |first| first - 1)
    }

    /// A snapshot from the leader replaces everything.
    pub fn replace(&mut self, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        self.conf_state = metadata.get_conf_state().clone();
        self.floor = (metadata.index, metadata.term);
        self.hard_state.commit = self.hard_state.commit.max(metadata.index);
        self.hard_state.term = self.hard_state.term.max(metadata.term);
        self.entries.clear();
        self.bytes = 0;
        self.snapshot = snapshot;
    }

    /// Takes an own snapshot in, and forgets the entries up to `compact_to`.
    pub fn compact(&mut self, snapshot: Snapshot, compact_to: u64) {
        self.snapshot = snapshot;
        let index = self.snapshot_index();
        let newer = self.entries.iter().rev().take_while(|entry| entry.index > index);
        self.bytes = newer.map(|entry| entry.data.len() as u64).sum();
        while let Some(entry) = self.entries.front() {
            if entry.index > compact_to {
                break;
            }
            self.floor = (entry.index, entry.term);
            self.entries.pop_front();
        }
    }

    fn term_at(&self, index: u64) -> Result<u64> {
        if index == self.floor.0 {
            return Ok(self.floor.1);
        }
        if index < self.floor.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let at = usize::try_from(index - self.first()).ok();
        let entry = at.and_then(|at| self.entries.get(at));
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    pub fn term_of(&self, index: u64) -> Option<u64> {
        self.term_at(index).ok()
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        let conf_state = self.snapshot.get_metadata().get_conf_state().clone();
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let from = (low - self.first()) as usize;
        let count = (high - low) as usize;
        let mut entries: Vec<Entry> = self.entries.iter().skip(from).take(count).cloned().collect();
        ::raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        self.term_at(index)
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// With the set as it is known: a member that joined after the snapshot was taken must find
    /// itself in it (SwarmKit sends it so, too).
    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        if self.snapshot_index() == 0 || self.snapshot_index() < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = self.snapshot.clone();
        snapshot.mut_metadata().set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}

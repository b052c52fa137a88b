//! A manager's disk: what was synchronised is there after a crash, what was being written may be torn.

use consensus::{Recovered, Write};

#[derive(Default, Clone)]
pub struct Disk {
    recovered: Recovered,
}

impl Disk {
    pub fn write(&mut self, write: Write) {
        if let Some(snapshot) = write.snapshot.clone() {
            self.recovered.snapshot = Some(snapshot);
        }
        self.write_log(write);
    }

    fn write_log(&mut self, write: Write) {
        let held = &mut self.recovered;
        held.identity = write.identity.unwrap_or_else(|| held.identity.clone());
        held.membership = write.membership.unwrap_or_else(|| held.membership.clone());
        if write.snapshot.is_some() {
            held.entries.retain(|entry| entry.index() > write.compact_to);
        }
        if let Some(first) = write.entries.first() {
            held.entries.retain(|entry| entry.index() < first.index());
        }
        held.entries.extend(write.entries);
        held.hard_state = write.hard_state.unwrap_or(held.hard_state);
    }

    /// Power is lost while this is written. A torn record is cut off, as its checksum tells; the
    /// snapshot is a file of its own, replaced as a whole before the log is.
    pub fn tear(&mut self, write: Write) {
        if let Some(snapshot) = write.snapshot {
            self.recovered.snapshot = Some(snapshot);
        }
    }

    pub fn read(&self) -> Recovered {
        let mut recovered = self.recovered.clone();
        recovered.forget_what_a_snapshot_replaced();
        recovered
    }
}

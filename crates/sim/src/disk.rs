//! A manager's disk: what was written is there after a crash, what was not is not.

use consensus::{Recovered, Write};

#[derive(Default, Clone)]
pub struct Disk {
    recovered: Recovered,
}

impl Disk {
    pub fn write(&mut self, write: Write) {
        let held = &mut self.recovered;
        held.identity = write.identity.unwrap_or_else(|| held.identity.clone());
        held.membership = write.membership.unwrap_or_else(|| held.membership.clone());
        if let Some(snapshot) = write.snapshot {
            held.entries.retain(|entry| entry.index() > write.compact_to);
            held.snapshot = Some(snapshot);
        }
        if let Some(first) = write.entries.first() {
            held.entries.retain(|entry| entry.index() < first.index());
        }
        held.entries.extend(write.entries);
        held.hard_state = write.hard_state.unwrap_or(held.hard_state);
    }

    pub fn read(&self) -> Recovered {
        self.recovered.clone()
    }
}

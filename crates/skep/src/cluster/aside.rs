//! What takes long beside the manager's loop: its outcome comes back as an ask.

use std::sync::Arc;
use std::time::Duration;

use manager::Ticket;
use tokio::sync::mpsc::WeakSender;
use transport::Keys;

use super::manager_task::Ask;

const PROBE_TIME_MAX: Duration = Duration::from_secs(5);

/// Whether a manager answers under its address.
pub fn probe(asks: WeakSender<Ask>, keys: Arc<Keys>, ticket: Ticket, address: String) {
    tokio::spawn(async move {
        let healthy = match transport::client::Manager::new(address, keys) {
            Ok(far) => far.serves_raft(PROBE_TIME_MAX).await,
            Err(_) => false,
        };
        if let Some(asks) = asks.upgrade() {
            let _ = asks.send(Ask::Probed { ticket, healthy }).await;
        }
    });
}

/// A large cluster takes seconds to encode and to write.
pub fn snapshot(asks: WeakSender<Ask>, writer: disk::SnapshotWriter, snapshot: manager::Snapshot) {
    tokio::spawn(async move {
        let made = tokio::task::spawn_blocking(move || {
            let snapshot = Box::new(snapshot.encode());
            // What cannot be written now is tried again where the disk's trouble is dealt with.
            let prepared = writer.prepare(&snapshot).ok();
            Ask::Snapshot { snapshot, prepared }
        });
        if let (Ok(made), Some(asks)) = (made.await, asks.upgrade()) {
            let _ = asks.send(made).await;
        }
    });
}

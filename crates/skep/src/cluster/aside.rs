//! What takes long beside the manager's loop: its outcome comes back as an ask.

use std::sync::Arc;
use std::time::Duration;

use manager::{Call, Caller, Ticket};
use tokio::sync::mpsc::{self, WeakSender};
use tokio::sync::oneshot;
use transport::Keys;
use wire::swarmkit as pb;

use super::manager_task::{Ask, status};

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

/// Where to answer a caller who may have to wait; when he goes away first, the loop hears of it.
pub fn patient<T: Send + 'static>(
    asks: WeakSender<Ask>,
    ticket: Ticket,
    mut reply: oneshot::Sender<T>,
) -> oneshot::Sender<T> {
    let (answer, answered) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            answered = answered => if let Ok(answered) = answered {
                let _ = reply.send(answered);
            },
            () = reply.closed() => if let Some(asks) = asks.upgrade() {
                let _ = asks.send(Ask::Cancelled(ticket)).await;
            },
        }
    });
    answer
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

/// A worker's stream of log messages, one call each; the worker waits for the last.
pub fn publish(
    asks: WeakSender<Ask>,
    caller: Caller,
    mut messages: mpsc::Receiver<pb::PublishLogsMessage>,
    done: transport::Reply<pb::PublishLogsResponse>,
) {
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            let Some(asks) = asks.upgrade() else { return };
            let (reply, answer) = oneshot::channel();
            let call = Box::new(Call::PublishLogs(message));
            if asks.send(Ask::Call { caller: caller.clone(), call, reply }).await.is_err() {
                return;
            }
            match answer.await {
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => return drop(done.send(Err(status(failure)))),
                Err(_) => return,
            }
        }
        let _ = done.send(Ok(pb::PublishLogsResponse {}));
    });
}

//! Raft messages to the other managers: one queue and one task per member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::{Code, Status};
use wire::raftpb;
use wire::swarmkit as pb;

use crate::client::Manager;
use crate::tls::Keys;

/// Messages that may wait for one member; raft repeats what is lost.
pub const MESSAGES_WAITING_MAX: usize = 4_096;
/// Bytes that may wait for one member; what comes on top of so many is lost. A snapshot, of which
/// raft sends one at a time and none again before it is told what became of it, is not.
pub const BYTES_WAITING_MAX: usize = 16 << 20;
/// Part of a snapshot in one gRPC message.
const CHUNK_BYTES: usize = 2 << 20;
const SEND_TIME_MAX: Duration = Duration::from_secs(2);
/// Per chunk of a snapshot.
const SNAPSHOT_CHUNK_TIME: Duration = Duration::from_secs(10);
/// SwarmKit's words to a member that was removed.
pub const REMOVED: &str = "raft: member was removed from the cluster";

/// What became of messages, as raft wants to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Reachable {
        member: u64,
    },
    Unreachable {
        member: u64,
        reason: String,
    },
    Snapshot {
        member: u64,
        delivered: bool,
    },
    /// The far end says that this node is no longer a member.
    Removed,
}

struct Queue {
    address: String,
    messages: mpsc::Sender<raftpb::Message>,
    /// Of the messages that wait or are on their way.
    bytes: Arc<AtomicUsize>,
    /// Ended with the queue, but for one whose last messages are still to be delivered.
    task: Option<AbortHandle>,
}

/// The other members as this one reaches them.
pub struct Members {
    keys: Arc<Keys>,
    reports: mpsc::Sender<Report>,
    queues: BTreeMap<u64, Queue>,
}

impl Members {
    pub fn new(keys: Arc<Keys>, reports: mpsc::Sender<Report>) -> Self {
        Self { keys, reports, queues: BTreeMap::new() }
    }

    /// Queues a message; one that finds no room is dropped, as the network would.
    pub fn send(&mut self, member: u64, address: &str, message: raftpb::Message) {
        if self
            .queues
            .get(&member)
            .is_none_or(|queue| queue.address != address || queue.messages.is_closed())
        {
            let Ok(manager) = Manager::new(address, self.keys.clone()) else { return };
            let (messages, queue) = mpsc::channel(MESSAGES_WAITING_MAX);
            let bytes = Arc::<AtomicUsize>::default();
            let delivering = deliver(member, manager, queue, bytes.clone(), self.reports.clone());
            let task = Some(tokio::spawn(delivering).abort_handle());
            let queue = Queue { address: address.to_owned(), messages, bytes, task };
            self.queues.insert(member, queue);
        }
        if let Some(queue) = self.queues.get(&member) {
            queue.put(message);
        }
    }

    /// Bytes that wait for a member.
    pub fn waiting(&self, member: u64) -> usize {
        self.queues.get(&member).map_or(0, |queue| queue.bytes.load(Ordering::Relaxed))
    }

    /// Who is no member any more gets what waits for it, which may tell it so, and nothing else.
    pub fn keep(&mut self, is_member: impl Fn(u64) -> bool) {
        for (_, mut gone) in self.queues.extract_if(.., |member, _| !is_member(*member)) {
            drop(gone.task.take());
        }
    }
}

impl Queue {
    fn put(&self, message: raftpb::Message) {
        let length = message.encoded_len();
        let full = self.bytes.load(Ordering::Relaxed) >= BYTES_WAITING_MAX;
        if full && message.r#type() != raftpb::MessageType::MsgSnap {
            return;
        }
        self.bytes.fetch_add(length, Ordering::Relaxed);
        if self.messages.try_send(message).is_err() {
            self.bytes.fetch_sub(length, Ordering::Relaxed);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn deliver(
    member: u64,
    manager: Manager,
    mut queue: mpsc::Receiver<raftpb::Message>,
    bytes: Arc<AtomicUsize>,
    reports: mpsc::Sender<Report>,
) {
    let mut streams = true;
    let mut reachable = None;
    while let Some(message) = queue.recv().await {
        let snapshot = message.r#type() == raftpb::MessageType::MsgSnap;
        let length = message.encoded_len();
        let sent = send_one(&manager, message, &mut streams).await;
        bytes.fetch_sub(length, Ordering::Relaxed);
        if snapshot {
            let _ = reports.send(Report::Snapshot { member, delivered: sent.is_ok() }).await;
        }
        if sent.is_err() && queue.is_closed() {
            return;
        }
        let report = match sent {
            Ok(()) if reachable == Some(true) => continue,
            Ok(()) => Report::Reachable { member },
            Err(status)
                if status.code() == Code::NotFound && status.message().contains(REMOVED) =>
            {
                Report::Removed
            }
            Err(status) => Report::Unreachable { member, reason: status.message().to_owned() },
        };
        reachable = Some(matches!(report, Report::Reachable { .. }));
        if reports.send(report).await.is_err() {
            return;
        }
    }
}

async fn send_one(
    manager: &Manager,
    message: raftpb::Message,
    streams: &mut bool,
) -> Result<(), Status> {
    if *streams {
        let chunks = chunks(message.clone());
        let time_max = match chunks.len() {
            0 | 1 => SEND_TIME_MAX,
            more => SNAPSHOT_CHUNK_TIME * more as u32,
        };
        let mut client = manager.raft();
        let call = client.stream_raft_message(tokio_stream::iter(chunks));
        match tokio::time::timeout(time_max, call).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) if status.code() == Code::Unimplemented => *streams = false,
            Ok(Err(status)) => return Err(status),
            Err(_) => return Err(Status::deadline_exceeded("no answer in time")),
        }
    }
    let request = pb::ProcessRaftMessageRequest { message: Some(message) };
    let mut client = manager.raft();
    match tokio::time::timeout(SEND_TIME_MAX, client.process_raft_message(request)).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// A large snapshot in pieces, each with the whole header; every other message as it is.
fn chunks(message: raftpb::Message) -> Vec<pb::StreamRaftMessageRequest> {
    let data = message.snapshot.as_ref().and_then(|snapshot| snapshot.data.clone());
    let data = data.unwrap_or_default();
    if message.r#type() != raftpb::MessageType::MsgSnap || data.len() <= CHUNK_BYTES {
        return vec![pb::StreamRaftMessageRequest { message: Some(message) }];
    }
    data.chunks(CHUNK_BYTES)
        .map(|piece| {
            let mut part = message.clone();
            if let Some(snapshot) = &mut part.snapshot {
                snapshot.data = Some(data.slice_ref(piece));
            }
            pb::StreamRaftMessageRequest { message: Some(part) }
        })
        .collect()
}

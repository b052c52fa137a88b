//! The task that owns the manager core: it feeds it events and carries out its effects, in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use manager::{
    Call, Caller, Effect, Event, Failure, Leader, Manager, Message, Open, StreamId, Ticket,
};
use tokio::sync::{mpsc, oneshot, watch};
use transport::raft::{Members, Report};
use transport::{Call as Remote, Gate, Keys, Peer, Route, Status};
use wire::{raftpb, swarmkit as pb};

use super::aside;
use super::callers::caller;
use super::clock::Clock;
use super::events::{ClusterEvent, cluster_events};
use super::outgoing::Outgoing;

/// Asks that may wait for the loop.
const ASKS_WAITING_MAX: usize = 1_024;
/// Between a loop's end and its reason.
const ENDING_MAX: Duration = Duration::from_secs(1);

/// What reaches the loop from inside this process.
pub enum Ask {
    Call {
        caller: Caller,
        call: Box<Call>,
        reply: oneshot::Sender<manager::Reply>,
    },
    Logs {
        caller: Caller,
        request: pb::SubscribeLogsRequest,
        stream: transport::Stream<pb::SubscribeLogsMessage>,
    },
    Probed {
        ticket: Ticket,
        healthy: bool,
    },
    Closed(StreamId),
    /// The caller went away before he was answered.
    Cancelled(Ticket),
    HandOver,
    /// A snapshot is encoded, and on the disk already if that could be.
    Snapshot {
        snapshot: Box<raftpb::Snapshot>,
        prepared: Option<disk::Prepared>,
    },
}

/// What the rest of the node sees of its manager.
#[derive(Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    pub leader: watch::Receiver<Option<Leader>>,
    pub members: watch::Receiver<Vec<pb::RaftMember>>,
    /// The cluster object as this manager has it.
    pub cluster: watch::Receiver<Option<Arc<pb::Cluster>>>,
    /// Counts of nodes: all, managers.
    pub nodes: watch::Receiver<(u64, u64)>,
    /// Why the loop ended, once it has.
    pub ended: watch::Receiver<Option<Ended>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Another manager removed this one from the set.
    Removed,
    /// The disk failed: begin again from what it holds.
    Disk(String),
}

impl Handle {
    /// A call by this node itself.
    pub async fn call(&self, caller: Caller, call: Call) -> manager::Reply {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Call { caller, call: Box::new(call), reply };
        if self.asks.send(ask).await.is_err() {
            return Err(self.stopped().await);
        }
        match answer.await {
            Ok(reply) => reply,
            Err(_) => Err(self.stopped().await),
        }
    }

    /// What the disk said when the log could not be written, with what is to be done about it.
    pub fn disk_trouble(&self) -> Option<String> {
        match &*self.ended.borrow() {
            Some(Ended::Disk(reason)) => Some(format!(
                "this manager cannot write its raft log and goes on as soon as it can: {reason}"
            )),
            _ => None,
        }
    }

    /// The same of a loop that is about to end, too: its end is told a moment after it.
    pub async fn trouble(&self) -> Option<String> {
        if self.asks.is_closed() {
            let mut ended = self.ended.clone();
            let _ = tokio::time::timeout(ENDING_MAX, ended.wait_for(Option::is_some)).await;
        }
        self.disk_trouble()
    }

    /// Why nobody answers.
    async fn stopped(&self) -> Failure {
        let reason = self.trouble().await.unwrap_or_else(|| "the manager is stopping".into());
        Failure::new(manager::Code::Unavailable, reason)
    }

    /// Another manager leads when this returns, if one can before so long.
    pub async fn hand_over(&self, patience: Duration) {
        let mut leader = self.leader.clone();
        let here = |leader: &Option<Leader>| leader.as_ref().is_some_and(|leader| leader.here);
        if !here(&leader.borrow()) || self.members.borrow().len() < 2 {
            return;
        }
        let elsewhere = |leader: &Option<Leader>| leader.as_ref().is_some_and(|it| !it.here);
        let handed = async {
            let _ = self.asks.send(Ask::HandOver).await;
            let _ = leader.wait_for(elsewhere).await;
        };
        // A manager that its disk holds up takes no orders, either.
        let _ = tokio::time::timeout(patience, handed).await;
    }

    pub async fn logs(
        &self,
        caller: Caller,
        request: pb::SubscribeLogsRequest,
        stream: transport::Stream<pb::SubscribeLogsMessage>,
    ) {
        let _ = self.asks.send(Ask::Logs { caller, request, stream }).await;
    }
}

/// Everything the loop needs besides the core itself.
pub struct Parts {
    pub clock: Clock,
    pub log: disk::RaftLog,
    pub keys: Arc<Keys>,
    pub gate: Arc<Gate>,
    pub calls: mpsc::Receiver<Remote>,
    /// Calls that came while the manager was not there yet.
    pub held: Vec<Remote>,
    pub engine: Arc<engine::Engine>,
}

/// How an answer leaves.
enum Pending {
    Local(oneshot::Sender<manager::Reply>),
    Remote(RemoteReply),
}

type RemoteReply = Box<dyn FnOnce(manager::Reply) + Send>;

struct Loop {
    clock: Clock,
    core: Manager,
    log: disk::RaftLog,
    keys: Arc<Keys>,
    gate: Arc<Gate>,
    members: Members,
    pending: BTreeMap<u64, Pending>,
    streams: BTreeMap<u64, Outgoing>,
    next: u64,
    asks: mpsc::WeakSender<Ask>,
    engine: Arc<engine::Engine>,
    leader: watch::Sender<Option<Leader>>,
    member_list: watch::Sender<Vec<pb::RaftMember>>,
    cluster: watch::Sender<Option<Arc<pb::Cluster>>>,
    nodes: watch::Sender<(u64, u64)>,
}

/// Starts the loop with the effects that the core's beginning asked for.
pub fn start(
    core: Manager,
    first: Vec<Effect>,
    parts: Parts,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (asks, ask_queue) = mpsc::channel(ASKS_WAITING_MAX);
    let (reports, report_queue) = mpsc::channel(ASKS_WAITING_MAX);
    let (leader, leader_seen) = watch::channel(None);
    let (member_list, members_seen) = watch::channel(Vec::new());
    let (cluster, cluster_seen) = watch::channel(None);
    let (nodes, nodes_seen) = watch::channel((0, 0));
    let (ended, ended_seen) = watch::channel(None);
    let Parts { clock, log, keys, gate, calls, held, engine } = parts;
    let the_loop = Loop {
        clock,
        core,
        log,
        keys: keys.clone(),
        gate,
        members: Members::new(keys, reports),
        pending: BTreeMap::new(),
        streams: BTreeMap::new(),
        next: 1,
        asks: asks.downgrade(),
        engine,
        leader,
        member_list,
        cluster,
        nodes,
    };
    let task = tokio::spawn(async move {
        let reason = the_loop.run(first, held, calls, ask_queue, report_queue).await;
        let _ = ended.send(reason);
    });
    let handle = Handle {
        asks,
        leader: leader_seen,
        members: members_seen,
        cluster: cluster_seen,
        nodes: nodes_seen,
        ended: ended_seen,
    };
    (handle, task)
}

fn reached(networks: &mut watch::Receiver<Vec<netplan::Cidr>>) -> Event {
    Event::HostNetworks(networks.borrow_and_update().iter().map(ToString::to_string).collect())
}

impl Loop {
    async fn run(
        mut self,
        first: Vec<Effect>,
        held: Vec<Remote>,
        mut calls: mpsc::Receiver<Remote>,
        mut asks: mpsc::Receiver<Ask>,
        mut reports: mpsc::Receiver<Report>,
    ) -> Option<Ended> {
        self.look();
        let mut host_networks = self.engine.network.host_networks();
        let told = self.core.step(self.clock.now(), reached(&mut host_networks));
        if let Err(ended) = self.carry_out(first).and_then(|()| self.carry_out(told)) {
            return Some(ended);
        }
        for call in held {
            if let Some(event) = self.remote(call) {
                let effects = self.core.step(self.clock.now(), event);
                if let Err(ended) = self.carry_out(effects) {
                    return Some(ended);
                }
            }
        }
        loop {
            let deadline = self.core.deadline();
            let event = tokio::select! {
                report = reports.recv() => report.and_then(reported),
                call = calls.recv() => match call {
                    Some(call) => self.remote(call),
                    None => return None,
                },
                ask = asks.recv() => match ask {
                    Some(ask) => self.local(ask),
                    None => return None,
                },
                Ok(()) = host_networks.changed() => Some(reached(&mut host_networks)),
                () = self.clock.sleep_until(deadline) => Some(Event::Deadline),
            };
            let Some(event) = event else { continue };
            let effects = self.core.step(self.clock.now(), event);
            if let Err(ended) = self.carry_out(effects) {
                return Some(ended);
            }
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), Ended> {
        for effect in effects {
            match effect {
                Effect::Persist(write) => {
                    tokio::task::block_in_place(|| self.log.write(&write)).map_err(|error| {
                        tracing::error!(%error, "the raft log cannot be written");
                        Ended::Disk(error.to_string())
                    })?;
                }
                Effect::Send { raft_id, address, message } => {
                    self.members.send(raft_id, &address, *message)
                }
                Effect::Probe { ticket, address } => {
                    aside::probe(self.asks.clone(), self.keys.clone(), ticket, address);
                }
                Effect::Reply { ticket, reply } => match self.pending.remove(&ticket.0) {
                    Some(Pending::Local(answer)) => drop(answer.send(reply)),
                    Some(Pending::Remote(answer)) => answer(reply),
                    None => {}
                },
                Effect::Message { stream, message } => self.message(stream, *message),
                Effect::Close { stream, end } => {
                    if let (Some(outgoing), Err(failure)) = (self.streams.remove(&stream.0), end) {
                        outgoing.end(status(failure));
                    }
                }
                Effect::Snapshot(snapshot) => {
                    aside::snapshot(self.asks.clone(), self.log.snapshot_writer(), *snapshot);
                }
                Effect::Touched(touched) => self.touched(&touched),
                Effect::Members(members) => {
                    self.members.keep(|id| members.iter().any(|member| member.raft_id == id));
                    let _ = self.member_list.send(members);
                }
                Effect::Leader(leader) => self.lead(leader),
                Effect::Complaint(text) => tracing::error!("{text}"),
                Effect::Removed => return Err(Ended::Removed),
            }
        }
        Ok(())
    }

    fn message(&mut self, stream: StreamId, message: Message) {
        let Some(outgoing) = self.streams.get(&stream.0) else { return };
        // A reader that is this slow begins anew with a whole picture rather than hold up the rest.
        if !outgoing.send(message)
            && let Some(outgoing) = self.streams.remove(&stream.0)
        {
            outgoing.end(Status::resource_exhausted("the reader of the stream is too slow"));
            self.post(Ask::Closed(stream));
        }
    }

    fn touched(&mut self, touched: &[store::Touched]) {
        for event in touched.iter().flat_map(cluster_events) {
            let scope = engine::events::Scope::SWARM;
            let ClusterEvent { kind, action, id, attributes } = event;
            self.engine.events.publish_scoped(kind, action, id, attributes, scope);
        }
        if touched
            .iter()
            .any(|touched| matches!(touched.kind, store::Kind::Cluster | store::Kind::Node))
        {
            self.look();
        }
    }

    /// What the doors and the watchers have to know of the store.
    fn look(&mut self) {
        let store = self.core.store();
        let cluster = store.cluster().cloned();
        if let Some(cluster) = &cluster {
            self.gate.set_blacklist(cluster.blacklisted_certificates.keys().cloned());
        }
        let managers =
            store.all::<pb::Node>().filter(|node| node.role() == pb::NodeRole::Manager).count();
        let nodes = store.count::<pb::Node>();
        self.nodes.send_replace((nodes as u64, managers as u64));
        self.cluster.send_replace(cluster);
    }

    fn lead(&mut self, leader: Option<Leader>) {
        let route = match &leader {
            None => Route::Nobody,
            Some(leader) if leader.here => Route::Local,
            Some(leader) => {
                match transport::client::Manager::new(leader.address.clone(), self.keys.clone()) {
                    Ok(far) => Route::Leader(far.channel()),
                    Err(_) => Route::Nobody,
                }
            }
        };
        self.gate.set_route(route);
        self.leader.send_replace(leader);
    }

    fn room_for_logs(&self, call: &Call) -> Option<BoxFuture<'static, ()>> {
        let Call::PublishLogs(lines) = call else { return None };
        let reader = self.core.log_reader(&lines.subscription_id)?;
        self.streams.get(&reader.0)?.room()
    }

    fn post(&self, ask: Ask) {
        self.post_after(std::future::ready(()), ask);
    }

    fn post_after(&self, before: impl Future<Output = ()> + Send + 'static, ask: Ask) {
        let asks = self.asks.clone();
        tokio::spawn(async move {
            before.await;
            if let Some(asks) = asks.upgrade() {
                let _ = asks.send(ask).await;
            }
        });
    }

    fn ticket(&mut self, pending: Pending) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.pending.insert(ticket, pending);
        Ticket(ticket)
    }

    fn local(&mut self, ask: Ask) -> Option<Event> {
        match ask {
            Ask::Call { caller, call, reply } => {
                // Who writes logs waits for who reads them.
                if let Some(room) = self.room_for_logs(&call) {
                    self.post_after(room, Ask::Call { caller, call, reply });
                    return None;
                }
                let ticket = self.ticket(Pending::Local(reply));
                Some(Event::Call { ticket, caller, call })
            }
            Ask::Logs { caller, request, stream } => {
                let stream = self.stream(stream, |message| match message {
                    Message::Logs(logs) => Some(logs),
                    _ => None,
                });
                let open = Open::SubscribeLogs(request);
                Some(Event::Open { stream, caller, open })
            }
            Ask::Snapshot { snapshot, prepared } => {
                if let Some(prepared) = prepared {
                    self.log.adopt(prepared);
                }
                Some(Event::Snapshot(snapshot))
            }
            Ask::HandOver => Some(Event::HandOver),
            Ask::Probed { ticket, healthy } => Some(Event::Probed { ticket, healthy }),
            Ask::Cancelled(ticket) => {
                self.pending.remove(&ticket.0);
                Some(Event::Cancelled { ticket })
            }
            Ask::Closed(stream) => {
                self.streams.remove(&stream.0);
                Some(Event::Closed { stream })
            }
        }
    }

    /// A stream of one kind of message, and a watcher for its far end.
    fn stream<T: Send + 'static>(
        &mut self,
        stream: transport::Stream<T>,
        pick: impl Fn(Message) -> Option<T> + Send + 'static,
    ) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        let asks = self.asks.clone();
        let outgoing = Outgoing::new(stream, pick, async move {
            if let Some(asks) = asks.upgrade() {
                let _ = asks.send(Ask::Closed(id)).await;
            }
        });
        self.streams.insert(id.0, outgoing);
        id
    }

    fn remote(&mut self, call: Remote) -> Option<Event> {
        macro_rules! unary {
            ($peer:expr, $name:ident, $request:expr, $reply:expr) => {{
                let reply = $reply;
                let answer: RemoteReply = Box::new(move |answered| {
                    let _ = reply.send(match answered {
                        Ok(manager::Answer::$name(answer)) => Ok(answer),
                        Ok(_) => Err(Status::internal("the answer belongs to another call")),
                        Err(failure) => Err(status(failure)),
                    });
                });
                let ticket = self.ticket(Pending::Remote(answer));
                let call = Box::new(Call::$name($request));
                Some(Event::Call { ticket, caller: caller(&$peer), call })
            }};
        }
        let nobody = Peer {
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            subject: None,
            forwarded_by: None,
        };
        match call {
            Remote::RootCertificate { reply } => {
                unary!(nobody, GetRootCaCertificate, pb::GetRootCaCertificateRequest {}, reply)
            }
            Remote::UnlockKey { peer, reply } => {
                unary!(peer, GetUnlockKey, pb::GetUnlockKeyRequest {}, reply)
            }
            Remote::IssueCertificate { peer, request, reply } => {
                unary!(peer, IssueNodeCertificate, request, reply)
            }
            Remote::CertificateStatus { peer, request, reply } => {
                let reply = aside::patient(self.asks.clone(), Ticket(self.next), reply);
                unary!(peer, NodeCertificateStatus, request, reply)
            }
            Remote::Heartbeat { peer, request, reply } => unary!(peer, Heartbeat, request, reply),
            Remote::TaskStatus { peer, request, reply } => {
                unary!(peer, UpdateTaskStatus, request, reply)
            }
            Remote::VolumeStatus { peer, request, reply } => {
                unary!(peer, UpdateVolumeStatus, request, reply)
            }
            Remote::ResolveAddress { peer, request, reply } => {
                unary!(peer, ResolveAddress, request, reply)
            }
            Remote::MemberJoin { peer, request, reply } => unary!(peer, Join, request, reply),
            Remote::MemberLeave { peer, request, reply } => unary!(peer, Leave, request, reply),
            Remote::AttachNetwork { peer, request, reply } => {
                unary!(peer, AttachNetwork, request, reply)
            }
            Remote::DetachNetwork { peer, request, reply } => {
                unary!(peer, DetachNetwork, request, reply)
            }
            Remote::Health { request, reply } => unary!(nobody, Health, request, reply),
            Remote::Control { peer, request, reply } => unary!(peer, Control, request, reply),
            streaming => self.remote_stream(streaming),
        }
    }

    /// The calls that are answered by a stream, or come as one.
    fn remote_stream(&mut self, call: Remote) -> Option<Event> {
        macro_rules! stream {
            ($peer:expr, $open:ident, $message:ident, $request:expr, $stream:expr) => {{
                let stream = self.stream($stream, |message| match message {
                    Message::$message(message) => Some(message),
                    _ => None,
                });
                Some(Event::Open { stream, caller: caller(&$peer), open: Open::$open($request) })
            }};
        }
        match call {
            Remote::Session { peer, request, stream } => {
                stream!(peer, Session, Session, request, stream)
            }
            Remote::Tasks { peer, request, stream } => stream!(peer, Tasks, Tasks, request, stream),
            Remote::Assignments { peer, request, stream } => {
                stream!(peer, Assignments, Assignments, request, stream)
            }
            Remote::SubscribeLogs { peer, request, stream } => {
                stream!(peer, SubscribeLogs, Logs, request, stream)
            }
            Remote::ListenSubscriptions { peer, stream } => {
                stream!(
                    peer,
                    ListenSubscriptions,
                    Subscription,
                    pb::ListenSubscriptionsRequest {},
                    stream
                )
            }
            Remote::Watch { peer, request, stream } => stream!(peer, Watch, Watch, request, stream),
            Remote::RaftMessage { message, reply, .. } if self.core.was_removed(message.from()) => {
                let _ = reply.send(Err(Status::not_found(transport::raft::REMOVED)));
                None
            }
            Remote::RaftMessage { message, reply, .. } => {
                let _ = reply.send(Ok(()));
                Some(Event::Raft(Box::new(message)))
            }
            Remote::PublishLogs { peer, messages, reply } => {
                aside::publish(self.asks.clone(), caller(&peer), messages, reply);
                None
            }
            // Every unary call was answered above.
            _ => None,
        }
    }
}

fn reported(report: Report) -> Option<Event> {
    match report {
        Report::Reachable { .. } => None,
        Report::Unreachable { member, .. } => Some(Event::RaftUnreachable { raft_id: member }),
        Report::Snapshot { member, delivered } => {
            Some(Event::RaftSnapshotSent { raft_id: member, delivered })
        }
        Report::Removed => Some(Event::RaftRemoved),
    }
}

pub fn status(failure: Failure) -> Status {
    Status::new(transport::Code::from_i32(failure.code as i32), failure.message)
}

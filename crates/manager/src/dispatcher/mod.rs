//! What the leader tells workers and hears from them: sessions, heartbeats, assignments, statuses.
//!
//! Made when leading begins and dropped when it ends. What nodes and tasks reported is wished for
//! by [`Dispatcher::plan`] until the store has it.

mod assignments;
mod session;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Agenda, Instant};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use store::{Change, Held, Kind, Store, Touched, access};
use wire::swarmkit as pb;

use crate::event::{Answer, Code, Effect, Failure, Message, Reply, StreamId, Ticket};
use assignments::Assignments;
use pb::node_status::State;

/// The cluster's heartbeat period unless it says otherwise.
const PERIOD: Duration = Duration::from_secs(5);
const PERIOD_MIN: Duration = Duration::from_millis(500);
/// Nodes beat twice in a period, so that a lost one is replaced in half the time and still has
/// missed this many beats.
const BEATS_IN_PERIOD: u32 = 2;
const GRACE: u32 = 3;
/// After a change of leader nodes first have to find the new one.
const GRACE_OF_NEW_LEADER: u32 = 6;
/// Registrations of one node in this time; more are turned away.
const RATE_WINDOW: Duration = Duration::from_secs(8);
const RATE_MAX: usize = 3;
/// A Docker Engine refuses a user's container on a network on which it has no address of its own yet
/// (moby daemon/network.go, `failed to find a load balancer IP`), and hears of the two on streams that
/// it reads in no order. SwarmKit's managers hold back all tasks for so long (`batchingWaitTime`).
const TAKEN_IN: Duration = Duration::from_millis(100);
/// A node that is down for so long will not report about its tasks any more.
const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 3600);

pub enum Ask<'a> {
    Session {
        stream: StreamId,
        node: &'a str,
        address: String,
        request: pb::SessionRequest,
    },
    Assignments {
        stream: StreamId,
        node: &'a str,
        request: pb::AssignmentsRequest,
    },
    Tasks {
        stream: StreamId,
        node: &'a str,
        request: pb::TasksRequest,
    },
    Heartbeat {
        ticket: Ticket,
        node: &'a str,
        request: pb::HeartbeatRequest,
    },
    UpdateTaskStatus {
        ticket: Ticket,
        node: &'a str,
        request: pb::UpdateTaskStatusRequest,
    },
    UpdateVolumeStatus {
        ticket: Ticket,
        node: &'a str,
        request: pb::UpdateVolumeStatusRequest,
    },
    /// The other side of a stream went away.
    Closed {
        stream: StreamId,
    },
    /// The managers that nodes may turn to: all of them.
    Managers(Vec<pb::WeightedPeer>),
    /// What committed entries changed; the store has it already.
    Touched(&'a [Touched]),
    Deadline,
}

/// One registered node.
struct Session {
    id: String,
    streams: Vec<StreamId>,
    assignments: Option<(StreamId, Assignments)>,
    tasks: Option<StreamId>,
    sent: Option<pb::SessionMessage>,
    /// Tasks of users' containers that it is told of once it has taken in its own addresses.
    held_back: BTreeSet<String>,
}

/// What a node's object should say about it.
#[derive(Clone, PartialEq)]
struct Standing {
    state: State,
    message: String,
    address: Option<String>,
    description: Option<pb::NodeDescription>,
}

pub struct Dispatcher {
    dice: ChaCha8Rng,
    /// This manager: the one that applies statuses.
    own_id: String,
    read: bool,
    sessions: BTreeMap<String, Session>,
    /// When nodes with a session count as down unless they are heard.
    expiries: Agenda,
    /// Nodes without a session, and when they count as down.
    expected: Agenda,
    registrations: BTreeMap<String, Vec<Instant>>,
    standings: BTreeMap<String, Standing>,
    statuses: BTreeMap<String, pb::TaskStatus>,
    /// Nodes that are down, and when they have been for too long.
    orphaned: Agenda,
    /// Nodes that were told of an address of their own on a further network, and when they have it.
    taking_in: Agenda,
    managers: Vec<pb::WeightedPeer>,
}

impl Dispatcher {
    pub fn new(dice: ChaCha8Rng, own_id: impl Into<String>) -> Self {
        Self {
            dice,
            own_id: own_id.into(),
            read: false,
            sessions: BTreeMap::new(),
            expiries: Agenda::default(),
            expected: Agenda::default(),
            registrations: BTreeMap::new(),
            standings: BTreeMap::new(),
            statuses: BTreeMap::new(),
            orphaned: Agenda::default(),
            taking_in: Agenda::default(),
            managers: Vec::new(),
        }
    }

    #[must_use]
    pub fn step(&mut self, now: Instant, store: &Store, ask: Ask) -> Vec<Effect> {
        if !std::mem::replace(&mut self.read, true) {
            self.expect_everyone(now, store);
        }
        match ask {
            Ask::Session { stream, node, address, request } => {
                self.open_session(now, store, stream, node, address, request)
            }
            Ask::Assignments { stream, node, request } => {
                self.open_assignments(store, stream, node, &request.session_id)
            }
            Ask::Tasks { stream, node, request } => {
                self.open_tasks(store, stream, node, &request.session_id)
            }
            Ask::Heartbeat { ticket, node, request } => {
                vec![reply(ticket, self.heartbeat(now, store, node, &request.session_id))]
            }
            Ask::UpdateTaskStatus { ticket, node, request } => {
                vec![reply(ticket, self.take_statuses(store, node, request))]
            }
            Ask::UpdateVolumeStatus { ticket, node, request } => {
                let answer = Answer::UpdateVolumeStatus(pb::UpdateVolumeStatusResponse {});
                let checked = self.check(node, &request.session_id).map(|_| answer);
                vec![reply(ticket, checked)]
            }
            Ask::Closed { stream } => {
                self.sessions.values_mut().for_each(|session| session.close(stream));
                Vec::new()
            }
            Ask::Managers(managers) => {
                self.managers = managers;
                self.tell_sessions(store)
            }
            Ask::Touched(touched) => self.take_in(now, store, touched),
            Ask::Deadline => self.expire(now, store),
        }
    }

    /// Node and task statuses that the store lacks.
    #[must_use]
    pub fn plan(&mut self, now: Instant, store: &Store) -> Vec<Change> {
        let mut changes = self.plan_nodes(store);
        changes.extend(self.plan_statuses(now, store));
        changes.truncate(store::ACTIONS_MAX);
        changes
    }

    /// When [`Ask::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let agendas = [&self.expiries, &self.expected, &self.orphaned, &self.taking_in];
        agendas.into_iter().filter_map(Agenda::first).min()
    }

    /// This manager was deaf for so long: each node has a beat at least to be heard again.
    pub fn wait_longer(&mut self, now: Instant, store: &Store, by: Duration) {
        let soonest = now + beat(store);
        for agenda in [&mut self.expiries, &mut self.expected] {
            agenda.change_all(|at| (at + by).max(soonest));
        }
    }

    /// How many nodes have a session here.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn check(&mut self, node: &str, session: &str) -> Result<&mut Session, Failure> {
        match self.sessions.get_mut(node) {
            None => Err(Failure::new(Code::NotFound, "node not registered")),
            Some(known) if known.id != session => {
                Err(Failure::new(Code::InvalidArgument, "session invalid"))
            }
            Some(known) => Ok(known),
        }
    }

    fn heartbeat(&mut self, now: Instant, store: &Store, node: &str, session: &str) -> Reply {
        // Give or take a tenth: nodes that registered together do not go on beating together.
        let period = beat(store).mul_f64(self.dice.random_range(0.9..=1.1));
        self.check(node, session)?;
        self.expiries.set(node, now + period * GRACE);
        let period = prost_types::Duration {
            seconds: period.as_secs() as i64,
            nanos: period.subsec_nanos() as i32,
        };
        Ok(Answer::Heartbeat(pb::HeartbeatResponse { period: Some(period) }))
    }

    /// A new leader has no sessions: everyone is expected to turn up.
    fn expect_everyone(&mut self, now: Instant, store: &Store) {
        for node in store.all::<pb::Node>() {
            if access::node_state(node) == State::Down {
                self.orphaned.set(&node.id, now + ORPHANED_AFTER);
            } else if node.description.is_some() {
                self.expected.set(&node.id, now + period(store) * GRACE_OF_NEW_LEADER);
                let message = "Node moved to \"unknown\" state due to leadership change in cluster";
                self.stand(&node.id, State::Unknown, message);
            }
        }
    }

    fn stand(&mut self, node: &str, state: State, message: &str) {
        let standing =
            Standing { state, message: message.to_owned(), address: None, description: None };
        self.standings.insert(node.to_owned(), standing);
    }

    fn expire(&mut self, now: Instant, store: &Store) -> Vec<Effect> {
        let mut effects = Vec::new();
        for id in self.expiries.take_due(now) {
            effects.extend(self.end_session(&id, "heartbeat failure"));
            self.fall(now, &id);
        }
        for id in self.expected.take_due(now) {
            self.fall(now, &id);
        }
        self.orphan_tasks(now, store);
        for id in self.taking_in.take_due(now) {
            effects.extend(self.tell_held_back(store, &id));
        }
        effects
    }

    fn fall(&mut self, now: Instant, node: &str) {
        self.stand(node, State::Down, "heartbeat failure");
        self.orphaned.set(node, now + ORPHANED_AFTER);
    }

    fn end_session(&mut self, node: &str, why: &str) -> Vec<Effect> {
        self.expiries.remove(node);
        let Some(session) = self.sessions.remove(node) else { return Vec::new() };
        let assignments = session.assignments.map(|(stream, _)| stream);
        let streams = session.streams.into_iter().chain(assignments).chain(session.tasks);
        let end = || Err(Failure::new(Code::NotFound, why));
        streams.map(|stream| Effect::Close { stream, end: end() }).collect()
    }

    fn take_in(&mut self, now: Instant, store: &Store, touched: &[Touched]) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut cluster = false;
        for touched in touched {
            match (touched.kind, &touched.new) {
                (Kind::Cluster, _) => cluster = true,
                (Kind::Node, None) => {
                    effects.extend(self.end_session(&touched.id, "node removed from the swarm"));
                    self.forget(&touched.id);
                }
                (Kind::Node, Some(Held::Node(node))) => {
                    let down = access::node_state(node) == State::Down;
                    if down && !self.orphaned.has(&node.id) {
                        self.orphaned.set(&node.id, now + ORPHANED_AFTER);
                    }
                    if let Some(session) = self.sessions.get_mut(&node.id) {
                        if joins_network(touched.old.as_ref(), node) {
                            self.taking_in.set(&node.id, now + TAKEN_IN);
                        }
                        effects.extend(session.tell(store, &node.id, &self.managers));
                    }
                }
                _ => {}
            }
        }
        if cluster {
            effects.extend(self.tell_sessions(store));
        }
        effects.extend(self.assign(store, touched));
        effects
    }

    fn forget(&mut self, node: &str) {
        self.expected.remove(node);
        self.standings.remove(node);
        self.orphaned.remove(node);
        self.registrations.remove(node);
    }

    fn tell_sessions(&mut self, store: &Store) -> Vec<Effect> {
        let managers = &self.managers;
        let sessions = self.sessions.iter_mut();
        sessions.flat_map(|(node, session)| session.tell(store, node, managers)).collect()
    }
}

/// Whether the node has an address on a network on which it had none.
fn joins_network(old: Option<&Held>, node: &pb::Node) -> bool {
    let id = |held: &pb::NetworkAttachment| held.network.as_ref().map(|network| network.id.clone());
    let had: BTreeSet<_> = match old {
        Some(Held::Node(old)) => old.attachments.iter().map(id).collect(),
        _ => BTreeSet::new(),
    };
    node.attachments.iter().any(|held| !had.contains(&id(held)))
}

/// What the cluster's spec says, `swarm update --dispatcher-heartbeat`.
fn period(store: &Store) -> Duration {
    let spec = store.cluster().and_then(|cluster| cluster.spec.as_ref());
    let dispatcher = spec.and_then(|spec| spec.dispatcher.as_ref());
    let period = dispatcher.and_then(|dispatcher| dispatcher.heartbeat_period.as_ref());
    match period.map(access::duration) {
        None | Some(Duration::ZERO) => PERIOD,
        Some(period) => period.max(PERIOD_MIN),
    }
}

fn beat(store: &Store) -> Duration {
    period(store) / BEATS_IN_PERIOD
}

fn reply(ticket: Ticket, reply: Reply) -> Effect {
    Effect::Reply { ticket, reply }
}

fn message(stream: StreamId, message: Message) -> Effect {
    Effect::Message { stream, message: Box::new(message) }
}

fn refuse(stream: StreamId, failure: Failure) -> Vec<Effect> {
    vec![Effect::Close { stream, end: Err(failure) }]
}

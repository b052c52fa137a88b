//! How a node registers, and what its session tells it.

use model::Instant;
use store::{Change, Store};
use wire::swarmkit as pb;

use super::{
    Dispatcher, GRACE, RATE_MAX, RATE_WINDOW, Session, Standing, State, beat, message, refuse,
};
use crate::event::{Code, Effect, Failure, Message, StreamId};

impl Dispatcher {
    pub(super) fn open_session(
        &mut self,
        now: Instant,
        store: &Store,
        stream: StreamId,
        node: &str,
        address: String,
        request: pb::SessionRequest,
    ) -> Vec<Effect> {
        if store.get::<pb::Node>(node).is_none() {
            return refuse(stream, Failure::new(Code::NotFound, "node not found"));
        }
        let mut effects = Vec::new();
        let resumes = self.sessions.get(node).is_some_and(|known| known.id == request.session_id);
        if !resumes {
            if let Err(failure) = self.count_registration(now, node) {
                return refuse(stream, failure);
            }
            effects.extend(self.end_session(node, "the node opened another session"));
            let session = Session {
                id: model::swarm_id(&mut self.dice),
                streams: Vec::new(),
                assignments: None,
                tasks: None,
                sent: None,
                held_back: Default::default(),
            };
            self.sessions.insert(node.to_owned(), session);
            self.expiries.set(node, now + beat(store) * GRACE);
        }
        self.expected.remove(node);
        self.orphaned.remove(node);
        let standing = Standing {
            state: State::Ready,
            message: String::new(),
            address: Some(address).filter(|address| !address.is_empty()),
            description: request.description,
        };
        self.standings.insert(node.to_owned(), standing);
        if let Some(session) = self.sessions.get_mut(node) {
            session.streams.push(stream);
            session.sent = None;
            effects.extend(session.tell(store, node, &self.managers));
        }
        effects
    }

    fn count_registration(&mut self, now: Instant, node: &str) -> Result<(), Failure> {
        let recent = self.registrations.entry(node.to_owned()).or_default();
        recent.retain(|at| now.since(*at) < RATE_WINDOW);
        if recent.len() >= RATE_MAX {
            let text = format!("node {node} exceeded rate limit count of registrations");
            return Err(Failure::new(Code::Unavailable, text));
        }
        recent.push(now);
        Ok(())
    }

    /// Wishes for the standings that the store does not show yet.
    pub(super) fn plan_nodes(&mut self, store: &Store) -> Vec<Change> {
        let mut changes = Vec::new();
        self.standings.retain(|id, standing| {
            if changes.len() == store::ACTIONS_MAX {
                return true;
            }
            let Some(node) = store.get::<pb::Node>(id) else { return false };
            let mut wanted = pb::Node::clone(node);
            let status = wanted.status.get_or_insert_default();
            status.set_state(standing.state);
            status.message = standing.message.clone();
            if let Some(address) = &standing.address {
                status.addr = address.clone();
            }
            if standing.description.is_some() {
                wanted.description = standing.description.clone();
            }
            let differs = wanted != **node;
            if differs {
                changes.push(Change::update(wanted));
            }
            differs
        });
        changes
    }
}

impl Session {
    /// The whole session message to each of the node's streams, if it says anything new.
    pub(super) fn tell(
        &mut self,
        store: &Store,
        node: &str,
        managers: &[pb::WeightedPeer],
    ) -> Vec<Effect> {
        let cluster = store.cluster();
        let root = cluster.and_then(|cluster| cluster.root_ca.as_ref());
        let told = pb::SessionMessage {
            session_id: self.id.clone(),
            node: store.get::<pb::Node>(node).map(|node| pb::Node::clone(node)),
            managers: managers.to_vec(),
            network_bootstrap_keys: cluster
                .map(|cluster| cluster.network_bootstrap_keys.clone())
                .unwrap_or_default(),
            root_ca: root.map(|root| root.ca_cert.clone()).unwrap_or_default(),
        };
        if self.sent.as_ref() == Some(&told) {
            return Vec::new();
        }
        let streams = self.streams.iter();
        let effects = streams.map(|stream| message(*stream, Message::Session(told.clone())));
        let effects = effects.collect();
        self.sent = Some(told);
        effects
    }

    pub(super) fn close(&mut self, stream: StreamId) {
        self.streams.retain(|open| *open != stream);
        if self.assignments.as_ref().is_some_and(|(open, _)| *open == stream) {
            self.assignments = None;
        }
        if self.tasks == Some(stream) {
            self.tasks = None;
        }
    }
}

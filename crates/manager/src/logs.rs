//! The log broker: who reads logs is joined with the nodes that have them.
//!
//! A subscription reaches every node that runs, or comes to run, a selected task. Without `follow`
//! it ends when each of them has published everything.

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha8Rng;
use store::{Held, Kind, Store, Touched};
use wire::swarmkit as pb;

use crate::{Answer, Code, Effect, Failure, Message, Reply, StreamId};

/// Readers at one time; the next one is refused.
const SUBSCRIPTIONS_MAX: usize = 1_024;

#[derive(Default)]
pub(crate) struct LogBroker {
    subscriptions: BTreeMap<String, Subscription>,
    /// Each node's ear: the stream on which it hears of subscriptions.
    listeners: BTreeMap<String, StreamId>,
}

struct Subscription {
    stream: StreamId,
    selector: pb::LogSelector,
    options: pb::LogSubscriptionOptions,
    /// Nodes that were told and have not finished.
    publishing: BTreeSet<String>,
    finished: BTreeSet<String>,
    /// Why something is missing.
    gaps: Vec<String>,
}

impl LogBroker {
    pub fn subscribe(
        &mut self,
        store: &Store,
        stream: StreamId,
        request: pb::SubscribeLogsRequest,
        dice: &mut ChaCha8Rng,
    ) -> Vec<Effect> {
        let selector = request.selector.unwrap_or_default();
        let nothing = selector.service_ids.is_empty()
            && selector.node_ids.is_empty()
            && selector.task_ids.is_empty();
        if nothing {
            return refuse(stream, Code::InvalidArgument, "log selector must not be empty");
        }
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            let reason = "too many readers of logs: try again";
            return refuse(stream, Code::ResourceExhausted, reason);
        }
        let id = model::swarm_id(dice);
        let mut subscription = Subscription {
            stream,
            selector,
            options: request.options.unwrap_or_default(),
            publishing: BTreeSet::new(),
            finished: BTreeSet::new(),
            gaps: Vec::new(),
        };
        let mut effects = Vec::new();
        for node in nodes_of(store, &subscription.selector) {
            effects.extend(subscription.ask(&self.listeners, &id, &node));
        }
        self.subscriptions.insert(id.clone(), subscription);
        effects.extend(self.finish(&id));
        effects
    }

    pub fn reader(&self, subscription: &str) -> Option<StreamId> {
        self.subscriptions.get(subscription).map(|subscription| subscription.stream)
    }

    pub fn listen(&mut self, store: &Store, stream: StreamId, node: &str) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(old) = self.listeners.insert(node.to_owned(), stream) {
            effects.push(Effect::Close { stream: old, end: Ok(()) });
        }
        for (id, subscription) in &mut self.subscriptions {
            // What it was told on an earlier stream it may have forgotten with it.
            subscription.publishing.remove(node);
            if !subscription.options.follow && subscription.finished.contains(node) {
                continue;
            }
            if nodes_of(store, &subscription.selector).contains(node) {
                effects.extend(subscription.ask(&self.listeners, id, node));
            }
        }
        effects
    }

    /// One message from a node; the answer tells it whether anybody still reads.
    pub fn publish(&mut self, node: &str, message: pb::PublishLogsMessage) -> (Reply, Vec<Effect>) {
        let id = message.subscription_id;
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            return (Err(Failure::new(Code::NotFound, "log subscription not found")), Vec::new());
        };
        if message
            .messages
            .iter()
            .any(|line| line.context.as_ref().is_some_and(|c| c.node_id != node))
        {
            let reason = "logs of another node";
            return (Err(Failure::new(Code::PermissionDenied, reason)), Vec::new());
        }
        let mut effects = Vec::new();
        if !message.messages.is_empty() {
            let logs = pb::SubscribeLogsMessage { messages: message.messages };
            let message = Box::new(Message::Logs(logs));
            effects.push(Effect::Message { stream: subscription.stream, message });
        }
        if message.close {
            subscription.publishing.remove(node);
            subscription.finished.insert(node.to_owned());
            effects.extend(self.finish(&id));
        }
        (Ok(Answer::PublishLogs(pb::PublishLogsResponse {})), effects)
    }

    /// A reader or a node went away.
    pub fn closed(&mut self, stream: StreamId) -> Vec<Effect> {
        let reader = self.subscriptions.iter().find(|(_, one)| one.stream == stream);
        if let Some(id) = reader.map(|(id, _)| id.clone()) {
            return self.end(&id);
        }
        let listener = self.listeners.iter().find(|(_, one)| **one == stream);
        let Some(node) = listener.map(|(node, _)| node.clone()) else { return Vec::new() };
        self.listeners.remove(&node);
        let mut effects = Vec::new();
        for id in self.subscriptions.keys().cloned().collect::<Vec<_>>() {
            let Some(subscription) = self.subscriptions.get_mut(&id) else { continue };
            if subscription.publishing.remove(&node) {
                subscription.gaps.push(format!("node {node} disconnected unexpectedly"));
                effects.extend(self.finish(&id));
            }
        }
        effects
    }

    /// Tasks that came to nodes: who follows their logs hears from those nodes, too.
    pub fn touched(&mut self, touched: &[Touched]) -> Vec<Effect> {
        let mut effects = Vec::new();
        let tasks = touched.iter().filter(|touched| touched.kind == Kind::Task);
        for touched in tasks {
            let Some(Held::Task(task)) = &touched.new else { continue };
            for (id, subscription) in &mut self.subscriptions {
                if subscription.options.follow
                    && !task.node_id.is_empty()
                    && selects(&subscription.selector, task)
                    && !subscription.finished.contains(&task.node_id)
                {
                    effects.extend(subscription.ask(&self.listeners, id, &task.node_id));
                }
            }
        }
        effects
    }

    fn finish(&mut self, id: &str) -> Vec<Effect> {
        let done = self.subscriptions.get(id).is_some_and(|subscription| {
            !subscription.options.follow && subscription.publishing.is_empty()
        });
        if !done {
            return Vec::new();
        }
        let Some(subscription) = self.subscriptions.remove(id) else { return Vec::new() };
        let end = match subscription.gaps.as_slice() {
            [] => Ok(()),
            gaps => Err(Failure::new(
                Code::Internal,
                format!(
                    "warning: incomplete log stream. some logs could not be retrieved for the following reasons: {}",
                    gaps.join(", ")
                ),
            )),
        };
        vec![Effect::Close { stream: subscription.stream, end }]
    }

    fn end(&mut self, id: &str) -> Vec<Effect> {
        let Some(subscription) = self.subscriptions.remove(id) else { return Vec::new() };
        let told = subscription.publishing.iter().filter_map(|node| self.listeners.get(node));
        told.map(|stream| tell(*stream, subscription.message(id, true))).collect()
    }
}

impl Subscription {
    fn ask(
        &mut self,
        listeners: &BTreeMap<String, StreamId>,
        id: &str,
        node: &str,
    ) -> Option<Effect> {
        let Some(stream) = listeners.get(node) else {
            if !self.options.follow && !self.finished.contains(node) {
                self.gaps.push(format!("node {node} is not available"));
            }
            return None;
        };
        self.publishing.insert(node.to_owned()).then(|| tell(*stream, self.message(id, false)))
    }

    fn message(&self, id: &str, close: bool) -> pb::SubscriptionMessage {
        pb::SubscriptionMessage {
            id: id.into(),
            selector: Some(self.selector.clone()),
            options: Some(self.options.clone()),
            close,
        }
    }
}

fn tell(stream: StreamId, message: pb::SubscriptionMessage) -> Effect {
    Effect::Message { stream, message: Box::new(Message::Subscription(message)) }
}

fn refuse(stream: StreamId, code: Code, reason: &str) -> Vec<Effect> {
    vec![Effect::Close { stream, end: Err(Failure::new(code, reason)) }]
}

fn selects(selector: &pb::LogSelector, task: &pb::Task) -> bool {
    selector.task_ids.contains(&task.id)
        || selector.service_ids.contains(&task.service_id)
        || selector.node_ids.contains(&task.node_id)
}

/// Nodes that run, or ran, selected tasks.
fn nodes_of(store: &Store, selector: &pb::LogSelector) -> BTreeSet<String> {
    let by_service = selector.service_ids.iter().flat_map(|id| store.tasks_of_service(id));
    let by_task = selector.task_ids.iter().filter_map(|id| store.get::<pb::Task>(id));
    let by_node = selector.node_ids.iter().filter(|id| store.get::<pb::Node>(id).is_some());
    let started = |task: &&std::sync::Arc<pb::Task>| {
        let state = task.status.as_ref().map_or(0, |status| status.state);
        !task.node_id.is_empty() && state >= pb::TaskState::Assigned as i32
    };
    let of_tasks = by_service.chain(by_task).filter(started).map(|task| task.node_id.clone());
    of_tasks.chain(by_node.cloned()).collect()
}

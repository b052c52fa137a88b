//! This node's side of `docker service logs`: subscriptions in, lines of its tasks out.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use transport::client::Manager;
use wire::swarmkit as pb;

use super::executor::Executor;

/// Messages that may wait for the manager; a task's log is then read no faster.
const MESSAGES_WAITING_MAX: usize = 64;

/// Ends with the session that it belongs to.
pub async fn listen(manager: Manager, executor: Executor) {
    let mut stream =
        match manager.log_broker().listen_subscriptions(pb::ListenSubscriptionsRequest {}).await {
            Ok(stream) => stream.into_inner(),
            // Managers without a log broker are tolerated: there are just no service logs.
            Err(status) => {
                return tracing::debug!(message = status.message(), "no log subscriptions");
            }
        };
    let mut publishers = JoinSet::new();
    let mut running: BTreeMap<String, AbortHandle> = BTreeMap::new();
    while let Ok(Some(message)) = stream.message().await {
        while publishers.try_join_next().is_some() {}
        if message.close {
            if let Some(publisher) = running.remove(&message.id) {
                publisher.abort();
            }
            continue;
        }
        if running.get(&message.id).is_none_or(AbortHandle::is_finished) {
            let id = message.id.clone();
            let publisher = publishers.spawn(publish(manager.clone(), executor.clone(), message));
            running.insert(id, publisher);
        }
    }
}

async fn publish(manager: Manager, executor: Executor, subscription: pb::SubscriptionMessage) {
    let (messages, queue) = mpsc::channel(MESSAGES_WAITING_MAX);
    let id = subscription.id.clone();
    let read = async move {
        executor.read_logs(&subscription, &messages).await;
        let close =
            pb::PublishLogsMessage { subscription_id: id, messages: Vec::new(), close: true };
        let _ = messages.send(close).await;
    };
    let mut client = manager.log_broker();
    let send = client.publish_logs(ReceiverStream::new(queue));
    if let (_, Err(status)) = tokio::join!(read, send) {
        tracing::debug!(message = status.message(), "log lines not taken");
    }
}

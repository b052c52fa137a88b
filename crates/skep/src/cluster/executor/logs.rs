//! The logs of a host's tasks, for who subscribed to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use agent::Work;
use engine::containers::Phase;
use tokio::sync::mpsc;
use wire::swarmkit as pb;

use super::Executor;
use crate::cluster::agent_task::locked;
use crate::cluster::task_containers::task_of;

/// A container of a task.
#[derive(Clone)]
struct Log {
    container: String,
    context: pb::LogContext,
    started: bool,
}

/// What a subscription has begun to read.
struct Reading {
    selector: pb::LogSelector,
    options: pb::LogSubscriptionOptions,
    begun: BTreeSet<String>,
}

impl Reading {
    fn new(subscription: &pb::SubscriptionMessage) -> Self {
        Self {
            selector: subscription.selector.clone().unwrap_or_default(),
            options: subscription.options.clone().unwrap_or_default(),
            begun: BTreeSet::new(),
        }
    }

    /// What is to be read besides, of all that is here.
    fn begin(
        &mut self,
        here: Vec<Log>,
    ) -> Vec<(String, pb::LogContext, pb::LogSubscriptionOptions)> {
        self.begun.retain(|id| here.iter().any(|log| log.container == *id));
        let (selector, follow) = (&self.selector, self.options.follow);
        let meant = here.into_iter().filter(|Log { context, started, .. }| {
            // What has not started looks as if it had ended: who follows comes back to it.
            (*started || !follow)
                && (selector.service_ids.contains(&context.service_id)
                    || selector.task_ids.contains(&context.task_id)
                    || selector.node_ids.contains(&context.node_id))
        });
        let new = meant.filter(|log| self.begun.insert(log.container.clone()));
        let new = new.map(|log| (log.container, log.context, self.options.clone())).collect();
        // All that a later task says is new.
        self.options.tail = 0;
        new
    }
}

impl Executor {
    /// The lines of all tasks here that a subscription means; who follows hears of tasks that start
    /// later, too, until nobody takes the lines any more.
    pub async fn read_logs(
        &self,
        subscription: &pb::SubscriptionMessage,
        out: &mpsc::Sender<pb::PublishLogsMessage>,
    ) {
        let mut reading = Reading::new(subscription);
        let mut starts = self.inner.starts.subscribe();
        let mut readers = tokio::task::JoinSet::new();
        loop {
            starts.borrow_and_update();
            for (id, context, options) in reading.begin(self.logs_here()) {
                let subscription = subscription.id.clone();
                let out = out.clone();
                readers.spawn(self.clone().read_log(id, context, subscription, options, out));
            }
            if !reading.options.follow {
                break;
            }
            tokio::select! {
                started = starts.changed() => if started.is_err() { return },
                () = out.closed() => return,
            }
            while readers.try_join_next().is_some() {}
        }
        while readers.join_next().await.is_some() {}
    }

    fn logs_here(&self) -> Vec<Log> {
        let works: Vec<Work> = locked(&self.inner.view.works).values().cloned().collect();
        let known = self.records_with(&works).into_iter();
        known
            .filter_map(|(task_id, service_id, node_id)| {
                let container = self.inner.engine.container(&self.container(&task_id)?).ok()?;
                Some(Log {
                    container: container.id().to_string(),
                    context: pb::LogContext { service_id, node_id, task_id },
                    started: container.phase() != Phase::Created,
                })
            })
            .collect()
    }

    /// Task, service and node of every container of the swarm, dead ones included.
    fn records_with(&self, works: &[Work]) -> Vec<(String, String, String)> {
        let mut known: BTreeMap<String, (String, String)> = self
            .inner
            .engine
            .containers
            .all()
            .iter()
            .filter_map(|container| {
                let spec = container.spec();
                let labels = spec.config.labels.clone().unwrap_or_default();
                let get = |key: &str| labels.get(key).cloned().unwrap_or_default();
                let ids = (get("com.docker.swarm.service.id"), get("com.docker.swarm.node.id"));
                Some((task_of(&spec)?, ids))
            })
            .collect();
        for work in works {
            let ids = (work.task.service_id.clone(), work.task.node_id.clone());
            known.entry(work.task.id.clone()).or_insert(ids);
        }
        known.into_iter().map(|(task, (service, node))| (task, service, node)).collect()
    }

    async fn read_log(
        self,
        id: String,
        context: pb::LogContext,
        subscription_id: String,
        options: pb::LogSubscriptionOptions,
        out: mpsc::Sender<pb::PublishLogsMessage>,
    ) {
        let Ok(container) = self.inner.engine.container(&id) else { return };
        let wants = |stream: pb::LogStream| {
            options.streams.is_empty() || options.streams.contains(&(stream as i32))
        };
        let asked = runtime::LogOptions {
            follow: options.follow,
            stdout: wants(pb::LogStream::Stdout),
            stderr: wants(pb::LogStream::Stderr),
            since: options.since.as_ref().map(system_time),
            until: None,
            // -n-1 is the last n lines, 0 all of them.
            tail: (options.tail < 0)
                .then(|| usize::try_from(-(options.tail + 1)).unwrap_or(usize::MAX)),
        };
        let mut reader =
            match runtime::LogReader::open(&container.spec().log, asked, container.ended()) {
                Ok(reader) => reader,
                Err(error) => return tracing::warn!(%error, container = id, "log not readable"),
            };
        loop {
            match reader.next().await {
                Ok(Some(entry)) => {
                    let messages = vec![log_message(entry, &context)];
                    let message = pb::PublishLogsMessage {
                        subscription_id: subscription_id.clone(),
                        messages,
                        close: false,
                    };
                    if out.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    return tracing::warn!(%error, container = id, "log not read to its end");
                }
            }
        }
    }
}

fn log_message(entry: runtime::LogEntry, context: &pb::LogContext) -> pb::LogMessage {
    let stream = match entry.stream {
        runtime::LogStream::Stdout => pb::LogStream::Stdout,
        runtime::LogStream::Stderr => pb::LogStream::Stderr,
    };
    let since_1970 = entry.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    pb::LogMessage {
        context: Some(context.clone()),
        timestamp: Some(prost_types::Timestamp {
            seconds: since_1970.as_secs() as i64,
            nanos: since_1970.subsec_nanos() as i32,
        }),
        stream: stream as i32,
        data: entry.line,
        attrs: entry.attrs.into_iter().map(|(key, value)| pb::LogAttr { key, value }).collect(),
    }
}

fn system_time(stamp: &prost_types::Timestamp) -> SystemTime {
    let seconds = u64::try_from(stamp.seconds).unwrap_or_default();
    let nanos = u32::try_from(stamp.nanos).unwrap_or_default().min(999_999_999);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_hears_of_tasks_that_start_later() {
        let log = |id: &str, started| Log {
            container: id.into(),
            context: pb::LogContext { service_id: "s".into(), ..Default::default() },
            started,
        };
        let subscription = |follow| pb::SubscriptionMessage {
            selector: Some(pb::LogSelector { service_ids: vec!["s".into()], ..Default::default() }),
            options: Some(pb::LogSubscriptionOptions { follow, tail: -1, ..Default::default() }),
            ..Default::default()
        };
        let begin = |reading: &mut Reading, here: &[Log]| -> Vec<(String, i64)> {
            let new = reading.begin(here.to_vec()).into_iter();
            new.map(|(id, _, options)| (id, options.tail)).collect()
        };
        let mut following = Reading::new(&subscription(true));
        let (old, made, other) = (log("old", true), log("new", false), log("other", true));
        let other = Log { context: pb::LogContext::default(), ..other };
        let here = [old.clone(), made.clone(), other];
        assert_eq!(begin(&mut following, &here), [("old".to_owned(), -1)]);
        let here = [old.clone(), log("new", true)];
        assert_eq!(begin(&mut following, &here), [("new".to_owned(), 0)], "all of it is new");
        assert_eq!(begin(&mut following, &here), []);
        assert_eq!(begin(&mut following, &[]), []);
        let mut reading = Reading::new(&subscription(false));
        assert_eq!(begin(&mut reading, &[old, made]).len(), 2);
    }
}

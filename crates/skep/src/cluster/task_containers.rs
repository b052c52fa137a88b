//! Which containers of this host are the swarm's.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::Engine;
use engine::containers::{RemoveOptions, Spec};

const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// The task that a container was made for. Labels alone do not say it: an image that was committed of a task's
/// container hands them on.
pub fn task_of(spec: &Spec) -> Option<String> {
    let labels = spec.config.labels.as_ref().filter(|_| spec.task.is_some())?;
    labels.get(TASK_LABEL).cloned()
}

/// Container by task.
pub fn containers_by_task(engine: &Engine) -> BTreeMap<String, String> {
    let all = engine.containers.all();
    let made = |container: &Arc<engine::containers::Container>| {
        Some((task_of(&container.spec())?, container.id().to_string()))
    };
    all.iter().filter_map(made).collect()
}

/// The node leaves its swarm: no task's container stays.
pub async fn remove_all(engine: &Arc<Engine>) {
    let mut removals = tokio::task::JoinSet::new();
    for (task, id) in containers_by_task(engine) {
        let engine = engine.clone();
        removals.spawn(async move {
            let options = RemoveOptions { force: true, volumes: true };
            if let Err(error) = engine.remove(&id, options).await {
                tracing::warn!(error = error.message, task, "container of a task not removed");
            }
        });
    }
    while removals.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_container_of_an_image_that_was_committed_of_a_task_is_no_task() {
        let spec = |task: Option<Value>| -> Spec {
            let log = serde_json::to_value(runtime::LogConfig::default()).unwrap();
            let mut spec = json!({
                "id": "c", "name": "c", "created": "2026-01-01T00:00:00Z", "image": "sha256:0",
                "config": { "Labels": { TASK_LABEL: "t1" } }, "host_config": {}, "log": log,
            });
            task.into_iter().for_each(|task| spec["task"] = task);
            serde_json::from_value(spec).unwrap()
        };
        assert_eq!(task_of(&spec(Some(json!({})))).as_deref(), Some("t1"));
        assert_eq!(task_of(&spec(None)), None);
    }
}

//! A container has ended: cleaning up after it, and what its restart policy wants next.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bollard_stubs::models::RestartPolicyNameEnum as Policy;
use runtime::{Event, ExitStatus};
use time::OffsetDateTime;

use super::container::{Container, Phase, Spec, State};
use crate::Engine;

/// Docker's back-off (moby restartmanager): from 100 ms, doubled up to a minute, from the
/// beginning after a run of ten seconds.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const GOOD_RUN: Duration = Duration::from_secs(10);

/// Listens to the runtime as long as the engine lives.
pub(super) fn listen(engine: &Arc<Engine>) {
    let mut events = engine.runtime.events();
    let engine: Weak<Engine> = Arc::downgrade(engine);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let Some(engine) = engine.upgrade() else { return };
            match event {
                Event::Exited { id, status } => {
                    tokio::spawn(async move { engine.exited(&id, status).await });
                }
                Event::Found { id, adopted } => {
                    tokio::spawn(async move { engine.found(&id, adopted).await });
                }
                Event::Oom { id } => engine.out_of_memory(&id),
                Event::ExecExited { id, exec, status } => engine.exec_exited(&id, &exec, &status),
            }
        }
    });
}

impl Engine {
    fn out_of_memory(&self, id: &str) {
        if let Some(container) = self.containers.get(id) {
            container.change_state(|state| state.oom_killed = true);
            self.publish(&container, "oom", []);
        }
    }

    /// Tells who listens that an exec has ended; its owner keeps the code.
    fn exec_exited(&self, id: &str, exec: &str, status: &ExitStatus) {
        if let Some(container) = self.containers.get(id) {
            self.publish(
                &container,
                "exec_die",
                [
                    ("execID".to_owned(), exec.to_owned()),
                    ("exitCode".to_owned(), status.code.to_string()),
                ],
            );
        }
    }

    /// Takes note of an end; also called for ends that happened while no daemon looked.
    pub(super) async fn exited(self: Arc<Self>, id: &str, status: ExitStatus) {
        let Some(container) = self.containers.get(id) else { return };
        let auto_remove = {
            let _operation = container.operation.lock().await;
            if !container.is_running() {
                return;
            }
            container.cancel_plans();
            // Asked before anybody is told: who wanted it kept goes on then, and keeps it no longer.
            let kept = container.keeps_next_exit();
            container.change_state(|state| state.ended = Some(status.clone()));
            tracing::trace!(target: "step", "exit noted");
            self.tell_end(&container, &status);
            self.tear_down(&container).await;
            tracing::trace!(target: "step", "run torn down");
            self.note_exit(&container, &status, kept) && !kept
        };
        if auto_remove {
            self.remove_quietly(&container).await;
        }
    }

    /// The event of an end; it comes before those of the networks and volumes that are let go.
    fn tell_end(&self, container: &Container, status: &ExitStatus) {
        let ran = ran(&container.state(), status);
        self.publish(
            container,
            "die",
            [
                ("exitCode".to_owned(), status.code.to_string()),
                ("execDuration".to_owned(), ran.as_secs().to_string()),
            ],
        );
    }

    /// Writes the end down, tells who waits, plans the next start. True when it is to be removed.
    fn note_exit(
        self: &Arc<Self>,
        container: &Arc<Container>,
        status: &ExitStatus,
        kept: bool,
    ) -> bool {
        let spec = container.spec();
        let at = OffsetDateTime::from(status.at);
        let before = container.state();
        let ran = ran(&before, status);
        let again = !kept && wants_restart(&spec, &before, status.code);
        container.change_state(|state| {
            state.phase = if again { Phase::Restarting } else { Phase::Exited };
            state.pid = 0;
            state.ended = None;
            state.exit_code = status.code;
            state.oom_killed |= status.oom;
            state.finished_at = Some(at);
            if again {
                state.restart_count += 1;
            }
            if let Some(health) = &mut state.health
                && !again
            {
                health.status = "unhealthy".into();
            }
        });
        container.tell_exit(status.code, "");
        if again {
            self.plan_restart(
                container,
                container.next_backoff(ran, BACKOFF_FIRST, BACKOFF_MAX, GOOD_RUN),
            );
        }
        !again && spec.host_config.auto_remove.unwrap_or_default()
    }

    /// Starts the container again after the delay, unless somebody does something to it before.
    pub(super) fn plan_restart(self: &Arc<Self>, container: &Arc<Container>, delay: Duration) {
        let (engine, container) = (self.clone(), container.clone());
        let mut cancelled = container.cancel.subscribe();
        cancelled.mark_unchanged();
        tokio::spawn(async move {
            tokio::select! {
                _ = cancelled.changed() => return,
                () = tokio::time::sleep(delay) => {}
            }
            engine.containers.restored().await;
            let _operation = container.operation.lock().await;
            if cancelled.has_changed().unwrap_or(true) || container.phase() != Phase::Restarting {
                return;
            }
            // A stop that came while this start was due holds.
            if container.state().stopped_by_user {
                container.change_state(|state| state.phase = Phase::Exited);
                return;
            }
            if let Err(error) = engine.start_locked(&container).await {
                tracing::warn!(container = %container.id(), %error, "restart by the policy failed");
            }
        });
    }
}

/// How long the run that ends with this status has taken.
fn ran(state: &State, status: &ExitStatus) -> Duration {
    let at = OffsetDateTime::from(status.at);
    let took = state.started_at.and_then(|started| Duration::try_from(at - started).ok());
    took.unwrap_or_default()
}

/// What the policy says after an exit with this code.
pub(super) fn wants_restart(spec: &Spec, state: &State, code: i32) -> bool {
    let policy = spec.host_config.restart_policy.clone().unwrap_or_default();
    if state.stopped_by_user {
        return false;
    }
    match policy.name.unwrap_or(Policy::NO) {
        Policy::ALWAYS | Policy::UNLESS_STOPPED => true,
        Policy::ON_FAILURE => {
            let max = policy.maximum_retry_count.unwrap_or_default();
            code != 0 && (max == 0 || state.restart_count < max)
        }
        Policy::NO | Policy::EMPTY => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard_stubs::models::RestartPolicy;

    fn check(policy: Policy, max: i64, count: i64, code: i32, stopped: bool) -> bool {
        let spec = Spec {
            id: "c".into(),
            name: "n".into(),
            created: OffsetDateTime::UNIX_EPOCH,
            image: String::new(),
            config: Default::default(),
            host_config: bollard_stubs::models::HostConfig {
                restart_policy: Some(RestartPolicy {
                    name: Some(policy),
                    maximum_retry_count: Some(max),
                }),
                ..Default::default()
            },
            networks: Default::default(),
            mounts: Vec::new(),
            log: Default::default(),
            task: None,
        };
        let state = State { restart_count: count, stopped_by_user: stopped, ..Default::default() };
        wants_restart(&spec, &state, code)
    }

    #[test]
    fn the_policies() {
        assert!(!check(Policy::NO, 0, 0, 1, false));
        assert!(check(Policy::ALWAYS, 0, 9, 0, false));
        assert!(!check(Policy::ALWAYS, 0, 0, 0, true), "a user's stop holds");
        assert!(check(Policy::UNLESS_STOPPED, 0, 0, 0, false));
        assert!(check(Policy::ON_FAILURE, 0, 99, 1, false));
        assert!(!check(Policy::ON_FAILURE, 0, 0, 0, false));
        assert!(check(Policy::ON_FAILURE, 3, 2, 1, false));
        assert!(!check(Policy::ON_FAILURE, 3, 3, 1, false));
    }
}

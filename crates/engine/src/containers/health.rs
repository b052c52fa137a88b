//! Health checks: a command in the container at intervals, and what its exit codes amount to.

use std::sync::Arc;
use std::time::Duration;

use runtime::{AttachOptions, ExecSpec};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt;

use super::container::{Container, Health, HealthProbe, Spec};
use crate::Engine;

/// Docker's defaults (moby daemon/health.go).
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: i64 = 3;
const PROBES_KEPT_MAX: usize = 5;
const OUTPUT_BYTES_MAX: usize = 4_096;

struct Plan {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: i64,
}

fn duration(nanos: Option<i64>, default: Duration) -> Duration {
    match nanos.and_then(|nanos| u64::try_from(nanos).ok()) {
        None | Some(0) => default,
        Some(nanos) => Duration::from_nanos(nanos),
    }
}

/// None without a check, or with `NONE`.
fn plan(spec: &Spec) -> Option<Plan> {
    let check = spec.config.healthcheck.as_ref()?;
    let test = check.test.as_deref().unwrap_or_default();
    let (kind, rest) = test.split_first()?;
    let command = match kind.as_str() {
        "CMD" => rest.to_vec(),
        "CMD-SHELL" => {
            let mut shell = spec
                .config
                .shell
                .clone()
                .filter(|shell| !shell.is_empty())
                .unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
            shell.extend(rest.iter().cloned());
            shell
        }
        _ => return None,
    };
    Some(Plan {
        command,
        interval: duration(check.interval, INTERVAL),
        timeout: duration(check.timeout, TIMEOUT),
        start_period: duration(check.start_period, Duration::ZERO),
        start_interval: duration(check.start_interval, START_INTERVAL),
        retries: check.retries.filter(|retries| *retries > 0).unwrap_or(RETRIES),
    })
}

impl Engine {
    /// `starting` for a container that has a check.
    pub(super) fn first_health(&self, spec: &Spec) -> Option<Health> {
        plan(spec).map(|_| Health { status: "starting".into(), ..Default::default() })
    }

    /// Probes until the container ends or somebody does something to it.
    pub(super) fn watch_health(self: &Arc<Self>, container: &Arc<Container>) {
        let Some(plan) = plan(&container.spec()) else { return };
        let (engine, container) = (Arc::downgrade(self), container.clone());
        let mut cancelled = container.cancel.subscribe();
        cancelled.mark_unchanged();
        let started = tokio::time::Instant::now();
        tokio::spawn(async move {
            loop {
                let starting =
                    container.state().health.is_some_and(|health| health.status == "starting");
                let early = starting && started.elapsed() < plan.start_period;
                let pause = if early { plan.start_interval } else { plan.interval };
                tokio::select! {
                    _ = cancelled.changed() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                let Some(engine) = engine.upgrade() else { return };
                if !container.is_running() {
                    return;
                }
                if container.is_paused() {
                    continue;
                }
                let probe = engine.probe(&container, &plan).await;
                if cancelled.has_changed().unwrap_or(true) || !container.is_running() {
                    return;
                }
                let in_grace = started.elapsed() < plan.start_period;
                engine.note_probe(&container, &plan, probe, in_grace);
            }
        });
    }

    async fn probe(self: &Arc<Self>, container: &Container, plan: &Plan) -> HealthProbe {
        let start = OffsetDateTime::now_utc();
        let id: String = self.containers.new_id().into_string();
        let mut pid = None;
        let run = self.run_probe(container, &id, plan, &mut pid);
        let (exit_code, output) = match tokio::time::timeout(plan.timeout, run).await {
            Ok(Ok((code, output))) => (i64::from(code), output),
            Ok(Err(error)) => (-1, error.to_string()),
            Err(_) => {
                end_probe(container, pid);
                (-1, format!("Health check exceeded timeout ({:?})", plan.timeout))
            }
        };
        HealthProbe { start, end: OffsetDateTime::now_utc(), exit_code, output }
    }

    async fn run_probe(
        &self,
        container: &Container,
        id: &str,
        plan: &Plan,
        pid: &mut Option<u32>,
    ) -> Result<(i32, String), runtime::Error> {
        let exec = ExecSpec {
            id: id.to_owned(),
            args: plan.command.clone(),
            stdout: true,
            stderr: true,
            // A TTY's stream has no frames: the output is read as it is.
            tty: false,
            ..Default::default()
        };
        let options = AttachOptions { stdin: false, stdout: true, stderr: true };
        let attach = self.runtime.attach_exec(container.id(), id, options);
        self.publish(
            container,
            &format!("exec_create: {}", plan.command.join(" ")),
            [("execID".to_owned(), id.to_owned())],
        );
        *pid = Some(self.runtime.exec(container.id(), &exec).await?);
        self.publish(
            container,
            &format!("exec_start: {}", plan.command.join(" ")),
            [("execID".to_owned(), id.to_owned())],
        );
        let output = match attach.ready().await {
            Ok(stream) => read_frames(stream).await,
            Err(error) => error.to_string(),
        };
        let status = self.runtime.exec_wait(container.id(), id).await?;
        Ok((status.code, output))
    }

    fn note_probe(&self, container: &Container, plan: &Plan, probe: HealthProbe, in_grace: bool) {
        let before = container.state().health.map(|health| health.status).unwrap_or_default();
        let failed = probe.exit_code != 0;
        let state = container.change_state(|state| {
            let health = state.health.get_or_insert_with(Default::default);
            if health.log.len() == PROBES_KEPT_MAX {
                health.log.remove(0);
            }
            health.log.push(probe);
            if !failed {
                health.failing_streak = 0;
                health.status = "healthy".into();
            } else if !(in_grace && health.status == "starting") {
                health.failing_streak += 1;
                if health.failing_streak >= plan.retries {
                    health.status = "unhealthy".into();
                }
            }
        });
        let after = state.health.map(|health| health.status).unwrap_or_default();
        if before != after {
            self.publish(container, &format!("health_status: {after}"), []);
        }
    }
}

/// A probe beyond its time is killed; the shim reaps it.
fn end_probe(container: &Container, pid: Option<u32>) {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, Signal::KILL)
    {
        tracing::debug!(container = %container.id(), %error, "health probe not ended");
    }
}

/// The text of both streams without their frames' headers, cut at Docker's limit.
async fn read_frames(mut stream: tokio::net::UnixStream) -> String {
    let mut output = Vec::new();
    let mut header = [0u8; 8];
    while stream.read_exact(&mut header).await.is_ok() {
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let mut frame = (&mut stream).take(u64::from(length));
        let mut text = Vec::new();
        if frame.read_to_end(&mut text).await.is_err() {
            break;
        }
        let room = OUTPUT_BYTES_MAX.saturating_sub(output.len());
        output.extend_from_slice(&text[..text.len().min(room)]);
    }
    String::from_utf8_lossy(&output).into_owned()
}

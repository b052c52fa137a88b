//! `docker start`: file system, network, files, runtime, in this order; backwards on an error.

use std::sync::Arc;

use time::OffsetDateTime;

use super::container::{Container, Phase, Spec};
use crate::Engine;
use crate::error::{Error, Kind, Result};
use crate::images::blocking;
use crate::volumes::User;

/// Docker's exit code for a container that could not be started.
const CANNOT_START: i32 = 128;

impl Engine {
    /// Starts a container that is not running; `NotModified` when it is.
    pub async fn start(self: &Arc<Self>, name: &str) -> Result<()> {
        let container = self.container(name)?;
        let started = {
            let _operation = container.operation.lock().await;
            if !container.is_running() {
                container.cancel_plans();
                container.change_state(|state| {
                    if state.phase == Phase::Restarting {
                        state.phase = Phase::Exited;
                    }
                    state.restart_count = 0;
                    state.stopped_by_user = false;
                });
            }
            self.start_locked(&container).await
        };
        if started.is_err()
            && container.spec().host_config.auto_remove.unwrap_or_default()
            && !container.is_running()
        {
            self.remove_quietly(&container).await;
        }
        started
    }

    /// The caller holds the container's operation.
    pub(super) async fn start_locked(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        match container.phase() {
            Phase::Running => return Err(Error::not_modified("container already running")),
            Phase::Paused => {
                return Err(Error::conflict(
                    "cannot start a paused container, try unpause instead",
                ));
            }
            Phase::Removing | Phase::Dead => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            Phase::Created | Phase::Exited | Phase::Restarting => {}
        }
        // It may be running: a second one beside it would have the same files and addresses.
        if let Some(silence) = self.runtime.silence(container.id()).await {
            return Err(silence.into());
        }
        let spec = container.spec();
        match self.bring_up(container, &spec).await {
            Ok(()) => Ok(()),
            Err((code, error)) => {
                self.tear_down(container).await;
                container.change_state(|state| {
                    state.pid = 0;
                    state.exit_code = code;
                    state.error = error.message.clone();
                    if state.phase == Phase::Restarting {
                        state.phase = Phase::Exited;
                    }
                });
                Err(error)
            }
        }
    }

    async fn bring_up(
        self: &Arc<Self>,
        container: &Arc<Container>,
        spec: &Arc<Spec>,
    ) -> Result<(), (i32, Error)> {
        let failed = |error: Error| (CANNOT_START, error);
        let (store, id) = (self.images.store.clone(), spec.id.clone());
        let rootfs = blocking(move || Ok(store.mount(&id)?)).await.map_err(failed)?;
        let mut sandbox_spec = self.sandbox_spec(spec).map_err(failed)?;
        self.attach_to_swarm(container, spec, &mut sandbox_spec.endpoints).await.map_err(failed)?;
        let sandbox = self
            .network
            .start(sandbox_spec)
            .await
            .map_err(|error| failed(start_error(error.into())))?;
        let (engine, of, with) = (self.clone(), container.clone(), spec.clone());
        let (runtime_spec, pins) = blocking(move || {
            let (mut mounts, pins) = engine.ready_mounts(&with, &User::running(&with.id))?;
            mounts.extend(engine.engine_files(&of, &with, &sandbox)?);
            Ok((engine.runtime_spec(&with, rootfs, &sandbox, mounts)?, pins))
        })
        .await
        .map_err(failed)?;
        tracing::trace!(target: "step", "container prepared");
        let created = self.runtime.create(&runtime_spec).await.map_err(runtime_error)?;
        drop(pins);
        let health = self.first_health(spec);
        self.runtime.start(&spec.id).await.map_err(runtime_error)?;
        tracing::trace!(target: "step", "container started");
        container.change_state(|state| {
            state.phase = Phase::Running;
            state.pid = created.pid;
            state.exit_code = 0;
            state.error.clear();
            state.oom_killed = false;
            state.started_at = Some(OffsetDateTime::now_utc());
            state.health = health;
            state.ended = None;
        });
        tracing::trace!(target: "step", "start noted");
        self.tell_mounted(spec);
        self.publish(container, "start", []);
        self.watch_health(container);
        Ok(())
    }

    /// Every one is tried.
    pub(crate) fn unmount_volumes(&self, spec: &Spec, user: &User) -> Result<()> {
        let volumes = spec.mounts.iter().filter(|record| !record.name.is_empty());
        volumes.map(|record| self.volumes.unmount(&record.name, user)).fold(Ok(()), Result::and)
    }

    pub(crate) fn tell_mounted(&self, spec: &Spec) {
        for record in spec.mounts.iter().filter(|record| !record.name.is_empty()) {
            let writable = (!record.read_only).to_string();
            let attributes = [
                ("container", spec.id.as_str()),
                ("destination", &record.destination),
                ("driver", &record.driver),
                ("propagation", &record.propagation),
                ("read/write", &writable),
            ];
            self.events.publish(crate::events::Type::VOLUME, "mount", &record.name, attributes);
        }
    }

    /// Undoes whatever of a start (or of a run that has ended) is there. Every step is tried.
    pub(super) async fn tear_down(self: &Arc<Self>, container: &Arc<Container>) {
        let id = container.id().clone();
        if let Err(error) = self.runtime.delete(&id).await {
            tracing::warn!(container = %id, %error, "runtime remains of the container stay");
        }
        if let Err(error) = self.network.stop(&id).await {
            tracing::warn!(container = %id, %error, "network of the container stays");
        }
        self.detach_from_swarm(container).await;
        let (engine, of) = (self.clone(), container.clone());
        let result = blocking(move || {
            let spec = of.spec();
            let mut first = engine.drop_task_files(of.id()).and(engine.drop_shm(of.id()));
            first = first.and(engine.unmount_volumes(&spec, &User::running(of.id())));
            first.and(Ok(engine.images.store.unmount(of.id())?))
        })
        .await;
        if let Err(error) = result {
            tracing::warn!(container = %id, %error, "mounts of the container stay");
        }
    }
}

/// Docker wraps what the network refuses at a start.
fn start_error(error: Error) -> Error {
    match error.kind {
        Kind::NotFound => error,
        _ => error.context("failed to set up container networking"),
    }
}

/// The command's own mistakes have Docker's exit codes and status 400.
fn runtime_error(error: runtime::Error) -> (i32, Error) {
    use runtime::ErrorKind;
    // What the daemon itself found out needs no such beginning, and Docker gives it none.
    let by_runtime = error.text.starts_with("OCI runtime") || error.kind == ErrorKind::System;
    let text = match by_runtime {
        true => format!("failed to create task for container: {error}"),
        false => error.text.clone(),
    };
    match error.kind {
        ErrorKind::CommandNotFound => (127, Error::bad_parameter(text)),
        ErrorKind::CommandNotExecutable => (126, Error::bad_parameter(text)),
        ErrorKind::Invalid => (CANNOT_START, Error::bad_parameter(text)),
        ErrorKind::Conflict => (CANNOT_START, Error::conflict(text)),
        ErrorKind::NotFound => (CANNOT_START, Error::not_found(text)),
        ErrorKind::Unsupported => (CANNOT_START, Error::not_implemented(text)),
        ErrorKind::NoAnswer | ErrorKind::System => (CANNOT_START, Error::internal(text)),
    }
}

impl From<runtime::Error> for Error {
    fn from(error: runtime::Error) -> Self {
        use runtime::ErrorKind;
        let kind = match error.kind {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::Conflict => Kind::Conflict,
            ErrorKind::Invalid | ErrorKind::CommandNotFound | ErrorKind::CommandNotExecutable => {
                Kind::BadParameter
            }
            ErrorKind::Unsupported => Kind::NotImplemented,
            ErrorKind::NoAnswer | ErrorKind::System => Kind::Internal,
        };
        Error { kind, message: error.text }
    }
}

//! The start of a daemon: adopt what runs, report what ended, finish or undo what a crash cut short.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::RestartPolicyNameEnum as Policy;
use model::ContainerId;
use runtime::{Adopted, ExitStatus};

use super::container::{Container, Phase};
use super::{exit, record};
use crate::Engine;
use crate::error::Result;
use crate::images::blocking;

/// Exit code of a container whose end nobody saw: the host was switched off (Docker's 255).
const UNKNOWN_EXIT: i32 = 255;

impl Engine {
    /// Everything below the data root becomes true again, whatever happened in between.
    pub(crate) async fn restore(self: &Arc<Self>) -> Result<()> {
        let unread = self.load()?;
        super::subpath::sweep(&self.config().exec_root);
        exit::listen(self);
        let mut adopted: BTreeMap<String, Adopted> = self
            .runtime
            .adopt()
            .await?
            .into_iter()
            .map(|adopted| (adopted.id.clone(), adopted))
            .collect();
        self.remember_mounted(&adopted);
        let silent: BTreeSet<String> = adopted
            .values()
            .filter(|found| found.silent.is_some())
            .map(|found| found.id.clone())
            .collect();
        for container in self.containers.all() {
            let found = adopted.remove(container.id().as_str());
            self.restore_container(&container, found).await;
        }
        let (kept, unknown): (Vec<_>, Vec<_>) =
            adopted.into_keys().partition(|id| unread.contains(id) || silent.contains(id));
        for id in unknown {
            tracing::warn!(container = %id, "a container nobody knows is ended");
            let _ = self.runtime.kill(&id, 9).await;
            if let Err(error) = self.runtime.delete(&id).await {
                tracing::warn!(container = %id, %error, "its remains stay");
            }
        }
        let all = self.containers.all();
        let running = all.iter().filter(|container| container.is_running());
        let kept = kept.iter().chain(&silent).map(ContainerId::new);
        let running = running.map(|container| container.id().clone()).chain(kept).collect();
        if let Err(error) = self.network.retain(running).await {
            tracing::error!(%error, "networks of ended containers stay");
        }
        let known: BTreeSet<String> =
            all.iter().map(|container| container.id().to_string()).chain(unread).collect();
        let store = self.images.store.clone();
        if let Err(error) = blocking(move || Ok(store.sweep_rootfs(&known).map(drop)?)).await {
            tracing::error!(%error, "root file systems of removed containers stay");
        }
        for container in all.iter().filter(|one| !silent.contains(one.id().as_str())) {
            self.resume_policy(container);
        }
        self.containers.tell_restored();
        Ok(())
    }

    /// A shim that was silent when this daemon began has answered: what the beginning left out follows.
    pub(super) async fn found(self: &Arc<Self>, id: &str, found: Option<Adopted>) {
        self.containers.restored().await;
        let Some(container) = self.containers.get(id) else {
            tracing::warn!(container = %id, "a container nobody knows runs; the next start of the daemon ends it");
            return;
        };
        let Some(found) = self.runtime.current(id, found) else { return };
        tracing::info!(container = %id, name = %container.name(), "its shim answers again");
        self.restore_container(&container, found).await;
        self.resume_policy(&container);
    }

    /// Volumes with a device stay mounted for the containers that run.
    fn remember_mounted(&self, adopted: &BTreeMap<String, Adopted>) {
        let runs = |container: &Container| {
            adopted.get(container.id().as_str()).is_some_and(|found| found.exit.is_none())
        };
        for container in self.containers.all().into_iter().filter(|container| runs(container)) {
            for record in container.spec().mounts.iter().filter(|record| !record.name.is_empty()) {
                self.volumes.remember_mounted(&record.name, container.id());
            }
        }
    }

    /// Reads every spec; a directory without one is the rest of a create or of a removal. Answers with the ids of those
    /// that cannot be read: they are left alone, their processes, files and volumes too, until somebody mends the file.
    fn load(&self) -> Result<BTreeSet<String>> {
        let mut unread = BTreeSet::new();
        for directory in record::list(self.containers.root())? {
            match record::read(&directory) {
                Ok(Some((spec, state))) => {
                    record::forget_volumes(&directory)?;
                    self.containers.insert(Arc::new(Container::new(directory, spec, state)));
                }
                Ok(None) => {
                    self.drop_new_volumes(&directory);
                    if let Err(error) = std::fs::remove_dir_all(&directory) {
                        let path = directory.display();
                        tracing::warn!(%path, %error, "not removed; the next start tries again");
                    }
                }
                // One broken file must not keep the others from starting.
                Err(error) => {
                    tracing::error!(%error, "container not loaded: it is left as it is; mend the file and start the daemon again");
                    unread.insert(self.reserve_unread(&directory));
                }
            }
        }
        Ok(unread)
    }

    /// Nobody else gets the name, and nobody removes the volumes, of a container that is there and not known.
    fn reserve_unread(&self, directory: &Path) -> String {
        let id = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let trace = record::Trace::of(directory);
        self.volumes.take(&id, |volume| trace.may_have(volume));
        if let Some(name) = &trace.name
            && let Err(error) = self.containers.reserve(Some(name), &ContainerId::new(&id))
        {
            tracing::warn!(container = %id, %error, "its name is not kept");
        }
        id
    }

    async fn restore_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        found: Option<Adopted>,
    ) {
        let id = container.id();
        match (container.phase(), found) {
            (phase, Some(Adopted { silent: Some(silence), .. })) => {
                tracing::warn!(name = %container.name(), "{silence}");
                let state = container.change_state(|state| state.error = silence);
                if matches!(phase, Phase::Running | Phase::Paused) {
                    self.runtime.presume(id, state.pid);
                    self.watch_health(container);
                }
            }
            (Phase::Removing | Phase::Dead, _) => {
                let _ = self.runtime.kill(id, 9).await;
                let _operation = container.operation.lock().await;
                if let Err(error) = self.remove_locked(container, false).await {
                    tracing::warn!(container = %id, %error, "removal not finished");
                }
            }
            (_, Some(Adopted { exit: Some(status), started_at, .. })) => {
                container.change_state(|state| {
                    // The crash came between the start and its note.
                    state.phase = Phase::Running;
                    state.error.clear();
                    state.started_at = started_at.map(Into::into).or(state.started_at);
                });
                self.clone().exited(id, status).await;
            }
            (_, Some(adopted)) if adopted.started_at.is_some() => {
                self.runs_on(container, adopted).await;
            }
            // Made but not started: the start was never acknowledged.
            (_, Some(_)) => {
                let _ = self.runtime.kill(id, 9).await;
                self.tear_down(container).await;
            }
            (Phase::Running | Phase::Paused, None) => {
                let at = std::time::SystemTime::now();
                let noted = container.state().ended;
                let status = noted.unwrap_or(ExitStatus { code: UNKNOWN_EXIT, oom: false, at });
                self.clone().exited(id, status).await;
            }
            (Phase::Created | Phase::Exited | Phase::Restarting, None) => {
                // What a cut-off start may have mounted.
                self.tear_down(container).await;
            }
        }
    }

    async fn runs_on(self: &Arc<Self>, container: &Arc<Container>, adopted: Adopted) {
        let id = container.id();
        let operation = container.operation.lock().await;
        // It may have ended, and even been started again, since that was asked.
        let Some(Some(adopted)) = self.runtime.current(id, Some(adopted)) else { return };
        container.cancel_plans();
        container.change_state(|state| {
            state.phase = if adopted.paused { Phase::Paused } else { Phase::Running };
            state.pid = adopted.pid;
            state.error.clear();
            state.started_at = adopted.started_at.map(Into::into).or(state.started_at);
        });
        self.watch_health(container);
        drop(operation);
        if let Some(status) = adopted.exit {
            self.clone().exited(id, status).await;
        }
    }

    /// `always` and `unless-stopped` start with the daemon; a pending restart goes on.
    fn resume_policy(self: &Arc<Self>, container: &Arc<Container>) {
        let spec = container.spec();
        let state = container.state();
        let policy =
            spec.host_config.restart_policy.as_ref().and_then(|p| p.name).unwrap_or(Policy::NO);
        let again = match state.phase {
            Phase::Restarting => true,
            Phase::Exited => match policy {
                Policy::ALWAYS => true,
                Policy::UNLESS_STOPPED => !state.stopped_by_user,
                Policy::ON_FAILURE => exit::wants_restart(&spec, &state, state.exit_code),
                Policy::NO | Policy::EMPTY => false,
            },
            _ => false,
        };
        if again {
            // An exit found above has planned the same with a delay.
            container.cancel_plans();
            container.change_state(|state| {
                state.phase = Phase::Restarting;
                state.stopped_by_user = false;
            });
            self.plan_restart(container, Duration::ZERO);
        } else if state.phase == Phase::Exited && spec.host_config.auto_remove.unwrap_or_default() {
            let (engine, container) = (self.clone(), container.clone());
            tokio::spawn(async move { engine.remove_quietly(&container).await });
        }
    }
}

//! `docker rm`: everything of a container goes, in an order that a crash cannot turn into a leak.

use std::sync::Arc;

use super::container::{Container, Phase};
use super::mounts::MountType;
use super::record;
use super::stop::SIGKILL;
use crate::Engine;
use crate::error::{Error, Kind, Result};
use crate::images::blocking;

#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    pub force: bool,
    /// Anonymous volumes go too.
    pub volumes: bool,
}

impl Engine {
    pub async fn remove(self: &Arc<Self>, name: &str, options: RemoveOptions) -> Result<()> {
        let container = self.container(name)?;
        self.remove_container(&container, options).await
    }

    /// `--rm`: nobody waits for an error.
    pub(super) async fn remove_quietly(self: &Arc<Self>, container: &Arc<Container>) {
        let options = RemoveOptions { force: false, volumes: true };
        if let Err(error) = self.remove_container(container, options).await
            && error.kind != Kind::NotFound
        {
            tracing::warn!(container = %container.id(), %error, "container stays");
        }
    }

    pub(super) async fn remove_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        options: RemoveOptions,
    ) -> Result<()> {
        let name = container.name();
        let refuse = |state: &str, advice: &str| {
            Err(Error::conflict(format!(
                "cannot remove container \"/{name}\": container is {state}: {advice}"
            )))
        };
        // Until it is gone, or is known to stay.
        let mut _kept = None;
        match container.phase() {
            Phase::Running if !options.force => {
                return refuse("running", "stop the container before removing or force remove");
            }
            Phase::Restarting if !options.force => {
                return refuse("restarting", "stop the container before removing or force remove");
            }
            Phase::Paused if !options.force => {
                return refuse("paused", "must be unpaused first");
            }
            Phase::Running | Phase::Paused | Phase::Restarting => {
                _kept = Some(container.keep_next_exit());
                if let Err(error) = self.kill(container.id(), None).await
                    && container.is_running()
                {
                    return Err(error);
                }
            }
            _ => {}
        }
        let _operation = container.operation.lock().await;
        if self.containers.get(container.id()).is_none() {
            return Err(Error::not_found(format!("No such container: {name}")));
        }
        if container.is_running() {
            return Err(Error::conflict(format!(
                "cannot remove container \"/{name}\": could not kill: it is running still"
            )));
        }
        if let Some(silence) = self.runtime.silence(container.id()).await {
            if !options.force {
                return Err(silence.into());
            }
            self.runtime.kill(container.id(), SIGKILL).await?;
        }
        self.remove_locked(container, options.volumes).await
    }

    /// The spec goes last: until then a new daemon finds the container and finishes the removal.
    pub(super) async fn remove_locked(
        self: &Arc<Self>,
        container: &Arc<Container>,
        volumes: bool,
    ) -> Result<()> {
        container.cancel_plans();
        let created = container.phase() == Phase::Created;
        container.change_state(|state| {
            state.phase = Phase::Removing;
            state.remove_volumes |= volumes;
        });
        let volumes = container.state().remove_volumes;
        tracing::trace!(target: "step", "removal noted");
        if !created {
            self.tear_down(container).await;
        } else if let Err(error) = self.network.stop(container.id()).await {
            tracing::warn!(container = %container.id(), %error, "network of the container stays");
        }
        tracing::trace!(target: "step", "container torn down");
        let (engine, of) = (self.clone(), container.clone());
        let removed = blocking(move || engine.remove_files(&of, volumes)).await;
        if let Err(error) = removed {
            container.change_state(|state| {
                state.phase = Phase::Dead;
                state.error = error.message.clone();
            });
            return Err(error.context(format_args!("unable to remove {}", container.id())));
        }
        self.publish(container, "destroy", []);
        self.containers.forget(container.id());
        container.tell_removed();
        Ok(())
    }

    fn remove_files(&self, container: &Container, volumes: bool) -> Result<()> {
        self.images.store.remove_rootfs(container.id())?;
        if volumes {
            for record in &container.spec().mounts {
                if record.kind == MountType::Volume && record.anonymous {
                    // Others may have it by `--volumes-from`.
                    let others = || self.volume_users_but(container, &record.name);
                    self.volumes.remove_anonymous(&record.name, others)?;
                }
            }
        }
        tracing::trace!(target: "step", "volumes removed");
        record::remove(container.directory())
    }

    fn volume_users_but(&self, container: &Container, volume: &str) -> Vec<String> {
        let users = self.volume_users(volume);
        let others = users.iter().filter(|user| user.id() != container.id());
        others.map(|user| user.id().to_string()).collect()
    }

    /// The containers, running or not, that have a volume.
    pub fn volume_users(&self, volume: &str) -> Vec<Arc<Container>> {
        self.containers
            .all()
            .into_iter()
            .filter(|container| container.spec().mounts.iter().any(|mount| mount.name == volume))
            .collect()
    }
}

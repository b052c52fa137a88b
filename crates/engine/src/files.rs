//! Files in and out of a container (archive, diff, export, commit).
//!
//! A running container is read through its own mount namespace (`/proc/<pid>/root`), so volumes and binds are where the
//! container sees them; a stopped one through its mounted root, with its volumes and binds on it as long as the look lasts.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Change, Commit, Image, PathStat, Reference, RunConfig};

use crate::Engine;
use crate::containers::{Container, Pins, Spec};
use crate::error::{Error, IoContext, Kind, Result};
use crate::images::blocking;
use crate::volumes::User;

pub struct CommitRequest {
    pub container: String,
    pub reference: Option<Reference>,
    pub author: String,
    pub message: String,
    pub changes: Vec<String>,
    /// Nothing of the container runs while its files are packed.
    pub pause: bool,
    /// Settings that go before the container's own.
    pub config: Option<RunConfig>,
}

/// A place inside a container: a root that paths cannot leave, and the path in it.
struct Place {
    root: PathBuf,
    path: String,
    read_only: bool,
    /// Below a volume, a bind or a tmpfs.
    in_mount: bool,
    /// Of a container that does not run.
    look: Option<Look>,
}

/// Holds a stopped container's root and volumes mounted.
struct Look {
    engine: Arc<Engine>,
    spec: Arc<Spec>,
    user: User,
    mounts: Vec<runtime::Mount>,
    _pins: Option<Pins>,
    _visit: image::Visit,
}

impl Drop for Look {
    fn drop(&mut self) {
        if let Err(error) = self.engine.unmount_volumes(&self.spec, &self.user) {
            tracing::warn!(container = %self.spec.id, %error, "volumes stay mounted after a look");
        }
    }
}

impl Place {
    /// Does `work` where the container's mounts are in their places.
    fn with<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let Some(look) = &self.look else { return Ok(work()) };
        let config = look.engine.config();
        let apart = [config.data_root.clone(), config.exec_root.clone()];
        Ok(runtime::look::with_mounts(&self.root, &look.mounts, &apart, work)?)
    }
}

impl Engine {
    pub async fn path_stat(self: &Arc<Self>, name: &str, path: String) -> Result<PathStat> {
        let container = self.container(name)?;
        let engine = self.clone();
        blocking(move || {
            let place = engine.place(&container, &path)?;
            let mut stat = place
                .with(|| image::copy::stat(&place.root, &place.path))?
                .map_err(|error| told(error, &container, &path))?;
            if place.path == "/" {
                let clean = cleaned(&path);
                stat.name = clean.rsplit('/').find(|part| !part.is_empty()).unwrap_or("/").into();
            }
            Ok(stat)
        })
        .await
    }

    /// Blocks: the tar of a path, under its base name.
    pub fn read_path(
        self: &Arc<Self>,
        name: &str,
        path: &str,
        out: impl Write + Send,
    ) -> Result<()> {
        let container = self.container(name)?;
        let place = self.place(&container, path)?;
        place
            .with(|| image::copy::read(&place.root, &place.path, out))?
            .map_err(|error| told(error, &container, path))?;
        self.publish(&container, "archive-path", []);
        Ok(())
    }

    pub async fn write_path(
        self: &Arc<Self>,
        name: &str,
        path: String,
        tar: impl Read + Send + 'static,
        keep_kind: bool,
        own: bool,
    ) -> Result<()> {
        let container = self.container(name)?;
        let engine = self.clone();
        blocking(move || {
            let place = engine.place(&container, &path)?;
            if place.read_only {
                return Err(Error::forbidden(match place.in_mount {
                    true => "mounted volume is marked read-only",
                    false => "container rootfs is marked read-only",
                }));
            }
            let owner = if own { owner(&container, &place.root)? } else { None };
            let options = image::copy::WriteOptions { no_overwrite_dir_non_dir: keep_kind, owner };
            place
                .with(|| image::copy::write(&place.root, &place.path, tar, &options))?
                .map_err(|error| told(error, &container, &path))?;
            engine.publish(&container, "extract-to-dir", []);
            Ok(())
        })
        .await
    }

    pub async fn changes(self: &Arc<Self>, name: &str) -> Result<Vec<Change>> {
        let container = self.container(name)?;
        self.images.run(move |store| store.diff(container.id())).await
    }

    /// Blocks: the whole file system as a tar, without the volumes.
    pub fn export(&self, name: &str, out: impl Write) -> Result<()> {
        let container = self.container(name)?;
        self.images.store.export(container.id(), out)?;
        self.publish(&container, "export", []);
        Ok(())
    }

    pub async fn commit(self: &Arc<Self>, request: CommitRequest) -> Result<Arc<Image>> {
        let container = self.container(&request.container)?;
        let own = serde_json::to_value(&container.spec().config)
            .during("read the container's settings")?;
        let own: RunConfig = serde_json::from_value(own).during("read the container's settings")?;
        let config = match request.config {
            Some(given) => merged(given, own)?,
            None => own,
        };
        let commit = Commit {
            container: container.id().to_string(),
            author: request.author,
            message: request.message,
            changes: request.changes,
            config,
            reference: request.reference,
        };
        let pause = request.pause && container.is_running() && !container.is_paused();
        let pause = pause && still(self.pause(container.id()).await)?;
        let id = container.id().clone();
        let message = commit.message.clone();
        let named = commit.reference.as_ref().map(Reference::familiar).unwrap_or_default();
        let made = self.images.run(move |store| store.commit(&id, &commit)).await;
        if pause {
            still(self.unpause(container.id()).await)?;
        }
        let image = made?;
        let image_id = image.id.to_string();
        if !named.is_empty() {
            self.images.event("tag", &image_id, &named);
        }
        self.publish(
            &container,
            "commit",
            [("comment", message), ("imageID", image_id), ("imageRef", named)]
                .map(|(key, value)| (key.to_owned(), value)),
        );
        Ok(image)
    }

    fn place(self: &Arc<Self>, container: &Container, path: &str) -> Result<Place> {
        let spec = container.spec();
        let clean = cleaned(path);
        let below = spec
            .mounts
            .iter()
            .filter(|mount| Path::new(&clean).starts_with(&mount.destination))
            .max_by_key(|mount| mount.destination.len());
        let read_only = match below {
            Some(mount) => mount.read_only,
            None => spec.host_config.readonly_rootfs.unwrap_or(false),
        };
        let place = |root, look| Place {
            root,
            path: path.to_owned(),
            read_only,
            in_mount: below.is_some(),
            look,
        };
        if container.is_running() {
            return Ok(place(format!("/proc/{}/root", container.state().pid).into(), None));
        }
        let visit = self.images.store.visit(container.id())?;
        let root = visit.root().to_owned();
        let user = User::looking(container.id());
        let mut look = Look {
            engine: self.clone(),
            spec: spec.clone(),
            user,
            mounts: Vec::new(),
            _pins: None,
            _visit: visit,
        };
        let (mounts, pins) = self.ready_mounts(&spec, &look.user)?;
        (look.mounts, look._pins) = (mounts, Some(pins));
        look.mounts.extend(self.files_of_last_start(container, &spec));
        self.tell_mounted(&spec);
        Ok(place(root, Some(look)))
    }
}

/// False where the container ended by itself meanwhile: then nothing of it runs either.
fn still(done: Result<()>) -> Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind == Kind::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}

fn cleaned(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn told(error: image::Error, container: &Container, path: &str) -> Error {
    let error = Error::from(error);
    match error.kind {
        Kind::NotFound => Error::not_found(format!(
            "Could not find the file {path} in container {}",
            container.name()
        )),
        _ => error,
    }
}

/// The user the container runs as; root needs no change.
fn owner(container: &Container, root: &Path) -> Result<Option<(u32, u32)>> {
    let user = container.spec().config.user.clone().unwrap_or_default();
    if user.is_empty() {
        return Ok(None);
    }
    let found = runtime::users::resolve(root, &user, &[])?;
    Ok(Some((found.uid, found.gid)))
}

/// The given settings, and the container's where none was given.
fn merged(given: RunConfig, own: RunConfig) -> Result<RunConfig> {
    let whole = |config: &RunConfig| serde_json::to_value(config).during("read settings");
    let (mut all, given) = (whole(&own)?, whole(&given)?);
    if let (Some(all), Some(given)) = (all.as_object_mut(), given.as_object()) {
        for (key, value) in given {
            let empty = match value {
                serde_json::Value::Null => true,
                serde_json::Value::String(text) => text.is_empty(),
                serde_json::Value::Bool(flag) => !flag,
                serde_json::Value::Array(list) => list.is_empty(),
                serde_json::Value::Object(map) => map.is_empty(),
                serde_json::Value::Number(_) => false,
            };
            if !empty {
                all.insert(key.clone(), value.clone());
            }
        }
    }
    serde_json::from_value(all).during("merge settings")
}

//! The host's images: the store's blocking calls on threads of their own, and the events they make.

use std::sync::Arc;

use image::{
    Credentials, Deleted, Image, Platform, ProgressSender, Pruned, Reference, Remove, Store, User,
};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::{self, Type};

pub struct Images {
    pub store: Store,
    events: Arc<events::Bus>,
}

impl Images {
    pub async fn open(config: &Config, events: Arc<events::Bus>) -> Result<Self> {
        let options = config.images();
        let root = config.data_root.join("image");
        let store = blocking(move || Ok(Store::open(&root, options)?)).await?;
        Ok(Self { store, events })
    }

    /// Other registries and limits, for pulls and pushes that begin from now on.
    pub(crate) fn reload(&self, config: &Config) -> Result<()> {
        Ok(self.store.reconfigure(config.images())?)
    }

    /// A call of the store that reads or writes the disk.
    pub async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> image::Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.store.clone();
        blocking(move || Ok(call(&store)?)).await
    }

    /// By name, digest, id or the beginning of an id.
    pub fn resolve(&self, name: &str) -> Result<Arc<Image>> {
        Ok(self.store.resolve(name)?)
    }

    pub async fn tag(&self, name: &str, reference: image::Reference) -> Result<()> {
        let image = self.resolve(name)?;
        let (id, familiar) = (image.id, reference.familiar());
        self.run(move |store| store.tag(&id, &reference)).await?;
        self.event("tag", &id.to_string(), &familiar);
        Ok(())
    }

    pub async fn remove(
        &self,
        name: &str,
        remove: Remove,
        users: Vec<User>,
    ) -> Result<Vec<Deleted>> {
        let image = self.resolve(name)?;
        let name = name.to_owned();
        let records = self.run(move |store| store.remove(&name, remove, &users)).await?;
        self.tell_removed(&image, &records);
        Ok(records)
    }

    pub async fn prune(
        &self,
        dangling_only: bool,
        wanted: impl Fn(&Image) -> bool + Send + 'static,
        users: Vec<User>,
    ) -> Result<Pruned> {
        let pruned = self.run(move |store| store.prune(dangling_only, &wanted, &users)).await?;
        for record in &pruned.deleted {
            if let Deleted::Deleted(id) = record {
                self.events.publish(Type::IMAGE, "delete", id, [("name", id)]);
            }
        }
        let bytes = pruned.bytes.to_string();
        self.events.publish(Type::IMAGE, "prune", "", [("reclaimed", bytes)]);
        Ok(pruned)
    }

    /// Pulls one reference, or every tag of a repository when none is given.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        credentials: Option<&Credentials>,
        progress: &ProgressSender,
    ) -> Result<()> {
        let all = reference.tag().is_none() && reference.digest().is_none();
        self.store.pull(reference, all, platform, credentials, progress).await?;
        self.events.publish(
            Type::IMAGE,
            "pull",
            reference.familiar(),
            [("name", reference.familiar_name())],
        );
        Ok(())
    }

    pub async fn push(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: &ProgressSender,
    ) -> Result<()> {
        let all = reference.tag().is_none() && reference.digest().is_none();
        self.store.push(reference, all, credentials, progress).await?;
        self.events.publish(
            Type::IMAGE,
            "push",
            reference.familiar(),
            [("name", reference.familiar_name())],
        );
        Ok(())
    }

    /// `action` happened to an image that is there; `name` is what the user called it.
    pub fn event(&self, action: &str, id: &str, name: &str) {
        match self.store.resolve(id) {
            Ok(image) => self.tell(action, &image, name),
            Err(_) => self.events.publish(Type::IMAGE, action, id, [("name", name)]),
        }
    }

    /// The image's labels are attributes, too.
    fn tell(&self, action: &str, image: &Image, name: &str) {
        let labels = image.config.config.iter().flat_map(|config| config.labels.iter().flatten());
        let attributes = labels.map(|(key, value)| (key.as_str(), value.as_str()));
        self.events.publish(
            Type::IMAGE,
            action,
            image.id.to_string(),
            attributes.chain([("name", name)]),
        );
    }

    fn tell_removed(&self, image: &Image, records: &[Deleted]) {
        let own = image.id.to_string();
        for record in records {
            match record {
                Deleted::Untagged(_) => self.tell("untag", image, &own),
                Deleted::Deleted(id) if *id == own => {
                    self.events.publish(Type::IMAGE, "delete", id, [("name", id)]);
                }
                // Layers make no event.
                Deleted::Deleted(_) => {}
            }
        }
    }
}

/// Runs on a thread that may wait for the disk.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = tokio::task::spawn_blocking(call).await;
    ended.map_err(|cause| Error::internal(format!("a task of the engine ended early: {cause}")))?
}

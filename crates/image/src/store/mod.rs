//! The images of one host: names, configurations and the layers under them.
//!
//! `images/<id>/{config.json, meta.json}`, `repositories.json`, `layers/`, `distribution/` (which blob of a registry is
//! which layer) and `rootfs/`. Every record appears or changes by one rename.

mod names;
mod import;
mod archive;
mod remove;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};

use crate::layers::{Held, Layers, replace, sync_parent, write_synced};
use crate::{
    Config, Digest, Error, HistoryEntry, Image, ImageUsage, LayerUsage, Options, Reference,
};
use crate::{Result, Usage};

pub(crate) use import::now;
pub(crate) use names::Names;
pub(crate) use remove::chain_ids;

#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub root: PathBuf,
    /// Replaced as a whole by `reconfigure`; work that has begun keeps what it began with.
    pub reach: RwLock<Arc<Reach>>,
    pub layers: Arc<Layers>,
    pub state: RwLock<State>,
    /// Root file systems and the layers each holds.
    pub rootfs: std::sync::Mutex<BTreeMap<String, crate::rootfs::Record>>,
    pub inits: std::sync::Mutex<()>,
    /// Who looks into a root file system that is mounted only for that.
    pub visits: std::sync::Mutex<BTreeMap<String, usize>>,
    pub blobs: crate::registry::Blobs,
}

/// How registries are reached: the daemon's settings, and what follows from them.
pub(crate) struct Reach {
    pub options: Options,
    pub downloads: tokio::sync::Semaphore,
    client: std::sync::OnceLock<crate::registry::Client>,
}

impl Reach {
    fn new(options: Options) -> Arc<Self> {
        let downloads = tokio::sync::Semaphore::new(options.downloads());
        Arc::new(Self { options, downloads, client: std::sync::OnceLock::new() })
    }

    /// Made when it is first needed: it reads the host's certificates.
    pub fn client(&self) -> Result<&crate::registry::Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = crate::registry::Client::new(&self.options.registries)?;
        Ok(self.client.get_or_init(|| client))
    }
}

#[derive(Default)]
pub(crate) struct State {
    images: BTreeMap<Digest, Known>,
    names: Names,
}

#[derive(Clone)]
struct Known {
    config: Arc<Config>,
    meta: Meta,
    size: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Meta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_tagged: Option<i64>,
    /// On its way to its first name, or from its last one to its removal: a crash in between must
    /// not leave it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passing: bool,
}

impl Meta {
    /// Of an image that is about to get a name.
    pub fn passing() -> Self {
        Self { passing: true, ..Self::default() }
    }
}

impl Store {
    /// Opens or makes the store at `<root>`; what a crash left half-made is removed.
    pub fn open(root: &Path, options: Options) -> Result<Self> {
        // Parts of blobs are worth keeping between tries, not between daemons.
        remove_if_there(&root.join("download"))?;
        for directory in ["images", "distribution", "rootfs", "download"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        }
        crate::layers::make_mode(root, 0o711)?;
        let layers = Layers::open(&root.join("layers"))?;
        let mut state =
            State { names: Names::read(&root.join("repositories.json"))?, ..State::default() };
        read_images(&root.join("images"), &layers, &mut state)?;
        let images: BTreeSet<Digest> = state.images.keys().copied().collect();
        state.names.retain(&images);
        let (rootfs, whole) = crate::rootfs::read_records(&root.join("rootfs"), &layers)?;
        // A container whose record is not readable may stand on any image and layer.
        if whole {
            sweep_passing(&root.join("images"), &mut state, &rootfs, &layers)?;
            crate::rootfs::sweep_inits(&root.join("init"), &rootfs)?;
            layers.collect();
        }
        let blobs = crate::registry::Blobs::open(&root.join("distribution"), &layers)?;
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                reach: RwLock::new(Reach::new(options)),
                layers,
                state: RwLock::new(state),
                rootfs: std::sync::Mutex::new(rootfs),
                inits: std::sync::Mutex::new(()),
                visits: std::sync::Mutex::default(),
                blobs,
            }),
        })
    }

    pub(crate) fn reach(&self) -> Arc<Reach> {
        self.inner.reach.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Other registries and limits for what begins from now on.
    ///
    /// # Errors
    /// When they cannot be used; those before stay.
    pub fn reconfigure(&self, options: Options) -> Result<()> {
        let reach = Reach::new(options);
        reach.client()?;
        *self.inner.reach.write().unwrap_or_else(std::sync::PoisonError::into_inner) = reach;
        Ok(())
    }

    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.inner.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.inner.state.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        let state = self.read();
        state.images.keys().filter_map(|id| state.image(id)).map(Arc::new).collect()
    }

    pub fn image(&self, id: &Digest) -> Option<Arc<Image>> {
        self.read().image(id).map(Arc::new)
    }

    /// By name, digest, id or the beginning of an id.
    pub fn resolve(&self, name: &str) -> Result<Arc<Image>> {
        self.read().resolve(name).map(Arc::new)
    }

    /// Images made by a commit on this one.
    pub fn children(&self, id: &Digest) -> Vec<Digest> {
        self.read().children(id)
    }

    pub fn config_bytes(&self, id: &Digest) -> Result<Vec<u8>> {
        let path = self.inner.root.join("images").join(id.hex()).join("config.json");
        fs::read(&path).map_err(Error::file("read", &path))
    }

    pub fn tag(&self, image: &Digest, reference: &Reference) -> Result<()> {
        let mut state = self.write();
        if !state.images.contains_key(image) {
            return Err(Error::NoSuchImage(image.to_string()));
        }
        self.name(&mut state, reference, image)
    }

    /// What a name means now.
    pub(crate) fn read_name(&self, reference: &Reference) -> Option<Digest> {
        self.read().names.get(reference)
    }

    /// Every tag of a repository, with its image.
    pub(crate) fn repository_tags(&self, reference: &Reference) -> Vec<(Reference, Digest)> {
        self.read().names.tags(reference)
    }

    /// Points a name at an image and says so on disk.
    fn name(&self, state: &mut State, reference: &Reference, image: &Digest) -> Result<()> {
        if reference.familiar_name() == "sha256" {
            let why = "refusing to create an ambiguous tag using digest algorithm as name";
            return Err(Error::Invalid(why.into()));
        }
        let before = state.names.set(reference.clone(), *image);
        if before == Some(*image) {
            return Ok(());
        }
        if let Err(error) = state.names.write(&self.inner.root.join("repositories.json")) {
            state.names.restore(reference, before);
            return Err(error);
        }
        tracing::trace!(target: "step", "image named");
        let tagged = reference.tag().is_some();
        if tagged || state.images.get(image).is_some_and(|known| known.meta.passing) {
            let now = time::OffsetDateTime::now_utc().unix_timestamp();
            self.change_meta(state, image, |meta| {
                meta.passing = false;
                meta.last_tagged = if tagged { Some(now) } else { meta.last_tagged };
            })?;
        }
        Ok(())
    }

    pub(super) fn change_meta(
        &self,
        state: &mut State,
        image: &Digest,
        change: impl FnOnce(&mut Meta),
    ) -> Result<()> {
        if let Some(known) = state.images.get_mut(image) {
            change(&mut known.meta);
            let path = self.inner.root.join("images").join(image.hex()).join("meta.json");
            replace(&path, &json(&known.meta)?)?;
        }
        Ok(())
    }

    /// Makes an image of a configuration and layers that are held; one that exists already stays as it is.
    pub(crate) fn create(&self, raw: &[u8], held: Vec<Held>, meta: Meta) -> Result<Digest> {
        let config = Config::parse(raw)?;
        let have: Vec<Digest> = held.iter().map(|held| held.info.diff_id).collect();
        if have != config.rootfs.diff_ids {
            return Err(Error::Invalid(
                "layers from manifest don't match image configuration".into(),
            ));
        }
        if have.len() > crate::rootfs::LAYERS_MAX {
            return Err(Error::Invalid("max depth exceeded".into()));
        }
        let id = Digest::of(raw);
        let mut state = self.write();
        if state.images.contains_key(&id) {
            return Ok(id);
        }
        let images = self.inner.root.join("images");
        let new = images.join(format!(".new-{}", id.hex()));
        remove_if_there(&new)?;
        fs::create_dir(&new).map_err(Error::file("create", &new))?;
        write_synced(&new.join("config.json"), raw)?;
        write_synced(&new.join("meta.json"), &json(&meta)?)?;
        tracing::trace!(target: "step", "image written");
        let target = images.join(id.hex());
        fs::rename(&new, &target).map_err(Error::file("rename image to", &target))?;
        sync_parent(&target)?;
        tracing::trace!(target: "step", "image published");
        let size = held.iter().map(|held| held.info.size).sum();
        held.into_iter().for_each(Held::keep);
        state.images.insert(id, Known { config: Arc::new(config), meta, size });
        Ok(id)
    }

    pub fn history(&self, name: &str) -> Result<Vec<HistoryEntry>> {
        let image = self.resolve(name)?;
        let mut layers = image.config.rootfs.diff_ids.iter();
        let mut entries = Vec::new();
        for step in &image.config.history {
            let size = match step.empty_layer {
                true => 0,
                false => {
                    let diff_id = layers.next().ok_or_else(|| {
                        Error::System(format!(
                            "too many non-empty layers in History section of image {}",
                            image.id
                        ))
                    })?;
                    self.inner.layers.info(diff_id).map_or(0, |info| info.size)
                }
            };
            entries.push(HistoryEntry {
                id: "<missing>".into(),
                created: step.created.as_deref().map_or(0, seconds),
                created_by: step.created_by.clone().unwrap_or_default(),
                tags: Vec::new(),
                size,
                comment: step.comment.clone().unwrap_or_default(),
            });
        }
        entries.reverse();
        // The images that commits made on the way are known by their ids.
        let mut next = Some(image);
        for entry in &mut entries {
            let Some(image) = next else { break };
            entry.id = image.id.to_string();
            entry.tags = image.repo_tags.clone();
            next = image.parent.and_then(|parent| self.image(&parent));
        }
        Ok(entries)
    }

    pub fn usage(&self) -> Usage {
        let state = self.read();
        let mut layers: BTreeMap<Digest, LayerUsage> = BTreeMap::new();
        for known in state.images.values() {
            let distinct: BTreeSet<&Digest> = known.config.rootfs.diff_ids.iter().collect();
            for diff_id in distinct {
                let bytes = self.inner.layers.info(diff_id).map_or(0, |info| info.size);
                layers
                    .entry(*diff_id)
                    .or_insert(LayerUsage { diff_id: *diff_id, bytes, images: 0 })
                    .images += 1;
            }
        }
        let shared = |known: &Known| {
            let distinct: BTreeSet<&Digest> = known.config.rootfs.diff_ids.iter().collect();
            distinct
                .iter()
                .filter_map(|id| layers.get(id))
                .filter(|l| l.images > 1)
                .map(|l| l.bytes)
                .sum()
        };
        let images = state
            .images
            .iter()
            .map(|(id, known)| (*id, ImageUsage { size: known.size, shared: shared(known) }))
            .collect();
        let layers_bytes = layers.values().map(|layer| layer.bytes).sum();
        Usage { layers_bytes, images, layers: layers.into_values().collect() }
    }
}

impl State {
    fn image(&self, id: &Digest) -> Option<Image> {
        let known = self.images.get(id)?;
        let (repo_tags, repo_digests) = self.names.of(id);
        Some(Image {
            id: *id,
            config: (*known.config).clone(),
            size: known.size,
            repo_tags,
            repo_digests,
            parent: known.meta.parent,
            last_tagged: known.meta.last_tagged,
        })
    }

    fn children(&self, id: &Digest) -> Vec<Digest> {
        self.images
            .iter()
            .filter(|(_, known)| known.meta.parent == Some(*id))
            .map(|(id, _)| *id)
            .collect()
    }

    fn resolve(&self, name: &str) -> Result<Image> {
        let by_id = |id: Digest| self.image(&id).ok_or_else(|| Error::NoSuchImage(name.to_owned()));
        if let Ok(digest) = name.parse::<Digest>() {
            return by_id(digest);
        }
        if let Some(digest) = Digest::from_hex(name) {
            return by_id(digest);
        }
        let reference = Reference::parse(name);
        if let Ok(reference) = &reference
            && let Some(id) = self.names.get(reference)
        {
            return by_id(id);
        }
        if let Some(id) = self.by_prefix(name)? {
            return by_id(id);
        }
        Err(Error::NoSuchImage(reference?.or_latest().familiar()))
    }

    /// The one image whose id begins so.
    fn by_prefix(&self, name: &str) -> Result<Option<Digest>> {
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.is_empty()
            || prefix.len() > 64
            || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Ok(None);
        }
        let mut found = self.images.keys().filter(|id| id.hex().starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(Some(*id)),
            // Docker's index answers an ambiguous prefix as one that is not there.
            _ => Ok(None),
        }
    }
}

fn read_images(root: &Path, layers: &Arc<Layers>, state: &mut State) -> Result<()> {
    for entry in fs::read_dir(root).map_err(Error::file("read", root))? {
        let path = entry.map_err(Error::file("read", root))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(id) = Digest::from_hex(name) else {
            crate::layers::remove_logged(&path);
            continue;
        };
        let file = path.join("config.json");
        let raw = fs::read(&file).map_err(Error::file("read", &file))?;
        let meta =
            fs::read(path.join("meta.json")).ok().and_then(|raw| serde_json::from_slice(&raw).ok());
        let config = match Config::parse(&raw) {
            Ok(config) if Digest::of(&raw) == id => config,
            _ => {
                tracing::warn!(image = %id, "its configuration is damaged; the image is not used");
                continue;
            }
        };
        let held: Vec<Held> =
            config.rootfs.diff_ids.iter().filter_map(|diff_id| layers.hold(diff_id)).collect();
        if held.len() != config.rootfs.diff_ids.len() {
            tracing::warn!(image = %id, "a layer is missing; the image is not used");
            continue;
        }
        let size = held.iter().map(|held| held.info.size).sum();
        held.into_iter().for_each(Held::keep);
        state
            .images
            .insert(id, Known { config: Arc::new(config), meta: meta.unwrap_or_default(), size });
    }
    Ok(())
}

/// Finishes the removal, or undoes the beginning, of images that a crash caught without a name.
fn sweep_passing(
    root: &Path,
    state: &mut State,
    rootfs: &BTreeMap<String, crate::rootfs::Record>,
    layers: &Layers,
) -> Result<()> {
    let gone = |(id, known): (&Digest, &Known)| {
        let used = rootfs.values().any(|record| record.image() == *id);
        let nameless = state.names.all(id).is_empty() && state.children(id).is_empty();
        (known.meta.passing && nameless && !used).then_some(*id)
    };
    let gone: Vec<Digest> = state.images.iter().filter_map(gone).collect();
    for id in gone {
        remove_if_there(&root.join(id.hex()))?;
        if let Some(known) = state.images.remove(&id) {
            known.config.rootfs.diff_ids.iter().for_each(|diff_id| layers.release(diff_id));
        }
    }
    Ok(())
}

pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|cause| Error::System(format!("record: {cause}")))
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    crate::tree::remove(path).map_err(Error::file("remove", path))
}

/// An RFC 3339 time as seconds since 1970; 0 where it cannot be read.
pub(crate) fn seconds(text: &str) -> i64 {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map_or(0, |time| time.unix_timestamp())
}

//! `docker save` and `docker load`: one pass over the stream each way; a layer is never a file of its own on the way.
//!
//! Written is what Docker 25 writes (an OCI layout with `manifest.json`), which older Docker reads too; read is that, the
//! older form with `<id>/layer.tar`, and a bare OCI layout.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Meta, Store};
use crate::digest::Hashing;
use crate::layers::{Held, decompressed};
use crate::progress::Watched;
use crate::tarball::{Entry, Kind, RawSink, Reader, Writer};
use crate::unpack::clean;
use crate::{Digest, Error, Image, Progress, ProgressSender, Reference, Result, human};

/// Everything in the archive that is no layer is kept in memory up to here.
const RECORDS_BYTES_MAX: u64 = 64 << 20;
const RECORD_BYTES_MAX: u64 = 8 << 20;
const ENTRIES_MAX: usize = 100_000;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct OciIndex {
    manifests: Vec<OciDescriptor>,
}

#[derive(Clone, Deserialize)]
struct OciDescriptor {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct OciManifest {
    config: OciDescriptor,
    layers: Vec<OciDescriptor>,
}

/// What the archive held, by cleaned path.
#[derive(Default)]
struct Contents {
    records: BTreeMap<String, Vec<u8>>,
    layers: BTreeMap<String, Held>,
    links: BTreeMap<String, String>,
    bytes: u64,
}

impl Store {
    pub fn load(
        &self,
        tar: impl Read,
        quiet: bool,
        progress: &ProgressSender,
    ) -> Result<Vec<Arc<Image>>> {
        let mut contents = self.read_archive(decompressed(tar)?, quiet, progress)?;
        let items = contents.items()?;
        let mut images = Vec::new();
        for item in items {
            images.push(self.load_item(&mut contents, &item, progress)?);
        }
        Ok(images)
    }

    fn read_archive(
        &self,
        tar: impl Read,
        quiet: bool,
        progress: &ProgressSender,
    ) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut reader = Reader::new(tar, ());
        let mut entries = 0;
        while let Some(entry) = reader.next_entry().map_err(Error::stream("read archive"))? {
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(Error::Invalid(format!(
                    "the archive has more than {ENTRIES_MAX} entries"
                )));
            }
            let path =
                String::from_utf8_lossy(&clean(&entry.path).unwrap_or_default()).into_owned();
            match entry.kind {
                Kind::File => {
                    self.read_file(&mut contents, path, &entry, &mut reader, quiet, progress)?
                }
                Kind::Symlink | Kind::HardLink => {
                    let link = String::from_utf8_lossy(&entry.link).into_owned();
                    let base = if entry.kind == Kind::Symlink { parent(&path) } else { "" };
                    let target = clean(format!("{base}/{link}").as_bytes()).unwrap_or_default();
                    contents.links.insert(path, String::from_utf8_lossy(&target).into_owned());
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    fn read_file<R: Read, S: RawSink>(
        &self,
        contents: &mut Contents,
        path: String,
        entry: &Entry,
        reader: &mut Reader<R, S>,
        quiet: bool,
        progress: &ProgressSender,
    ) -> Result<()> {
        let mut content = Content { reader, left: entry.size };
        let mut head = Vec::new();
        content.by_ref().take(512).read_to_end(&mut head).map_err(Error::stream("read archive"))?;
        if !is_layer(&path, &head) {
            contents.bytes += entry.size;
            if entry.size > RECORD_BYTES_MAX || contents.bytes > RECORDS_BYTES_MAX {
                return Err(Error::Invalid(format!(
                    "{path}: {} is neither a layer nor small enough to be a record",
                    human(entry.size)
                )));
            }
            content.read_to_end(&mut head).map_err(Error::stream("read archive"))?;
            contents.records.insert(path, head);
            return Ok(());
        }
        let shown =
            path.rsplit('/').find(|part| part.len() >= 12 && !part.contains('.')).unwrap_or(&path);
        let shown: String = shown.chars().take(12).collect();
        let bar = if quiet { ProgressSender::nobody() } else { progress.clone() };
        let whole = Cursor::new(head).chain(content);
        let watched = Watched::new(whole, entry.size, shown, "Loading layer", bar);
        let mut blob = Hashing::new(watched);
        let layer = self.inner.layers.register(decompressed(&mut blob)?)?;
        io::copy(&mut blob, &mut io::sink()).map_err(Error::stream("read archive"))?;
        let (_, digest, _) = blob.finish();
        if let Some(named) = path.strip_prefix("blobs/sha256/")
            && named != digest.hex()
        {
            return Err(Error::Invalid(format!(
                "{path}: its content is {digest}; the archive is damaged"
            )));
        }
        contents.layers.insert(path, layer);
        Ok(())
    }

    fn load_item(
        &self,
        contents: &mut Contents,
        item: &ManifestItem,
        progress: &ProgressSender,
    ) -> Result<Arc<Image>> {
        let missing =
            |what: &str| Error::Invalid(format!("the archive names {what} but does not hold it"));
        let raw = contents.records.get(&contents.at(&item.config)).cloned();
        let raw = raw.ok_or_else(|| missing(&item.config))?;
        let mut held = Vec::new();
        for layer in item.layers.iter().flatten() {
            let found = contents.layers.get(&contents.at(layer)).ok_or_else(|| missing(layer))?;
            held.push(self.inner.layers.hold(&found.info.diff_id).ok_or_else(|| missing(layer))?);
        }
        let tags = item.repo_tags.clone().unwrap_or_default();
        let meta = Meta { passing: !tags.is_empty(), ..Meta::default() };
        let id = self.create(&raw, held, meta)?;
        for tag in &tags {
            let reference = Reference::parse(tag)?.or_latest();
            let before = self.read().names.get(&reference);
            if let Some(before) = before.filter(|before| *before != id) {
                progress.send_blocking(Progress::stream(format!(
                    "The image {} already exists, renaming the old one with ID {before} to empty string\n",
                    reference.familiar()
                )));
            }
            self.tag(&id, &reference)?;
            progress.send_blocking(Progress::stream(format!(
                "Loaded image: {}\n",
                reference.familiar()
            )));
        }
        if tags.is_empty() {
            progress.send_blocking(Progress::stream(format!("Loaded image ID: {id}\n")));
        }
        self.image(&id).ok_or_else(|| Error::NoSuchImage(id.to_string()))
    }

    /// Every named image with the tags it was named by; an id takes no tags along.
    pub fn save(&self, names: &[String], out: impl Write) -> Result<()> {
        let mut images: BTreeMap<Digest, (Arc<Image>, Vec<Reference>)> = BTreeMap::new();
        for name in names {
            for (image, tag) in self.meant(name)? {
                let (_, tags) = images.entry(image.id).or_insert_with(|| (image, Vec::new()));
                tags.extend(tag);
            }
        }
        let mut writer = Writer::new(out);
        self.write_archive(&mut writer, &images)?;
        writer.finish().map_err(Error::stream("write archive"))?;
        Ok(())
    }

    /// A name without a tag means every tag of its repository, in `docker save`.
    fn meant(&self, name: &str) -> Result<Vec<(Arc<Image>, Option<Reference>)>> {
        let parsed = Reference::parse(name).ok();
        let bare = parsed.as_ref().filter(|it| it.tag().is_none() && it.digest().is_none());
        let tagged = bare.map(|bare| self.read().names.tags(bare)).unwrap_or_default();
        if !tagged.is_empty() {
            let known = |(tag, id)| Some((self.image(&id)?, Some(tag)));
            return Ok(tagged.into_iter().filter_map(known).collect());
        }
        let image = self.resolve(name)?;
        // What is no name of an image was the beginning of its id.
        let tag = parsed.filter(|it| it.tag().is_some() && self.read().names.get(it).is_some());
        Ok(vec![(image, tag)])
    }

    fn write_archive(
        &self,
        writer: &mut Writer<impl Write>,
        images: &BTreeMap<Digest, (Arc<Image>, Vec<Reference>)>,
    ) -> Result<()> {
        for directory in ["blobs/", "blobs/sha256/"] {
            let entry = Entry {
                path: directory.into(),
                kind: Kind::Directory,
                mode: 0o755,
                ..Entry::default()
            };
            writer.entry(&entry).map_err(Error::stream("write archive"))?;
        }
        let (mut items, mut descriptors) = (Vec::new(), Vec::new());
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut written = std::collections::BTreeSet::new();
        for (id, (image, tags)) in images {
            let raw = self.config_bytes(id)?;
            let layers = self.write_layers(writer, image, &mut written)?;
            let manifest = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": raw.len() },
                "layers": layers,
            });
            let manifest = super::json(&manifest)?;
            write_blob(writer, &mut written, &raw)?;
            write_blob(writer, &mut written, &manifest)?;
            descriptors.extend(index_entries(&manifest, tags));
            for tag in tags {
                let top = image.config.rootfs.diff_ids.last().map(Digest::hex).unwrap_or_default();
                let tag_name = tag.tag().unwrap_or_default().to_owned();
                repositories.entry(tag.familiar_name()).or_default().insert(tag_name, top);
            }
            items.push(ManifestItem {
                config: format!("blobs/sha256/{}", id.hex()),
                repo_tags: Some(tags.iter().map(Reference::familiar).collect()),
                layers: Some(
                    image
                        .config
                        .rootfs
                        .diff_ids
                        .iter()
                        .map(|id| format!("blobs/sha256/{}", id.hex()))
                        .collect(),
                ),
            });
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": descriptors,
        });
        write_file(writer, "index.json", &super::json(&index)?)?;
        write_file(writer, "manifest.json", &super::json(&items)?)?;
        write_file(writer, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        match repositories.is_empty() {
            true => Ok(()),
            false => write_file(writer, "repositories", &super::json(&repositories)?),
        }
    }

    /// The image's layers that are not written yet; gives the descriptors of all.
    fn write_layers(
        &self,
        writer: &mut Writer<impl Write>,
        image: &Image,
        written: &mut std::collections::BTreeSet<Digest>,
    ) -> Result<Vec<serde_json::Value>> {
        let mut layers = Vec::new();
        for diff_id in &image.config.rootfs.diff_ids {
            let held = self
                .inner
                .layers
                .hold(diff_id)
                .ok_or_else(|| Error::NoSuchImage(image.id.to_string()))?;
            if written.insert(*diff_id) {
                self.write_layer(writer, &held)?;
            }
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id, "size": held.info.tar_size,
            }));
        }
        Ok(layers)
    }

    fn write_layer(&self, writer: &mut Writer<impl Write>, held: &Held) -> Result<()> {
        let (mut from, to) = io::pipe().map_err(Error::stream("make a pipe"))?;
        std::thread::scope(|scope| {
            let info = held.info;
            let reading = scope.spawn(move || {
                self.inner
                    .layers
                    .write_tar(&info.diff_id, io::BufWriter::with_capacity(64 << 10, to))
            });
            let entry = file_entry(&format!("blobs/sha256/{}", info.diff_id.hex()), info.tar_size);
            let wrote = writer.file(&entry, &mut from).map_err(Error::stream("write archive"));
            drop(from);
            let read =
                reading.join().map_err(|_| Error::System("reading a layer failed".into()))?;
            wrote.and(read)
        })
    }
}

fn index_entries(manifest: &[u8], tags: &[Reference]) -> Vec<serde_json::Value> {
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(manifest), "size": manifest.len(),
    });
    if tags.is_empty() {
        return vec![entry];
    }
    tags.iter()
        .map(|tag| {
            let mut entry = entry.clone();
            entry["annotations"] = json!({
                "io.containerd.image.name": tag.to_string(),
                "org.opencontainers.image.ref.name": tag.tag().unwrap_or_default(),
            });
            entry
        })
        .collect()
}

fn file_entry(path: &str, size: u64) -> Entry {
    Entry { path: path.into(), mode: 0o644, size, ..Entry::default() }
}

fn write_file(writer: &mut Writer<impl Write>, path: &str, content: &[u8]) -> Result<()> {
    writer
        .file(&file_entry(path, content.len() as u64), &mut Cursor::new(content))
        .map_err(Error::stream("write archive"))
}

fn write_blob(
    writer: &mut Writer<impl Write>,
    written: &mut std::collections::BTreeSet<Digest>,
    content: &[u8],
) -> Result<()> {
    let digest = Digest::of(content);
    match written.insert(digest) {
        true => write_file(writer, &format!("blobs/sha256/{}", digest.hex()), content),
        false => Ok(()),
    }
}

impl Contents {
    /// Follows the archive's own links, a few steps.
    fn at(&self, path: &str) -> String {
        let mut path =
            String::from_utf8_lossy(&clean(path.as_bytes()).unwrap_or_default()).into_owned();
        for _ in 0..8 {
            match self.links.get(&path) {
                Some(target) => path = target.clone(),
                None => break,
            }
        }
        path
    }

    fn items(&self) -> Result<Vec<ManifestItem>> {
        let broken =
            |what: &str, cause: serde_json::Error| Error::Invalid(format!("{what}: {cause}"));
        if let Some(raw) = self.records.get("manifest.json") {
            return serde_json::from_slice(raw).map_err(|cause| broken("manifest.json", cause));
        }
        let Some(raw) = self.records.get("index.json") else {
            return Err(Error::Invalid(
                "the archive is no image: it has neither manifest.json nor index.json (docker import takes a plain tar)".into(),
            ));
        };
        let index: OciIndex =
            serde_json::from_slice(raw).map_err(|cause| broken("index.json", cause))?;
        index.manifests.iter().map(|descriptor| self.oci_item(descriptor, 0)).collect()
    }

    fn oci_item(&self, descriptor: &OciDescriptor, depth: usize) -> Result<ManifestItem> {
        let path = blob_path(&descriptor.digest);
        let raw = self
            .records
            .get(&path)
            .ok_or_else(|| Error::Invalid(format!("{path} is missing in the archive")))?;
        if Digest::of(raw).to_string() != descriptor.digest {
            return Err(Error::Invalid(format!("{path}: the archive is damaged")));
        }
        if let Ok(index) = serde_json::from_slice::<OciIndex>(raw)
            && depth < 2
        {
            // An index of platforms: those of others are mostly not in the archive.
            let mut items =
                index.manifests.iter().filter_map(|inner| self.oci_item(inner, depth + 1).ok());
            let item = items
                .next()
                .ok_or_else(|| Error::Invalid(format!("{path}: no platform is in the archive")))?;
            return Ok(ManifestItem { repo_tags: names(descriptor), ..item });
        }
        let manifest: OciManifest = serde_json::from_slice(raw)
            .map_err(|cause| Error::Invalid(format!("{path}: {cause}")))?;
        Ok(ManifestItem {
            config: blob_path(&manifest.config.digest),
            repo_tags: names(descriptor),
            layers: Some(manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect()),
        })
    }
}

fn names(descriptor: &OciDescriptor) -> Option<Vec<String>> {
    descriptor.annotations.get("io.containerd.image.name").map(|name| vec![name.clone()])
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A tar, packed or not; everything else in an archive is JSON or a word.
fn is_layer(path: &str, head: &[u8]) -> bool {
    let packed = head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let tar = head.len() == 512
        && (head[257..].starts_with(b"ustar") || head.iter().all(|&byte| byte == 0));
    packed || tar || path.ends_with("layer.tar")
}

/// The present entry's content as a reader.
struct Content<'a, R, S> {
    reader: &'a mut Reader<R, S>,
    left: u64,
}

impl<R: Read, S: RawSink> Read for Content<'_, R, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read_payload(buffer)?;
        self.left -= count as u64;
        Ok(count)
    }
}

//! `docker pull`: manifest, configuration, layers side by side, each verified before it is unpacked; and what a registry
//! tells without pulling.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LINK, RANGE};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{Refusal, Session, chain, headers, limited};
use super::manifest::{self, Descriptor, MANIFEST_BYTES_MAX, Manifest};
use super::{Credentials, Distribution};
use crate::layers::{Held, decompressed};
use crate::progress::Watched;
use crate::store::Meta;
use crate::{
    Config, Digest, Error, Image, Kind, Platform, Progress, ProgressSender, Reference, Result,
    Store,
};

/// Docker's growing wait between tries.
const WAIT_SECONDS_STEP: u32 = 5;
const TAGS_MAX: usize = 10_000;

struct Fetched {
    raw: Vec<u8>,
    content_type: String,
    digest: Digest,
}

impl Store {
    /// Pulls one reference (`latest` when it has neither tag nor digest), or every tag of a repository.
    pub async fn pull(
        &self,
        reference: &Reference,
        all_tags: bool,
        platform: &Platform,
        credentials: Option<&Credentials>,
        progress: &ProgressSender,
    ) -> Result<Option<Arc<Image>>> {
        let reference = &match all_tags {
            true => reference.clone(),
            false => reference.clone().or_latest(),
        };
        let reach = self.reach();
        let client = reach.client()?;
        let mut last = None;
        for endpoint in client.endpoints(reference, false) {
            let mirror = endpoint.mirror;
            let session = Session::new(client, endpoint, reference.path(), credentials, "pull");
            let result = match all_tags {
                true => self.pull_all(&session, reference, platform, progress).await,
                false => self.pull_one(&session, reference, platform, progress).await.map(Some),
            };
            match result {
                Err(error) if mirror || error.kind() == Kind::Unavailable => last = Some(error),
                result => return result.map_err(as_system),
            }
        }
        Err(last
            .map_or_else(|| Error::Unavailable("no endpoint for this registry".into()), as_system))
    }

    async fn pull_all(
        &self,
        session: &Session<'_>,
        reference: &Reference,
        platform: &Platform,
        progress: &ProgressSender,
    ) -> Result<Option<Arc<Image>>> {
        let mut image = None;
        for tag in tags(session, reference).await? {
            image =
                Some(self.pull_one(session, &reference.with_tag(&tag)?, platform, progress).await?);
        }
        Ok(image)
    }

    async fn pull_one(
        &self,
        session: &Session<'_>,
        reference: &Reference,
        platform: &Platform,
        progress: &ProgressSender,
    ) -> Result<Arc<Image>> {
        let target = suffix(reference);
        let root = fetch_manifest(session, reference, &target).await?;
        if reference.digest().is_some_and(|wanted| wanted != root.digest) {
            return Err(Error::System(format!("manifest verification failed for digest {target}")));
        }
        let (config, layers) = match Manifest::parse(&root.raw, &root.content_type)? {
            Manifest::Image { config, layers } => (config, layers),
            Manifest::Index(entries) => {
                let chosen = manifest::choose(&entries, platform)?;
                let inner = fetch_manifest(session, reference, &chosen.digest.to_string()).await?;
                if inner.digest != chosen.digest {
                    return Err(Error::System(format!(
                        "manifest verification failed for digest {}",
                        chosen.digest
                    )));
                }
                match Manifest::parse(&inner.raw, &inner.content_type)? {
                    Manifest::Image { config, layers } => (config, layers),
                    Manifest::Index(_) => {
                        return Err(Error::Invalid("a manifest list names a manifest list".into()));
                    }
                }
            }
        };
        progress.send(Progress::of(&target, format!("Pulling from {}", reference.path()))).await;
        let by_digest = reference.without_suffix().with_digest(root.digest);
        let (id, news) = match self.image(&config.digest) {
            Some(image) => {
                let newly = self.read_name(reference) != Some(image.id);
                (image.id, newly)
            }
            None => {
                (self.pull_content(session, reference, &config, &layers, progress).await?, true)
            }
        };
        let (store, name) = (self.clone(), reference.clone());
        let tagged = name.tag().is_some() && name.digest().is_none();
        blocking(move || {
            store
                .tag(&id, &by_digest)
                .and_then(|()| if tagged { store.tag(&id, &name) } else { Ok(()) })
        })
        .await?;
        let status = if news { "Downloaded newer image" } else { "Image is up to date" };
        progress.send(Progress::status(format!("Digest: {}", root.digest))).await;
        progress
            .send(Progress::status(format!("Status: {status} for {}", reference.familiar())))
            .await;
        self.image(&id).ok_or_else(|| Error::NoSuchImage(id.to_string()))
    }

    async fn pull_content(
        &self,
        session: &Session<'_>,
        reference: &Reference,
        config: &Descriptor,
        layers: &[Descriptor],
        progress: &ProgressSender,
    ) -> Result<Digest> {
        for layer in layers {
            progress.send(Progress::of(layer.digest.short(), "Pulling fs layer")).await;
        }
        let raw = fetch_config(session, config).await?;
        let parsed = Config::parse(&raw)?;
        if parsed.rootfs.diff_ids.len() != layers.len() {
            return Err(Error::System(
                "layers from manifest don't match image configuration".into(),
            ));
        }
        let seen = format!("{}/{}", reference.domain(), reference.path());
        let pulls = layers.iter().zip(&parsed.rootfs.diff_ids);
        let pulls = pulls
            .map(|(layer, diff_id)| self.pull_layer(session, layer, *diff_id, &seen, progress));
        let held = try_join_all(pulls).await?;
        let store = self.clone();
        blocking(move || store.create(&raw, held, Meta::passing())).await
    }

    async fn pull_layer(
        &self,
        session: &Session<'_>,
        layer: &Descriptor,
        diff_id: Digest,
        seen: &str,
        progress: &ProgressSender,
    ) -> Result<Held> {
        let short = layer.digest.short();
        let turn = self.inner.blobs.turn(&layer.digest);
        let _mine = turn.lock().await;
        if let Some(held) = self.inner.layers.hold(&diff_id) {
            progress.send(Progress::of(short, "Already exists")).await;
            return Ok(held);
        }
        let path = self.inner.root.join("download").join(layer.digest.hex());
        {
            let reach = self.reach();
            let _permit = match reach.downloads.try_acquire() {
                Ok(permit) => permit,
                Err(_) => {
                    progress.send(Progress::of(&short, "Waiting")).await;
                    let turn = reach.downloads.acquire().await;
                    turn.map_err(|_| Error::System("the store is closed".into()))?
                }
            };
            download(session, layer, &path, reach.options.attempts(), progress).await?;
        }
        tracing::trace!(target: "step", "layer downloaded");
        progress.send(Progress::of(&short, "Download complete")).await;
        let (store, told, size, file) = (self.clone(), progress.clone(), layer.size, path.clone());
        let (digest, seen) = (layer.digest, seen.to_owned());
        let held = blocking(move || {
            let from = std::fs::File::open(&file).map_err(Error::file("open", &file))?;
            let watched = Watched::new(from, size, digest.short(), "Extracting", told);
            let held = store.inner.layers.register(decompressed(watched)?)?;
            std::fs::remove_file(&file).map_err(Error::file("remove", &file))?;
            tracing::trace!(target: "step", "download removed");
            store.inner.blobs.seen(digest, size, held.info.diff_id, &seen)?;
            tracing::trace!(target: "step", "blob noted");
            Ok(held)
        })
        .await?;
        progress.send(Progress::of(short, "Pull complete")).await;
        Ok(held)
    }

    /// What a registry says about a name, without pulling it.
    pub async fn distribution(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Distribution> {
        let reach = self.reach();
        let client = reach.client()?;
        let mut last = None;
        for endpoint in client.endpoints(reference, false) {
            let session = Session::new(client, endpoint, reference.path(), credentials, "pull");
            match describe(&session, reference).await {
                Err(error) if session.endpoint.mirror || error.kind() == Kind::Unavailable => {
                    last = Some(error)
                }
                result => return result,
            }
        }
        Err(last
            .map_or_else(|| Error::Unavailable("no endpoint for this registry".into()), as_system))
    }

    /// Checks a login; the text is the registry's greeting.
    pub async fn login(&self, credentials: &Credentials) -> Result<String> {
        let reach = self.reach();
        let client = reach.client()?;
        let address = credentials.server_address.trim_end_matches('/');
        let host = address.split_once("://").map_or(address, |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        let hub = host.is_empty() || host == "index.docker.io" || host == "docker.io";
        let name = if hub { "x".to_owned() } else { format!("{host}/x") };
        let mut last = Error::Unavailable("no endpoint for this registry".into());
        for endpoint in client.endpoints(&Reference::parse(&name)?, true) {
            let url = format!("{}/v2/", endpoint.base);
            let session = Session::new(client, endpoint, "", Some(credentials), "");
            let mut ask = session.get("", HeaderMap::new());
            ask.url.clone_from(&url);
            match session.send(&ask).await {
                Ok(response) if response.status().is_success() => {
                    return Ok("Login Succeeded".into());
                }
                Ok(response) => {
                    let refusal = Refusal::read(response).await;
                    let text =
                        format!("login attempt to {url} failed with status: {}", refusal.status);
                    return Err(match refusal.status {
                        StatusCode::UNAUTHORIZED => Error::Unauthorized(text),
                        _ => Error::System(text),
                    });
                }
                Err(error) if error.kind() == Kind::Unavailable => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(as_system(last))
    }
}

/// dockerd answers an unreachable registry with 500; 503 would say that the daemon itself is not
/// ready. A registry's 401 is a 500 too, as 401 would make the client ask its user for a login, and
/// so is what a registry sends and cannot be read.
pub(super) fn as_system(error: Error) -> Error {
    match error {
        Error::Unavailable(text) | Error::Unauthorized(text) | Error::Invalid(text) => {
            Error::System(text)
        }
        error => error,
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|cause| Error::System(format!("the work ended early: {cause}")))?
}

fn suffix(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        (None, None) => "latest".into(),
    }
}

async fn fetch_manifest(
    session: &Session<'_>,
    reference: &Reference,
    target: &str,
) -> Result<Fetched> {
    let accepted = [
        manifest::DOCKER_MANIFEST,
        manifest::DOCKER_LIST,
        manifest::OCI_MANIFEST,
        manifest::OCI_INDEX,
    ];
    let ask =
        session.get(&format!("manifests/{target}"), headers(&[(ACCEPT, &accepted.join(", "))]));
    let response = session.send(&ask).await?;
    if !response.status().is_success() {
        return Err(refused(Refusal::read(response).await, reference));
    }
    let content_type = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
    let raw = limited(response, MANIFEST_BYTES_MAX, "a manifest").await?;
    Ok(Fetched { digest: Digest::of(&raw), content_type, raw })
}

/// A refusal in the words of dockerd's translatePullError.
fn refused(refusal: Refusal, reference: &Reference) -> Error {
    let text = refusal.text();
    match refusal.code.as_str() {
        "DENIED" => Error::NotFound(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login': {text}",
            reference.familiar_name()
        )),
        "MANIFEST_UNKNOWN" => {
            Error::NotFound(format!("manifest for {} not found: {text}", reference.familiar()))
        }
        "NAME_UNKNOWN" => {
            Error::NotFound(format!("repository {} not found: {text}", reference.familiar_name()))
        }
        _ if refusal.status == StatusCode::NOT_FOUND => {
            Error::NotFound(format!("manifest for {} not found: {text}", reference.familiar()))
        }
        _ => Error::System(text),
    }
}

async fn fetch_config(session: &Session<'_>, config: &Descriptor) -> Result<Vec<u8>> {
    let response =
        session.send(&session.get(&format!("blobs/{}", config.digest), HeaderMap::new())).await?;
    if !response.status().is_success() {
        return Err(Error::System(Refusal::read(response).await.text()));
    }
    let raw =
        limited(response, crate::config::CONFIG_BYTES_MAX, "an image's configuration").await?;
    match Digest::of(&raw) == config.digest {
        true => Ok(raw),
        false => Err(Error::System(format!(
            "image config verification failed for digest {}",
            config.digest
        ))),
    }
}

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

async fn tags(session: &Session<'_>, reference: &Reference) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut ask = session.get("tags/list", HeaderMap::new());
    loop {
        let response = session.send(&ask).await?;
        if !response.status().is_success() {
            return Err(refused(Refusal::read(response).await, reference));
        }
        let next = response.headers().get(LINK).and_then(|link| next_page(link.to_str().ok()?));
        let raw = limited(response, MANIFEST_BYTES_MAX, "a list of tags").await?;
        let list: TagList = serde_json::from_slice(&raw)
            .map_err(|cause| Error::System(format!("tag list: {cause}")))?;
        found.extend(list.tags.unwrap_or_default());
        match next {
            Some(path) if found.len() < TAGS_MAX && path.starts_with("/v2/") => {
                ask.url = format!("{}{path}", session.endpoint.base);
            }
            _ => return Ok(found),
        }
    }
}

/// `</v2/x/tags/list?n=100&last=b>; rel="next"`
fn next_page(link: &str) -> Option<String> {
    let (path, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| path.to_owned())
}

/// A layer's blob into a file, going on where an earlier try stopped.
async fn download(
    session: &Session<'_>,
    layer: &Descriptor,
    path: &Path,
    tries_max: usize,
    progress: &ProgressSender,
) -> Result<()> {
    let short = layer.digest.short();
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match download_once(session, layer, path, progress).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.kind() != Kind::Unavailable || tries as usize >= tries_max {
            return Err(as_system(error));
        }
        tracing::debug!(layer = %layer.digest, %error, "download broke off");
        for seconds in (1..=WAIT_SECONDS_STEP * tries).rev() {
            let plural = if seconds == 1 { "" } else { "s" };
            progress
                .send(Progress::of(&short, format!("Retrying in {seconds} second{plural}")))
                .await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A blob on its way into a file: what is there, and its digest so far.
struct Part {
    file: tokio::fs::File,
    hashing: ring::digest::Context,
    have: u64,
}

impl Part {
    async fn open(path: &Path, size: u64) -> std::io::Result<Self> {
        let mut options = tokio::fs::OpenOptions::new();
        let mut file =
            options.create(true).truncate(false).read(true).write(true).open(path).await?;
        let mut hashing = ring::digest::Context::new(&ring::digest::SHA256);
        let have = hash_so_far(&mut file, &mut hashing).await?;
        let mut part = Self { file, hashing, have };
        if have >= size && size > 0 {
            part.restart().await?;
        }
        Ok(part)
    }

    async fn restart(&mut self) -> std::io::Result<()> {
        use tokio::io::AsyncSeekExt;
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        (self.hashing, self.have) = (ring::digest::Context::new(&ring::digest::SHA256), 0);
        Ok(())
    }
}

async fn download_once(
    session: &Session<'_>,
    layer: &Descriptor,
    path: &Path,
    progress: &ProgressSender,
) -> Result<()> {
    let at = |what: &'static str| Error::file(what, path);
    let mut part = Part::open(path, layer.size).await.map_err(at("open"))?;
    let range = format!("bytes={}-", part.have);
    let wanted = if part.have > 0 { headers(&[(RANGE, &range)]) } else { HeaderMap::new() };
    let response = session.send(&session.get(&format!("blobs/{}", layer.digest), wanted)).await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::OK => part.restart().await.map_err(at("truncate"))?,
        _ => {
            let refusal = Refusal::read(response).await;
            let text = refusal.text();
            return Err(if refusal.may_pass() {
                Error::Unavailable(text)
            } else {
                Error::System(text)
            });
        }
    }
    // A connection that breaks is an error here; one that ends too early by itself sends something
    // else than was promised, and would again.
    let part = receive(response, part, layer, path, progress).await?;
    progress.send(Progress::of(layer.digest.short(), "Verifying Checksum")).await;
    if part.have != layer.size
        || Digest::from_bytes(part.hashing.finish().as_ref()) != Some(layer.digest)
    {
        let _ = tokio::fs::remove_file(path).await;
        return Err(mismatch(layer));
    }
    Ok(())
}

/// Writes what comes; a break keeps what came, more than was promised ends it.
async fn receive(
    mut response: reqwest::Response,
    part: Part,
    layer: &Descriptor,
    path: &Path,
    progress: &ProgressSender,
) -> Result<Part> {
    let Part { file, mut hashing, mut have } = part;
    let short = layer.digest.short();
    let mut file = tokio::io::BufWriter::with_capacity(512 << 10, file);
    let (mut told, mut broken) = (0, None);
    while have <= layer.size {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(cause) => {
                broken =
                    Some(Error::Unavailable(format!("layer {}: {}", layer.digest, chain(&cause))));
                break;
            }
        };
        hashing.update(&chunk);
        file.write_all(&chunk).await.map_err(Error::file("write", path))?;
        have += chunk.len() as u64;
        if have - told > (layer.size / 50).max(256 << 10) || have == layer.size {
            told = have;
            progress.offer(Progress::bar(&short, "Downloading", have, layer.size));
        }
    }
    file.flush().await.map_err(Error::file("write", path))?;
    match broken {
        Some(error) => Err(error),
        None => Ok(Part { file: file.into_inner(), hashing, have }),
    }
}

fn mismatch(layer: &Descriptor) -> Error {
    Error::System(format!("filesystem layer verification failed for digest {}", layer.digest))
}

async fn hash_so_far(
    file: &mut tokio::fs::File,
    hashing: &mut ring::digest::Context,
) -> std::io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            return Ok(total);
        }
        hashing.update(&buffer[..count]);
        total += count as u64;
    }
}

async fn describe(session: &Session<'_>, reference: &Reference) -> Result<Distribution> {
    let fetched = fetch_manifest(session, reference, &suffix(reference)).await?;
    if reference.digest().is_some_and(|wanted| wanted != fetched.digest) {
        return Err(Error::System(format!(
            "manifest verification failed for digest {}",
            suffix(reference)
        )));
    }
    let platforms = match Manifest::parse(&fetched.raw, &fetched.content_type)? {
        Manifest::Index(entries) => entries
            .into_iter()
            .filter_map(|entry| entry.platform)
            .map(|platform| Platform {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant,
            })
            .collect(),
        Manifest::Image { config, .. } => {
            let config = Config::parse(&fetch_config(session, &config).await?)?;
            let variant = config.variant.unwrap_or_default();
            vec![Platform { os: config.os, architecture: config.architecture, variant }]
        }
    };
    Ok(Distribution {
        media_type: fetched.content_type,
        digest: fetched.digest.to_string(),
        size: fetched.raw.len() as u64,
        platforms,
    })
}

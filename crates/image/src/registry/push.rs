//! `docker push`: layers the registry does not have, packed on the way, then configuration and manifest.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::Credentials;
use super::client::{Ask, Refusal, Session, headers};
use super::manifest::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST};
use super::pull::{as_system, blocking};
use crate::digest::Hashing;
use crate::{Digest, Error, Image, Kind, Progress, ProgressSender, Reference, Result, Store};

/// Packed chunks that wait for the network.
const CHUNKS_QUEUED_MAX: usize = 16;
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Clone, Copy)]
struct Sent {
    digest: Digest,
    size: u64,
}

impl Store {
    pub async fn push(
        &self,
        reference: &Reference,
        all_tags: bool,
        credentials: Option<&Credentials>,
        progress: &ProgressSender,
    ) -> Result<()> {
        let tags = match all_tags {
            true => self.repository_tags(reference),
            false => self
                .read_name(reference)
                .map(|id| (reference.clone().or_latest(), id))
                .into_iter()
                .collect(),
        };
        progress
            .send(Progress::status(format!("The push refers to repository [{}]", reference.name())))
            .await;
        if tags.is_empty() {
            // dockerd's words: the repository is not here at all, or only the tag.
            return Err(Error::NotFound(match self.repository_tags(reference).is_empty() {
                true => format!(
                    "An image does not exist locally with the tag: {}",
                    reference.familiar_name()
                ),
                false => format!("tag does not exist: {}", reference.familiar()),
            }));
        }
        let reach = self.reach();
        let client = reach.client()?;
        let mut last = Error::Unavailable("no endpoint for this registry".into());
        for endpoint in client.endpoints(reference, true) {
            let session =
                Session::new(client, endpoint, reference.path(), credentials, "pull,push");
            // The login is learned before anything is streamed.
            let mut greeting = session.get("", HeaderMap::new());
            greeting.url = format!("{}/v2/", session.endpoint.base);
            match session.send(&greeting).await {
                Err(error) if error.kind() == Kind::Unavailable => last = error,
                Err(error) => return Err(as_system(error)),
                Ok(_) => {
                    for (name, id) in tags {
                        let image =
                            self.image(&id).ok_or_else(|| Error::NoSuchImage(id.to_string()))?;
                        self.push_one(&session, &name, &image, progress).await?;
                    }
                    return Ok(());
                }
            }
        }
        Err(as_system(last))
    }

    async fn push_one(
        &self,
        session: &Session<'_>,
        name: &Reference,
        image: &Image,
        progress: &ProgressSender,
    ) -> Result<()> {
        let diff_ids = &image.config.rootfs.diff_ids;
        for diff_id in diff_ids {
            progress.send(Progress::of(diff_id.short(), "Preparing")).await;
        }
        let sent: Vec<Result<Sent>> = futures_util::stream::iter(diff_ids.clone())
            .map(|diff_id| self.push_layer(session, name, diff_id, progress))
            .buffered(self.reach().options.uploads())
            .collect()
            .await;
        let sent = sent.into_iter().collect::<Result<Vec<Sent>>>()?;
        let (store, id) = (self.clone(), image.id);
        let config = blocking(move || store.config_bytes(&id)).await?;
        push_small(session, &config, image.id).await?;
        let layers: Vec<_> = sent
            .iter()
            .map(|sent| json!({ "mediaType": DOCKER_LAYER, "size": sent.size, "digest": sent.digest }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": { "mediaType": DOCKER_CONFIG, "size": config.len(), "digest": image.id },
            "layers": layers,
        });
        let raw = serde_json::to_vec_pretty(&manifest)
            .map_err(|cause| Error::System(format!("manifest: {cause}")))?;
        let tag = name.tag().unwrap_or_default();
        let ask = Ask {
            method: Method::PUT,
            url: session.url(&format!("manifests/{tag}")),
            headers: headers(&[(CONTENT_TYPE, DOCKER_MANIFEST)]),
            body: Some(&raw),
        };
        expect(session.send(&ask).await?).await?;
        let digest = Digest::of(&raw);
        let (store, id, by_digest) = (self.clone(), image.id, name.with_digest(digest));
        blocking(move || store.tag(&id, &by_digest)).await?;
        progress
            .send(Progress::status(format!("{tag}: digest: {digest} size: {}", raw.len())))
            .await;
        let aux = json!({ "Tag": tag, "Digest": digest, "Size": raw.len() });
        progress
            .send(Progress {
                detail: Some(Default::default()),
                aux: Some(aux),
                ..Progress::default()
            })
            .await;
        Ok(())
    }

    async fn push_layer(
        &self,
        session: &Session<'_>,
        name: &Reference,
        diff_id: Digest,
        progress: &ProgressSender,
    ) -> Result<Sent> {
        let held = self.inner.layers.hold(&diff_id);
        let held =
            held.ok_or_else(|| Error::System(format!("layer {diff_id} is missing on this host")))?;
        let here = format!("{}/{}", name.domain(), name.path());
        let same_registry = format!("{}/", name.domain());
        for blob in self.inner.blobs.of_layer(&diff_id) {
            let sent = Sent { digest: blob.digest, size: blob.size };
            if exists(session, &blob.digest).await? {
                progress.send(Progress::of(diff_id.short(), "Layer already exists")).await;
                return Ok(sent);
            }
            let others =
                blob.repositories.iter().filter_map(|seen| seen.strip_prefix(&same_registry));
            for from in others.filter(|from| *from != name.path()) {
                if mount(session, &blob.digest, from).await? {
                    progress
                        .send(Progress::of(diff_id.short(), format!("Mounted from {from}")))
                        .await;
                    self.inner.blobs.seen(blob.digest, blob.size, diff_id, &here)?;
                    return Ok(sent);
                }
            }
        }
        let sent = self.upload(session, diff_id, held.info.tar_size, progress).await?;
        self.inner.blobs.seen(sent.digest, sent.size, diff_id, &here)?;
        progress.send(Progress::of(diff_id.short(), "Pushed")).await;
        Ok(sent)
    }

    /// Packs and sends at once; the digest is known at the end.
    async fn upload(
        &self,
        session: &Session<'_>,
        diff_id: Digest,
        tar_size: u64,
        progress: &ProgressSender,
    ) -> Result<Sent> {
        let location = start_upload(session).await?;
        let (chunks, receiver) = tokio::sync::mpsc::channel(CHUNKS_QUEUED_MAX);
        let packed: Arc<Mutex<Option<Result<Sent>>>> = Arc::default();
        let (store, result, told) = (self.clone(), packed.clone(), progress.clone());
        let packing = tokio::task::spawn_blocking(move || {
            let sent = pack(&store, diff_id, tar_size, chunks.clone(), told);
            if let Err(error) = &sent {
                let _ = chunks.blocking_send(Err(std::io::Error::other(error.to_string())));
            }
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(sent);
        });
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
            let chunk: Result<bytes::Bytes, std::io::Error> = receiver.recv().await?;
            Some((chunk, receiver))
        });
        let response =
            session.stream(Method::PATCH, &location, reqwest::Body::wrap_stream(stream)).await?;
        let status = response.status();
        let next = location_of(session, &response);
        expect(response).await?;
        packing
            .await
            .map_err(|cause| Error::System(format!("packing a layer ended early: {cause}")))?;
        let sent = packed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sent = sent.ok_or_else(|| Error::System("packing a layer ended early".into()))??;
        let next = next.ok_or_else(|| {
            Error::System(format!("the registry answers {status} without a Location"))
        })?;
        finish_upload(session, &next, &sent.digest, None).await?;
        Ok(sent)
    }
}

fn pack(
    store: &Store,
    diff_id: Digest,
    tar_size: u64,
    chunks: tokio::sync::mpsc::Sender<std::io::Result<bytes::Bytes>>,
    progress: ProgressSender,
) -> Result<Sent> {
    let chunked = std::io::BufWriter::with_capacity(CHUNK_BYTES, Chunks(chunks));
    let gzip = flate2::write::GzEncoder::new(Hashing::new(chunked), flate2::Compression::fast());
    let mut shown =
        Shown { to: gzip, total: tar_size, done: 0, told: 0, id: diff_id.short(), progress };
    store.inner.layers.write_tar(&diff_id, &mut shown)?;
    let hashing = shown.to.finish().map_err(Error::stream("pack layer"))?;
    let (mut chunked, digest, size) = hashing.finish();
    chunked.flush().map_err(Error::stream("send layer"))?;
    Ok(Sent { digest, size })
}

struct Chunks(tokio::sync::mpsc::Sender<std::io::Result<bytes::Bytes>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let chunk = bytes::Bytes::copy_from_slice(bytes);
        self.0
            .blocking_send(Ok(chunk))
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Shown<W> {
    to: W,
    total: u64,
    done: u64,
    told: u64,
    id: String,
    progress: ProgressSender,
}

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.done += count as u64;
        if self.done - self.told > self.total / 50 || self.done == self.total {
            self.told = self.done;
            self.progress.offer(Progress::bar(&self.id, "Pushing", self.done, self.total));
        }
        Ok(count)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

async fn exists(session: &Session<'_>, digest: &Digest) -> Result<bool> {
    let url = session.url(&format!("blobs/{digest}"));
    let ask = Ask { method: Method::HEAD, url, headers: HeaderMap::new(), body: None };
    Ok(session.send(&ask).await?.status().is_success())
}

/// Takes a blob over from another repository of the same registry; false where the registry wants it sent.
async fn mount(session: &Session<'_>, digest: &Digest, from: &str) -> Result<bool> {
    let url = session.url(&format!("blobs/uploads/?mount={digest}&from={from}"));
    let ask =
        Ask { method: Method::POST, url, headers: headers(&[(CONTENT_LENGTH, "0")]), body: None };
    Ok(session.send(&ask).await?.status() == StatusCode::CREATED)
}

async fn start_upload(session: &Session<'_>) -> Result<String> {
    let url = session.url("blobs/uploads/");
    let ask =
        Ask { method: Method::POST, url, headers: headers(&[(CONTENT_LENGTH, "0")]), body: None };
    let response = session.send(&ask).await?;
    let location = location_of(session, &response);
    expect(response).await?;
    location.ok_or_else(|| Error::System("the registry starts an upload without a Location".into()))
}

/// Absolute, or on the same host.
fn location_of(session: &Session<'_>, response: &reqwest::Response) -> Option<String> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    match location.starts_with('/') {
        true => Some(format!("{}{location}", session.endpoint.base)),
        false => Some(location.to_owned()),
    }
}

async fn finish_upload(
    session: &Session<'_>,
    location: &str,
    digest: &Digest,
    body: Option<&[u8]>,
) -> Result<()> {
    let joint = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{joint}digest={digest}");
    let length = body.map_or(0, <[u8]>::len).to_string();
    let headers = headers(&[(CONTENT_TYPE, "application/octet-stream"), (CONTENT_LENGTH, &length)]);
    expect(session.send(&Ask { method: Method::PUT, url, headers, body }).await?).await
}

async fn push_small(session: &Session<'_>, content: &[u8], digest: Digest) -> Result<()> {
    if exists(session, &digest).await? {
        return Ok(());
    }
    let location = start_upload(session).await?;
    finish_upload(session, &location, &digest, Some(content)).await
}

async fn expect(response: reqwest::Response) -> Result<()> {
    match response.status().is_success() {
        true => Ok(()),
        false => Err(Error::System(Refusal::read(response).await.text())),
    }
}

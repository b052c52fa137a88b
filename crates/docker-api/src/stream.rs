//! Bodies of any length between the connection and calls that block: tars in, tars out, progress out.

use std::io::{self, Read, Write};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, Bytes, BytesMut};
use engine::image::{PROGRESS_QUEUE_MAX, Progress, ProgressSender};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{ApiError, ApiResult};

/// Chunks that wait between the two sides.
const CHUNKS_QUEUED_MAX: usize = 16;
const CHUNK_BYTES: usize = 128 << 10;

/// A request's body for a thread that reads it.
pub struct BodyReader {
    chunks: mpsc::Receiver<Result<Bytes, axum::Error>>,
    present: Bytes,
}

impl BodyReader {
    pub fn new(body: Body) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED_MAX);
        tokio::spawn(async move {
            let mut body = body.into_data_stream();
            while let Some(chunk) = body.next().await {
                // A reader that has enough: the rest is still taken off the connection, or the client breaks.
                let _ = sender.send(chunk).await;
            }
        });
        Self { chunks, present: Bytes::new() }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.present.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.present = chunk.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.present.len());
        buffer[..count].copy_from_slice(&self.present[..count]);
        self.present.advance(count);
        Ok(count)
    }
}

/// A response's body for a thread that writes it.
pub struct BodyWriter {
    chunks: mpsc::Sender<Result<Bytes, io::Error>>,
    pending: BytesMut,
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = self.pending.split().freeze();
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// A tar made by `write` on a thread; an error before the first byte is the answer, a later one breaks the connection off.
pub async fn tar(
    headers: Vec<(header::HeaderName, String)>,
    write: impl FnOnce(&mut BodyWriter) -> engine::Result<()> + Send + 'static,
) -> ApiResult {
    let (chunks, mut receiver) = mpsc::channel(CHUNKS_QUEUED_MAX);
    let job = tokio::task::spawn_blocking(move || {
        let mut writer = BodyWriter { chunks, pending: BytesMut::new() };
        let result = write(&mut writer).and_then(|()| Ok(writer.flush()?));
        if let Err(error) = &result {
            let _ = writer.chunks.blocking_send(Err(io::Error::other(error.message.clone())));
        }
        result
    });
    let first = match receiver.recv().await {
        Some(Ok(first)) => Some(Ok(first)),
        Some(Err(_)) => match job.await {
            Ok(Err(error)) => return Err(error.into()),
            _ => return Err(ApiError::internal("the archive could not be made")),
        },
        None => None,
    };
    let stream = tokio_stream::iter(first).chain(ReceiverStream::new(receiver));
    let mut response = (StatusCode::OK, Body::from_stream(stream)).into_response();
    let tar = header::HeaderValue::from_static("application/x-tar");
    response.headers_mut().insert(header::CONTENT_TYPE, tar);
    for (name, value) in headers {
        if let Ok(value) = header::HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// Docker's stream of JSON messages. An error before the first message is the answer's status, a later one its last line.
/// A client that goes away stops the work.
pub async fn progress<F, Fut>(work: F) -> ApiResult
where
    F: FnOnce(ProgressSender) -> Fut,
    Fut: Future<Output = engine::Result<()>> + Send + 'static,
{
    let (sender, mut messages) = mpsc::channel::<Progress>(PROGRESS_QUEUE_MAX);
    let mut work = Abort(tokio::spawn(work(ProgressSender::new(sender))));
    let first = messages.recv().await;
    if first.is_none() {
        ended((&mut work.0).await)?;
        return Ok(json_stream(Body::empty()));
    }
    let messages = tokio_stream::iter(first)
        .chain(ReceiverStream::new(messages))
        .map(|message| line(&message));
    let last = futures_util::stream::once(async move {
        match ended((&mut work.0).await) {
            Ok(()) => Bytes::new(),
            Err(error) => error_line(&error.message),
        }
    });
    let lines = messages.chain(last).map(Ok::<_, io::Error>);
    Ok(json_stream(Body::from_stream(lines)))
}

/// A stream that says only what went wrong.
pub fn failed(message: &str) -> Response {
    json_stream(Body::from(error_line(message)))
}

fn error_line(message: &str) -> Bytes {
    line(&serde_json::json!({ "errorDetail": { "message": message }, "error": message }))
}

fn ended(result: Result<engine::Result<()>, tokio::task::JoinError>) -> Result<(), engine::Error> {
    result.unwrap_or_else(|cause| {
        Err(engine::Error::internal(format!("the work ended early: {cause}")))
    })
}

fn json_stream(body: Body) -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn line(value: &impl serde::Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.extend_from_slice(b"\r\n");
    line.into()
}

struct Abort(tokio::task::JoinHandle<engine::Result<()>>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

//! Attach and resize of a container's own streams, and the copying that exec shares.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Router};
use engine::Engine;
use engine::attach::{AttachOptions, PendingAttach};
use engine::containers::Container;
use engine::logs::{LogOptions, LogReader, LogStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::hijack::{self, MULTIPLEXED, RAW};
use crate::request::RawBody;
use crate::version::Version;
use crate::websocket;
use crate::{ApiError, ApiResult, ApiState, Parameters};

/// What is copied at once.
const PIECE: usize = 32 * 1024;
/// ctrl-p, ctrl-q.
const DEFAULT_KEYS: [u8; 2] = [16, 17];
/// Output not yet taken by a client whose container has ended is waited for this long.
const LAST_OUTPUT: std::time::Duration = std::time::Duration::from_secs(10);
/// docker-py reads the answer's head through a buffer and what follows past it: output that is there with the head is
/// lost to it. Nothing tells when it has read the head, so this long it gets for that.
const HEAD_READ: std::time::Duration = std::time::Duration::from_millis(20);

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/attach/ws", get(attach_websocket))
        .route("/containers/{id}/resize", post(resize))
}

async fn attach(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
    Extension(version): Extension<Version>,
    mut request: Request,
) -> ApiResult {
    let asked = hijack::Asked::of(&mut request);
    // A client whose body is not read breaks its pipe.
    let _ = <RawBody as axum::extract::FromRequest<()>>::from_request(request, &()).await?;
    let streams = Streams {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
    };
    let attachment = Attachment::prepare(&state, &id, &query, streams)?;
    let takeover = asked.checked()?;
    let media = media_type(attachment.tty, version);
    let serve = move |connection| attachment.serve(connection, Framing::AsItIs, true);
    Ok(takeover.serve(media, serve))
}

/// The same over a websocket, whose messages are the streams without frames of Docker's.
async fn attach_websocket(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
    Extension(version): Extension<Version>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> ApiResult {
    let upgrade = upgrade.map_err(|no| ApiError::bad_request(no.body_text()))?;
    let version = (version.0, version.1);
    let wants = |name| version < (1, 42) || query.flag(name);
    let streams =
        Streams { stdin: wants("stdin"), stdout: wants("stdout"), stderr: wants("stderr") };
    let attachment = Attachment::prepare(&state, &id, &query, streams)?;
    let framing = if attachment.tty { Framing::AsItIs } else { Framing::Remove };
    Ok(upgrade.on_upgrade(move |socket| async move {
        let (near, far) = tokio::io::duplex(PIECE);
        let messages = websocket::pass_on(socket, near, version >= (1, 28));
        tokio::join!(messages, attachment.serve(far, framing, false));
    }))
}

/// Which of a container's streams a client asks for.
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// A client's wish to attach, checked and registered.
struct Attachment {
    engine: Arc<Engine>,
    container: Arc<Container>,
    tty: bool,
    stdin: bool,
    keys: DetachKeys,
    /// What was said before, if it is asked for.
    earlier: Option<LogReader>,
    /// What is said from now on, if it is.
    pending: Option<PendingAttach>,
}

impl Attachment {
    fn prepare(
        state: &ApiState,
        id: &str,
        query: &Parameters,
        streams: Streams,
    ) -> ApiResult<Self> {
        let keys = DetachKeys::parse(query.get("detachKeys").unwrap_or_default())?;
        let engine = state.engine.clone();
        let container = engine.container(id)?;
        let open_stdin = container.spec().config.open_stdin.unwrap_or_default();
        let stream = query.flag("stream");
        let (stdout, stderr) = (streams.stdout, streams.stderr);
        let options =
            AttachOptions { stdin: streams.stdin && stream && open_stdin, stdout, stderr };
        let earlier = match query.flag("logs") {
            true => {
                let wanted = LogOptions { stdout, stderr, ..Default::default() };
                Some(engine.logs(id, wanted)?.1)
            }
            false => None,
        };
        let pending = if stream { Some(engine.attach(id, options)?.1) } else { None };
        let tty = container.tty();
        Ok(Self { engine, container, tty, stdin: options.stdin, keys, earlier, pending })
    }

    async fn serve(
        self,
        mut connection: impl AsyncRead + AsyncWrite + Unpin,
        framing: Framing,
        half_closes: bool,
    ) {
        if let Some(mut reader) = self.earlier {
            tokio::time::sleep(HEAD_READ).await;
            let framed = !self.tty && framing == Framing::AsItIs;
            while let Ok(Some(entry)) = reader.next().await {
                let bytes =
                    if framed { frame(number(entry.stream), &entry.line) } else { entry.line };
                if connection.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
        let Some(pending) = self.pending else {
            let _ = connection.shutdown().await;
            return;
        };
        let Ok(stream) = pending.ready().await else { return };
        let keys = self.tty.then_some(self.keys);
        let copying = Copying { stdin: self.stdin, keys, half_closes, framing, farewell: "" };
        if copy(connection, stream, copying, async {}).await {
            self.engine.publish(&self.container, "detach", []);
        }
    }
}

async fn resize(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult {
    let (height, width) = window(&query)?;
    state.engine.resize(&id, height, width).await?;
    Ok(StatusCode::OK.into_response())
}

/// `h` and `w`.
pub(crate) fn window(query: &Parameters) -> ApiResult<(u16, u16)> {
    let size = |name: &str| {
        let number = query.number(name)?.unwrap_or_default();
        u16::try_from(number).map_err(|_| {
            ApiError::bad_request(format!("{name}: {number} is no size of a terminal"))
        })
    };
    Ok((size("h")?, size("w")?))
}

/// What a stream is called to the client; before 1.42 everything was raw.
pub(crate) fn media_type(tty: bool, version: Version) -> &'static str {
    let named = (version.0, version.1) >= (1, 42);
    if tty || !named { RAW } else { MULTIPLEXED }
}

pub(crate) fn number(stream: LogStream) -> u8 {
    match stream {
        LogStream::Stdout => 1,
        LogStream::Stderr => 2,
    }
}

/// Docker's frame: stream, three zeros, length, data.
pub(crate) fn frame(stream: u8, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 8);
    out.extend_from_slice(&[stream, 0, 0, 0]);
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    out
}

/// Both directions until the process has ended and its output is sent, or the client detaches (true)
/// or leaves. `ended` is awaited before the client's connection is closed.
pub(crate) async fn copy(
    connection: impl AsyncRead + AsyncWrite,
    stream: UnixStream,
    copying: Copying,
    ended: impl Future<Output = ()>,
) -> bool {
    let (from_client, mut to_client) = tokio::io::split(connection);
    let (from_process, to_process) = stream.into_split();
    let framing = copying.framing;
    let detached = {
        let output = async {
            if framing.copy(from_process, &mut to_client).await.is_ok() {
                let _ = tokio::time::timeout(LAST_OUTPUT, ended).await;
            }
        };
        let input = type_in(from_client, to_process, copying.stdin, copying.keys);
        tokio::pin!(output, input);
        let detached = tokio::select! {
            () = &mut output => None,
            detached = &mut input => Some(detached),
        };
        // A client that is through with typing still reads.
        if detached == Some(false) && copying.half_closes {
            output.await;
        }
        detached == Some(true)
    };
    if detached && !copying.farewell.is_empty() {
        let text = copying.farewell.as_bytes();
        let bytes = if framing == Framing::AsItIs { text.to_vec() } else { frame(1, text) };
        let _ = to_client.write_all(&bytes).await;
    }
    let _ = to_client.shutdown().await;
    detached
}

/// How the two directions are passed on.
pub(crate) struct Copying {
    pub stdin: bool,
    /// `None`: nothing typed detaches.
    pub keys: Option<DetachKeys>,
    /// The client may end its direction and go on reading; one that cannot has left when that ends.
    pub half_closes: bool,
    pub framing: Framing,
    /// What a client that detaches is told.
    pub farewell: &'static str,
}

/// What has to be done to the output on its way to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    AsItIs,
    /// From a terminal to a client that expects frames.
    Add,
    /// From pipes to a client that expects a terminal.
    Remove,
}

impl Framing {
    pub(crate) fn between(process_tty: bool, client_tty: bool) -> Self {
        match (process_tty, client_tty) {
            (true, false) => Self::Add,
            (false, true) => Self::Remove,
            _ => Self::AsItIs,
        }
    }

    async fn copy(
        self,
        mut from: impl AsyncRead + Unpin,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        match self {
            Self::AsItIs => tokio::io::copy(&mut from, to).await.map(drop),
            Self::Add => {
                let mut buffer = vec![0; PIECE];
                loop {
                    let count = from.read(&mut buffer).await?;
                    if count == 0 {
                        return Ok(());
                    }
                    to.write_all(&frame(1, &buffer[..count])).await?;
                }
            }
            Self::Remove => {
                let mut header = [0; 8];
                while from.read_exact(&mut header).await.is_ok() {
                    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    tokio::io::copy(&mut (&mut from).take(length.into()), to).await?;
                }
                Ok(())
            }
        }
    }
}

/// From the client to the process; true when the detach keys came.
async fn type_in(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    stdin: bool,
    mut keys: Option<DetachKeys>,
) -> bool {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let data = &buffer[..count];
        let (passed, detach) = match &mut keys {
            Some(keys) => keys.scan(data),
            None => (data.to_vec(), false),
        };
        if stdin && to.write_all(&passed).await.is_err() {
            // The process reads no more; the client may still detach.
            continue;
        }
        if detach {
            return true;
        }
    }
    let _ = to.shutdown().await;
    false
}

/// The keys that end an attach without ending the container.
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them have been typed in a row.
    matched: usize,
}

impl DetachKeys {
    /// Docker's notation: `ctrl-a,b,ctrl-[`; empty means the default.
    pub(crate) fn parse(text: &str) -> ApiResult<Self> {
        if text.is_empty() {
            return Ok(Self { keys: DEFAULT_KEYS.to_vec(), matched: 0 });
        }
        let key = |word: &str| {
            if let Some(letter) = word.strip_prefix("ctrl-") {
                let byte = match letter.as_bytes() {
                    [b @ b'a'..=b'z'] => b - b'a' + 1,
                    b"@" => 0,
                    b"[" => 27,
                    b"\\" => 28,
                    b"]" => 29,
                    b"^" => 30,
                    b"_" => 31,
                    _ => return Err(unknown_key(text, word)),
                };
                return Ok(byte);
            }
            match word.as_bytes() {
                [b] => Ok(*b),
                _ => Err(unknown_key(text, word)),
            }
        };
        let keys = text.split(',').map(key).collect::<ApiResult<Vec<u8>>>()?;
        Ok(Self { keys, matched: 0 })
    }

    /// What goes on to the process, and whether the whole sequence was typed. A beginning is held back
    /// until it is clear what it becomes.
    fn scan(&mut self, data: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(data.len());
        for byte in data {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if *byte == self.keys[0] && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

fn unknown_key(text: &str, word: &str) -> ApiError {
    ApiError::bad_request(format!(
        "Invalid detach keys ({text}) provided: Unknown character: '{word}'"
    ))
}

/// The name of the container as it is in paths and statistics.
pub(crate) fn slash_name(container: &Container) -> String {
    format!("/{}", container.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &str, typed: &[&str], passed: &str, detached: bool) {
        let mut keys = DetachKeys::parse(keys).expect("keys");
        let mut out = Vec::new();
        let mut done = false;
        for piece in typed {
            let (bytes, detach) = keys.scan(piece.as_bytes());
            out.extend(bytes);
            done |= detach;
        }
        assert_eq!((String::from_utf8_lossy(&out).as_ref(), done), (passed, detached), "{typed:?}");
    }

    #[tokio::test]
    async fn a_client_that_cannot_half_close_has_left_when_it_is_through() {
        for half_closes in [true, false] {
            let (mut client, connection) = tokio::io::duplex(PIECE);
            let (stream, mut process) = UnixStream::pair().expect("a pair");
            let framing = Framing::AsItIs;
            let copying = Copying { stdin: true, keys: None, half_closes, framing, farewell: "" };
            let copying = tokio::spawn(copy(connection, stream, copying, async {}));
            client.write_all(b"last words").await.expect("written");
            client.shutdown().await.expect("shut down");
            let mut typed = String::new();
            process.read_to_string(&mut typed).await.expect("read");
            assert_eq!(typed, "last words");
            // The process is quiet, and stays so.
            if half_closes {
                process.write_all(b"still there?").await.expect("written");
                drop(process);
            }
            let mut said = String::new();
            client.read_to_string(&mut said).await.expect("read");
            assert_eq!(said.is_empty(), !half_closes);
            assert!(!copying.await.expect("no panic"), "it did not detach");
        }
    }

    #[test]
    fn detach_keys_are_found_also_across_reads_and_nothing_else_is_lost() {
        check("", &["ab\x10\x11"], "ab", true);
        check("", &["ab\x10", "\x11"], "ab", true);
        check("", &["a\x10b"], "a\x10b", false);
        check("", &["\x10\x10\x11"], "\x10", true);
        check("ctrl-a,x", &["\x01y\x01x"], "\x01y", true);
        check("q", &["abc", "q"], "abc", true);
        assert!(DetachKeys::parse("ctrl-1").is_err() && DetachKeys::parse("ab").is_err());
    }
}

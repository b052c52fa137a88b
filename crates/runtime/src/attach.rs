//! Attaching a client to a container's or exec's stdio.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::protocol::{Call, Message, Request};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachOptions {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// An attach that may still wait for the container (or exec) to exist. Dropping it gives it up.
pub struct PendingAttach {
    pub(crate) stream: oneshot::Receiver<Result<UnixStream>>,
}

impl PendingAttach {
    /// The byte stream. From the container: Docker's frames (8-byte header) without TTY, raw bytes with
    /// TTY, so that it can be copied to the client as it is. To the container: raw stdin; shut down the
    /// write half to close stdin. End of file from the container: it has ended and all output was read.
    pub async fn ready(self) -> Result<UnixStream> {
        match self.stream.await {
            Ok(result) => result,
            Err(_) => Err(Error::not_found("the container was not started")),
        }
    }
}

/// Turns a fresh connection to a shim into a byte stream.
pub(crate) async fn begin(
    mut stream: UnixStream,
    exec: Option<String>,
    options: AttachOptions,
) -> Result<UnixStream> {
    let failed = |e: std::io::Error| Error::system("not attached to the container", e);
    let AttachOptions { stdin, stdout, stderr } = options;
    let request = Request { seq: 1, call: Call::Attach { exec, stdin, stdout, stderr } };
    let mut line = serde_json::to_vec(&request).map_err(|e| Error::system("request", e))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(failed)?;
    // One byte at a time: what follows the reply belongs to the client.
    let mut reader = BufReader::with_capacity(1, &mut stream);
    let mut reply = Vec::new();
    reader.read_until(b'\n', &mut reply).await.map_err(failed)?;
    match serde_json::from_slice(&reply) {
        Ok(Message::Reply { result: Ok(_), .. }) => Ok(stream),
        Ok(Message::Reply { result: Err(failure), .. }) => {
            Err(Error::new(failure.kind, failure.text))
        }
        _ => Err(Error::not_found("the container has ended")),
    }
}

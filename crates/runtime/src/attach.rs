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
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).await.map_err(failed)?;
        match serde_json::from_slice(&line) {
            Ok(Message::Reply { result: Ok(_), .. }) => return Ok(stream),
            Ok(Message::Reply { result: Err(failure), .. }) => {
                return Err(Error::new(failure.kind, failure.text));
            }
            // Until the shim has read the request it tells this connection its news, too.
            Ok(Message::Exited { .. } | Message::ExecExited { .. } | Message::Oom) => {}
            Err(_) => return Err(Error::not_found("the container has ended")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Reply;
    use crate::runtime::ExitStatus;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn the_end_of_another_exec_before_the_reply_is_not_taken_for_it() {
        let (mut shim, ours) = UnixStream::pair().unwrap();
        let status = ExitStatus { code: 0, oom: false, at: std::time::SystemTime::now() };
        for message in [
            Message::ExecExited { exec: "other".into(), status },
            Message::Reply { seq: 1, result: Ok(Reply::Done) },
        ] {
            let mut line = serde_json::to_vec(&message).unwrap();
            line.push(b'\n');
            shim.write_all(&line).await.unwrap();
        }
        shim.write_all(b"said").await.unwrap();
        let mut stream = begin(ours, Some("this".into()), AttachOptions::default()).await.unwrap();
        shim.shutdown().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "said");
    }
}

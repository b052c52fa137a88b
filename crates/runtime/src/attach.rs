//! Attaching a client to a container's or exec's stdio.

use crate::error::Result;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachOptions {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// An attach that waits for the container to exist.
pub struct PendingAttach {}

impl PendingAttach {
    /// The byte stream. From the container: Docker's frames (8-byte header) without TTY, raw bytes with
    /// TTY, so that it can be copied to the client as it is. To the container: raw stdin; shut down the
    /// write half to close stdin. End of file from the container: it has ended and all output was read.
    pub async fn ready(self) -> Result<tokio::net::UnixStream> {
        Err(crate::error::Error::new(
            crate::ErrorKind::Unsupported,
            "not supported by skep yet: the runtime is being built",
        ))
    }
}

//! What the daemon tells the resolver and what it hears back: a length, then JSON; a sandbox's
//! namespace travels as a descriptor, because the two processes need not see the same mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use dns::{Upstream, Zone};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// A zone of some hundred thousand names.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Where a sandbox's questions are answered: 127.0.0.11, these ports. Port 53 is redirected to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub udp: u16,
    pub tcp: u16,
}

/// All that is to be known about one sandbox; set as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The network namespace's file, bound where it outlives its processes. Its loopback is up.
    pub netns: PathBuf,
    /// Names that only this sandbox knows.
    pub own: Zone,
    /// Ids of the networks whose names it sees, see [`crate::Client::set_zone`].
    pub zones: Vec<String>,
    /// Whom to ask for other names; none on an internal network.
    pub upstreams: Vec<Upstream>,
}

/// A port of the host that is carried to a container's by this process, not by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Relay {
    /// TCP otherwise.
    pub udp: bool,
    pub listen: SocketAddr,
    pub to: SocketAddr,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello,
    SetSandbox {
        id: String,
        sandbox: Sandbox,
    },
    RemoveSandbox {
        id: String,
    },
    SetZone {
        id: String,
        zone: Zone,
    },
    RemoveZone {
        id: String,
    },
    /// Drops every zone but these and those that a sandbox sees.
    KeepZones {
        ids: BTreeSet<String>,
    },
    SetRelays {
        relays: BTreeSet<Relay>,
    },
    Sandboxes,
    Counters,
}

impl Request {
    pub fn name(&self) -> &'static str {
        match self {
            Request::Hello => "hello",
            Request::SetSandbox { .. } => "set sandbox",
            Request::RemoveSandbox { .. } => "remove sandbox",
            Request::SetZone { .. } => "set zone",
            Request::RemoveZone { .. } => "remove zone",
            Request::KeepZones { .. } => "keep zones",
            Request::SetRelays { .. } => "set relays",
            Request::Sandboxes => "sandboxes",
            Request::Counters => "counters",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Done,
    Ports(Ports),
    /// Those that could not be opened, with the reason.
    Relays(Vec<(Relay, String)>),
    Sandboxes(BTreeMap<String, Ports>),
    Counters(BTreeMap<String, u64>),
    Refused(String),
}

/// Sends one message, with a descriptor beside its first byte if there is one.
pub(crate) fn send(
    mut stream: &UnixStream,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
    }
    let length = (body.len() as u32).to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let sent = rustix::net::sendmsg(
        stream,
        &[IoSlice::new(&length)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(&length[sent..])?;
    stream.write_all(&body)
}

/// Receives one message and the descriptor that came with it. `None` is a closed connection.
pub(crate) fn receive<M: for<'m> Deserialize<'m>>(
    mut stream: &UnixStream,
) -> io::Result<Option<(M, Option<OwnedFd>)>> {
    let mut length = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut length)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(stream, &mut parts, &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.last();
        }
    }
    stream.read_exact(&mut length[received.bytes..])?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, descriptor)))
}

//! The resolver process: its start, and the connections over which daemons set it.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dns::kernel::Caches;
use dns::{Names, Zone};
use rustix::fs::FlockOperation;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

use crate::client::{Error, socket_path};
use crate::message::{self, Ports, Relay, Request, Response, Sandbox};
use crate::netns;
use crate::server::{self, Command};
use crate::state::{Held, Keeper, State};

/// Daemons connect once; more than a few connections are a mistake.
const CONNECTIONS_MAX: usize = 16;
/// Namespaces on one host are bounded by its containers; this bounds the descriptors.
const SANDBOXES_MAX: usize = 8_192;
const COMMANDS_WAITING_MAX: usize = 256;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The body of `skep resolver`: answers until the process is ended. Returns at once, without an
/// error, when another process already serves this root. `caches` are those that the kernel can hold.
pub fn run(exec_root: &Path, caches: Arc<dyn Caches>) -> Result<(), Error> {
    let socket = socket_path(exec_root);
    let failed = |source| Error::Unreachable { socket: socket.clone(), source };
    let folder = exec_root.join("resolver");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    let lock = File::create(folder.join("lock")).map_err(failed)?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    tracing::trace!(target: "step", "resolver: alone");
    // Already a session's leader when started by hand.
    let _ = rustix::process::setsid();
    raise_limits();
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(failed)?;
    tracing::trace!(target: "step", "resolver: listens");
    let keeper = Keeper::open(folder.join("state.json"));
    let (commands, served) = mpsc::channel(COMMANDS_WAITING_MAX);
    let control = Control { keeper: keeper.clone(), commands, caches: caches.clone() };
    spawn("state", move || keeper.write_changes()).map_err(failed)?;
    spawn("control", move || {
        control.recover();
        control.accept(&listener);
    })
    .map_err(failed)?;
    server::serve(served, caches).map_err(failed)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(body).map(drop)
}

/// Three descriptors per sandbox, four more for one with a cache in the kernel, and those towards the servers.
/// Before 5.11 the kernel counts such caches as locked memory, of which 64 KiB are usual: less than one takes.
fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        let _ = setrlimit(resource, limit);
    }
    // More than the maximum, where we may.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

#[derive(Clone)]
struct Control {
    keeper: Arc<Keeper>,
    commands: mpsc::Sender<Command>,
    caches: Arc<dyn Caches>,
}

impl Control {
    /// Opens again what an earlier process served, on the same ports: the redirection still points there.
    fn recover(&self) {
        let mut state = self.keeper.state();
        let ids: Vec<String> = state.sandboxes.keys().cloned().collect();
        for id in ids {
            let Some(held) = state.sandboxes.get(&id).cloned() else { continue };
            let reopened = File::open(&held.sandbox.netns).and_then(|file| {
                let same = identity(file.as_fd())? == held.namespace;
                same.then_some(()).ok_or(io::ErrorKind::NotFound)?;
                Ok((
                    netns::listen(file.as_fd(), Some(held.ports), &*self.caches)?,
                    OwnedFd::from(file),
                ))
            });
            match reopened {
                Ok((listeners, netns)) => {
                    let names = see(&state, &held.sandbox);
                    self.tell(Command::Open { id, names, listeners, netns });
                    tracing::trace!(target: "step", "resolver: sandbox served again");
                }
                Err(error) => {
                    tracing::warn!(%id, %error, "sandbox not served again");
                    state.sandboxes.remove(&id);
                }
            }
        }
        let (reply, _) = tokio::sync::oneshot::channel();
        // What is refused is asked for again by the daemon.
        self.tell(Command::Relays { relays: state.relays.clone(), reply });
        tracing::trace!(target: "step", "resolver: recovered");
    }

    fn accept(&self, listener: &UnixListener) {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: the next accept would fail at once as well.
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (control, count) = (self.clone(), open.clone());
            let started = spawn("connection", move || {
                control.converse(&stream);
                count.fetch_sub(1, Ordering::Relaxed);
            });
            if started.is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn converse(&self, stream: &UnixStream) {
        while let Ok(Some((request, descriptor))) = message::receive::<Request>(stream) {
            let name = request.name();
            let response = self.handle(request, descriptor);
            tracing::trace!(target: "step", "resolver: {name} done");
            if message::send(stream, &response, None).is_err() {
                return;
            }
        }
    }

    fn handle(&self, request: Request, descriptor: Option<OwnedFd>) -> Response {
        match request {
            Request::Hello => Response::Done,
            Request::SetSandbox { id, sandbox } => match descriptor {
                Some(netns) => self.set_sandbox(id, sandbox, netns),
                None => Response::Refused(format!("sandbox {id}: no namespace came with it")),
            },
            Request::RemoveSandbox { id } => self.remove_sandbox(id),
            Request::SetZone { id, zone } => self.set_zone(id, Some(zone)),
            Request::RemoveZone { id } => self.set_zone(id, None),
            Request::KeepZones { ids } => self.keep_zones(&ids),
            Request::SetRelays { relays } => self.set_relays(relays),
            Request::Sandboxes => {
                let state = self.keeper.state();
                let ports = state.sandboxes.iter().map(|(id, held)| (id.clone(), held.ports));
                Response::Sandboxes(ports.collect())
            }
            Request::Counters => {
                let (reply, counters) = tokio::sync::oneshot::channel();
                self.tell(Command::Counters { reply });
                Response::Counters(counters.blocking_recv().unwrap_or_default())
            }
        }
    }

    fn set_sandbox(&self, id: String, sandbox: Sandbox, netns: OwnedFd) -> Response {
        let mut state = self.keeper.state();
        let namespace = match identity(netns.as_fd()) {
            Ok(namespace) => namespace,
            Err(error) => return Response::Refused(format!("sandbox {id}: {error}")),
        };
        let names = see(&state, &sandbox);
        if let Some(held) = state.sandboxes.get_mut(&id)
            && held.namespace == namespace
        {
            let ports = held.ports;
            if held.sandbox != sandbox {
                held.sandbox = sandbox;
                self.keeper.mark();
                self.take_into_use([(id, names)]);
            }
            return Response::Ports(ports);
        }
        if state.sandboxes.len() >= SANDBOXES_MAX {
            return Response::Refused(format!("sandbox {id}: {SANDBOXES_MAX} are served already"));
        }
        let listeners = match netns::listen(netns.as_fd(), None, &*self.caches) {
            Ok(listeners) => listeners,
            Err(error) => return Response::Refused(format!("sandbox {id}: {error}")),
        };
        tracing::trace!(target: "step", "resolver: sockets opened");
        let ports = listeners.ports;
        state.sandboxes.insert(id.clone(), Held { sandbox, ports, namespace });
        self.keeper.mark();
        self.tell(Command::Open { id, names, listeners, netns });
        Response::Ports(ports)
    }

    fn remove_sandbox(&self, id: String) -> Response {
        if self.keeper.state().sandboxes.remove(&id).is_some() {
            self.keeper.mark();
            tracing::trace!(target: "step", "resolver: sandbox forgotten");
            let (reply, closed) = tokio::sync::oneshot::channel();
            self.tell(Command::Close { id, reply });
            // The namespace may be removed when this returns: nothing here holds it any more.
            let _ = closed.blocking_recv();
        }
        Response::Done
    }

    fn set_relays(&self, relays: BTreeSet<Relay>) -> Response {
        let (reply, refused) = tokio::sync::oneshot::channel();
        self.tell(Command::Relays { relays: relays.clone(), reply });
        let mut state = self.keeper.state();
        if state.relays != relays {
            state.relays = relays;
            self.keeper.mark();
        }
        Response::Relays(refused.blocking_recv().unwrap_or_default())
    }

    fn set_zone(&self, id: String, zone: Option<Zone>) -> Response {
        let mut state = self.keeper.state();
        if state.zones.get(&id).map(|zone| &**zone) == zone.as_ref() {
            return Response::Done;
        }
        match zone {
            Some(zone) => state.zones.insert(id.clone(), Arc::new(zone)),
            None => state.zones.remove(&id),
        };
        let changed: Vec<(String, Names)> = state
            .sandboxes
            .iter()
            .filter(|(_, held)| held.sandbox.zones.contains(&id))
            .map(|(sandbox, held)| (sandbox.clone(), see(&state, &held.sandbox)))
            .collect();
        self.keeper.mark();
        self.take_into_use(changed);
        Response::Done
    }

    /// Returns when no question is answered from the names before any more: one that is asked after a
    /// change was confirmed gets the new answer.
    fn take_into_use(&self, changed: impl IntoIterator<Item = (String, Names)>) {
        let mut last = None;
        for (id, names) in changed {
            let (reply, used) = tokio::sync::oneshot::channel();
            self.tell(Command::Names { id, names, reply });
            last = Some(used);
        }
        // The loop takes them in order.
        if let Some(used) = last {
            let _ = used.blocking_recv();
        }
    }

    /// Networks that were removed while no daemon ran are nobody's to remove: they go when nothing
    /// sees them any more. Nobody is told, for nobody sees them.
    fn keep_zones(&self, ids: &BTreeSet<String>) -> Response {
        let mut state = self.keeper.state();
        let State { sandboxes, zones, .. } = &mut *state;
        let seen: BTreeSet<&String> =
            sandboxes.values().flat_map(|held| &held.sandbox.zones).collect();
        let before = zones.len();
        zones.retain(|id, _| ids.contains(id) || seen.contains(id));
        if zones.len() != before {
            self.keeper.mark();
        }
        Response::Done
    }

    fn tell(&self, command: Command) {
        // The server ends only with the process.
        let _ = self.commands.blocking_send(command);
    }
}

/// What a sandbox sees of the zones that are set.
fn see(state: &State, sandbox: &Sandbox) -> Names {
    Names {
        own: sandbox.own.clone(),
        zones: sandbox.zones.iter().filter_map(|id| state.zones.get(id).cloned()).collect(),
        upstreams: sandbox.upstreams.clone(),
    }
}

fn identity(netns: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(netns)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The ports a sandbox got, for the log.
impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "udp {} tcp {}", self.udp, self.tcp)
    }
}

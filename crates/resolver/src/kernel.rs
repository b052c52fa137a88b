//! One sandbox's cache in the kernel: when it is put there, what is kept in it, when it is put back.
//!
//! Names that change go this way: the control side sends the new ones to the loop and waits; the loop
//! empties the kernel's cache, takes the new names into use and only then confirms; so what was
//! answered of the old names is never given to a question that is asked after the confirmation. Replies
//! get into the cache from the loop alone, in the same step that read the names, so none of the old
//! ones can follow behind.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns::Reply;
use dns::kernel::{Cache, Caches, Kept};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::netns;

/// A sandbox that asks something again so often within a second has a cache; who asks less has nothing
/// to gain from one, and the kernel's objects are not free.
const ASKED_MIN: u32 = 50;
const ASKED_WITHIN: Duration = Duration::from_secs(1);
/// Between two attempts to put a cache into its place, doubled each time.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Sandboxes whose caches are put into their places at once: each takes a thread for a moment.
const ATTACHING_MAX: usize = 8;

/// What the sandboxes of one process have in common.
pub(crate) struct Kernel {
    caches: Arc<dyn Caches>,
    attaching: Cell<usize>,
    /// A refusal was told.
    told: Cell<bool>,
}

impl Kernel {
    pub fn new(caches: Arc<dyn Caches>) -> Rc<Self> {
        Rc::new(Self { caches, attaching: Cell::default(), told: Cell::default() })
    }

    /// Questions answered there.
    pub fn answered(&self) -> u64 {
        self.caches.answered()
    }

    fn tell(&self, error: &std::io::Error) {
        if self.told.replace(true) {
            tracing::debug!(%error, "a sandbox's names are not answered in the kernel");
        } else {
            tracing::info!(%error, "names are answered by this process alone, not in the kernel");
        }
    }
}

/// A sandbox's own.
pub(crate) struct Shortcut {
    kernel: Rc<Kernel>,
    netns: Arc<OwnedFd>,
    port: u16,
    /// Where the process itself hears; open for as long as it is asked there.
    socket: Weak<UdpSocket>,
    state: RefCell<State>,
}

struct State {
    cache: Option<Arc<dyn Cache>>,
    /// No cache may speak any more.
    silenced: bool,
    /// A visit of the namespace that is not over.
    visit: Option<JoinHandle<()>>,
    /// Questions since then that a cache would answer, or that one has missed.
    asked: u32,
    since: Instant,
    /// The next visit, and how long the one after it has to wait.
    next: Instant,
    pause: Duration,
}

impl Shortcut {
    pub fn new(
        kernel: Rc<Kernel>,
        netns: Arc<OwnedFd>,
        port: u16,
        socket: &Rc<UdpSocket>,
    ) -> Rc<Self> {
        let state = RefCell::new(State::new(Instant::now()));
        Rc::new(Self { kernel, netns, port, socket: Rc::downgrade(socket), state })
    }

    /// Takes a reply that was asked for more than once. A sandbox that never asks so has no cache.
    pub fn offer(self: &Rc<Self>, packet: &[u8], reply: &Reply) {
        // In which order several addresses come is for chance, which the kernel leaves to us.
        if !reply.has_one_order() || dns::kernel::key(packet).is_none() {
            return;
        }
        let mut state = self.state.borrow_mut();
        if state.silenced || state.visit.as_ref().is_some_and(|visit| !visit.is_finished()) {
            return;
        }
        let now = Instant::now();
        let wanted = match &state.cache {
            None => state.is_asked_often(now),
            // Somebody took it away, unless questions come in a way that it leaves to us.
            Some(cache) => {
                cache.keep(packet, &reply.bytes) == Kept::Before && state.is_asked_often(now)
            }
        };
        if wanted && now >= state.next {
            self.visit(&mut state, now);
        }
    }

    /// Puts the cache into its place, on a thread of its own: that may have to wait for whoever changes
    /// the host's links just now.
    fn visit(self: &Rc<Self>, state: &mut State, now: Instant) {
        if self.kernel.attaching.get() >= ATTACHING_MAX {
            return;
        }
        state.next = now + state.pause;
        state.pause = (state.pause * 2).min(PAUSE_MAX);
        self.kernel.attaching.set(self.kernel.attaching.get() + 1);
        let (this, known) = (self.clone(), state.cache.clone());
        let (caches, port) = (self.kernel.caches.clone(), self.port);
        state.visit = Some(tokio::task::spawn_local(async move {
            let attached = netns::inside(Some(this.netns.clone()), move || match known {
                Some(cache) => cache.attach_again().map(|()| cache),
                None => caches.attach(port),
            });
            let attached = attached.await;
            this.kernel.attaching.set(this.kernel.attaching.get() - 1);
            match attached {
                Ok(cache) => {
                    tracing::debug!(port, "names are answered in the kernel");
                    this.state.borrow_mut().cache = Some(cache);
                }
                Err(error) => this.kernel.tell(&error),
            }
        }));
    }

    /// Forgets what was kept: the names are about to change.
    pub fn clear(&self) {
        let mut state = self.state.borrow_mut();
        let Some(Err(error)) = state.cache.as_ref().map(|cache| cache.clear()) else { return };
        // Somebody forbids bpf(2) since: what was kept is out of reach, but nobody needs to speak for it.
        state.cache = None;
        state.silenced = true;
        let socket = self.socket.upgrade();
        let silenced = socket.map_or(Ok(()), |socket| self.kernel.caches.silence(socket.as_fd()));
        match silenced {
            Ok(()) => tracing::warn!(
                %error,
                port = self.port,
                "the names of a sandbox cannot be changed in the kernel; this process answers them alone"
            ),
            // Never seen.
            Err(silent) => {
                tracing::error!(%error, %silent, port = self.port, "old answers may be given in a sandbox");
            }
        }
    }

    /// Waits for a visit that is not over, and lets go of the namespace.
    pub async fn close(&self) {
        let visit = self.state.borrow_mut().visit.take();
        if let Some(visit) = visit {
            let _ = visit.await;
        }
        self.state.borrow_mut().cache = None;
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            cache: None,
            silenced: false,
            visit: None,
            asked: 0,
            since: now,
            next: now,
            pause: PAUSE,
        }
    }

    fn is_asked_often(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) > ASKED_WITHIN {
            (self.since, self.asked) = (now, 0);
        }
        self.asked += 1;
        self.asked >= ASKED_MIN
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A kernel that lets nobody change what it holds.
    #[derive(Default)]
    struct Forbidden {
        silenced: AtomicU32,
        attached: AtomicU32,
    }

    impl Caches for Forbidden {
        fn sign(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            Ok(())
        }

        fn silence(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            self.silenced.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn attach(&self, _: u16) -> io::Result<Arc<dyn Cache>> {
            self.attached.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::PermissionDenied.into())
        }

        fn answered(&self) -> u64 {
            0
        }
    }

    impl Cache for Forbidden {
        fn keep(&self, _: &[u8], _: &[u8]) -> Kept {
            Kept::Not
        }

        fn clear(&self) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }

        fn attach_again(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_cache_that_cannot_be_emptied_is_silenced_and_none_comes_after_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let caches = Arc::new(Forbidden::default());
            let netns = Arc::new(OwnedFd::from(File::open("/proc/self/ns/net").unwrap()));
            let socket = Rc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            let shortcut = Shortcut::new(Kernel::new(caches.clone()), netns, 1, &socket);
            shortcut.state.borrow_mut().cache = Some(caches.clone());
            shortcut.clear();
            shortcut.clear();
            assert_eq!(caches.silenced.load(Ordering::SeqCst), 1);
            for _ in 0..2 * ASKED_MIN {
                shortcut.offer(&[1; 40], &Reply::default());
            }
            shortcut.close().await;
            assert_eq!(caches.attached.load(Ordering::SeqCst), 0);
        });
    }
}

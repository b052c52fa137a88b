//! One sandbox's cache in the kernel: when it is put there, what is kept in it, when it is put back.
//!
//! Names that change go this way: the control side sends the new ones to the loop and waits; the loop
//! empties the kernel's cache, takes the new names into use and only then confirms; so what was
//! answered of the old names is never given to a question that is asked after the confirmation. Replies
//! get into the cache from the loop alone, in the same step that read the names, so none of the old
//! ones can follow behind.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns::Reply;
use dns::kernel::{Cache, Caches, Kept};
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
    state: RefCell<State>,
}

struct State {
    cache: Option<Arc<dyn Cache>>,
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
    pub fn new(kernel: Rc<Kernel>, netns: Arc<OwnedFd>, port: u16) -> Rc<Self> {
        let now = Instant::now();
        let (asked, pause) = (0, PAUSE);
        let state = State { cache: None, visit: None, asked, since: now, next: now, pause };
        Rc::new(Self { kernel, netns, port, state: RefCell::new(state) })
    }

    /// Takes a reply that was asked for more than once. A sandbox that never asks so has no cache.
    pub fn offer(self: &Rc<Self>, packet: &[u8], reply: &Reply) {
        // In which order several addresses come is for chance, which the kernel leaves to us.
        if !reply.has_one_order() || dns::kernel::key(packet).is_none() {
            return;
        }
        let mut state = self.state.borrow_mut();
        if state.visit.as_ref().is_some_and(|visit| !visit.is_finished()) {
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
        if let Some(Err(error)) = state.cache.as_ref().map(|cache| cache.clear()) {
            // Never seen: both ways of emptying it have failed.
            tracing::error!(%error, "old answers may be given in a sandbox");
            state.cache = None;
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
    fn is_asked_often(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) > ASKED_WITHIN {
            (self.since, self.asked) = (now, 0);
        }
        self.asked += 1;
        self.asked >= ASKED_MIN
    }
}

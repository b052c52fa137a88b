//! Names answered in the kernel: the maps and the program of [`dns::kernel`], one cache a sandbox.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dns::kernel::program::{Maps, assemble};
use dns::kernel::{Cache, Caches, KEY_BYTES, Kept, VALUE_BYTES, key, value};

use crate::bpf::{self, Map, MapKind};
use crate::filter;
use crate::socket::{Family, Socket};

/// Entries of one sandbox, some 300 bytes each. One that asks for more names than that, or in ever new
/// spellings, has them all forgotten and those that it asks for again kept anew.
pub const ENTRIES_MAX: usize = 2_048;
/// Not sooner than this after the last time: whoever asks for many more names in turn would have each of
/// them kept and forgotten before it is asked for again, which costs more than the answer.
const FULL_FOR: Duration = Duration::from_secs(10);
const NUMBER: usize = size_of::<u64>();
/// The priority of sockets that nobody signed.
const UNSIGNED: i32 = 0;
/// The key of an array's first element.
const FIRST: [u8; 4] = [0; 4];

/// All caches of this process.
pub struct KernelCaches {
    /// Differs from that of any process before.
    signature: i32,
    shared: OnceLock<Arc<Shared>>,
}

/// What the programs of all sandboxes use.
struct Shared {
    answered: Map,
    processors: usize,
}

struct KernelCache {
    entries: Map,
    generation: Map,
    program: OwnedFd,
    socket: Mutex<Socket>,
    kept: Mutex<Keys>,
    _shared: Arc<Shared>,
}

/// What is in the map, and since when.
#[derive(Default)]
struct Keys {
    generation: u64,
    keys: BTreeSet<[u8; KEY_BYTES]>,
    /// When there was no room last.
    full: Option<Instant>,
}

impl Default for KernelCaches {
    fn default() -> Self {
        // Hashers are seeded by chance. Never [`UNSIGNED`].
        let chance = std::hash::RandomState::new().build_hasher().finish();
        let signature = (chance as u32 >> 1 | 1 << 29) as i32;
        Self { signature, shared: OnceLock::new() }
    }
}

impl KernelCaches {
    fn shared(&self) -> io::Result<Arc<Shared>> {
        if let Some(shared) = self.shared.get() {
            return Ok(shared.clone());
        }
        let processors = processors()?;
        let shared = Shared {
            answered: Map::create(MapKind::PerCpuArray, FIRST.len(), NUMBER, 1, processors)?,
            processors,
        };
        // Somebody else may have been faster.
        Ok(self.shared.get_or_init(|| Arc::new(shared)).clone())
    }
}

impl Caches for KernelCaches {
    fn sign(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        bpf::set_priority(socket, self.signature)
    }

    fn silence(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        bpf::set_priority(socket, UNSIGNED)
    }

    fn attach(&self, port: u16) -> io::Result<Arc<dyn Cache>> {
        let shared = self.shared().map_err(at("a map in the kernel"))?;
        let entries = Map::create(MapKind::Hash, KEY_BYTES, VALUE_BYTES, ENTRIES_MAX as u32, 1)
            .map_err(at("a map in the kernel"))?;
        let generation = Map::create(MapKind::Array, FIRST.len(), NUMBER, 1, 1)
            .map_err(at("a map in the kernel"))?;
        let maps = Maps {
            entries: entries.descriptor(),
            generation: generation.descriptor(),
            answered: shared.answered.descriptor(),
        };
        let program = assemble(maps, port, self.signature).ok_or(io::ErrorKind::InvalidInput)?;
        let program = bpf::load_classifier(&program).map_err(at("the program"))?;
        let mut socket = Socket::open(Family::Route)?;
        socket
            .request(filter::attach(program.as_fd()))
            .map_err(at("the filter of the loopback device (is its clsact there?)"))?;
        let (socket, kept) = (Mutex::new(socket), Mutex::default());
        Ok(Arc::new(KernelCache { entries, generation, program, socket, kept, _shared: shared }))
    }

    fn answered(&self) -> u64 {
        let Some(shared) = self.shared.get() else { return 0 };
        let mut counts = vec![0; NUMBER * shared.processors];
        if shared.answered.get(&FIRST, &mut counts).is_err() {
            return 0;
        }
        let counts = counts.as_chunks::<NUMBER>().0.iter();
        counts.map(|bytes| u64::from_ne_bytes(*bytes)).fold(0, u64::wrapping_add)
    }
}

impl KernelCache {
    fn kept(&self) -> MutexGuard<'_, Keys> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries bear the generation of the names that gave them, and the program gives only those of
    /// the one in the map: from the moment that this is another, none that were kept before are given.
    /// They are removed for their room, and for a second reason: a processor that sees half of the new
    /// number may take it for an older one, of which there must be no entries.
    ///
    /// Nor are there any of the generation that lasts while they are removed: a processor that finds an
    /// entry just before that may read the next one in its memory, and would take it for what it looked for.
    fn forget(&self, kept: &mut Keys) -> io::Result<()> {
        kept.full = None;
        let told = self.next_generation(kept);
        let mut removed = Ok(());
        for key in std::mem::take(&mut kept.keys) {
            match self.entries.remove(&key) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => removed = Err(error),
                _ => {}
            }
        }
        // If the map stays behind, what is kept from now on is not given.
        let _ = self.next_generation(kept);
        // Either alone is enough for what is asked from now on.
        if told.is_ok() { told } else { removed }
    }

    fn next_generation(&self, kept: &mut Keys) -> io::Result<()> {
        kept.generation += 1;
        self.generation.insert(&FIRST, &kept.generation.to_ne_bytes())
    }
}

impl Cache for KernelCache {
    fn keep(&self, packet: &[u8], reply: &[u8]) -> Kept {
        let mut kept = self.kept();
        let (Some(key), Some(_)) = (key(packet), value(0, reply)) else { return Kept::Not };
        if kept.keys.contains(&key) {
            return Kept::Before;
        }
        if kept.keys.len() >= ENTRIES_MAX {
            let now = Instant::now();
            let began = *kept.full.get_or_insert(now);
            if now.saturating_duration_since(began) < FULL_FOR || self.forget(&mut kept).is_err() {
                return Kept::Not;
            }
        }
        let Some(value) = value(kept.generation, reply) else { return Kept::Not };
        if self.entries.insert(&key, &value).is_err() {
            return Kept::Not;
        }
        kept.keys.insert(key);
        Kept::Now
    }

    fn clear(&self) -> io::Result<()> {
        let mut kept = self.kept();
        // Nothing was ever kept of these names.
        if kept.keys.is_empty() { Ok(()) } else { self.forget(&mut kept) }
    }

    fn attach_again(&self) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.request(filter::attach(self.program.as_fd())).map(drop)
    }
}

impl Drop for KernelCache {
    /// The filter stays where it is, and has nothing to say: taking it away would mean waiting for
    /// whoever changes the host's links just now. It goes with the namespace.
    fn drop(&mut self) {
        let _ = self.clear();
    }
}

/// Says with an error what was refused.
fn at(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// How many processors there may be at most: values of each have a copy.
fn processors() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    last_processor(&text)
        .map(|last| last + 1)
        .ok_or_else(|| io::Error::other(format!("/sys/devices/system/cpu/possible says {text:?}")))
}

/// Of a list such as `0-3` or `0,2-5`.
fn last_processor(list: &str) -> Option<usize> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_processor_is_found_in_any_list() {
        for (list, last) in
            [("0\n", Some(0)), ("0-127\n", Some(127)), ("0,2-5", Some(5)), ("", None)]
        {
            assert_eq!(last_processor(list), last, "{list}");
        }
    }
}

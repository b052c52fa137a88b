//! bpf(2): maps and programs, as file descriptors that are closed with their values.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;

const PROG_TYPE_SCHED_CLS: u32 = 3;
/// Entries take memory when they are made, not when the map is.
const NO_PREALLOC: u32 = 1;
/// All of this can be loaded by programs of any license.
const LICENSE: &[u8] = b"Apache-2.0\0";
/// What the verifier says about a program that it refuses.
const LOG_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
}

/// A map whose keys and values have fixed sizes.
pub struct Map {
    fd: OwnedFd,
    key: usize,
    /// Bytes that the kernel reads and writes for one value.
    value: usize,
}

/// The fields of `union bpf_attr` that creating a map uses.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// The fields of `union bpf_attr` for one element. Addresses have 64 bits on every machine.
#[repr(C)]
struct Element {
    map_fd: u32,
    _room: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The fields of `union bpf_attr` that loading a program uses.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

impl Map {
    /// `value` bytes each; the values of [`MapKind::PerCpuArray`] are read for all `copies` at once.
    pub fn create(
        kind: MapKind,
        key: usize,
        value: usize,
        max_entries: u32,
        copies: usize,
    ) -> io::Result<Self> {
        let flags = if kind == MapKind::Hash { NO_PREALLOC } else { 0 };
        let attributes = MapCreate {
            kind: kind as u32,
            key_size: key as u32,
            value_size: value as u32,
            max_entries,
            flags,
            name: name(),
            ..MapCreate::default()
        };
        // SAFETY: the attributes hold no addresses.
        let fd = unsafe { call(MAP_CREATE, &attributes) }?;
        // SAFETY: a descriptor that was made for us just now.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, key, value: value * copies })
    }

    /// As programs are told of it.
    pub fn descriptor(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.must_fit(key, Some(value.len()))?;
        let element = self.element(key, value.as_ptr() as u64);
        // SAFETY: both slices live through the call and are as long as the kernel reads.
        unsafe { call(MAP_UPDATE_ELEM, &element) }.map(drop)
    }

    pub fn get(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        self.must_fit(key, Some(value.len()))?;
        let element = self.element(key, value.as_mut_ptr() as u64);
        // SAFETY: both slices live through the call; the value is as long as what the kernel writes.
        unsafe { call(MAP_LOOKUP_ELEM, &element) }.map(drop)
    }

    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.must_fit(key, None)?;
        let element = self.element(key, 0);
        // SAFETY: the key lives through the call and is as long as the kernel reads.
        unsafe { call(MAP_DELETE_ELEM, &element) }.map(drop)
    }

    fn element(&self, key: &[u8], value: u64) -> Element {
        let map_fd = self.fd.as_raw_fd() as u32;
        Element { map_fd, _room: 0, key: key.as_ptr() as u64, value, flags: 0 }
    }

    fn must_fit(&self, key: &[u8], value: Option<usize>) -> io::Result<()> {
        let fits = key.len() == self.key && value.is_none_or(|value| value == self.value);
        fits.then_some(()).ok_or(io::ErrorKind::InvalidInput.into())
    }
}

/// A socket's priority, which programs can read of a socket that they look up.
pub fn set_priority(socket: BorrowedFd<'_>, priority: i32) -> io::Result<()> {
    // SAFETY: the value lives through the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PRIORITY,
            std::ptr::from_ref(&priority).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Loads a program for [`crate::filter`]. The error of one that is refused has the verifier's last words.
pub fn load_classifier(program: &[u8]) -> io::Result<OwnedFd> {
    match load(program, None) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) => {
            let mut log = vec![0; LOG_BYTES];
            let again = load(program, Some(&mut log));
            again.map_err(|error| io::Error::new(error.kind(), format!("{error}: {}", end(&log))))
        }
        other => other,
    }
}

fn load(program: &[u8], log: Option<&mut [u8]>) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        kind: PROG_TYPE_SCHED_CLS,
        instruction_count: (program.len() / 8) as u32,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        name: name(),
        ..ProgLoad::default()
    };
    if let Some(log) = log {
        attributes.log_level = 1;
        attributes.log_size = log.len() as u32;
        attributes.log = log.as_mut_ptr() as u64;
    }
    // SAFETY: the program, the license and the log live through the call; their lengths are given, and
    // the license ends with a zero.
    let fd = unsafe { call(PROG_LOAD, &attributes) }?;
    // SAFETY: a descriptor that was made for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The last line but one of the verifier's log says why; the last counts.
fn end(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.trim_end_matches('\0').lines().collect();
    lines[lines.len().saturating_sub(2)..].join("; ")
}

/// Shown by `bpftool`.
fn name() -> [u8; 16] {
    let mut name = [0; 16];
    name[..10].copy_from_slice(b"skep_names");
    name
}

/// # Safety
/// Every address in the attributes must be valid for what the command does with it.
unsafe fn call<A>(command: libc::c_long, attributes: &A) -> io::Result<i32> {
    loop {
        // SAFETY: the attributes live through the call and their size is given; the caller answers for
        // what they point to. The kernel does not write into them.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>())
        };
        if let Ok(result) = i32::try_from(result)
            && result >= 0
        {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        // Loading gives way to signals.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

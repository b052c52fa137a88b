//! Tar archives, as values: reading keeps every byte that is not a file's content, so that a layer can be given back exactly.

mod read;
mod write;

pub use read::{RawSink, Reader};
pub use write::Writer;

/// The largest extended header or long name read (Go's archive/tar has the same limit).
pub const SPECIAL_BYTES_MAX: u64 = 1 << 20;
pub(crate) const BLOCK: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    #[default]
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
    /// A type this reader does not know; the consumer refuses it.
    Other(u8),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub link: Vec<u8>,
    /// Permission bits, set-id and sticky included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, u32),
    pub major: u32,
    pub minor: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[cfg(test)]
mod tests;

//! Writes a tar stream: ustar headers, a PAX header before an entry that does not fit into one.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind};

pub struct Writer<W: Write> {
    to: W,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Self {
        Self { to }
    }

    /// An entry without content.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.header(&Entry { size: 0, ..entry.clone() })
    }

    /// A file with exactly `entry.size` bytes of content; a file that shrank meanwhile is filled with zeros.
    pub fn file(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        self.header(entry)?;
        let copied = io::copy(&mut content.take(entry.size), &mut self.to)?;
        io::copy(&mut io::repeat(0).take(entry.size - copied), &mut self.to)?;
        let padding = (BLOCK as u64 - entry.size % BLOCK as u64) % BLOCK as u64;
        self.to.write_all(&[0; BLOCK][..padding as usize])
    }

    /// The two empty blocks at the end.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let mut pax = Vec::new();
        let split = split_path(&entry.path);
        if split.is_none() {
            record(&mut pax, b"path", &entry.path);
        }
        if entry.link.len() > 100 {
            record(&mut pax, b"linkpath", &entry.link);
        }
        for (key, value, octal_max) in [
            (&b"size"[..], entry.size, 0o777_7777_7777),
            (b"uid", u64::from(entry.uid), 0o777_7777),
            (b"gid", u64::from(entry.gid), 0o777_7777),
        ] {
            if value > octal_max {
                record(&mut pax, key, value.to_string().as_bytes());
            }
        }
        if !(0..=0o777_7777_7777).contains(&entry.mtime.0) {
            record(&mut pax, b"mtime", entry.mtime.0.to_string().as_bytes());
        }
        for (name, value) in &entry.xattrs {
            record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !pax.is_empty() {
            let name = Entry {
                path: b"PaxHeaders.0/entry".to_vec(),
                mode: 0o644,
                size: pax.len() as u64,
                ..Entry::default()
            };
            self.to.write_all(&ustar(&name, b'x', (b"", &name.path)))?;
            pax.resize(pax.len().next_multiple_of(BLOCK), 0);
            self.to.write_all(&pax)?;
        }
        let flag = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
            Kind::Other(flag) => flag,
        };
        let cut = &entry.path[..entry.path.len().min(100)];
        self.to.write_all(&ustar(entry, flag, split.unwrap_or((b"", cut))))
    }
}

/// Prefix and name, where the path fits into a ustar header.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // A directory's own slash stays with its name.
    let body = path.strip_suffix(b"/").unwrap_or(path);
    (0..body.len().min(156))
        .rev()
        .find(|&at| body[at] == b'/' && path.len() - at - 1 <= 100)
        .map(|at| (&path[..at], &path[at + 1..]))
        .filter(|(prefix, _)| !prefix.is_empty())
}

fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

fn ustar(entry: &Entry, flag: u8, (prefix, name): (&[u8], &[u8])) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, octal(u64::from(entry.mode), 7).as_bytes());
    put(108, octal(u64::from(entry.uid), 7).as_bytes());
    put(116, octal(u64::from(entry.gid), 7).as_bytes());
    put(124, octal(entry.size, 11).as_bytes());
    put(136, octal(u64::try_from(entry.mtime.0).unwrap_or(0), 11).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, octal(u64::from(entry.major), 7).as_bytes());
    put(337, octal(u64::from(entry.minor), 7).as_bytes());
    put(345, prefix);
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// What does not fit is in the PAX header; the field then holds 0.
fn octal(value: u64, digits: usize) -> String {
    let text = format!("{value:0digits$o}");
    if text.len() > digits { "0".repeat(digits) } else { text }
}

//! How a layer's tar is given back byte for byte: all of it but the files' content, which is read from the unpacked layer.
//!
//! A zstd stream of records: `r`, length (u32 little endian), bytes; or `f`, path length (u32), path, size (u64).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::tarball::RawSink;
use crate::unpack::{FileSink, confined};

const RAW_MAX: usize = 1 << 20;
const PATH_MAX: usize = 2 << 20;

/// Written while the layer is unpacked.
pub(crate) struct Recipe {
    to: zstd::Encoder<'static, BufWriter<File>>,
    pending: Vec<u8>,
}

impl Recipe {
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create_new(path)?);
        Ok(Self { to: zstd::Encoder::new(file, 1)?, pending: Vec::new() })
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.flush_raw()?;
        self.to.finish()?.into_inner().map_err(|error| error.into_error())?;
        Ok(())
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.to.write_all(b"r")?;
            self.to.write_all(&(self.pending.len() as u32).to_le_bytes())?;
            self.to.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }
}

impl RawSink for Recipe {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(RAW_MAX / 2) {
            self.pending.extend_from_slice(part);
            if self.pending.len() >= RAW_MAX / 2 {
                self.flush_raw()?;
            }
        }
        Ok(())
    }
}

impl FileSink for Recipe {
    fn file(&mut self, path: &[u8], size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        self.flush_raw()?;
        self.to.write_all(b"f")?;
        self.to.write_all(&(path.len() as u32).to_le_bytes())?;
        self.to.write_all(path)?;
        self.to.write_all(&size.to_le_bytes())
    }
}

/// The layer's tar, from its recipe and its directory.
pub(crate) fn replay(recipe: &Path, directory: &Path, to: &mut impl Write) -> io::Result<()> {
    let mut from = BufReader::new(zstd::Decoder::new(File::open(recipe)?)?);
    let root = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut kind = [0];
    while from.read(&mut kind)? == 1 {
        match kind[0] {
            b'r' => {
                let bytes = sized(&mut from, RAW_MAX)?;
                to.write_all(&bytes)?;
            }
            b'f' => {
                let path = sized(&mut from, PATH_MAX)?;
                let mut size = [0; 8];
                from.read_exact(&mut size)?;
                let size = u64::from_le_bytes(size);
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat2(
                    &root,
                    OsStr::from_bytes(&path),
                    flags,
                    Mode::empty(),
                    confined(),
                )?;
                if io::copy(&mut File::from(file).take(size), to)? != size {
                    return Err(damaged());
                }
            }
            _ => return Err(damaged()),
        }
    }
    Ok(())
}

fn sized(from: &mut impl Read, max: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > max {
        return Err(damaged());
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the stored layer is damaged; remove the image and pull it again",
    )
}

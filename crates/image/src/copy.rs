//! `docker cp`: a path inside a container's root, never outside it, also while the container changes it.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layers::decompressed;
use crate::pack::{Packer, path_of};
use crate::tarball::Reader;
use crate::unpack::{Purpose, Unpacker, clean, confined};
use crate::{Error, Result};

/// The `X-Docker-Container-Path-Stat` header before base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode` bits.
    pub mode: u32,
    pub mtime: String,
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// A directory may not take a file's place, nor a file a directory's.
    pub no_overwrite_dir_non_dir: bool,
    /// Files belong to this user instead of the tar's.
    pub owner: Option<(u32, u32)>,
}

/// A path of the container in two parts: the directory, resolved inside the root, and a name in it that is not followed.
struct Place {
    directory: OwnedFd,
    /// `.` for the directory itself.
    name: Vec<u8>,
    /// The base name that the caller used.
    base: String,
}

pub fn stat(root: &Path, path: &str) -> Result<PathStat> {
    let root_fd = open_root(root)?;
    let place = find(&root_fd, path)?;
    let found = look(&place, path)?;
    let link_target = match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink => target(&root_fd, root, path)?,
        _ => String::new(),
    };
    let time = time::OffsetDateTime::from_unix_timestamp(found.st_mtime)
        .map(|time| {
            time + time::Duration::nanoseconds(i64::try_from(found.st_mtime_nsec).unwrap_or(0))
        })
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    Ok(PathStat {
        name: place.base,
        size: found.st_size,
        mode: go_mode(found.st_mode),
        mtime: time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
        link_target,
    })
}

/// The path as a tar whose first name is the path's base name.
pub fn read(root: &Path, path: &str, out: impl Write) -> Result<()> {
    let place = find(&open_root(root)?, path)?;
    let found = look(&place, path)?;
    let mut packer = Packer::new(out, false);
    let base = if place.base == "/" { b"".to_vec() } else { place.base.clone().into_bytes() };
    let name = OsStr::from_bytes(&place.name);
    let packed = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = fs::openat(&place.directory, name, flags, Mode::empty());
            directory.map_err(std::io::Error::from).and_then(|directory| {
                packer.directory(directory.as_fd(), &base)?;
                let prefix =
                    if base.is_empty() { Vec::new() } else { [base.as_slice(), b"/"].concat() };
                packer.contents(directory.as_fd(), &prefix)
            })
        }
        _ => packer.named(place.directory.as_fd(), name, &base),
    };
    packed.and_then(|()| packer.finish()?.flush()).map_err(Error::file("pack", path))
}

/// Unpacks a tar into the directory `path`.
pub fn write(root: &Path, path: &str, tar: impl Read, options: &WriteOptions) -> Result<()> {
    let root_fd = open_root(root)?;
    let relative = relative(path);
    let directory =
        open(&root_fd, &relative, OFlags::PATH).map_err(|cause| not_found(path, cause))?;
    let found = fs::fstat(&directory).map_err(|cause| not_found(path, cause))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Err(Error::Invalid("extraction point is not a directory".into()));
    }
    let purpose =
        Purpose::Copy { keep_kind: options.no_overwrite_dir_non_dir, owner: options.owner };
    Unpacker::new(root, &clean(&relative).unwrap_or_default(), purpose)?
        .run(Reader::new(decompressed(tar)?, ()))?;
    Ok(())
}

fn open_root(root: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(root, flags, Mode::empty()).map_err(crate::error::errno("open", root))
}

fn open(root: &OwnedFd, relative: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if relative.is_empty() { b".".as_slice() } else { relative };
    fs::openat2(root, OsStr::from_bytes(path), flags | OFlags::CLOEXEC, Mode::empty(), confined())
}

/// Without its leading slashes: the kernel takes it from the root either way.
fn relative(path: &str) -> Vec<u8> {
    path.trim_start_matches('/').as_bytes().to_vec()
}

fn find(root: &OwnedFd, path: &str) -> Result<Place> {
    // A trailing slash or dot asks for what a link leads to.
    let follows = path.ends_with('/') || path.ends_with("/.");
    let cleaned = clean_lossy(path.as_bytes());
    let split = cleaned.iter().rposition(|&byte| byte == b'/');
    let last = &cleaned[split.map_or(0, |at| at + 1)..];
    let base = match (path.ends_with("/."), cleaned.is_empty()) {
        // What is in the directory is asked for, not the directory by its name.
        (true, _) => ".".to_owned(),
        (false, true) => "/".to_owned(),
        (false, false) => String::from_utf8_lossy(last).into_owned(),
    };
    let (directory, name): (&[u8], &[u8]) = match (follows || cleaned.is_empty(), split) {
        (true, _) => (&cleaned, b"."),
        (false, Some(at)) => (&cleaned[..at], last),
        (false, None) => (b"", last),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let directory_fd = open(root, directory, flags).map_err(|cause| not_found(path, cause))?;
    Ok(Place { directory: directory_fd, name: name.to_vec(), base })
}

/// As Go's `path.Clean` of a rooted path: what leads above the root stays at it.
fn clean_lossy(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn look(place: &Place, path: &str) -> Result<Stat> {
    fs::statat(&place.directory, OsStr::from_bytes(&place.name), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|cause| not_found(path, cause))
}

fn not_found(path: &str, cause: Errno) -> Error {
    match cause {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
            Error::NotFound(format!("Could not find the file {path}"))
        }
        cause => Error::File { what: "open", path: path.into(), cause: cause.into() },
    }
}

/// Where a link leads inside the root; a broken one gives its own text.
fn target(root_fd: &OwnedFd, root: &Path, path: &str) -> Result<String> {
    let cleaned = clean_lossy(path.as_bytes());
    if let Ok(found) = open(root_fd, &cleaned, OFlags::PATH) {
        let real = std::fs::read_link(path_of(&found)).map_err(Error::file("read", path))?;
        let root = std::fs::read_link(path_of(root_fd)).unwrap_or_else(|_| root.to_owned());
        if let Ok(inside) = real.strip_prefix(&root) {
            return Ok(format!("/{}", inside.to_string_lossy()));
        }
    }
    let place = find(root_fd, path)?;
    let link = fs::readlinkat(&place.directory, OsStr::from_bytes(&place.name), Vec::new())
        .map_err(|cause| not_found(path, cause))?
        .into_bytes();
    let directory =
        cleaned.iter().rposition(|&byte| byte == b'/').map_or(&b""[..], |at| &cleaned[..at]);
    let joined = if link.starts_with(b"/") { link } else { [directory, b"/", &link].concat() };
    Ok(format!("/{}", String::from_utf8_lossy(&clean_lossy(&joined))))
}

/// Go keeps the type in the upper bits and the permissions in the lower nine.
fn go_mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        _ => 0,
    };
    let bits = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special: u32 = bits.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, go)| go).sum();
    kind | special | mode & 0o777
}

/// Fills an empty directory with what the image has at `path`, and gives it that directory's owner and mode.
/// True if something was there to fill it with.
pub fn populate(root: &Path, path: &str, target: &Path) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let source = match open(&open_root(root)?, &relative(path), flags) {
        Ok(source) => source,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(cause) => return Err(not_found(path, cause)),
    };
    let empty = std::fs::read_dir(target).map_err(Error::file("read", target))?.next().is_none();
    if !empty {
        return Ok(false);
    }
    let (from, to) = std::io::pipe().map_err(Error::stream("make a pipe"))?;
    std::thread::scope(|scope| {
        let source = source.as_fd();
        let packing = scope.spawn(move || {
            let mut packer = Packer::new(std::io::BufWriter::new(to), false);
            packer.contents(source, b"").and_then(|()| packer.finish()?.flush())
        });
        let purpose = Purpose::Copy { keep_kind: false, owner: None };
        let unpacked = Unpacker::new(target, b"", purpose)?.run(Reader::new(from, ()));
        let packed =
            packing.join().map_err(|_| Error::System("copying the image's files failed".into()))?;
        packed.map_err(Error::file("copy", path)).and(unpacked.map(drop))
    })?;
    let found = fs::fstat(&source).map_err(|cause| not_found(path, cause))?;
    let owner = std::os::unix::fs::chown(target, Some(found.st_uid), Some(found.st_gid));
    owner.map_err(Error::file("set owner of", target))?;
    crate::layers::make_mode(target, found.st_mode & 0o7777)?;
    Ok(true)
}

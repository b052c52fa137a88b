//! A directory as a tar: a container's changes as a layer, its whole tree for export, a path for `docker cp`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};

use crate::stack::is_opaque_fd;
use crate::tarball::{Entry, Kind, Writer};
use crate::walk;

/// What is read at most of a file that does not tell its size.
const SIZELESS_BYTES_MAX: u64 = 16 << 20;

pub(crate) struct Packer<W: Write> {
    to: Writer<W>,
    /// Files with several names, by device and inode: the later names are links to the first.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    /// Whiteouts take the form of the image formats.
    layer: bool,
}

impl<W: Write> Packer<W> {
    pub fn new(to: W, layer: bool) -> Self {
        Self { to: Writer::new(to), links: BTreeMap::new(), layer }
    }

    pub fn finish(self) -> io::Result<W> {
        self.to.finish()
    }

    /// Everything in an open directory, under `prefix` (empty, or ending in `/`).
    pub fn contents(&mut self, directory: BorrowedFd<'_>, prefix: &[u8]) -> io::Result<()> {
        walk::walk(directory, |parent, name, path| {
            walk::check_length(path)?;
            self.one(parent, name, &[prefix, path].concat())
        })
    }

    /// One name of an open directory, as `shown`.
    pub fn named(&mut self, parent: BorrowedFd<'_>, name: &OsStr, shown: &[u8]) -> io::Result<()> {
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0 {
            return self.without_size(parent, name, shown);
        }
        self.one(parent, name, shown).map(drop)
    }

    /// A file of /proc or /sys says that it is empty and is not: it is read before its size is told.
    fn without_size(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &[u8],
    ) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(fs::openat(parent, name, flags, Mode::empty())?);
        let mut content = Vec::new();
        (&file).take(SIZELESS_BYTES_MAX).read_to_end(&mut content)?;
        let mut entry = entry_of(&fs::fstat(&file)?, shown.to_vec(), xattrs(file.as_fd())?);
        entry.size = content.len() as u64;
        self.to.file(&entry, &mut content.as_slice())
    }

    /// The directory itself, as an entry.
    pub fn directory(&mut self, directory: BorrowedFd<'_>, shown: &[u8]) -> io::Result<()> {
        let entry = entry_of(&fs::fstat(directory)?, [shown, b"/"].concat(), xattrs(directory)?);
        self.to.entry(&entry)
    }

    /// The directory that is to be gone into, if it is one.
    fn one(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &[u8],
    ) -> io::Result<Option<OwnedFd>> {
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // A running container removed it since the directory was read.
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let directory = walk::open(parent, name)?;
                let entry = entry_of(&stat, [shown, b"/"].concat(), xattrs(directory.as_fd())?);
                self.to.entry(&entry)?;
                if self.layer && is_opaque_fd(&directory) {
                    self.to.entry(&hidden([shown, b"/.wh..wh..opq"].concat(), &stat))?;
                }
                return Ok(Some(directory));
            }
            FileType::RegularFile => self.file(parent, name, shown),
            FileType::Symlink => {
                let link = fs::readlinkat(parent, name, Vec::new())?.into_bytes();
                let entry = Entry {
                    link,
                    kind: Kind::Symlink,
                    ..entry_of(&stat, shown.to_vec(), Vec::new())
                };
                self.to.entry(&entry)
            }
            FileType::CharacterDevice if self.layer && stat.st_rdev == 0 => {
                self.to.entry(&hidden(whiteout_name(shown), &stat))
            }
            FileType::Socket | FileType::Unknown => Ok(()),
            _ => self.to.entry(&entry_of(&stat, shown.to_vec(), Vec::new())),
        }
        .map(|()| None)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &OsStr, shown: &[u8]) -> io::Result<()> {
        // Not blocking: a running container may have put a fifo in its place.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(parent, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(()),
            file => file?,
        };
        let stat = fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let mut entry = entry_of(&stat, shown.to_vec(), xattrs(file.as_fd())?);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                entry = Entry { kind: Kind::HardLink, link: first.clone(), size: 0, ..entry };
                return self.to.entry(&entry);
            }
            self.links.insert((stat.st_dev, stat.st_ino), shown.to_vec());
        }
        self.to.file(&entry, &mut File::from(file))
    }
}

fn entry_of(stat: &Stat, path: Vec<u8>, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Fifo => Kind::Fifo,
        _ => Kind::File,
    };
    let device = matches!(kind, Kind::Char | Kind::Block);
    Entry {
        path,
        kind,
        link: Vec::new(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        mtime: (stat.st_mtime, 0),
        major: if device { fs::major(stat.st_rdev) } else { 0 },
        minor: if device { fs::minor(stat.st_rdev) } else { 0 },
        xattrs,
    }
}

fn hidden(path: Vec<u8>, stat: &Stat) -> Entry {
    Entry { path, mtime: (stat.st_mtime, 0), mode: 0o600, ..Entry::default() }
}

/// `a/b` hidden is the entry `a/.wh.b`.
fn whiteout_name(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    [&path[..at], b".wh.", &path[at..]].concat()
}

/// What Docker carries too: file capabilities, and what programs attach.
fn xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0u8; 4096];
    let length = match fs::flistxattr(file, &mut names[..]) {
        Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(rustix::io::Errno::RANGE) => {
            names.resize(64 << 10, 0);
            fs::flistxattr(file, &mut names[..])?
        }
        length => length?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|&byte| byte == 0) {
        let wanted = name == b"security.capability"
            || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        if wanted {
            let mut value = vec![0u8; 64 << 10];
            let length = fs::fgetxattr(file, OsStr::from_bytes(name), &mut value[..])?;
            value.truncate(length);
            found.push((name.to_vec(), value));
        }
    }
    Ok(found)
}

/// For calls that take only a path.
pub(crate) fn path_of(fd: &OwnedFd) -> std::path::PathBuf {
    std::path::PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

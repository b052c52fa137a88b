//! Writes tar entries below one directory and nowhere else, whatever the archive says.
//!
//! Every path is opened by the kernel with that directory as its root (`openat2`, `RESOLVE_IN_ROOT`), so a symbolic link
//! made by the archive leads inside; the last component is never followed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::tarball::{Entry, Kind, RawSink, Reader};
use crate::{Error, Result};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// What the archive is unpacked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An empty directory becomes a layer: whiteouts take overlayfs's form, a file may come once.
    Layer,
    /// `docker cp` into a living file system: names are taken as they are, existing files are replaced.
    Copy { keep_kind: bool, owner: Option<(u32, u32)> },
}

pub(crate) struct Unpacker {
    root: OwnedFd,
    prefix: Vec<u8>,
    purpose: Purpose,
    /// The directory of the last entry, which the next one mostly shares.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories get their mode and time last: what is written into them would change it.
    directories: BTreeMap<Vec<u8>, (u32, (i64, u32))>,
    pub entries: u64,
    pub bytes: u64,
}

/// Told where each file's content went, before the content comes.
pub(crate) trait FileSink {
    fn file(&mut self, path: &[u8], size: u64) -> io::Result<()>;
}

impl FileSink for () {
    fn file(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl Unpacker {
    pub fn new(root: &Path, prefix: &[u8], purpose: Purpose) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(root, flags, Mode::empty()).map_err(crate::error::errno("open", root))?;
        Ok(Self {
            root: fd,
            prefix: prefix.to_vec(),
            purpose,
            parent: None,
            directories: BTreeMap::new(),
            entries: 0,
            bytes: 0,
        })
    }

    /// Unpacks the whole stream and reads it to its end.
    pub fn run<R: Read, S: RawSink + FileSink>(
        mut self,
        mut tar: Reader<R, S>,
    ) -> Result<(Self, R, S)> {
        while let Some(entry) = tar.next_entry().map_err(Error::stream("read layer"))? {
            self.apply(&entry, &mut tar)?;
            self.entries += 1;
        }
        let (from, sink) = tar.finish().map_err(Error::stream("read layer"))?;
        self.finish_directories()?;
        Ok((self, from, sink))
    }

    fn apply<R: Read, S: RawSink + FileSink>(
        &mut self,
        entry: &Entry,
        tar: &mut Reader<R, S>,
    ) -> Result<()> {
        let at = |cause: Errno| failed(&entry.path, cause.into());
        let path = self.place(&entry.path)?;
        let Some(name) = path.rsplit(|&byte| byte == b'/').next().filter(|name| !name.is_empty())
        else {
            return self.root_entry(entry).map_err(at);
        };
        let name = name.to_vec();
        let directory = path[..path.len() - name.len()].strip_suffix(b"/").unwrap_or(&[]).to_vec();
        self.enter(&directory).map_err(at)?;
        if self.purpose == Purpose::Layer && name.starts_with(WHITEOUT) {
            return self.whiteout(&name).map_err(at);
        }
        let covered = self.make_room(entry, &path, &name)?;
        self.create(entry, &path, &name, tar)?;
        if covered && entry.kind == Kind::Directory {
            self.set_opaque(&name).map_err(at)?;
        }
        Ok(())
    }

    /// The cleaned path below the root; one that leads out is refused.
    fn place(&self, path: &[u8]) -> Result<Vec<u8>> {
        let clean = clean(path).ok_or_else(|| {
            Error::Invalid(format!(
                "{:?} is outside of the archive's root",
                String::from_utf8_lossy(path)
            ))
        })?;
        let parts: Vec<&[u8]> =
            [self.prefix.as_slice(), &clean].into_iter().filter(|part| !part.is_empty()).collect();
        Ok(parts.join(&b'/'))
    }

    /// The archive's own root directory: its owner and mode are the layer's.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), Errno> {
        if self.purpose == Purpose::Layer && entry.kind == Kind::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = fs::openat(&self.root, ".", flags, Mode::empty())?;
            set_owner(root.as_fd(), entry.uid, entry.gid)?;
            fs::fchmod(&root, Mode::from_raw_mode(entry.mode))?;
            self.directories.insert(Vec::new(), (entry.mode, entry.mtime));
        }
        Ok(())
    }

    /// Makes `directory` the present parent, making what is missing of it.
    fn enter(&mut self, directory: &[u8]) -> Result<(), Errno> {
        if self.parent.as_ref().is_some_and(|(path, _)| path == directory) {
            return Ok(());
        }
        let fd = match self.open_directory(directory) {
            Err(Errno::NOENT) => self.make_directories(directory)?,
            opened => opened?,
        };
        self.parent = Some((directory.to_vec(), fd));
        Ok(())
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat2(&self.root, OsStr::from_bytes(path), flags, Mode::empty(), confined())
    }

    fn make_directories(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut parent = self.open_directory(b"")?;
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at)
            .chain([path.len()]);
        let mut start = 0;
        for end in ends {
            let name = OsStr::from_bytes(&path[start..end]);
            parent = match self.open_directory(&path[..end]) {
                Err(Errno::NOENT) => {
                    fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                    self.open_directory(&path[..end])?
                }
                opened => opened?,
            };
            start = end + 1;
        }
        Ok(parent)
    }

    fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    /// `.wh.name` hides `name` of the layers below; `.wh..wh..opq` hides all of a directory.
    fn whiteout(&mut self, name: &[u8]) -> Result<(), Errno> {
        if name == OPAQUE {
            return self.set_opaque(b".");
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Errno::INVAL);
        }
        let made = fs::mknodat(
            self.parent(),
            OsStr::from_bytes(hidden),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        );
        match made {
            // This layer has the name itself: a directory then hides what is below it.
            Err(Errno::EXIST) => match self.existing(hidden)? {
                Some(FileType::Directory) => self.set_opaque(hidden),
                _ => Ok(()),
            },
            made => made,
        }
    }

    fn set_opaque(&self, name: &[u8]) -> Result<(), Errno> {
        fs::lsetxattr(self.by_descriptor(name), OPAQUE_XATTR, b"y", XattrFlags::empty())
    }

    /// A path for the calls that take no descriptor.
    fn by_descriptor(&self, name: &[u8]) -> std::path::PathBuf {
        Path::new(&format!("/proc/self/fd/{}", self.parent().as_raw_fd()))
            .join(OsStr::from_bytes(name))
    }

    fn existing(&self, name: &[u8]) -> Result<Option<FileType>, Errno> {
        match fs::statat(self.parent(), OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Takes away what stands where the entry goes; true if that was a whiteout of this layer.
    fn make_room(&mut self, entry: &Entry, path: &[u8], name: &[u8]) -> Result<bool> {
        let at = |cause: Errno| failed(&entry.path, cause.into());
        // New files and directories mostly meet nothing: their creation says so itself, without a look before.
        let Some(old) = self.existing(name).map_err(at)? else { return Ok(false) };
        let (old_dir, new_dir) = (old == FileType::Directory, entry.kind == Kind::Directory);
        if old_dir && new_dir {
            return Ok(false);
        }
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        match self.purpose {
            Purpose::Layer if old == FileType::RegularFile => {
                return Err(Error::Invalid(format!(
                    "{shown}: duplicates of file paths not supported"
                )));
            }
            Purpose::Copy { keep_kind: true, .. } if old_dir != new_dir => {
                let (old, new) = if old_dir {
                    ("directory", "non-directory")
                } else {
                    ("non-directory", "directory")
                };
                return Err(Error::Invalid(format!(
                    "cannot overwrite {old} {shown:?} with {new} {shown:?}"
                )));
            }
            _ => {}
        }
        match self.purpose {
            Purpose::Layer => {
                let how = if old_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                fs::unlinkat(self.parent(), OsStr::from_bytes(name), how).map_err(at)?;
            }
            Purpose::Copy { .. } => self.replace(path, name)?,
        }
        Ok(self.purpose == Purpose::Layer && old == FileType::CharacterDevice)
    }

    /// Removes what `docker cp` replaces.
    fn replace(&self, path: &[u8], name: &[u8]) -> Result<()> {
        let removed = crate::tree::remove_at(self.parent(), OsStr::from_bytes(name));
        removed.map_err(|cause| match cause {
            Errno::BUSY => Error::System(format!(
                "unlinkat /{}: device or resource busy: something is mounted there; write to its source instead",
                String::from_utf8_lossy(path)
            )),
            cause => failed(path, cause.into()),
        })
    }

    fn create<R: Read, S: RawSink + FileSink>(
        &mut self,
        entry: &Entry,
        path: &[u8],
        name: &[u8],
        tar: &mut Reader<R, S>,
    ) -> Result<()> {
        let at = |cause: Errno| failed(&entry.path, cause.into());
        let parent = self.parent();
        let os_name = OsStr::from_bytes(name);
        match entry.kind {
            Kind::File => return self.create_file(entry, path, name, tar),
            Kind::Directory => {
                match fs::mkdirat(parent, os_name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(cause) => return Err(at(cause)),
                }
                self.directories.insert(path.to_vec(), (entry.mode, entry.mtime));
            }
            Kind::Symlink => {
                fs::symlinkat(OsStr::from_bytes(&entry.link), parent, os_name).map_err(at)?;
            }
            Kind::HardLink => return self.hard_link(entry, name),
            Kind::Char | Kind::Block | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::Char => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = fs::makedev(entry.major, entry.minor);
                fs::mknodat(parent, os_name, kind, Mode::from_raw_mode(entry.mode), device)
                    .map_err(at)?;
            }
            Kind::Other(flag) => {
                return Err(Error::Invalid(format!("unhandled tar header type {flag}")));
            }
        }
        self.attributes(entry, name).map_err(at)
    }

    fn create_file<R: Read, S: RawSink + FileSink>(
        &mut self,
        entry: &Entry,
        path: &[u8],
        name: &[u8],
        tar: &mut Reader<R, S>,
    ) -> Result<()> {
        let at = |cause: Errno| failed(&entry.path, cause.into());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            fs::openat(self.parent(), OsStr::from_bytes(name), flags, Mode::from_raw_mode(0o600))
                .map_err(at)?;
        let mut file = File::from(file);
        tar.sink.file(path, entry.size).map_err(|cause| failed(&entry.path, cause))?;
        tar.payload(&mut file).map_err(|cause| failed(&entry.path, cause))?;
        self.bytes += entry.size;
        let (uid, gid) = self.owner(entry);
        set_owner(file.as_fd(), uid, gid).map_err(at)?;
        fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(at)?;
        for (key, value) in wanted_xattrs(entry) {
            kept(fs::fsetxattr(&file, key, value, XattrFlags::empty())).map_err(at)?;
        }
        fs::futimens(&file, &times(entry.mtime)).map_err(at)
    }

    fn hard_link(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        let target = self.place(&entry.link).map_err(|_| {
            let shown = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
            Error::Invalid(format!(
                "invalid hardlink {:?} -> {:?}",
                shown(&entry.path),
                shown(&entry.link)
            ))
        })?;
        let at = |cause: Errno| failed(&entry.path, cause.into());
        let split = target.iter().rposition(|&byte| byte == b'/');
        let (directory, last) =
            split.map_or((&b""[..], &target[..]), |at| (&target[..at], &target[at + 1..]));
        let directory = self.open_directory(directory).map_err(at)?;
        let (last, name) = (OsStr::from_bytes(last), OsStr::from_bytes(name));
        fs::linkat(&directory, last, self.parent(), name, AtFlags::empty()).map_err(at)
    }

    fn owner(&self, entry: &Entry) -> (u32, u32) {
        match self.purpose {
            Purpose::Copy { owner: Some(owner), .. } => owner,
            _ => (entry.uid, entry.gid),
        }
    }

    /// By descriptor, not by name: in `docker cp` a process of the container may swap the name for a link meanwhile.
    fn attributes(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Errno> {
        let (uid, gid) = self.owner(entry);
        let (parent, os_name) = (self.parent(), OsStr::from_bytes(name));
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fs::chownat(parent, os_name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        for (key, value) in wanted_xattrs(entry) {
            kept(fs::lsetxattr(self.by_descriptor(name), key, value, XattrFlags::empty()))?;
        }
        match entry.kind {
            Kind::Symlink => {}
            // The set-group-id bit would be inherited by what is unpacked into it: it comes last.
            Kind::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = fs::openat(parent, os_name, flags, Mode::empty())?;
                return fs::fchmod(&directory, Mode::from_raw_mode(entry.mode & !0o2000));
            }
            _ => {
                let node = fs::openat(
                    parent,
                    os_name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                if FileType::from_raw_mode(fs::fstat(&node)?.st_mode) != FileType::Symlink {
                    fs::chmod(
                        format!("/proc/self/fd/{}", node.as_raw_fd()),
                        Mode::from_raw_mode(entry.mode),
                    )?;
                }
            }
        }
        fs::utimensat(parent, os_name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn finish_directories(&mut self) -> Result<()> {
        for (path, (mode, mtime)) in std::mem::take(&mut self.directories).into_iter().rev() {
            let shown = if path.is_empty() { b".".as_slice() } else { &path };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened =
                fs::openat2(&self.root, OsStr::from_bytes(shown), flags, Mode::empty(), confined());
            match opened {
                Ok(directory) => {
                    let at = |cause: Errno| failed(shown, cause.into());
                    if mode & 0o2000 != 0 {
                        fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(at)?;
                    }
                    fs::futimens(&directory, &times(mtime)).map_err(at)?;
                }
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(cause) => return Err(failed(shown, cause.into())),
            }
        }
        Ok(())
    }
}

fn failed(path: &[u8], cause: io::Error) -> Error {
    Error::File { what: "unpack", path: Path::new(OsStr::from_bytes(path)).to_owned(), cause }
}

pub(crate) fn confined() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
}

/// `path` without empty parts, `.` and inner `..`; none if it leads above its root.
pub(crate) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

fn set_owner(file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// overlayfs reads `trusted.overlay.*` of a lower directory as orders: an archive may not give any.
fn wanted_xattrs(entry: &Entry) -> impl Iterator<Item = (&OsStr, &[u8])> {
    let wanted = |key: &[u8]| !key.starts_with(b"trusted.") && !key.starts_with(b"user.overlay.");
    entry
        .xattrs
        .iter()
        .filter(move |(key, _)| wanted(key))
        .map(|(key, value)| (OsStr::from_bytes(key), value.as_slice()))
}

/// A file system without extended attributes loses them, as with Docker.
fn kept(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        result => result,
    }
}

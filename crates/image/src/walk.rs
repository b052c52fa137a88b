//! Walks directory trees of any depth: neither the stack nor the number of open files grows with them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Directories that are held open on the way down; further up they are opened again on the way back.
const OPEN_MAX: usize = 64;
/// As long as a path may be for the kernel (`PATH_MAX`): what lists paths says no more.
pub(crate) const PATH_BYTES_MAX: usize = 4096;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory on the way down.
struct Level {
    /// `None` while it is closed.
    directory: Option<OwnedFd>,
    /// Device and inode.
    identity: (u64, u64),
    names: std::vec::IntoIter<Vec<u8>>,
    /// Of its path.
    length: usize,
}

impl Level {
    fn of(directory: OwnedFd, length: usize) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        let identity = identity(directory.as_fd())?;
        Ok(Self { directory: Some(directory), identity, names: names.into_iter(), length })
    }

    /// Back from a directory in it.
    fn open_from(&mut self, below: &Level) -> io::Result<()> {
        let (None, Some(below)) = (&self.directory, &below.directory) else { return Ok(()) };
        let directory = open(below.as_fd(), OsStr::new(".."))?;
        if identity(directory.as_fd())? != self.identity {
            return Err(io::Error::other("a directory was moved while it was read"));
        }
        self.directory = Some(directory);
        Ok(())
    }
}

/// Shows `visit` every name below `top` in order, with its open directory and its path from `top`; what it opens is
/// walked next.
///
/// # Errors
/// The first of `visit` or of reading a directory.
pub(crate) fn walk(
    top: BorrowedFd<'_>,
    mut visit: impl FnMut(BorrowedFd<'_>, &OsStr, &[u8]) -> io::Result<Option<OwnedFd>>,
) -> io::Result<()> {
    let mut path = Vec::new();
    let mut levels = vec![Level::of(open(top, OsStr::new("."))?, 0)?];
    while let Some(level) = levels.last_mut() {
        let (Some(name), Some(directory)) = (level.names.next(), &level.directory) else {
            let done = levels.pop();
            if let (Some(above), Some(done)) = (levels.last_mut(), done) {
                above.open_from(&done)?;
            }
            continue;
        };
        path.truncate(level.length);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        if let Some(below) = visit(directory.as_fd(), OsStr::from_bytes(&name), &path)? {
            levels.push(Level::of(below, path.len())?);
            if let Some(far) = levels.len().checked_sub(OPEN_MAX + 1) {
                levels[far].directory = None;
            }
        }
    }
    Ok(())
}

/// The directory of that name, to be walked; links are not followed.
pub(crate) fn open(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    fs::openat(parent, name, DIRECTORY, Mode::empty())
}

/// Refuses to list what is nested so deeply that no path names it.
pub(crate) fn check_length(path: &[u8]) -> io::Result<()> {
    match path.len() < PATH_BYTES_MAX {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "directories are nested too deeply: a path is longer than {PATH_BYTES_MAX} bytes"
            ),
        )),
    }
}

/// Bytes of the files and links below a directory (moby pkg/directory `Size`), each file once however many names it has. What cannot be read counts as nothing.
pub fn bytes(directory: &Path) -> u64 {
    let mut total = 0;
    let mut seen = BTreeSet::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(top) = fs::open(directory, flags, Mode::empty()) else { return 0 };
    let counted = walk(top.as_fd(), |parent, name, _| {
        let Ok(found) = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(None);
        };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Ok(open(parent, name).ok());
        }
        if found.st_nlink < 2 || seen.insert((found.st_dev, found.st_ino)) {
            total += u64::try_from(found.st_size).unwrap_or_default();
        }
        Ok(None)
    });
    if let Err(error) = counted {
        tracing::debug!(directory = %directory.display(), %error, "not counted to the end");
    }
    total
}

fn identity(directory: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let found = fs::fstat(directory)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::{nest, on_a_small_stack};

    #[test]
    fn a_tree_deeper_than_the_stack_is_walked_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep");
        nest(&path, 6_000);
        std::fs::write(path.join("z"), "12345").unwrap();
        std::fs::hard_link(path.join("z"), path.join("d/z")).unwrap();
        on_a_small_stack({
            let path = path.clone();
            move || {
                let top = fs::open(&path, DIRECTORY, Mode::empty()).unwrap();
                let mut names = 0;
                walk(top.as_fd(), |parent, name, _| {
                    names += 1;
                    Ok((name == "d").then(|| open(parent, name)).transpose()?)
                })
                .unwrap();
                assert_eq!(names, 12_002);
                assert_eq!(bytes(&path), 5);
            }
        });
        crate::tree::remove(&path).unwrap();
    }
}

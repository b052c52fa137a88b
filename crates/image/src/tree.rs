//! Removes directory trees of any depth: a container may nest directories deeper than a stack or a path can hold.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

/// Levels that are walked down; what lies deeper is moved up first. Each takes two descriptors.
const DEPTH_MAX: usize = 64;

/// Removes what is at `path`, a file or a directory with all below it, following no link. Nothing there is fine.
///
/// # Errors
/// The first name that cannot be removed; the rest of the tree may be gone.
pub fn remove(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let (Some(parent), Some(name)) = (parent, path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let removed = match fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => remove_at(parent.as_fd(), name),
        Err(cause) => Err(cause),
    };
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

/// Deletes a name with all below it, following nothing. What something is mounted on stays (`EBUSY`): of mounts in a
/// container's namespace the kernel would only take them off (`unlink` knows those of the caller's namespace alone).
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    if !is_directory(parent, name)? {
        return fs::unlinkat(parent, name, AtFlags::empty());
    }
    let top = open(parent, name)?;
    let mut moved = 0;
    // What was moved up to the top, or came while it was read, is found by the next look.
    while empty(top.as_fd(), top.as_fd(), &mut moved, 0)? {}
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Deletes what is in a directory; true if there was anything.
fn empty(
    directory: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    moved: &mut u64,
    depth: usize,
) -> Result<bool, Errno> {
    let mut found = false;
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        found = true;
        if !is_directory(directory, name)? {
            fs::unlinkat(directory, name, AtFlags::empty())?;
        } else if depth < DEPTH_MAX || !move_up(directory, name, top, moved)? {
            let below = open(directory, name)?;
            empty(below.as_fd(), top, moved, depth + 1)?;
            match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                // Somebody writes into it still.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                removed => removed?,
            }
        }
    }
    Ok(found)
}

/// False where the file system cannot: overlayfs does not move directories of the layers below. An image's are no
/// deeper than a path is long.
fn move_up(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    top: BorrowedFd<'_>,
    moved: &mut u64,
) -> Result<bool, Errno> {
    loop {
        *moved += 1;
        match fs::renameat(directory, name, top, format!(".deep-{moved}")) {
            Ok(()) => return Ok(true),
            Err(Errno::XDEV) => return Ok(false),
            // The name is taken.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(cause) => return Err(cause),
        }
    }
}

fn is_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    let look = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = fs::statx(parent, name, look, StatxFlags::TYPE)?;
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY);
    }
    Ok(FileType::from_raw_mode(u32::from(found.stx_mode)) == FileType::Directory)
}

fn open(parent: BorrowedFd<'_>, name: &OsStr) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Directories in each other, with a file beside each.
    pub(crate) fn nest(path: &Path, depth: usize) {
        std::fs::create_dir(path).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = fs::open(path, flags, Mode::empty()).unwrap();
        for _ in 0..depth {
            fs::mknodat(&at, "file", FileType::RegularFile, Mode::RUSR, 0).unwrap();
            fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
    }

    pub(crate) fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
        std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn a_tree_deeper_than_the_stack_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep");
        nest(&path, 50_000);
        on_a_small_stack({
            let path = path.clone();
            move || remove(&path).unwrap()
        });
        assert!(!path.exists());
        remove(&path).unwrap();
    }

    #[test]
    fn links_go_and_what_they_lead_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, gone) = (folder.path().join("kept"), folder.path().join("gone"));
        nest(&kept, 1);
        nest(&gone, 1);
        // The name that a moved directory would get.
        std::fs::write(gone.join(".deep-1"), "").unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("link")).unwrap();
        remove(&gone).unwrap();
        assert!(!gone.exists());
        assert!(kept.join("file").exists());
        std::os::unix::fs::symlink(&kept, &gone).unwrap();
        remove(&gone).unwrap();
        assert!(kept.join("file").exists());
    }
}

//! A stopped container's root with its mounts on it, as one thread alone sees it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::error::{Error, Result};
use crate::spec::{Mount, MountKind};

/// Docker's mode for mount points that the image does not have (moby pkg/fileutils).
const POINT_MODE: Mode = Mode::from_raw_mode(0o755);

/// Does `work` on a thread in whose mount namespace the binds among `mounts` lie on `root`, and nowhere else: whatever
/// becomes of this process, nothing stays mounted. Parents come before what lies below them.
///
/// What else is mounted below `apart` is not in that namespace: a long copy must not keep the mounts and network
/// namespaces of other containers alive.
///
/// # Errors
/// When a mount cannot be made; `work` is not done then.
pub fn with_mounts<T: Send>(
    root: &Path,
    mounts: &[Mount],
    apart: &[PathBuf],
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            own_namespace().map_err(|e| Error::system("mount namespace for a look", e))?;
            for mount in mounts {
                show(root, mount).map_err(|e| {
                    Error::system(format!("show {} in a stopped container", mount.destination), e)
                })?;
            }
            detach_others(root, apart).map_err(|e| Error::system("mounts not looked at", e))?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn own_namespace() -> io::Result<()> {
    // SAFETY: the thread is new and ends with the look; nothing but its mounts and its working directory is
    // unshared, no file descriptor table or memory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

fn show(root: &Path, mount: &Mount) -> io::Result<()> {
    let MountKind::Bind { source, recursive, .. } = &mount.kind else { return Ok(()) };
    let root = crate::runtime::open_dir(root)?;
    let destination = mount.destination.trim_matches('/');
    let point = point(&root, destination, source.is_dir())?;
    let bind =
        if *recursive { rustix::mount::mount_bind_recursive } else { rustix::mount::mount_bind };
    bind(source.as_path(), by_fd(&point))?;
    if mount.read_only {
        // Opened again: now it is what lies on the mount point.
        let mounted = open(&root, destination)?;
        rustix::mount::mount_remount(by_fd(&mounted), MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    Ok(())
}

/// A mount point inside the root, made if it is not there; links are followed, never out of the root.
fn point(root: &OwnedFd, destination: &str, directory: bool) -> io::Result<OwnedFd> {
    match open(root, destination) {
        Err(Errno::NOENT) => {}
        other => return Ok(other?),
    }
    let (parent, name) = destination.rsplit_once('/').unwrap_or(("", destination));
    let parent = point(root, parent, true)?;
    if directory {
        rustix::fs::mkdirat(&parent, name, POINT_MODE)?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, POINT_MODE)?;
    }
    Ok(open(root, destination)?)
}

fn open(root: &OwnedFd, destination: &str) -> std::result::Result<OwnedFd, Errno> {
    let path = if destination.is_empty() { "." } else { destination };
    let confined = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), confined)
}

fn by_fd(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn detach_others(root: &Path, apart: &[PathBuf]) -> io::Result<()> {
    let mounted = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    // The newest first: what lies on top goes before what it lies on.
    for point in mounted.lines().rev().filter_map(mount_point) {
        if apart.iter().any(|folder| point.starts_with(folder))
            && !point.starts_with(root)
            && !root.starts_with(&point)
        {
            // One that went with its parent is as good.
            let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    Ok(())
}

/// The fifth word of a line of mountinfo; the kernel writes blanks and backslashes as octal numbers.
fn mount_point(line: &str) -> Option<PathBuf> {
    let word = line.split(' ').nth(4)?;
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let word = plain.iter().fold(word.to_owned(), |word, (code, text)| word.replace(code, text));
    Some(PathBuf::from(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Propagation;

    fn bind(source: &Path, destination: &str, read_only: bool) -> Mount {
        Mount {
            destination: destination.into(),
            kind: MountKind::Bind {
                source: source.to_owned(),
                propagation: Propagation::RPrivate,
                recursive: true,
            },
            read_only,
        }
    }

    #[test]
    fn mounts_are_seen_in_the_look_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["root", "source", "outside", "other"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("source/file"), "of the volume").unwrap();
        // A link of the image's leads out of the root for everybody but the container.
        std::os::unix::fs::symlink(at("outside"), at("root/link")).unwrap();
        let inside = at("root").join(at("outside").strip_prefix("/").unwrap());
        std::fs::create_dir_all(&inside).unwrap();
        let mounts = [
            bind(&at("source"), "/made/here", true),
            bind(&at("source/file"), "/one", false),
            bind(&at("source"), "/link/sub", false),
        ];
        let (read, refused) = with_mounts(&at("root"), &mounts, &[folder.path().into()], || {
            let read = ["root/made/here/file", "root/one"]
                .map(|f| std::fs::read_to_string(at(f)).unwrap());
            assert!(inside.join("sub/file").exists(), "a link is followed inside the root");
            (read, std::fs::write(at("root/made/here/new"), "").unwrap_err())
        })
        .unwrap();
        assert_eq!(read, ["of the volume", "of the volume"]);
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(!at("outside/sub").exists(), "nothing was made outside of the root");
        assert_eq!(std::fs::read_to_string(at("root/one")).unwrap(), "");
        assert!(std::fs::read_dir(at("root/made/here")).unwrap().next().is_none());
    }

    #[test]
    fn what_is_mounted_apart_is_not_in_the_look() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["root", "other one"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        // In a look of its own, so that a test that fails leaves nothing mounted either.
        let seen = with_mounts(Path::new("/"), &[], &[], || {
            std::fs::write(at("other one/hidden"), "").unwrap();
            rustix::mount::mount("tmpfs", at("other one"), "tmpfs", MountFlags::empty(), None)
                .unwrap();
            let before = at("other one/hidden").exists();
            detach_others(&at("root"), &[folder.path().into()]).unwrap();
            (before, at("other one/hidden").exists())
        });
        assert_eq!(seen.unwrap(), (false, true));
    }
}

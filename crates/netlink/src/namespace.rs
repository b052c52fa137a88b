//! Network namespaces: made, kept by a file, visited on a thread that ends with the visit.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Makes a namespace, keeps it by a bind mount at `path`, and does `inside` in it.
pub fn create<T: Send>(
    path: &Path,
    inside: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    File::options().write(true).create_new(true).open(path)?;
    let made = on_thread(|| {
        // SAFETY: the thread is new and ends with this closure; only its network namespace is
        // left behind, no file descriptor table or memory is unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", path)?;
        inside()
    });
    if made.is_err() {
        let _ = remove(path);
    }
    made
}

/// Does `inside` in a namespace that is gone afterwards.
pub fn scratch<T: Send>(inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_thread(|| {
        // SAFETY: as in `create`.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        inside()
    })
}

/// Keeps a namespace that is open by a bind mount at `path`, whatever is there.
pub fn keep(path: &Path, namespace: BorrowedFd<'_>) -> io::Result<()> {
    remove(path)?;
    File::options().write(true).create_new(true).open(path)?;
    let open = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    Ok(rustix::mount::mount_bind(open.as_str(), path)?)
}

/// Does `inside` in the namespace that `path` keeps.
pub fn visit<T: Send>(path: &Path, inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    visit_open(File::open(path)?.as_fd(), inside)
}

/// Does `inside` in a namespace that is open.
pub fn visit_open<T: Send>(
    namespace: BorrowedFd<'_>,
    inside: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_thread(|| {
        rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        inside()
    })
}

/// Lets go of the namespace; fine when it is not there.
pub fn remove(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Is a namespace mounted there, not just a file left by a crash?
pub fn is_kept(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the visit of a namespace failed")))
    })
}

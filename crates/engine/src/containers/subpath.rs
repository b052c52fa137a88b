//! Subpaths of volumes, held by mounts of the engine's own while a container is made: whatever somebody who has the volume
//! puts in their place meanwhile, it is not what the container gets.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Error, IoContext, Result};

/// Below the exec root.
const FOLDER: &str = "subpaths";

/// The subpaths of one container's volumes; they are let go with this.
pub(crate) struct Pins {
    folder: PathBuf,
    count: usize,
}

impl Pins {
    /// None yet.
    pub fn below(exec_root: &Path) -> Self {
        Self { folder: exec_root.join(FOLDER).join(crate::volumes::random_name()), count: 0 }
    }

    /// Where a subpath of a volume is to be mounted from; links in it lead nowhere out of the volume.
    pub fn pin(&mut self, volume: &Path, subpath: &str) -> Result<PathBuf> {
        let found = open(volume, subpath)?;
        let place = self.folder.join(self.count.to_string());
        crate::config::make_directory(&self.folder, 0o700)?;
        let making = || format!("hold subpath {subpath} of {}", volume.display());
        let kind = rustix::fs::fstat(&found).map(|found| FileType::from_raw_mode(found.st_mode));
        match kind.during(making())? {
            FileType::Directory => std::fs::create_dir(&place),
            _ => File::create_new(&place).map(drop),
        }
        .during(making())?;
        self.count += 1;
        let source = format!("/proc/self/fd/{}", found.as_raw_fd());
        rustix::mount::mount_bind_recursive(source, &place).during(making())?;
        Ok(place)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.count > 0 {
            let_go(&self.folder);
        }
    }
}

/// What a daemon that was killed while it made a container left.
pub(super) fn sweep(exec_root: &Path) {
    let folders = std::fs::read_dir(exec_root.join(FOLDER)).into_iter().flatten().flatten();
    folders.for_each(|folder| let_go(&folder.path()));
}

fn let_go(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        // Not mounted any more is as good.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(entry.path(), flags);
    }
    // A mount that stays makes this fail, and loses nothing.
    if let Err(error) = image::tree::remove(folder) {
        let path = folder.display();
        tracing::warn!(%path, %error, "not removed; the next start tries again");
    }
}

fn open(volume: &Path, subpath: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags | OFlags::DIRECTORY, Mode::empty());
    let root = root.during(format_args!("open {}", volume.display()))?;
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root.as_fd(), subpath, flags, Mode::empty(), confined) {
        Err(Errno::XDEV | Errno::LOOP) => {
            Err(Error::bad_parameter(format!("subpath {subpath} leads out of the volume")))
        }
        opened => {
            opened.during(format_args!("cannot access path {}", volume.join(subpath).display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_subpath_is_held_whatever_comes_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["volume/sub", "outside"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("volume/sub/file"), "of the volume").unwrap();
        symlink("sub", at("volume/link")).unwrap();
        symlink("../outside", at("volume/out")).unwrap();
        symlink(at("outside"), at("volume/far")).unwrap();
        let mut pins = Pins::below(&at("exec"));
        let held = ["sub", "link", "sub/file"].map(|path| pins.pin(&at("volume"), path).unwrap());
        for path in ["out", "far", "../outside"] {
            let error = pins.pin(&at("volume"), path).unwrap_err();
            assert!(error.message.contains("leads out of the volume"), "{error:?}");
        }
        let error = pins.pin(&at("volume"), "missing").unwrap_err();
        assert!(error.message.starts_with("cannot access path"), "{error:?}");
        std::fs::rename(at("volume/sub"), at("volume/old")).unwrap();
        symlink(at("outside"), at("volume/sub")).unwrap();
        let files = [held[0].join("file"), held[1].join("file"), held[2].clone()];
        for file in &files {
            assert_eq!(std::fs::read_to_string(file).unwrap(), "of the volume");
        }
        let left = |folder: &str| std::fs::read_dir(at(folder)).unwrap().count();
        assert_eq!(left("exec/subpaths"), 1);
        // A daemon that is killed drops nothing.
        std::mem::forget(pins);
        sweep(&at("exec"));
        assert_eq!(left("exec/subpaths"), 0);
        let mut pins = Pins::below(&at("exec"));
        pins.pin(&at("volume"), "old").unwrap();
        drop(pins);
        assert_eq!((left("exec/subpaths"), left("volume/old")), (0, 1));
    }
}

//! A stack of layers seen as one tree without mounting it: what overlayfs would show for a path.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::unpack::OPAQUE_XATTR;

/// The topmost layer's file at `path` (relative, no links followed), with where it lies.
pub(crate) fn lookup(lower: &[PathBuf], path: &Path) -> io::Result<Option<(PathBuf, Metadata)>> {
    'layers: for layer in lower {
        let mut at = layer.clone();
        let mut opaque = false;
        let mut found = None;
        for part in path.components() {
            at.push(part);
            let metadata = match fs::symlink_metadata(&at) {
                Ok(metadata) => metadata,
                Err(cause) if cause.kind() == io::ErrorKind::NotFound && opaque => return Ok(None),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue 'layers,
                Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => return Ok(None),
                Err(cause) => return Err(cause),
            };
            if is_whiteout(&metadata) {
                return Ok(None);
            }
            opaque |= metadata.is_dir() && is_opaque(&at);
            found = Some(metadata);
        }
        if let Some(metadata) = found {
            return Ok(Some((at, metadata)));
        }
    }
    Ok(None)
}

/// A character device 0/0 hides the name below.
pub(crate) fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

/// A directory that hides everything below it.
fn is_opaque(directory: &Path) -> bool {
    let mut value = [0u8; 4];
    matches!(rustix::fs::lgetxattr(directory, OPAQUE_XATTR, &mut value[..]), Ok(1) if value[0] == b'y')
}

/// The same of an open one.
pub(crate) fn is_opaque_fd(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    matches!(rustix::fs::fgetxattr(directory, OPAQUE_XATTR, &mut value[..]), Ok(1) if value[0] == b'y')
}

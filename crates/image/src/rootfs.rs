//! A container's root file system: the image's layers below, its own upper directory, one overlay mount.
//!
//! `rootfs/<container>/{rootfs.json, upper, work, merged}`; `init/<chain>/` holds the mount points every container of an
//! image needs (`/etc/hosts` and the like), made once and stacked between the layers and the upper directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use crate::error::errno;
use crate::layers::{Held, Layers, make_mode, remove_logged, write_synced};
use crate::stack;
use crate::store::{json, remove_if_there};
use crate::{Digest, Error, Image, Result, Store};

/// overlayfs takes more, Docker does not.
pub(crate) const LAYERS_MAX: usize = 125;
/// The kernel takes one page of mount options.
const OPTIONS_BYTES_MAX: usize = 4096 - 1;

/// Where a container's root file system lies; nothing is mounted by making one.
#[derive(Clone, Debug, PartialEq)]
pub struct RootFs {
    pub image: Digest,
    /// Topmost first, as overlayfs wants them.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub merged: PathBuf,
}

/// A root file system mounted for a look.
pub struct Visit {
    store: Store,
    container: String,
    merged: PathBuf,
}

impl Visit {
    pub fn root(&self) -> &Path {
        &self.merged
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut visits = self.store.visits();
        let Some(count) = visits.get_mut(&self.container) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        visits.remove(&self.container);
        if let Err(error) = unmount_all(&self.merged) {
            tracing::warn!(container = %self.container, %error, "not unmounted after a look");
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    image: Digest,
    /// Bottom first.
    layers: Vec<Digest>,
}

impl Store {
    /// Makes the directories of a new container; the image's layers are held until `remove_rootfs`.
    pub fn prepare_rootfs(&self, container: &str, image: &Image) -> Result<RootFs> {
        check_name(container)?;
        let layers = image.config.rootfs.diff_ids.clone();
        let held: Vec<Held> =
            layers.iter().filter_map(|diff_id| self.inner.layers.hold(diff_id)).collect();
        if held.len() != layers.len() {
            return Err(Error::NoSuchImage(image.id.to_string()));
        }
        let record = Record { image: image.id, layers };
        self.make_init(&record)?;
        let base = self.inner.root.join("rootfs");
        let target = base.join(container);
        if self.rootfs_records().contains_key(container) {
            return Err(Error::Conflict(format!(
                "container {container} has a root file system already"
            )));
        }
        let new = base.join(format!(".new-{container}"));
        remove_if_there(&new)?;
        for directory in ["", "upper", "work", "merged"] {
            let path = new.join(directory);
            fs::create_dir(&path).map_err(Error::file("create", &path))?;
            make_mode(&path, if directory == "work" { 0o700 } else { 0o755 })?;
        }
        write_synced(&new.join("rootfs.json"), &json(&record)?)?;
        tracing::trace!(target: "step", "rootfs written");
        fs::rename(&new, &target).map_err(Error::file("rename root file system to", &target))?;
        tracing::trace!(target: "step", "rootfs published");
        held.into_iter().for_each(Held::keep);
        let rootfs = self.placed(container, &record);
        self.rootfs_records().insert(container.to_owned(), record);
        Ok(rootfs)
    }

    /// One that was prepared before, also by an earlier daemon.
    pub fn rootfs(&self, container: &str) -> Result<RootFs> {
        let records = self.rootfs_records();
        let record = records.get(container).ok_or_else(|| {
            Error::NotFound(format!("container {container} has no root file system"))
        })?;
        Ok(self.placed(container, record))
    }

    /// Mounts it if it is not mounted; gives the merged directory.
    pub fn mount(&self, container: &str) -> Result<PathBuf> {
        let rootfs = self.rootfs(container)?;
        // Whoever looks in must not unmount it when done, nor mount it a second time meanwhile.
        let mut visits = self.visits();
        visits.remove(container);
        if !is_mounted(&rootfs.merged)? {
            mount_overlay(&rootfs)?;
            tracing::trace!(target: "step", "rootfs mounted");
        }
        Ok(rootfs.merged)
    }

    /// Unmounts it if it is mounted.
    pub fn unmount(&self, container: &str) -> Result<()> {
        let rootfs = self.rootfs(container)?;
        unmount_all(&rootfs.merged)
    }

    /// Mounts it for a look; unmounted again with the last visitor, unless it was or became mounted for good.
    pub fn visit(&self, container: &str) -> Result<Visit> {
        let rootfs = self.rootfs(container)?;
        let mut visits = self.visits();
        match visits.get_mut(container) {
            Some(count) => *count += 1,
            None if is_mounted(&rootfs.merged)? => {}
            None => {
                mount_overlay(&rootfs)?;
                tracing::trace!(target: "step", "rootfs visited");
                visits.insert(container.to_owned(), 1);
            }
        }
        drop(visits);
        Ok(Visit { store: self.clone(), container: container.to_owned(), merged: rootfs.merged })
    }

    fn visits(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.inner.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directories of an image's layers, topmost first.
    pub fn layer_dirs(&self, image: &Image) -> Vec<PathBuf> {
        self.lower_dirs(&image.config.rootfs.diff_ids)
    }

    /// Unmounts and deletes; a container that never had one is fine.
    pub fn remove_rootfs(&self, container: &str) -> Result<()> {
        check_name(container)?;
        let base = self.inner.root.join("rootfs");
        let path = base.join(container);
        if path.exists() {
            unmount_all(&path.join("merged"))?;
            tracing::trace!(target: "step", "rootfs unmounted");
            let old = base.join(format!(".old-{container}"));
            remove_if_there(&old)?;
            fs::rename(&path, &old).map_err(Error::file("remove", &path))?;
            tracing::trace!(target: "step", "rootfs set aside");
            remove_if_there(&old)?;
            tracing::trace!(target: "step", "rootfs removed");
        }
        if let Some(record) = self.rootfs_records().remove(container) {
            record.layers.iter().for_each(|diff_id| self.inner.layers.release(diff_id));
        }
        Ok(())
    }

    /// Root file systems of containers that are not in `known` (a crash between two steps) are removed.
    pub fn sweep_rootfs(&self, known: &BTreeSet<String>) -> Result<Vec<String>> {
        let orphans: Vec<String> = self
            .rootfs_records()
            .keys()
            .filter(|container| !known.contains(*container))
            .cloned()
            .collect();
        for container in &orphans {
            self.remove_rootfs(container)?;
        }
        Ok(orphans)
    }

    pub(crate) fn rootfs_records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.inner.rootfs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn placed(&self, container: &str, record: &Record) -> RootFs {
        let base = self.inner.root.join("rootfs").join(container);
        let mut lower = vec![self.init_dir(record)];
        lower.extend(self.lower_dirs(&record.layers));
        RootFs {
            image: record.image,
            lower,
            upper: base.join("upper"),
            work: base.join("work"),
            merged: base.join("merged"),
        }
    }

    /// Topmost first.
    fn lower_dirs(&self, layers: &[Digest]) -> Vec<PathBuf> {
        let mut seen = BTreeSet::new();
        // A directory may be in a mount once; a layer that comes twice counts where it is on top.
        let top_first = layers.iter().rev().filter(|diff_id| seen.insert(**diff_id));
        top_first.map(|diff_id| self.inner.layers.diff_dir(diff_id)).collect()
    }

    fn init_dir(&self, record: &Record) -> PathBuf {
        self.inner.root.join("init").join(record.init_name())
    }

    fn make_init(&self, record: &Record) -> Result<()> {
        let target = self.init_dir(record);
        let _one_at_a_time = self.inner.inits.lock().unwrap_or_else(PoisonError::into_inner);
        if target.exists() {
            return Ok(());
        }
        let new = target.with_extension("new");
        remove_if_there(&new)?;
        fs::create_dir_all(&new).map_err(Error::file("create", &new))?;
        make_mode(&new, 0o755)?;
        fill_init(&new, &self.lower_dirs(&record.layers))?;
        fs::rename(&new, &target).map_err(Error::file("rename to", &target))
    }
}

impl Record {
    pub(crate) fn image(&self) -> Digest {
        self.image
    }

    /// Bottom first.
    pub(crate) fn layers(&self) -> &[Digest] {
        &self.layers
    }

    /// The same stack of layers has the same mount points.
    fn init_name(&self) -> String {
        crate::store::chain_ids(&self.layers).pop().unwrap_or(Digest::of(b"")).hex()
    }
}

/// Mount points that no container stands on are made again when one does.
pub(crate) fn sweep_inits(root: &Path, records: &BTreeMap<String, Record>) -> Result<()> {
    let used: BTreeSet<String> = records.values().map(Record::init_name).collect();
    let Ok(entries) = fs::read_dir(root) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(Error::file("read", root))?;
        if !entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
            remove_logged(&entry.path());
        }
    }
    Ok(())
}

enum Point {
    Directory,
    File,
    Link(&'static str),
}

/// The mount points and files that Docker gives every container.
const POINTS: [(&str, Point); 10] = [
    ("dev/pts", Point::Directory),
    ("dev/shm", Point::Directory),
    ("proc", Point::Directory),
    ("sys", Point::Directory),
    (".dockerenv", Point::File),
    ("etc/resolv.conf", Point::File),
    ("etc/hosts", Point::File),
    ("etc/hostname", Point::File),
    ("dev/console", Point::File),
    ("etc/mtab", Point::Link("/proc/mounts")),
];

fn fill_init(init: &Path, lower: &[PathBuf]) -> Result<()> {
    for (path, point) in &POINTS {
        let target = init.join(path);
        if let Some(parent) =
            Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty())
        {
            copy_directory(init, lower, parent)?;
        }
        match point {
            Point::Directory => copy_directory(init, lower, Path::new(path))?,
            Point::File => {
                fs::write(&target, b"").map_err(Error::file("create", &target))?;
                make_mode(&target, 0o755)?;
            }
            Point::Link(to) => {
                std::os::unix::fs::symlink(to, &target).map_err(Error::file("create", &target))?;
            }
        }
    }
    Ok(())
}

/// A directory in `init` with the owner, mode and time it has below; a file or link below is hidden by it.
fn copy_directory(init: &Path, lower: &[PathBuf], path: &Path) -> Result<()> {
    let target = init.join(path);
    if target.exists() {
        return Ok(());
    }
    let failed = |cause| Error::file("create", &target)(cause);
    fs::create_dir(&target).map_err(failed)?;
    match stack::lookup(lower, path).map_err(Error::file("read", path))? {
        Some((_, below)) if below.is_dir() => {
            std::os::unix::fs::chown(&target, Some(below.uid()), Some(below.gid()))
                .map_err(failed)?;
            make_mode(&target, below.mode() & 0o7777)
        }
        Some(_) => {
            make_mode(&target, 0o755)?;
            let set = rustix::fs::lsetxattr(
                &target,
                crate::unpack::OPAQUE_XATTR,
                b"y",
                rustix::fs::XattrFlags::empty(),
            );
            set.map_err(errno("set opaque", &target))
        }
        None => make_mode(&target, 0o755),
    }
}

/// What an earlier daemon left: whole ones are kept and hold their layers, half-made and half-removed ones go. One whose
/// record cannot be read stays as it lies, for it is a container's only copy; then the answer's second half is false.
pub(crate) fn read_records(
    root: &Path,
    layers: &Arc<Layers>,
) -> Result<(BTreeMap<String, Record>, bool)> {
    let mut records = BTreeMap::new();
    let mut whole = true;
    for entry in fs::read_dir(root).map_err(Error::file("read", root))? {
        let path = entry.map_err(Error::file("read", root))?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        if name.starts_with('.') {
            match unmount_all(&path.join("merged")) {
                Ok(()) => remove_logged(&path),
                Err(error) => tracing::warn!(path = %path.display(), %error, "not removed"),
            }
            continue;
        }
        match read_record(&path.join("rootfs.json")) {
            Ok(record) => {
                let held: Vec<Held> =
                    record.layers.iter().filter_map(|diff_id| layers.hold(diff_id)).collect();
                if held.len() != record.layers.len() {
                    tracing::warn!(container = %name, "a layer of its root file system is missing");
                }
                held.into_iter().for_each(Held::keep);
                records.insert(name, record);
            }
            Err(error) => {
                tracing::error!(container = %name, %error, "its root file system is kept and not used");
                whole = false;
            }
        }
    }
    Ok((records, whole))
}

fn read_record(file: &Path) -> Result<Record> {
    let raw = fs::read(file).map_err(Error::file("read", file))?;
    serde_json::from_slice(&raw).map_err(|cause| Error::file("read", file)(cause.into()))
}

/// Container ids become directory names: nothing that could be a path.
fn check_name(container: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match !container.is_empty() && container.len() <= 128 && container.bytes().all(plain) {
        true => Ok(()),
        false => Err(Error::Invalid(format!("invalid container id {container:?}"))),
    }
}

/// A mount point has another device than the directory it lies in.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    let (Some(parent), Ok(own)) = (path.parent(), fs::symlink_metadata(path)) else {
        return Ok(false);
    };
    let parent = fs::symlink_metadata(parent).map_err(Error::file("stat", parent))?;
    Ok(own.dev() != parent.dev())
}

fn unmount_all(merged: &Path) -> Result<()> {
    while is_mounted(merged)? {
        // Detached: a process that still looks at it keeps it alive without standing in the way.
        rustix::mount::unmount(merged, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(errno("unmount", merged))?;
    }
    Ok(())
}

fn mount_overlay(rootfs: &RootFs) -> Result<()> {
    let mut open = Vec::new();
    let mut options = mount_options(&rootfs.lower, rootfs)?;
    if options.as_bytes().len() > OPTIONS_BYTES_MAX {
        // Descriptors make short names of the longest stacks.
        let short = rootfs
            .lower
            .iter()
            .map(|path| by_descriptor(path, &mut open))
            .collect::<Result<Vec<_>>>()?;
        options = mount_options(&short, rootfs)?;
    }
    rustix::mount::mount(
        "overlay",
        &rootfs.merged,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(errno("mount overlay on", &rootfs.merged))?;
    // What a container mounts below its root must not appear on the host, also where the container
    // shares other mounts with it.
    rustix::mount::mount_change(&rootfs.merged, MountPropagationFlags::PRIVATE)
        .map_err(errno("make private", &rootfs.merged))
}

fn by_descriptor(path: &Path, open: &mut Vec<OwnedFd>) -> Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(errno("open", path))?;
    let name = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    open.push(fd);
    Ok(name)
}

fn mount_options(lower: &[PathBuf], rootfs: &RootFs) -> Result<CString> {
    let mut text = b"lowerdir=".to_vec();
    text.extend(lower.iter().map(|path| escaped(path)).collect::<Vec<_>>().join(&b':'));
    for (key, path) in [(&b",upperdir="[..], &rootfs.upper), (b",workdir=", &rootfs.work)] {
        text.extend_from_slice(key);
        text.extend(escaped(path));
    }
    // The upper directory must be readable by itself: it becomes a layer on commit.
    for option in ["index", "redirect_dir", "metacopy"] {
        if Path::new("/sys/module/overlay/parameters").join(option).exists() {
            text.extend_from_slice(format!(",{option}=off").as_bytes());
        }
    }
    CString::new(text).map_err(|_| Error::Invalid("the data root's path holds a NUL byte".into()))
}

fn escaped(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in path.as_os_str().to_owned().into_vec() {
        if matches!(byte, b':' | b',' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text
}

//! The /dev/shm of containers whose IPC others may join: mounted on the host, where those find it.

use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags};

use super::container::Spec;
use crate::Engine;
use crate::config::make_directory;
use crate::error::{Error, IoContext, Result};

impl Engine {
    fn shm_directory(&self, id: &str) -> PathBuf {
        self.config().exec_root.join("shm").join(id)
    }

    /// A fresh one for a container that starts.
    pub(super) fn make_shm(&self, spec: &Spec) -> Result<PathBuf> {
        self.drop_shm(&spec.id)?;
        let directory = self.shm_directory(&spec.id);
        make_directory(&directory, 0o700)?;
        let size = spec.host_config.shm_size.unwrap_or_default();
        let options = std::ffi::CString::new(format!("mode=1777,size={size}")).during("shm")?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount("shm", &directory, "tmpfs", flags, Some(options.as_c_str()))
            .during(format_args!("mount a tmpfs for shared memory at {}", directory.display()))?;
        Ok(directory)
    }

    /// Of a container that has ended; those that joined it keep theirs.
    pub(super) fn drop_shm(&self, id: &str) -> Result<()> {
        let directory = self.shm_directory(id);
        if !directory.exists() {
            return Ok(());
        }
        // Not mounted any more is as good.
        let _ = rustix::mount::unmount(&directory, UnmountFlags::DETACH);
        std::fs::remove_dir(&directory).during(format_args!("remove {}", directory.display()))
    }

    /// Where another container's lies. It must be meant to be shared (moby daemon `getIpcContainer`).
    pub(super) fn shm_of(&self, other: &str) -> Result<PathBuf> {
        let other = self.container(other)?;
        let spec = other.spec();
        let mode = spec.host_config.ipc_mode.as_deref().unwrap_or_default();
        match (mode, mode.strip_prefix("container:")) {
            ("host", _) => Ok("/dev/shm".into()),
            ("shareable", _) => Ok(self.shm_directory(&spec.id)),
            (_, Some(donor)) => self.shm_of(donor),
            _ => Err(Error::bad_parameter(format!(
                "can't join IPC of container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
                spec.id
            ))),
        }
    }
}

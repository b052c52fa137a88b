//! The daemon's process id in a file, so that a second daemon on the same roots is refused.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Removed when dropped.
#[derive(Debug)]
pub struct Pidfile(PathBuf);

impl Pidfile {
    /// # Errors
    /// When the file names a daemon that still runs, as dockerd says it, or cannot be written.
    pub fn write(path: &Path) -> Result<Pidfile> {
        if let Ok(text) = std::fs::read_to_string(path)
            && let Some(pid) = running_daemon(text.trim())
        {
            bail!(
                "process with PID {pid} is still running: ensure docker is not running or delete {}",
                path.display()
            );
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, std::process::id().to_string())
            .with_context(|| format!("pidfile {}", path.display()))?;
        Ok(Pidfile(path.to_path_buf()))
    }
}

/// A process id is used again sooner or later: only another process of this program counts.
fn running_daemon(pid: &str) -> Option<&str> {
    let own = std::process::id().to_string();
    // A daemon whose program was replaced under it (an upgrade) runs on: proc_pid_exe(5).
    let program = |pid: &str| {
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(name.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(name))
    };
    let same = pid != own && program(pid).is_some() && program(pid) == program("self");
    same.then_some(pid)
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the pidfile was not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_pidfile_is_replaced_and_removed_at_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/pid");
        std::fs::create_dir_all(folder.path().join("run")).expect("made");
        // Process 1 runs, and is another program.
        std::fs::write(&path, "1").expect("written");
        let pidfile = Pidfile::write(&path).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), std::process::id().to_string());
        drop(pidfile);
        assert!(!path.exists());
    }
}

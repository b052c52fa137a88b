//! One daemon per data root and exec root: two would end each other's containers.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::Config;
use crate::config::make_directory;
use crate::error::{Error, IoContext, Result};

/// The file below each root that its daemon keeps locked; it holds the daemon's process id.
const LOCK: &str = "skep.lock";
/// What the Docker Engine keeps below its data root and skep does not.
const FOREIGN: [&str; 5] =
    ["image/overlay2", "overlay2", "containerd/daemon", "image/vfs", "network/files/local-kv.db"];

/// The locks of both roots; the kernel gives them up with the process, however that ends.
pub(crate) struct Claims(#[expect(dead_code, reason = "held, never read")] [File; 2]);

impl Claims {
    /// Nothing below the roots is read or changed before this.
    ///
    /// # Errors
    /// When another daemon has one of the roots, or the Docker Engine's data is there.
    pub fn make(config: &Config) -> Result<Claims> {
        refuse_foreign(&config.data_root)?;
        make_directory(&config.data_root, 0o711)?;
        make_directory(&config.exec_root, 0o711)?;
        let claims =
            [claim("--data-root", &config.data_root)?, claim("--exec-root", &config.exec_root)?];
        Ok(Claims(claims))
    }
}

fn refuse_foreign(root: &Path) -> Result<()> {
    match FOREIGN.iter().find(|name| root.join(name).exists()) {
        None => Ok(()),
        Some(found) => Err(Error::conflict(format!(
            "data root {} holds data of the Docker Engine ({found}), which skep neither reads nor touches: name another directory with --data-root",
            root.display()
        ))),
    }
}

fn claim(flag: &str, root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let during = format!("lock {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .during(&during)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            return Err(Error::conflict(format!(
                "{flag} {} belongs to a daemon that runs (process {}): stop that one, or name another directory with {flag}",
                root.display(),
                owner.trim()
            )));
        }
        Err(error) => return Err(error).during(&during),
    }
    // Only for people; a full disk is no reason not to start.
    let _ = file.set_len(0).and_then(|()| file.rewind());
    let _ = file.write_all(std::process::id().to_string().as_bytes());
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_whose_the_roots_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::below(folder.path().join("data"), folder.path().join("exec"));
        let first = Claims::make(&config).expect("free");
        let other = Config::below(folder.path().join("data"), folder.path().join("exec2"));
        let error = Claims::make(&other).err().expect("taken").message;
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        let other = Config::below(folder.path().join("data2"), folder.path().join("exec"));
        assert!(Claims::make(&other).err().expect("taken").message.contains("--exec-root"));
        drop(first);
        Claims::make(&config).expect("free again");
    }

    #[test]
    fn the_docker_engines_data_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("image/overlay2")).expect("made");
        let config = Config::below(folder.path(), folder.path().join("exec"));
        let error = Claims::make(&config).err().expect("foreign").message;
        assert!(error.contains("--data-root"), "{error}");
        assert!(!folder.path().join(LOCK).exists(), "nothing was made there");
    }
}

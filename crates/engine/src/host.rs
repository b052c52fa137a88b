//! What the engine says of the host it runs on, and the name it goes by.

use std::path::Path;

use rand::RngCore;

use crate::Engine;
use crate::error::Result;

pub struct Uname {
    pub nodename: String,
    pub release: String,
    pub machine: String,
}

pub fn uname() -> Uname {
    let name = rustix::system::uname();
    Uname {
        nodename: name.nodename().to_string_lossy().into_owned(),
        release: name.release().to_string_lossy().into_owned(),
        machine: name.machine().to_string_lossy().into_owned(),
    }
}

/// The kind of file system a directory lies on, as `docker info` names it.
pub fn filesystem(path: &Path) -> &'static str {
    // Magic numbers: linux/magic.h.
    match rustix::fs::statfs(path).map(|found| found.f_type as u64) {
        Ok(0xef53) => "extfs",
        Ok(0x5846_5342) => "xfs",
        Ok(0x9123_683e) => "btrfs",
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x794c_7630) => "overlayfs",
        Ok(0x2fc1_2fc1) => "zfs",
        _ => "<unknown>",
    }
}

/// The daemon's id: made once, kept below the data root.
pub(crate) fn daemon_id(data_root: &Path) -> Result<String> {
    let path = data_root.join("engine-id");
    if let Ok(text) = std::fs::read_to_string(&path)
        && !text.trim().is_empty()
    {
        return Ok(text.trim().to_owned());
    }
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    // A version 4 UUID.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    crate::containers::replace_file(data_root, "engine-id", id.as_bytes())?;
    Ok(id)
}

impl Engine {
    /// What `docker info` shows as ID.
    pub fn id(&self) -> &str {
        &self.id
    }
}

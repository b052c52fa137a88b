//! What lies behind a volume with options: mounted, unmounted and looked for, without a word to its server but for the mount.

use std::ffi::CString;
use std::fs;
use std::net::ToSocketAddrs;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::Volume;
use crate::error::{Error, IoContext, Result};

/// The mount table tells it: who looks at what is mounted asks a server that may be gone.
pub fn is_mounted(path: &Path) -> Result<bool> {
    let (Some(Ok(folder)), Some(name)) = (path.parent().map(fs::canonicalize), path.file_name())
    else {
        return Ok(false);
    };
    let table = fs::read("/proc/self/mountinfo").during("read the mount table")?;
    let path = folder.join(name);
    let path = path.as_os_str().as_encoded_bytes();
    let points = table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    Ok(points.into_iter().any(|point| plain(point) == path))
}

/// The kernel writes blanks and backslashes as three octal digits.
fn plain(point: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(point.len());
    let mut rest = point;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\');
        let byte = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    plain
}

pub fn unmount(path: &Path) -> Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH).during(format!("unmount {}", path.display()))
}

/// Blocks, for ever where a server does not answer: `-o type=…,device=…,o=…`, as mount(8) would.
pub fn mount(volume: &Volume) -> Result<()> {
    let get = |key: &str| volume.options.get(key).cloned().unwrap_or_default();
    let (kind, device) = (get("type"), get("device"));
    let (flags, propagation, mut data) = parse_flags(&get("o"));
    if matches!(kind.as_str(), "nfs" | "nfs4" | "cifs") {
        data = with_address(&data)?;
    }
    let target = volume.mountpoint.as_path();
    let shown =
        format!("failed to mount local volume: mount {device}:{}, data: {data}", target.display());
    let data = CString::new(data).during(&shown)?;
    if flags.contains(MountFlags::BIND) {
        match propagation.contains(MountPropagationFlags::REC) {
            true => rustix::mount::mount_bind_recursive(&device, target),
            false => rustix::mount::mount_bind(&device, target),
        }
        .during(&shown)?;
        let rest = flags - MountFlags::BIND;
        if !rest.is_empty() {
            rustix::mount::mount_remount(target, flags, c"").during(&shown)?;
        }
    } else {
        rustix::mount::mount(&device, target, &kind, flags, data.as_c_str()).during(&shown)?;
    }
    let change = propagation - MountPropagationFlags::REC;
    match change.is_empty() {
        true => Ok(()),
        false => rustix::mount::mount_change(target, propagation).during(&shown),
    }
}

fn parse_flags(text: &str) -> (MountFlags, MountPropagationFlags, String) {
    let mut flags = MountFlags::empty();
    let mut propagation = MountPropagationFlags::empty();
    let mut data = Vec::new();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option {
            "defaults" | "rw" | "suid" | "dev" | "exec" | "async" | "atime" | "diratime" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "bind" => flags |= MountFlags::BIND,
            "rbind" => {
                flags |= MountFlags::BIND;
                propagation |= MountPropagationFlags::REC;
            }
            "shared" => propagation |= MountPropagationFlags::SHARED,
            "slave" => propagation |= MountPropagationFlags::DOWNSTREAM,
            "private" => propagation |= MountPropagationFlags::PRIVATE,
            "unbindable" => propagation |= MountPropagationFlags::UNBINDABLE,
            "rshared" => propagation |= MountPropagationFlags::SHARED | MountPropagationFlags::REC,
            "rslave" => {
                propagation |= MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC
            }
            "rprivate" => {
                propagation |= MountPropagationFlags::PRIVATE | MountPropagationFlags::REC
            }
            other => data.push(other),
        }
    }
    (flags, propagation, data.join(","))
}

/// The kernel wants `addr=` as an address, people write a name.
fn with_address(data: &str) -> Result<String> {
    let parts = data.split(',').map(|part| match part.strip_prefix("addr=") {
        Some(name) if name.parse::<std::net::IpAddr>().is_err() => {
            let mut found = (name, 0)
                .to_socket_addrs()
                .during(format!("error resolving passed in network volume address {name}"))?;
            let address =
                found.next().ok_or_else(|| Error::internal(format!("no address for {name}")))?;
            Ok(format!("addr={}", address.ip()))
        }
        _ => Ok(part.to_owned()),
    });
    Ok(parts.collect::<Result<Vec<_>>>()?.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(plain(br"/a\040b\134c\9"), br"/a b\c\9");
    }
}

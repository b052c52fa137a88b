//! How mounts below a bind's source reach the container, and what the source's own mount must be for it.

use std::path::{Path, PathBuf};

use runtime::Propagation;

use super::mounts::{MountRecord, MountType};
use crate::error::{Error, Result};

/// Fills in what a bind did not ask for. A copy of the daemon's own directories must follow what happens there: it would
/// else keep every container's root file system mounted that was there at its start (moby daemon/daemon_linux.go,
/// `validateBindDaemonRoot`).
pub(super) fn settle(record: &mut MountRecord, data_root: &Path) -> Result<()> {
    if record.kind != MountType::Bind {
        return Ok(());
    }
    let root = std::fs::canonicalize(data_root).unwrap_or_else(|_| data_root.to_owned());
    let source = Path::new(&record.source);
    let around = root.starts_with(source) || source.starts_with(&root);
    match record.propagation.as_str() {
        "" => {
            record.implied = around;
            record.propagation = if around { "rslave" } else { "rprivate" }.to_owned();
        }
        "rslave" | "rshared" => {}
        other if around => {
            return Err(Error::bad_parameter(format!(
                "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when mount source is within the daemon root, daemon root: {root:?}, bind mount source: {source:?}, propagation: {other:?}"
            )));
        }
        _ => {}
    }
    Ok(())
}

/// What the mount will be; its source is there.
///
/// # Errors
/// When the mount that the source lies on passes nothing on, and that was asked for.
pub(super) fn at_start(record: &MountRecord) -> Result<Propagation> {
    let wanted = named(&record.propagation);
    let (needed, shared) = match wanted {
        Propagation::Private | Propagation::RPrivate => return Ok(wanted),
        Propagation::Shared | Propagation::RShared => ("shared mount", true),
        Propagation::Slave | Propagation::RSlave => ("shared or slave mount", false),
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Error::internal(format!("mounts not read: {error}")))?;
    let source = Path::new(&record.source);
    let real = std::fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
    let Some((place, peers)) = mount_of(&mounts, &real) else { return Ok(wanted) };
    if peers == Peers::Shared || (peers == Peers::Slave && !shared) {
        return Ok(wanted);
    }
    if record.implied {
        return Ok(Propagation::RPrivate);
    }
    Err(Error::internal(format!(
        "path {} is mounted on {} but it is not a {needed}",
        record.source,
        place.display()
    )))
}

fn named(text: &str) -> Propagation {
    match text {
        "private" => Propagation::Private,
        "shared" => Propagation::Shared,
        "rshared" => Propagation::RShared,
        "slave" => Propagation::Slave,
        "rslave" => Propagation::RSlave,
        _ => Propagation::RPrivate,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peers {
    None,
    Shared,
    Slave,
}

/// The mount that a path lies on, of the lines of a `mountinfo` (proc(5)): of those at one place the last is on top.
fn mount_of(mounts: &str, path: &Path) -> Option<(PathBuf, Peers)> {
    let mut found: Option<(PathBuf, Peers)> = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(4);
        let Some(place) = fields.next().map(plain) else { continue };
        let longer =
            |(other, _): &(PathBuf, Peers)| place.as_os_str().len() >= other.as_os_str().len();
        if !path.starts_with(&place) || !found.as_ref().is_none_or(longer) {
            continue;
        }
        let mut peers = Peers::None;
        for field in fields.skip(1).take_while(|field| *field != "-") {
            match field.split_once(':') {
                Some(("shared", _)) => peers = Peers::Shared,
                Some(("master", _)) if peers == Peers::None => peers = Peers::Slave,
                _ => {}
            }
        }
        found = Some((place, peers));
    }
    found
}

/// Spaces and the like stand there as `\040`.
fn plain(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let number = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_on_top_of_the_longest_beginning_counts() {
        let mounts = "1 0 8:1 / / rw - ext4 a rw\n\
            2 1 8:2 / /srv rw shared:1 - ext4 b rw\n\
            3 1 8:3 / /srv/a\\040b rw,x master:2 - ext4 c rw\n\
            4 1 8:4 / /srv rw shared:3 master:9 - ext4 d rw\n\
            5 1 8:5 / /srvx rw unbindable - ext4 e rw\n";
        let of = |path: &str| mount_of(mounts, Path::new(path)).expect("a mount");
        assert_eq!(of("/"), ("/".into(), Peers::None));
        assert_eq!(of("/srv/x"), ("/srv".into(), Peers::Shared));
        assert_eq!(of("/srv/a b/c"), ("/srv/a b".into(), Peers::Slave));
        assert_eq!(of("/srvx"), ("/srvx".into(), Peers::None));
        assert_eq!(of("/srvxy"), ("/".into(), Peers::None));
    }

    #[test]
    fn a_bind_around_the_daemon_s_directories_follows_them() {
        let settled = |source: &str, asked: &str| {
            let mut record = MountRecord {
                source: source.into(),
                propagation: asked.into(),
                ..Default::default()
            };
            settle(&mut record, Path::new("/no/such/data")).map(|()| record.propagation)
        };
        for source in ["/", "/no/such", "/no/such/data", "/no/such/data/volumes"] {
            assert_eq!(settled(source, "").expect("valid"), "rslave", "{source}");
            assert_eq!(settled(source, "rshared").expect("valid"), "rshared", "{source}");
            assert!(settled(source, "private").is_err(), "{source}");
        }
        for source in ["/no/such/database", "/etc"] {
            assert_eq!(settled(source, "").expect("valid"), "rprivate", "{source}");
            assert_eq!(settled(source, "slave").expect("valid"), "slave", "{source}");
        }
    }
}

//! Binds, volumes and tmpfs: from Docker's many forms to one record per mount.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use bollard_stubs::models::{HostConfig, Mount, MountTmpfsOptions};
use model::ContainerId;
use serde::{Deserialize, Serialize};

use super::create::CreateRequest;
use super::propagation;
use crate::Engine;
use crate::error::{Error, Result};
use crate::images::blocking;

pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    #[default]
    Bind,
    Volume,
    Tmpfs,
}

/// One mount of a container as it will be made at every start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountRecord {
    pub kind: MountType,
    /// The volume's.
    pub name: String,
    /// On the host; empty for tmpfs.
    pub source: String,
    /// Below `source`, as `volume-subpath` asks.
    pub subpath: String,
    pub destination: String,
    pub driver: String,
    /// As it was written: `ro,z`.
    pub mode: String,
    pub read_only: bool,
    pub propagation: String,
    /// Nobody asked for that propagation: where the source's mount cannot do it, it is left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub implied: bool,
    pub non_recursive: bool,
    /// A missing bind source is made (`-v` does, `--mount` does not).
    pub create_source: bool,
    pub no_copy: bool,
    pub tmpfs_options: Vec<String>,
    /// `inspect` shows it (`--tmpfs` is not shown, `--mount type=tmpfs` is).
    pub listed: bool,
    /// Made for this container: it goes with `rm -v`.
    pub anonymous: bool,
}

impl Engine {
    /// All mounts of a new container; volumes that do not exist yet are made.
    pub(super) async fn resolve_mounts(
        &self,
        id: &ContainerId,
        request: &CreateRequest,
    ) -> Result<Vec<MountRecord>> {
        let mut wanted: BTreeMap<String, MountRecord> = BTreeMap::new();
        let host = &request.host_config;
        for from in host.volumes_from.iter().flatten() {
            for record in self.volumes_from(from)? {
                self.volumes.take(id, |name| name == record.name);
                wanted.insert(record.destination.clone(), record);
            }
        }
        let driver = host.volume_driver.as_deref().unwrap_or_default();
        // Sources are looked for, maybe on a server that is gone.
        let (asked, by) = (host.clone(), driver.to_owned());
        let own = blocking(move || parse_all(&asked, &by)).await?;
        for (mut record, options, labels) in own {
            propagation::settle(&mut record, &self.config().data_root)?;
            let record = self.ready_volume(id, record, options, labels)?;
            wanted.insert(record.destination.clone(), record);
        }
        for destination in request.config.volumes.iter().flatten() {
            let destination = clean(destination)?;
            if let Entry::Vacant(place) = wanted.entry(destination.clone()) {
                let record = MountRecord {
                    kind: MountType::Volume,
                    destination,
                    driver: driver.to_owned(),
                    listed: true,
                    ..Default::default()
                };
                let record = self.ready_volume(id, record, BTreeMap::new(), BTreeMap::new())?;
                place.insert(record);
            }
        }
        let records: Vec<MountRecord> = wanted.into_values().collect();
        self.populate(id, &records).await?;
        Ok(records)
    }

    /// Makes the volume behind a record, if it is one, and fills in where it lies.
    fn ready_volume(
        &self,
        id: &ContainerId,
        mut record: MountRecord,
        options: BTreeMap<String, String>,
        mut labels: BTreeMap<String, String>,
    ) -> Result<MountRecord> {
        if record.kind != MountType::Volume {
            return Ok(record);
        }
        record.anonymous = record.name.is_empty();
        if record.anonymous {
            labels.insert(ANONYMOUS_LABEL.into(), String::new());
            record.name = crate::volumes::random_name();
            super::record::note_volume(&self.containers.root().join(id.as_str()), &record.name)?;
        }
        let (taker, name) = (Some(id.as_str()), Some(record.name.as_str()));
        let volume = self.volumes.ensure_for(taker, name, &record.driver, options, labels)?;
        record.name = volume.name;
        record.driver = volume.driver;
        record.source = volume.mountpoint.to_string_lossy().into_owned();
        Ok(record)
    }

    /// `--volumes-from container[:ro|rw]`.
    fn volumes_from(&self, text: &str) -> Result<Vec<MountRecord>> {
        let (name, mode) = text.split_once(':').unwrap_or((text, ""));
        if !matches!(mode, "" | "ro" | "rw" | "z" | "Z" | "ro,z" | "ro,Z" | "rw,z" | "rw,Z") {
            return Err(Error::bad_parameter(format!("invalid mode: {mode}")));
        }
        // Not found would read as a missing image: the client would pull it and try again.
        let other = self.container(name).map_err(|error| Error::bad_parameter(error.message))?;
        Ok(other
            .spec()
            .mounts
            .iter()
            .filter(|record| record.kind != MountType::Tmpfs)
            .map(|record| MountRecord {
                read_only: if mode.is_empty() { record.read_only } else { mode.starts_with("ro") },
                anonymous: false,
                no_copy: true,
                ..record.clone()
            })
            .collect())
    }

    /// A fresh volume gets what the image has at its place (unless `nocopy`).
    async fn populate(&self, id: &ContainerId, records: &[MountRecord]) -> Result<()> {
        let fresh: Vec<(PathBuf, String)> = records
            .iter()
            .filter(|record| record.kind == MountType::Volume && !record.no_copy)
            .filter(|record| record.subpath.is_empty())
            .map(|record| (PathBuf::from(&record.source), record.destination.clone()))
            .collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let (store, id) = (self.images.store.clone(), id.clone());
        blocking(move || {
            let fresh: Vec<_> = fresh.into_iter().filter(|(volume, _)| is_empty(volume)).collect();
            if fresh.is_empty() {
                return Ok(());
            }
            let visit = store.visit(&id)?;
            for (volume, destination) in &fresh {
                tracing::trace!(target: "step", "volume about to be filled");
                image::copy::populate(visit.root(), destination, volume).map_err(|error| {
                    Error::from(error)
                        .context(format_args!("fill the volume of {destination} from the image"))
                })?;
            }
            Ok(())
        })
        .await
    }
}

/// A record, and the options and labels of its volume if that is to be made.
type Wanted = (MountRecord, BTreeMap<String, String>, BTreeMap<String, String>);

/// Everything the host configuration asks for: all of it is read before any of it is made.
fn parse_all(host: &HostConfig, driver: &str) -> Result<Vec<Wanted>> {
    let mut own: Vec<Wanted> = Vec::new();
    for text in host.binds.iter().flatten() {
        own.push((parse_bind(text, driver)?, BTreeMap::new(), BTreeMap::new()));
    }
    for mount in host.mounts.iter().flatten() {
        let options = mount.volume_options.clone().unwrap_or_default();
        let labels = options.labels.unwrap_or_default().into_iter().collect();
        let given = options.driver_config.and_then(|driver| driver.options).unwrap_or_default();
        own.push((parse_mount(mount, driver)?, given.into_iter().collect(), labels));
    }
    for (destination, options) in host.tmpfs.iter().flatten() {
        own.push((tmpfs_record(destination, options)?, BTreeMap::new(), BTreeMap::new()));
    }
    check_targets(own.iter().map(|(record, ..)| record))?;
    Ok(own)
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// `source:destination[:options]`, or `destination` alone for an anonymous volume.
pub(crate) fn parse_bind(text: &str, driver: &str) -> Result<MountRecord> {
    let invalid = || Error::bad_parameter(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts.as_slice() {
        [destination] => ("", *destination, ""),
        [source, destination] => (*source, *destination, ""),
        [source, destination, mode] => (*source, *destination, *mode),
        _ => return Err(invalid()),
    };
    if parts.len() > 1 && (source.is_empty() || destination.is_empty()) {
        return Err(invalid());
    }
    let is_bind = source.starts_with('/');
    let word = if is_bind { "bind" } else { "volume" };
    let bad = |text: &str| {
        let text = format!("invalid mount config for type \"{word}\": {text}");
        Error::bad_parameter(format!("{}: {text}", invalid().message))
    };
    let destination = clean(destination).map_err(|error| bad(&error.message))?;
    if destination == "/" {
        return Err(bad("invalid specification: destination can't be '/'"));
    }
    check_mode(mode)?;
    let mut record = MountRecord {
        kind: if is_bind { MountType::Bind } else { MountType::Volume },
        name: if is_bind { String::new() } else { source.to_owned() },
        source: if is_bind { source.to_owned() } else { String::new() },
        destination,
        driver: if is_bind { String::new() } else { driver.to_owned() },
        mode: if !is_bind && mode.is_empty() { "z".into() } else { mode.to_owned() },
        create_source: true,
        listed: true,
        ..Default::default()
    };
    if record.kind == MountType::Volume && parts.len() > 1 {
        check_volume_name(source)?;
    }
    apply_mode(&mut record, mode)?;
    Ok(record)
}

fn apply_mode(record: &mut MountRecord, mode: &str) -> Result<()> {
    check_mode(mode)?;
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => record.read_only = true,
            "rw" => record.read_only = false,
            "nocopy" if record.kind == MountType::Volume => record.no_copy = true,
            "bind-nonrecursive" => record.non_recursive = true,
            // Labels of SELinux, and caches of other platforms: without effect here, as in Docker.
            "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
                if record.kind == MountType::Bind =>
            {
                record.propagation = option.to_owned();
            }
            _ => return Err(Error::bad_parameter(format!("invalid mode: {mode}"))),
        }
    }
    Ok(())
}

/// Of each kind of option a mode may hold one (moby volume/mounts/linux_parser.go).
fn check_mode(mode: &str) -> Result<()> {
    const KINDS: [&[&str]; 4] = [
        &["ro", "rw"],
        &["z", "Z"],
        &["private", "rprivate", "shared", "rshared", "slave", "rslave"],
        &["consistent", "cached", "delegated"],
    ];
    let options: Vec<&str> = mode.split(',').filter(|option| !option.is_empty()).collect();
    let twice =
        KINDS.iter().any(|kind| options.iter().filter(|option| kind.contains(option)).count() > 1);
    if twice {
        return Err(Error::bad_parameter(format!("invalid mode: {mode}")));
    }
    Ok(())
}

fn check_volume_name(name: &str) -> Result<()> {
    let valid = name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if valid {
        return Ok(());
    }
    if name.len() == 1 {
        return Err(Error::bad_parameter(format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )));
    }
    Err(Error::bad_parameter(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

/// One entry of `HostConfig.Mounts`.
fn parse_mount(mount: &Mount, driver: &str) -> Result<MountRecord> {
    use bollard_stubs::models::MountType as Wire;
    let kind = match mount.typ {
        Some(Wire::BIND) => MountType::Bind,
        Some(Wire::VOLUME) => MountType::Volume,
        Some(Wire::TMPFS) => MountType::Tmpfs,
        Some(Wire::NPIPE) => {
            return Err(Error::bad_parameter(
                "invalid mount config for type \"npipe\": mount type unknown",
            ));
        }
        Some(other) => {
            return Err(Error::unsupported(format_args!("mounts of type {other}")));
        }
        None => return Err(Error::bad_parameter("mount type unknown")),
    };
    let word = match kind {
        MountType::Bind => "bind",
        MountType::Volume => "volume",
        MountType::Tmpfs => "tmpfs",
    };
    let bad = |text: &str| {
        Error::bad_parameter(format!("invalid mount config for type \"{word}\": {text}"))
    };
    let target = mount.target.as_deref().unwrap_or_default();
    if target.is_empty() {
        return Err(bad("field Target must not be empty"));
    }
    let destination = clean(target)
        .map_err(|_| bad(&format!("invalid mount path: '{target}' mount path must be absolute")))?;
    if destination == "/" {
        return Err(bad("invalid specification: destination can't be '/'"));
    }
    let source = mount.source.clone().unwrap_or_default();
    let mut record = MountRecord {
        kind,
        destination,
        read_only: mount.read_only.unwrap_or_default(),
        listed: true,
        ..Default::default()
    };
    match kind {
        MountType::Bind => bind_mount(mount, source, &mut record, &bad)?,
        MountType::Volume => volume_mount(mount, source, driver, &mut record, &bad)?,
        MountType::Tmpfs => {
            if !source.is_empty() {
                return Err(bad("field Source must not be specified"));
            }
            record.tmpfs_options =
                tmpfs_options(&mount.tmpfs_options.clone().unwrap_or_default(), record.read_only);
        }
    }
    Ok(record)
}

fn bind_mount(
    mount: &Mount,
    source: String,
    record: &mut MountRecord,
    bad: &dyn Fn(&str) -> Error,
) -> Result<()> {
    if source.is_empty() {
        return Err(bad("field Source must not be empty"));
    }
    if mount.volume_options.is_some() {
        return Err(bad("field VolumeOptions must not be specified"));
    }
    if !source.starts_with('/') {
        return Err(bad(&format!("invalid mount path: '{source}' mount path must be absolute")));
    }
    let options = mount.bind_options.clone().unwrap_or_default();
    record.create_source = options.create_mountpoint.unwrap_or_default();
    if !record.create_source && !Path::new(&source).exists() {
        return Err(bad(&format!("bind source path does not exist: {source}")));
    }
    record.propagation =
        options.propagation.map(|propagation| propagation.to_string()).unwrap_or_default();
    record.non_recursive = options.non_recursive.unwrap_or_default();
    record.source = source;
    Ok(())
}

fn volume_mount(
    mount: &Mount,
    source: String,
    driver: &str,
    record: &mut MountRecord,
    bad: &dyn Fn(&str) -> Error,
) -> Result<()> {
    if mount.bind_options.is_some() {
        return Err(bad("field BindOptions must not be specified"));
    }
    if !source.is_empty() {
        check_volume_name(&source)?;
    } else if record.read_only {
        return Err(bad("must not set ReadOnly mode when using anonymous volumes"));
    }
    let options = mount.volume_options.clone().unwrap_or_default();
    record.no_copy = options.no_copy.unwrap_or_default();
    record.driver =
        options.driver_config.and_then(|driver| driver.name).unwrap_or_else(|| driver.to_owned());
    record.subpath = options.subpath.unwrap_or_default();
    if record.subpath.starts_with('/') || record.subpath.split('/').any(|part| part == "..") {
        return Err(bad("subpath must be a relative path within the volume"));
    }
    record.mode = "z".into();
    record.name = source;
    Ok(())
}

fn tmpfs_options(options: &MountTmpfsOptions, read_only: bool) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(size) = options.size_bytes.filter(|size| *size > 0) {
        words.push(format!("size={size}"));
    }
    if let Some(mode) = options.mode.filter(|mode| *mode > 0) {
        words.push(format!("mode={mode:o}"));
    }
    for option in options.options.iter().flatten() {
        words.push(option.join("="));
    }
    if read_only {
        words.push("ro".into());
    }
    words
}

/// `--tmpfs /path:options`.
fn tmpfs_record(destination: &str, options: &str) -> Result<MountRecord> {
    let destination = clean(destination)?;
    if destination == "/" {
        return Err(Error::bad_parameter("invalid specification: destination can't be '/'"));
    }
    // Docker's own defaults stand first and yield (moby daemon/oci_linux.go).
    let mut words: Vec<String> =
        ["noexec", "nosuid", "nodev"].iter().map(|word| (*word).to_owned()).collect();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        words.retain(|word| {
            word.strip_prefix("no") != Some(option)
                && Some(word.as_str()) != option.strip_prefix("no")
        });
        words.push(option.to_owned());
    }
    check_tmpfs(options)?;
    Ok(MountRecord {
        kind: MountType::Tmpfs,
        destination,
        read_only: words.iter().any(|word| word == "ro"),
        tmpfs_options: words,
        ..Default::default()
    })
}

/// What `mount(8)` knows for a tmpfs (moby pkg/mount `MergeTmpfsOptions`).
fn check_tmpfs(options: &str) -> Result<()> {
    const FLAGS: [&str; 27] = [
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "private",
        "rprivate",
        "bind",
        "rbind",
    ];
    const VALUES: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let known = match option.split_once('=') {
            Some((key, value)) => VALUES.contains(&key) && is_tmpfs_value(key, value),
            None => FLAGS.contains(&option),
        };
        if !known {
            return Err(Error::bad_parameter(format!("invalid tmpfs option [\"{option}\"]")));
        }
    }
    Ok(())
}

/// As the kernel reads it, which would refuse it at the start without saying what it is (tmpfs(5)).
fn is_tmpfs_value(key: &str, value: &str) -> bool {
    let digits = match key {
        "size" | "nr_inodes" | "nr_blocks" => {
            value.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', '%'])
        }
        _ => value,
    };
    let radix = if key == "mode" { 8 } else { 10 };
    value.len() - digits.len() < 2 && u64::from_str_radix(digits, radix).is_ok()
}

/// Two mounts at one place are refused.
pub(crate) fn check_targets<'a>(records: impl IntoIterator<Item = &'a MountRecord>) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for record in records {
        if !seen.insert(record.destination.as_str()) {
            return Err(Error::bad_parameter(format!(
                "Duplicate mount point: {}",
                record.destination
            )));
        }
    }
    Ok(())
}

/// An absolute path without `.`, `..` and double slashes.
pub(crate) fn clean(path: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(Error::bad_parameter(format!(
            "invalid mount path: '{path}' mount path must be absolute"
        )));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(text: &str) -> String {
        match parse_bind(text, "") {
            Ok(record) => format!(
                "{:?} {}{} -> {} ro={} {}",
                record.kind,
                record.name,
                record.source,
                record.destination,
                record.read_only,
                record.propagation
            ),
            Err(error) => error.message,
        }
    }

    #[test]
    fn the_forms_of_dash_v() {
        assert_eq!(bind("/a:/b"), "Bind /a -> /b ro=false ");
        assert_eq!(bind("/a:/b/../c/:ro,rslave"), "Bind /a -> /c ro=true rslave");
        assert_eq!(bind("data:/b"), "Volume data -> /b ro=false ");
        assert_eq!(bind("/b"), "Volume  -> /b ro=false ");
        assert_eq!(bind("a:b:c:d"), "invalid volume specification: 'a:b:c:d'");
        assert_eq!(bind("/a:/b:wat"), "invalid mode: wat");
        assert_eq!(bind("/a:/b:ro,rw"), "invalid mode: ro,rw");
        assert_eq!(bind("/a:/b:shared,private"), "invalid mode: shared,private");
        assert!(bind("./a:/b").contains("invalid characters for a local volume name"));
        assert!(bind("/a:b").starts_with("invalid volume specification: '/a:b'"));
        assert!(bind("/a:/").contains("destination can't be '/'"));
    }

    #[test]
    fn tmpfs_options_yield_to_the_user_s() {
        let record = tmpfs_record("/t", "exec,size=1m").expect("a record");
        assert_eq!(record.tmpfs_options, ["nosuid", "nodev", "exec", "size=1m"]);
        for good in ["size=10%,mode=1777", "size=64m,uid=5", "nr_inodes=1k", "size=0"] {
            assert!(tmpfs_record("/t", good).is_ok(), "{good}");
        }
        for bad in ["size=x", "mode=999", "uid=root", "size=5mm", "size=", "size=-1", "nosuid=1"] {
            let error = tmpfs_record("/t", bad).expect_err(bad).message;
            assert_eq!(error, format!("invalid tmpfs option [\"{bad}\"]"));
        }
        let error = tmpfs_record("/t", "colour").expect_err("no option of a tmpfs");
        assert_eq!(error.message, "invalid tmpfs option [\"colour\"]");
    }
}

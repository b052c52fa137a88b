//! From a [`ContainerSpec`] to the OCI runtime's `config.json`.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cgroup::{has_bfq, io_weight};
use crate::error::{Error, Result};
use crate::spec::{
    BlkioDevice, CgroupNs, ContainerSpec, Device, IpcMode, Mount, MountKind, Namespace, OciRuntime,
    Propagation, Resources, UserSpec,
};
use crate::{apparmor, capabilities, seccomp};

pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where Docker puts its init too, so that scripts find it.
pub const INIT_DESTINATION: &str = "/sbin/docker-init";
const CGROUP_DESTINATION: &str = "/sys/fs/cgroup";
const SHM_BYTES: u64 = 64 << 20;
/// Periods and quotas of `--cpus`: 100 ms, as Docker.
const CPU_PERIOD_US: i64 = 100_000;

/// Hidden in every container that is not privileged (moby's default specification).
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the spec needs that is found out by looking at the host.
pub struct Context<'a> {
    pub user: &'a UserSpec,
    pub cgroup: &'a str,
    pub cgroup_v2: bool,
    /// On v1 and hybrid hosts: the container's own group in each hierarchy, by controller.
    pub cgroup_v1: &'a BTreeMap<String, PathBuf>,
    /// The init program on the host, when asked for.
    pub init: Option<&'a Path>,
}

/// The whole document.
pub fn config(spec: &ContainerSpec, context: &Context) -> Result<Value> {
    let caps = capabilities::tweak(&spec.cap_add, &spec.cap_drop, spec.privileged)?;
    let mut linux = json!({
        "namespaces": namespaces(spec, context.cgroup_v2),
        "cgroupsPath": context.cgroup,
        "sysctl": sysctls(spec),
        "devices": [],
    });
    let (nodes, rules) = devices(spec)?;
    linux["devices"] = Value::Array(nodes);
    let weight = match context.cgroup_v2 && spec.runtime == OciRuntime::BuiltIn && !has_bfq() {
        true => IoWeight::Unified,
        false => IoWeight::Block,
    };
    let mut resources = resources(&spec.resources, weight)?;
    resources["devices"] = Value::Array(rules);
    linux["resources"] = resources;
    let paths = |given: &Option<Vec<String>>, default: &[&str]| match given {
        Some(paths) => json!(paths),
        None if spec.privileged => json!([]),
        None => json!(default),
    };
    linux["maskedPaths"] = paths(&spec.masked_paths, &MASKED_PATHS);
    linux["readonlyPaths"] = paths(&spec.readonly_paths, &READONLY_PATHS);
    if let Some(profile) = seccomp::oci(&spec.seccomp, spec.privileged, &caps)? {
        linux["seccomp"] = profile;
    }
    if let Some(propagation) = rootfs_propagation(spec) {
        linux["rootfsPropagation"] = json!(propagation);
    }
    let mut process = process(spec, context, &caps);
    if let Some(profile) = apparmor::to_apply(spec)? {
        process["apparmorProfile"] = json!(profile);
    }
    let mut document = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": spec.rootfs, "readonly": spec.read_only },
        "mounts": mounts(spec, context),
        "linux": linux,
        "annotations": spec.annotations,
    });
    if spec.uts == Namespace::Private {
        document["hostname"] = json!(spec.hostname);
    }
    Ok(document)
}

/// The variables a container starts with: the given ones, and Docker's own where they are missing.
pub fn environment(spec: &ContainerSpec, home: &str) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut defaults = vec![DEFAULT_PATH.to_owned()];
    if !spec.hostname.is_empty() {
        defaults.push(format!("HOSTNAME={}", spec.hostname));
    }
    if spec.tty {
        defaults.push("TERM=xterm".to_owned());
    }
    let named = |entry: &str| entry.split('=').next().unwrap_or("").to_owned();
    let given: Vec<String> = spec.env.iter().map(|e| named(e)).collect();
    env.extend(defaults.into_iter().filter(|d| !given.contains(&named(d))));
    env.extend(spec.env.iter().filter(|e| e.contains('=')).cloned());
    if !given.contains(&"HOME".to_owned()) {
        env.push(format!("HOME={home}"));
    }
    env
}

fn process(spec: &ContainerSpec, context: &Context, caps: &[String]) -> Value {
    let mut args = spec.args.clone();
    if context.init.is_some() {
        args.splice(0..0, [INIT_DESTINATION.to_owned(), "--".to_owned()]);
    }
    let user = context.user;
    let mut groups = vec![user.gid];
    groups.extend(user.groups.iter().filter(|g| **g != user.gid));
    let mut process = json!({
        "terminal": spec.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": groups, "umask": 0o022 },
        "args": args,
        "env": environment(spec, &user.home),
        "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
        "rlimits": spec.ulimits.iter().map(|u| json!({
            "type": format!("RLIMIT_{}", u.name.to_ascii_uppercase()),
            "soft": u.soft as u64,
            "hard": u.hard as u64,
        })).collect::<Vec<_>>(),
        "oomScoreAdj": spec.oom_score_adj,
    });
    if spec.console_size != (0, 0) {
        process["consoleSize"] =
            json!({ "height": spec.console_size.0, "width": spec.console_size.1 });
    }
    if spec.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    process
}

fn namespaces(spec: &ContainerSpec, cgroup_v2: bool) -> Value {
    let mut list = vec![json!({ "type": "mount" })];
    let mut push = |kind: &str, from: &Namespace| match from {
        Namespace::Private => list.push(json!({ "type": kind })),
        Namespace::Path(path) => list.push(json!({ "type": kind, "path": path })),
        Namespace::Host => {}
    };
    push("network", &spec.network);
    push("uts", &spec.uts);
    push("pid", &spec.pid);
    let ipc = match &spec.ipc {
        IpcMode::Host => Namespace::Host,
        IpcMode::Path { namespace, .. } => Namespace::Path(namespace.clone()),
        _ => Namespace::Private,
    };
    push("ipc", &ipc);
    let private = match spec.cgroup_ns {
        CgroupNs::Default => cgroup_v2 && !spec.privileged,
        CgroupNs::Private => true,
        CgroupNs::Host => false,
    };
    push("cgroup", if private { &Namespace::Private } else { &Namespace::Host });
    Value::Array(list)
}

fn sysctls(spec: &ContainerSpec) -> Value {
    let mut all = serde_json::Map::new();
    if spec.network != Namespace::Host {
        // Docker's own defaults: ports below 1024 and ping need no capability inside.
        all.insert("net.ipv4.ip_unprivileged_port_start".into(), json!("0"));
        all.insert("net.ipv4.ping_group_range".into(), json!("0 2147483647"));
    }
    if !spec.domainname.is_empty() && spec.uts == Namespace::Private {
        all.insert("kernel.domainname".into(), json!(spec.domainname));
    }
    for (key, value) in &spec.sysctls {
        all.insert(key.clone(), json!(value));
    }
    Value::Object(all)
}

fn mounts(spec: &ContainerSpec, context: &Context) -> Value {
    let own: Vec<&str> = spec.mounts.iter().map(|m| m.destination.trim_end_matches('/')).collect();
    let replaced = |destination: &str| {
        own.iter().any(|o| *o == destination || (*o == "/dev" && destination.starts_with("/dev/")))
    };
    let mut list: Vec<Value> = Vec::new();
    for (destination, kind, options) in default_mounts(spec) {
        if !replaced(destination) {
            list.push(json!({ "destination": destination, "type": kind, "source": kind, "options": options }));
        }
    }
    if !replaced(CGROUP_DESTINATION) {
        list.extend(cgroups(spec, context));
    }
    if !replaced("/dev/shm") {
        list.extend(shm(spec));
    }
    if let Some(init) = context.init {
        let options = ["bind", "ro", "rprivate"];
        list.push(json!({ "destination": INIT_DESTINATION, "type": "bind", "source": init, "options": options }));
    }
    let mut given: Vec<&Mount> = spec.mounts.iter().collect();
    // Parents before what is mounted inside them.
    given.sort_by_key(|m| m.destination.trim_end_matches('/').matches('/').count());
    list.extend(given.into_iter().map(mount));
    Value::Array(list)
}

fn default_mounts(spec: &ContainerSpec) -> Vec<(&'static str, &'static str, Vec<String>)> {
    let own = |options: &[&str]| options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
    let access = if spec.privileged { "rw" } else { "ro" };
    vec![
        ("/proc", "proc", own(&["nosuid", "noexec", "nodev"])),
        ("/dev", "tmpfs", own(&["nosuid", "strictatime", "mode=755", "size=65536k"])),
        (
            "/dev/pts",
            "devpts",
            own(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ),
        ("/sys", "sysfs", own(&["nosuid", "noexec", "nodev", access])),
        ("/dev/mqueue", "mqueue", own(&["nosuid", "noexec", "nodev"])),
    ]
}

/// The container's view of its control groups. On v1 libcontainer mounts the hierarchies writable
/// whatever the options say, so each group is bound here on its own, as runc does it.
fn cgroups(spec: &ContainerSpec, context: &Context) -> Vec<Value> {
    let access = if spec.privileged { "rw" } else { "ro" };
    let by_runtime = context.cgroup_v2 || spec.runtime != OciRuntime::BuiltIn;
    if by_runtime || context.cgroup_v1.is_empty() {
        let options = [access, "nosuid", "noexec", "nodev"];
        return vec![
            json!({ "destination": CGROUP_DESTINATION, "type": "cgroup", "source": "cgroup", "options": options }),
        ];
    }
    let root = ["nosuid", "noexec", "nodev", "mode=755"];
    let mut list = vec![
        json!({ "destination": CGROUP_DESTINATION, "type": "tmpfs", "source": "tmpfs", "options": root }),
    ];
    for (name, group) in context.cgroup_v1 {
        let options = ["bind", "rprivate", access, "nosuid", "noexec", "nodev"];
        let destination = format!("{CGROUP_DESTINATION}/{name}");
        list.push(json!({ "destination": destination, "type": "bind", "source": group, "options": options }));
    }
    list
}

fn shm(spec: &ContainerSpec) -> Option<Value> {
    let bind = |dir: &Path| {
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev"];
        json!({ "destination": "/dev/shm", "type": "bind", "source": dir, "options": options })
    };
    let size = if spec.shm_size == 0 { SHM_BYTES } else { spec.shm_size };
    let size = format!("size={size}");
    let options = ["nosuid", "noexec", "nodev", "mode=1777", &size];
    let fresh =
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options });
    match &spec.ipc {
        IpcMode::None => None,
        IpcMode::Shareable { shm: Some(dir) } | IpcMode::Path { shm: Some(dir), .. } => {
            Some(bind(dir))
        }
        IpcMode::Host => Some(bind(Path::new("/dev/shm"))),
        _ => Some(fresh),
    }
}

fn mount(mount: &Mount) -> Value {
    let access = if mount.read_only { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind { source, propagation, recursive } => {
            let bind = if *recursive { "rbind" } else { "bind" };
            let options = [bind, access, propagation_name(*propagation)];
            json!({ "destination": mount.destination, "type": "bind", "source": source, "options": options })
        }
        MountKind::Tmpfs { options } => {
            let mut all: Vec<&str> = vec!["noexec", "nosuid", "nodev"];
            // An option given takes its opposite out of the defaults.
            all.retain(|d| !options.iter().any(|o| Some(o.as_str()) == d.strip_prefix("no")));
            all.extend(options.iter().map(String::as_str));
            if mount.read_only {
                all.push("ro");
            }
            json!({ "destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": all })
        }
    }
}

fn propagation_name(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::RPrivate => "rprivate",
        Propagation::Private => "private",
        Propagation::RShared => "rshared",
        Propagation::Shared => "shared",
        Propagation::RSlave => "rslave",
        Propagation::Slave => "slave",
    }
}

/// A mount can only be shared with the host when the root above it is. Otherwise every mount
/// begins as a slave of the host's: what else it should be is set by `shim::propagate`.
fn rootfs_propagation(spec: &ContainerSpec) -> Option<&'static str> {
    let shared = spec.mounts.iter().any(|mount| {
        let wanted = [Propagation::Shared, Propagation::RShared];
        matches!(&mount.kind, MountKind::Bind { propagation, .. } if wanted.contains(propagation))
    });
    shared.then_some("shared")
}

/// Device nodes to make and the cgroup's rules.
fn devices(spec: &ContainerSpec) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut nodes = Vec::new();
    if spec.privileged {
        let everything = json!({ "allow": true, "access": "rwm" });
        for device in host_devices(Path::new("/dev")) {
            nodes.push(node(&device, &device.to_string_lossy())?.0);
        }
        return Ok((nodes, vec![everything]));
    }
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        if let Some(major) = major {
            rule["major"] = json!(major);
        }
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    // zero, null, full, tty, random, urandom; the terminals; then making any node (not opening it).
    for (major, minor) in [(1, 5), (1, 3), (1, 7), (5, 0), (1, 8), (1, 9), (5, 1), (5, 2)] {
        rules.push(rule("c", Some(major), Some(minor), "rwm"));
    }
    rules.push(rule("c", Some(136), None, "rwm"));
    rules.push(rule("c", None, None, "m"));
    rules.push(rule("b", None, None, "m"));
    for text in &spec.device_cgroup_rules {
        let words: Vec<&str> = text.split([' ', ':']).collect();
        let [kind, major, minor, access] = words[..] else {
            return Err(Error::invalid(format!("invalid device cgroup rule format: '{text}'")));
        };
        rules.push(rule(kind, major.parse().ok(), minor.parse().ok(), access));
    }
    for device in &spec.devices {
        for (host, inside) in expand(device) {
            let (value, kind, major, minor) = node(&host, &inside)?;
            nodes.push(value);
            rules.push(rule(kind, Some(major), Some(minor), &device.permissions));
        }
    }
    Ok((nodes, rules))
}

/// A directory stands for the devices in it.
fn expand(device: &Device) -> Vec<(std::path::PathBuf, String)> {
    if !device.host.is_dir() {
        return vec![(device.host.clone(), device.container.clone())];
    }
    host_devices(&device.host)
        .into_iter()
        .filter_map(|path| {
            let below = path.strip_prefix(&device.host).ok()?.to_string_lossy().into_owned();
            Some((path, format!("{}/{below}", device.container.trim_end_matches('/'))))
        })
        .collect()
}

/// Device nodes under a directory, without the mounts and links a container has of its own.
fn host_devices(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    for entry in entries.flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        let name = entry.file_name();
        if kind.is_dir() {
            let own = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
            if !own.iter().any(|o| name.as_os_str() == *o) {
                found.extend(host_devices(&path));
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && name != "console" {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn node(host: &Path, inside: &str) -> Result<(Value, &'static str, i64, i64)> {
    let gone = |why: String| {
        Error::invalid(format!(
            "error gathering device information while adding custom device \"{}\": {why}",
            host.display()
        ))
    };
    let meta = std::fs::metadata(host).map_err(|e| gone(plain(&e)))?;
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return Err(gone("not a device node".into())),
    };
    let number = meta.rdev();
    let (major, minor) =
        (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)));
    let value = json!({
        "path": inside, "type": kind, "major": major, "minor": minor,
        "fileMode": meta.mode() & 0o7777, "uid": meta.uid(), "gid": meta.gid(),
    });
    Ok((value, kind, major, minor))
}

/// Where the weight of block I/O is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IoWeight {
    /// As the OCI spec has it, of the group and of devices.
    Block,
    /// As the file of cgroup v2: libcontainer 0.7 counts it wrong, and asks for BFQ's files for a
    /// device. Without BFQ devices have no weights.
    Unified,
}

fn resources(r: &Resources, weight: IoWeight) -> Result<Value> {
    let mut memory = serde_json::Map::new();
    if r.memory > 0 {
        memory.insert("limit".into(), json!(r.memory));
        let swap = if r.memory_swap == 0 { r.memory.saturating_mul(2) } else { r.memory_swap };
        memory.insert("swap".into(), json!(swap));
    }
    if r.memory_reservation > 0 {
        memory.insert("reservation".into(), json!(r.memory_reservation));
    }
    if let Some(swappiness) = r.memory_swappiness {
        memory.insert("swappiness".into(), json!(swappiness));
    }
    if r.oom_kill_disable {
        memory.insert("disableOOMKiller".into(), json!(true));
    }
    let mut cpu = serde_json::Map::new();
    let mut set = |key: &str, value: Value, wanted: bool| {
        if wanted {
            cpu.insert(key.to_owned(), value);
        }
    };
    set("shares", json!(r.cpu_shares), r.cpu_shares > 0);
    let (period, quota) = cpu_period_quota(r);
    set("period", json!(period), period > 0);
    set("quota", json!(quota), quota != 0);
    set("realtimePeriod", json!(r.cpu_realtime_period), r.cpu_realtime_period > 0);
    set("realtimeRuntime", json!(r.cpu_realtime_runtime), r.cpu_realtime_runtime > 0);
    set("cpus", json!(r.cpuset_cpus), !r.cpuset_cpus.is_empty());
    set("mems", json!(r.cpuset_mems), !r.cpuset_mems.is_empty());
    let mut out = json!({ "memory": memory, "cpu": cpu });
    if r.pids_limit > 0 {
        out["pids"] = json!({ "limit": r.pids_limit });
    }
    if weight == IoWeight::Unified && r.blkio_weight > 0 {
        out["unified"] = json!({ "io.weight": io_weight(r.blkio_weight).to_string() });
    }
    let block = block_io(r, weight)?;
    if block.as_object().is_some_and(|b| !b.is_empty()) {
        out["blockIO"] = block;
    }
    Ok(out)
}

/// `--cpus` is a quota over a fixed period.
pub fn cpu_period_quota(r: &Resources) -> (i64, i64) {
    if r.nano_cpus > 0 {
        (CPU_PERIOD_US, r.nano_cpus * CPU_PERIOD_US / 1_000_000_000)
    } else {
        (r.cpu_period, r.cpu_quota)
    }
}

fn block_io(r: &Resources, weight: IoWeight) -> Result<Value> {
    let mut out = serde_json::Map::new();
    let mut of_devices: &[BlkioDevice] = &[];
    if weight == IoWeight::Block {
        if r.blkio_weight > 0 {
            out.insert("weight".into(), json!(r.blkio_weight));
        }
        of_devices = &r.blkio_weight_device;
    }
    let lists: [(&str, &str, &[BlkioDevice]); 5] = [
        ("weightDevice", "weight", of_devices),
        ("throttleReadBpsDevice", "rate", &r.device_read_bps),
        ("throttleWriteBpsDevice", "rate", &r.device_write_bps),
        ("throttleReadIOPSDevice", "rate", &r.device_read_iops),
        ("throttleWriteIOPSDevice", "rate", &r.device_write_iops),
    ];
    for (key, field, devices) in lists {
        if !devices.is_empty() {
            let list = devices.iter().map(|d| throttle(d, field)).collect::<Result<Vec<_>>>()?;
            out.insert(key.into(), Value::Array(list));
        }
    }
    Ok(Value::Object(out))
}

fn throttle(device: &BlkioDevice, field: &str) -> Result<Value> {
    let number = std::fs::metadata(&device.path)
        .map_err(|e| Error::invalid(format!("stat {}: {}", device.path, plain(&e))))?
        .rdev();
    Ok(
        json!({ "major": rustix::fs::major(number), "minor": rustix::fs::minor(number), field: device.rate }),
    )
}

/// An error in the words of Docker's clients, which look for `no such file or directory`.
fn plain(error: &std::io::Error) -> String {
    crate::shim::errno_text(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_variables_are_added_only_where_missing() {
        let spec = ContainerSpec {
            env: vec!["PATH=/x".into(), "A=b".into(), "REMOVED".into()],
            hostname: "h".into(),
            tty: true,
            ..Default::default()
        };
        assert_eq!(
            environment(&spec, "/root"),
            ["HOSTNAME=h", "TERM=xterm", "PATH=/x", "A=b", "HOME=/root"]
        );
    }

    #[test]
    fn a_users_mount_takes_the_place_of_the_default_one() {
        let tmpfs = MountKind::Tmpfs { options: vec!["exec".into(), "size=1m".into()] };
        let spec = ContainerSpec {
            mounts: vec![
                Mount { destination: "/a/b".into(), kind: tmpfs.clone(), read_only: false },
                Mount { destination: "/dev/shm".into(), kind: tmpfs, read_only: false },
            ],
            ..Default::default()
        };
        let user = UserSpec::default();
        let context = Context {
            user: &user,
            cgroup: "/docker/x",
            cgroup_v2: false,
            cgroup_v1: &BTreeMap::new(),
            init: None,
        };
        let list = mounts(&spec, &context);
        let shm: Vec<&Value> =
            list.as_array().unwrap().iter().filter(|m| m["destination"] == "/dev/shm").collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(shm[0]["options"], json!(["nosuid", "nodev", "exec", "size=1m"]));
    }

    #[test]
    fn groups_of_v1_are_bound_one_by_one_and_cannot_be_written() {
        let groups =
            BTreeMap::from([("memory".to_owned(), "/sys/fs/cgroup/memory/docker/x".into())]);
        let user = UserSpec::default();
        let context = Context {
            user: &user,
            cgroup: "/docker/x",
            cgroup_v2: false,
            cgroup_v1: &groups,
            init: None,
        };
        let list = cgroups(&ContainerSpec::default(), &context);
        assert_eq!(list[1]["destination"], "/sys/fs/cgroup/memory");
        assert_eq!(list[1]["source"], "/sys/fs/cgroup/memory/docker/x");
        assert!(list[1]["options"].as_array().unwrap().contains(&json!("ro")));
        let privileged = ContainerSpec { privileged: true, ..Default::default() };
        assert!(
            cgroups(&privileged, &context)[1]["options"].as_array().unwrap().contains(&json!("rw"))
        );
    }

    #[test]
    fn cpus_become_a_quota() {
        let r = Resources { nano_cpus: 1_500_000_000, ..Default::default() };
        assert_eq!(cpu_period_quota(&r), (100_000, 150_000));
    }
}

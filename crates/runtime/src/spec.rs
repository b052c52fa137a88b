//! What a container is to run as: plain data, made by the engine from Docker's objects.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::logs::LogConfig;

/// Everything the runtime needs to create one container. The root file system is mounted already.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// 64 hex digits.
    pub id: String,
    /// The mounted root file system on the host.
    pub rootfs: PathBuf,
    /// Entrypoint and command together; never empty.
    pub args: Vec<String>,
    /// `KEY=value`; PATH, HOME, HOSTNAME and TERM are added by the runtime where they are missing.
    pub env: Vec<String>,
    /// Empty means `/`. Created when missing, as Docker does.
    pub cwd: String,
    /// `""`, `name`, `uid`, `name:group`, `uid:gid`; resolved inside the root file system.
    pub user: String,
    /// `--group-add`, names or numbers.
    pub groups: Vec<String>,
    pub tty: bool,
    pub open_stdin: bool,
    /// Close stdin when the first attached client has closed its side.
    pub stdin_once: bool,
    /// Size of the terminal at start, (height, width); (0, 0) leaves the kernel's.
    pub console_size: (u16, u16),
    pub hostname: String,
    pub domainname: String,

    pub network: Namespace,
    pub ipc: IpcMode,
    pub pid: Namespace,
    /// `Host` keeps the host's UTS namespace.
    pub uts: Namespace,
    pub cgroup_ns: CgroupNs,

    /// Beside the defaults (/proc, /dev, /dev/pts, /dev/shm, /dev/mqueue, /sys, /sys/fs/cgroup).
    /// resolv.conf, hosts and hostname are ordinary bind mounts given by the engine.
    pub mounts: Vec<Mount>,
    pub read_only: bool,
    /// Bytes; 0 means Docker's 64 MiB.
    pub shm_size: u64,
    /// `None`: Docker's defaults (none when privileged).
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,

    pub resources: Resources,
    /// Empty: the runtime's configured parent.
    pub cgroup_parent: String,
    pub devices: Vec<Device>,
    /// `--device-cgroup-rule`, as `c 1:3 rwm`.
    pub device_cgroup_rules: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: i32,

    pub privileged: bool,
    /// With or without `CAP_`, any case, also `ALL`.
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// `None`: `docker-default` where the host has AppArmor; `unconfined` for none.
    pub apparmor: Option<String>,

    /// `--init`: the runtime's own small init is process 1.
    pub init: bool,
    /// Signal number for a graceful stop; kept for re-adoption, 0 means SIGTERM.
    pub stop_signal: i32,
    pub runtime: OciRuntime,
    pub log: LogConfig,
    /// Label annotations handed to the OCI runtime.
    pub annotations: BTreeMap<String, String>,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    #[default]
    Private,
    Host,
    /// Joined by path, for example a bind-mounted network namespace or `/proc/N/ns/pid`.
    Path(PathBuf),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpcMode {
    /// Private, /dev/shm not shared.
    #[default]
    Private,
    /// Private, /dev/shm given as a bind mount of this directory so that others can join.
    Shareable {
        shm: Option<PathBuf>,
    },
    Host,
    /// No /dev/shm at all.
    None,
    /// Another container's: namespace path and its /dev/shm directory.
    Path {
        namespace: PathBuf,
        shm: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupNs {
    /// Docker's default: private on cgroup v2, the host's on v1 and hybrid.
    #[default]
    Default,
    Private,
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Inside the container, absolute.
    pub destination: String,
    pub kind: MountKind,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// Bind of a file or directory that exists on the host (volumes too).
    Bind { source: PathBuf, propagation: Propagation, recursive: bool },
    /// Options as mount(8) has them: `size=64m`, `mode=1777`, `noexec` ...
    Tmpfs { options: Vec<String> },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    RPrivate,
    Private,
    RShared,
    Shared,
    RSlave,
    Slave,
}

/// Zero, empty or `None` means not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub memory: i64,
    pub memory_reservation: i64,
    /// Memory and swap together; -1 unlimited swap; 0 twice the memory.
    pub memory_swap: i64,
    pub memory_swappiness: Option<u64>,
    pub kernel_memory: i64,
    pub oom_kill_disable: bool,
    pub cpu_shares: u64,
    pub nano_cpus: i64,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpu_realtime_period: i64,
    pub cpu_realtime_runtime: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub pids_limit: i64,
    pub blkio_weight: u16,
    pub blkio_weight_device: Vec<BlkioDevice>,
    pub device_read_bps: Vec<BlkioDevice>,
    pub device_write_bps: Vec<BlkioDevice>,
    pub device_read_iops: Vec<BlkioDevice>,
    pub device_write_iops: Vec<BlkioDevice>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioDevice {
    pub path: String,
    pub rate: u64,
}

/// `--device host:container:permissions`. A directory on the host stands for all devices in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host: PathBuf,
    pub container: String,
    /// Subset of `rwm`.
    pub permissions: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile`, `nproc` ... as in docker; without `RLIMIT_`.
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Docker's default profile (none when privileged).
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's JSON format, its text.
    Custom(String),
}

/// Which program makes the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OciRuntime {
    /// libcontainer, inside this binary.
    #[default]
    BuiltIn,
    /// An OCI runtime's binary, such as `/usr/sbin/runc`, and extra arguments.
    Binary { path: PathBuf, args: Vec<String> },
}

/// One `docker exec`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    /// 64 hex digits, unique within the container.
    pub id: String,
    pub args: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<String>,
    /// Empty: the container's own.
    pub cwd: String,
    /// Empty: the container's own.
    pub user: String,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub privileged: bool,
    pub console_size: (u16, u16),
}

/// A user as numbers, resolved inside a root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

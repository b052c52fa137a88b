//! Containers: OCI specs, libcontainer in a re-executed child, shims, logs, exec.
//!
//! [`Runtime`] is the daemon's handle. Each running container has one `skep shim` process
//! ([`shim::main`]) that owns its stdio, log files and exit status and outlives the daemon.

pub mod spec;
pub mod apparmor;
pub mod runtime;
pub mod limits;
pub mod attach;
pub mod logs;
pub mod look;
pub mod memory;
pub mod stats;
pub mod steps;
pub mod top;
pub mod users;
pub mod error;
pub mod shim;
mod adopt;
mod bundle;
mod capabilities;
mod cgroup;
mod client;
mod oci;
mod protocol;
mod seccomp;

pub use attach::{AttachOptions, PendingAttach};
pub use capabilities::check as check_capabilities;
pub use cgroup::has_bfq;
pub use error::{Error, ErrorKind};
pub use logs::{LogConfig, LogDriver, LogEntry, LogOptions, LogReader, LogStream};
pub use oci::{MASKED_PATHS, READONLY_PATHS};
pub use runtime::{Adopted, Config, Created, Event, ExitStatus, Runtime};
pub use spec::{
    BlkioDevice, CgroupNs, ContainerSpec, Device, ExecSpec, IpcMode, Mount, MountKind, Namespace,
    OciRuntime, Propagation, Resources, Seccomp, Ulimit, UserSpec,
};
pub use stats::Stats;

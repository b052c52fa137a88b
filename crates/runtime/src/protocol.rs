//! What daemon and shim say to each other: one JSON object per line over a unix socket.
//!
//! A newer daemon must be able to speak to an older shim: fields are only ever added, with defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::logs::LogConfig;
use crate::runtime::ExitStatus;
use crate::spec::{OciRuntime, UserSpec};

/// Longest line either side accepts; an exec's environment fits many times over.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// Files of a container's bundle directory.
pub const SHIM_FILE: &str = "shim.json";
pub const CONFIG_FILE: &str = "config.json";
pub const EXIT_FILE: &str = "exit.json";
pub const SOCKET_FILE: &str = "shim.sock";
pub const OCI_DIR: &str = "oci";

/// What the shim is told at birth, in the bundle's `shim.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShimSpec {
    pub id: String,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub console_size: (u16, u16),
    pub runtime: OciRuntime,
    pub log: LogConfig,
    /// As in the OCI spec: `/docker/<id>`.
    pub cgroup: String,
    pub uid: u32,
    pub stop_signal: i32,
    /// Processes may outlive process 1: no own pid namespace.
    pub shared_pid: bool,
    /// The environment execs start from.
    pub env: Vec<String>,
    pub rootfs: PathBuf,
    pub user: String,
    pub groups: Vec<String>,
    pub cwd: String,
    /// How many files the container's processes may open unless it is told otherwise; the daemon itself opens more.
    pub open_files: Option<u64>,
    /// How mounts of directories propagate, by their place in the container.
    #[serde(default)]
    pub propagation: Vec<(String, crate::spec::Propagation)>,
    /// In force once the container's process is there.
    pub pids_limit: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub seq: u64,
    pub call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Where the container is; also sent unasked after the creation.
    State,
    Start,
    Signal {
        signal: i32,
    },
    Exec {
        process: Box<ExecProcess>,
    },
    ExecSignal {
        exec: String,
        signal: i32,
    },
    Resize {
        exec: Option<String>,
        height: u16,
        width: u16,
    },
    /// Turns this connection into a byte stream after the reply.
    Attach {
        exec: Option<String>,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Ends a shim whose container never started.
    Quit,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecProcess {
    pub id: String,
    pub args: Vec<String>,
    /// Complete.
    pub env: Vec<String>,
    pub cwd: String,
    pub user: UserSpec,
    pub tty: bool,
    pub stdin: bool,
    pub console_size: (u16, u16),
    pub privileged: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    Reply { seq: u64, result: std::result::Result<Reply, Failure> },
    Exited { status: ExitStatus },
    ExecExited { exec: String, status: ExitStatus },
    Oom,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Pid(u32),
    Started(SystemTime),
    State(State),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub pid: u32,
    pub started_at: Option<SystemTime>,
    pub exit: Option<ExitStatus>,
    /// Running execs and ended ones whose exit nobody may have heard of.
    pub execs: BTreeMap<String, ExecState>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecState {
    pub pid: u32,
    pub exit: Option<ExitStatus>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub kind: ErrorKind,
    pub text: String,
}

//! Container logs: what the shim writes and what `docker logs` reads back.

pub mod write;
pub mod read;
mod local;

pub use read::LogReader;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogDriver {
    #[default]
    JsonFile,
    Local,
    None,
}

/// Where and how a container's output is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    pub driver: LogDriver,
    /// `<data-root>/containers/<id>/<id>-json.log` or the local driver's file.
    pub path: PathBuf,
    /// Bytes, 0: never rotated.
    pub max_size: u64,
    /// Files in all, at least 1.
    pub max_file: u32,
    /// Rotated files become `.gz`.
    pub compress: bool,
    /// `mode=non-blocking`: the container does not wait for its log, of which so many bytes may wait instead; what
    /// comes while there is no room is lost.
    pub buffer: Option<u64>,
    /// `--log-opt labels/env/tag` results, written as `attrs`.
    pub attrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
}

impl LogStream {
    pub fn name(self) -> &'static str {
        match self {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        }
    }
}

#[derive(Debug, Clone)]
pub struct LogEntry {
    pub stream: LogStream,
    pub at: SystemTime,
    /// With its newline, when the container wrote one.
    pub line: Vec<u8>,
    pub attrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    /// `None`: all.
    pub tail: Option<usize>,
}

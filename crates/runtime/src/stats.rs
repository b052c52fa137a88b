//! One reading of a container's cgroup counters.

use std::collections::BTreeMap;
use std::time::SystemTime;

#[derive(Debug, Clone)]
pub struct Stats {
    pub read: SystemTime,
    pub cgroup_v2: bool,
    pub pids_current: u64,
    pub pids_limit: u64,
    pub cpu_total_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_kernel_ns: u64,
    pub cpu_per_ns: Vec<u64>,
    pub throttling_periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    /// All CPUs of the host, from /proc/stat.
    pub system_cpu_ns: u64,
    pub online_cpus: u32,
    pub memory_usage: u64,
    pub memory_max_usage: u64,
    pub memory_limit: u64,
    pub memory_failcnt: u64,
    pub memory_stats: BTreeMap<String, u64>,
    /// (major, minor, operation, value)
    pub blkio_bytes: Vec<(u64, u64, String, u64)>,
    pub blkio_ops: Vec<(u64, u64, String, u64)>,
}

//! One reading of a container's cgroup counters.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::cgroup::Cgroup;
use crate::error::Result;

/// User-space clock ticks; fixed at 100 on every Linux.
const TICK_NS: u64 = 10_000_000;

#[derive(Debug, Clone)]
pub struct Stats {
    pub read: SystemTime,
    pub cgroup_v2: bool,
    pub pids_current: u64,
    /// `u64::MAX`: not limited.
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
    /// The host's memory when not limited.
    pub memory_limit: u64,
    pub memory_failcnt: u64,
    pub memory_stats: BTreeMap<String, u64>,
    /// (major, minor, operation, value)
    pub blkio_bytes: Vec<(u64, u64, String, u64)>,
    pub blkio_ops: Vec<(u64, u64, String, u64)>,
}

pub(crate) fn read(cgroup: &Cgroup) -> Result<Stats> {
    let (system_cpu_ns, online_cpus) = host_cpu();
    let mut stats = Stats {
        read: SystemTime::now(),
        cgroup_v2: cgroup.is_v2(),
        pids_current: cgroup.read_number("pids", "pids.current"),
        pids_limit: cgroup.read_number("pids", "pids.max"),
        cpu_total_ns: 0,
        cpu_user_ns: 0,
        cpu_kernel_ns: 0,
        cpu_per_ns: Vec::new(),
        throttling_periods: 0,
        throttled_periods: 0,
        throttled_ns: 0,
        system_cpu_ns,
        online_cpus,
        memory_usage: 0,
        memory_max_usage: 0,
        memory_limit: 0,
        memory_failcnt: 0,
        memory_stats: fields(cgroup, "memory", "memory.stat"),
        blkio_bytes: Vec::new(),
        blkio_ops: Vec::new(),
    };
    if cgroup.is_v2() {
        read_v2(cgroup, &mut stats)
    } else {
        read_v1(cgroup, &mut stats)
    }
    stats.memory_limit = stats.memory_limit.min(host_memory());
    Ok(stats)
}

fn read_v1(cgroup: &Cgroup, stats: &mut Stats) {
    stats.cpu_total_ns = cgroup.read_number("cpuacct", "cpuacct.usage");
    let ticks = fields(cgroup, "cpuacct", "cpuacct.stat");
    let field = |map: &BTreeMap<String, u64>, key: &str| map.get(key).copied().unwrap_or(0);
    stats.cpu_user_ns = field(&ticks, "user") * TICK_NS;
    stats.cpu_kernel_ns = field(&ticks, "system") * TICK_NS;
    let each = cgroup.read("cpuacct", "cpuacct.usage_percpu").unwrap_or_default();
    stats.cpu_per_ns = each.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let throttled = fields(cgroup, "cpu", "cpu.stat");
    stats.throttling_periods = field(&throttled, "nr_periods");
    stats.throttled_periods = field(&throttled, "nr_throttled");
    stats.throttled_ns = field(&throttled, "throttled_time");
    stats.memory_usage = cgroup.read_number("memory", "memory.usage_in_bytes");
    stats.memory_max_usage = cgroup.read_number("memory", "memory.max_usage_in_bytes");
    stats.memory_limit = cgroup.read_number("memory", "memory.limit_in_bytes");
    stats.memory_failcnt = cgroup.read_number("memory", "memory.failcnt");
    stats.blkio_bytes = blkio_v1(cgroup, "blkio.throttle.io_service_bytes_recursive");
    stats.blkio_ops = blkio_v1(cgroup, "blkio.throttle.io_serviced_recursive");
}

fn read_v2(cgroup: &Cgroup, stats: &mut Stats) {
    let cpu = fields(cgroup, "cpu", "cpu.stat");
    let field = |key: &str| cpu.get(key).copied().unwrap_or(0);
    stats.cpu_total_ns = field("usage_usec") * 1_000;
    stats.cpu_user_ns = field("user_usec") * 1_000;
    stats.cpu_kernel_ns = field("system_usec") * 1_000;
    stats.throttling_periods = field("nr_periods");
    stats.throttled_periods = field("nr_throttled");
    stats.throttled_ns = field("throttled_usec") * 1_000;
    stats.memory_usage = cgroup.read_number("memory", "memory.current");
    stats.memory_limit = cgroup.read_number("memory", "memory.max");
    let io = cgroup.read("io", "io.stat").unwrap_or_default();
    for line in io.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device_number) else { continue };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => stats.blkio_bytes.push((major, minor, "read".into(), value)),
                "wbytes" => stats.blkio_bytes.push((major, minor, "write".into(), value)),
                "rios" => stats.blkio_ops.push((major, minor, "read".into(), value)),
                "wios" => stats.blkio_ops.push((major, minor, "write".into(), value)),
                _ => {}
            }
        }
    }
}

fn fields(cgroup: &Cgroup, controller: &str, file: &str) -> BTreeMap<String, u64> {
    let text = cgroup.read(controller, file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

fn blkio_v1(cgroup: &Cgroup, file: &str) -> Vec<(u64, u64, String, u64)> {
    let text = cgroup.read("blkio", file).unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device_number(words.next()?)?;
        Some((major, minor, words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Time of all CPUs together (idle too), and how many there are.
fn host_cpu() -> (u64, u32) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let sum = |line: &str| {
        line.split_whitespace().skip(1).take(7).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>()
    };
    let total = text.lines().find(|l| l.starts_with("cpu ")).map_or(0, sum);
    let count = text.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count();
    (total * TICK_NS, count as u32)
}

fn host_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map_or(u64::MAX, |k| k * 1024)
}

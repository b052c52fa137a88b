//! A container's control groups on v1, v2 and hybrid hosts: where they are, what they say, what they limit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::oci::cpu_period_quota;
use crate::spec::Resources;

/// The directories of one group, by controller; `unified` alone on a v2 host.
#[derive(Debug, Clone, Default)]
pub struct Cgroup {
    v1: BTreeMap<String, PathBuf>,
    unified: Option<PathBuf>,
}

impl Cgroup {
    /// Finds the hierarchies of this host; `path` is as in the OCI spec, `/docker/<id>`.
    pub fn at(path: &str) -> Cgroup {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Cgroup::in_mounts(&mountinfo, path)
    }

    fn in_mounts(mountinfo: &str, path: &str) -> Cgroup {
        let below = path.trim_start_matches('/');
        let mut found = Cgroup::default();
        // That would be the host's own group, with every process there is.
        if below.is_empty() {
            return found;
        }
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let (Some(point), Some(kind)) = (head.split(' ').nth(4), tail.split(' ').next()) else {
                continue;
            };
            let options = tail.split(' ').nth(2).unwrap_or("");
            match kind {
                "cgroup2" if point == "/sys/fs/cgroup" => {
                    found.unified = Some(Path::new(point).join(below));
                }
                "cgroup" => {
                    for controller in options.split(',').filter(|o| CONTROLLERS.contains(o)) {
                        found
                            .v1
                            .entry(controller.to_owned())
                            .or_insert_with(|| Path::new(point).join(below));
                    }
                }
                _ => {}
            }
        }
        found
    }

    pub fn is_v2(&self) -> bool {
        self.unified.is_some()
    }

    /// The directory where this controller's files are.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        self.unified.as_deref().or(self.v1.get(controller).map(PathBuf::as_path))
    }

    /// The directories of v1 hierarchies by controller; two controllers may share one.
    pub fn v1(&self) -> &BTreeMap<String, PathBuf> {
        &self.v1
    }

    /// Each directory once.
    pub fn dirs(&self) -> Vec<&Path> {
        let mut dirs: Vec<&Path> =
            self.v1.values().chain(&self.unified).map(PathBuf::as_path).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    pub fn read(&self, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.dir(controller)?.join(file)).ok()
    }

    pub fn read_number(&self, controller: &str, file: &str) -> u64 {
        // "max" counts as no limit.
        self.read(controller, file).map_or(0, |text| text.trim().parse().unwrap_or(u64::MAX))
    }

    fn write(&self, controller: &str, file: &str, value: impl std::fmt::Display) -> Result<()> {
        let dir = self.dir(controller).ok_or_else(|| {
            Error::new(
                crate::ErrorKind::Unsupported,
                format!("cgroup controller {controller} is not on this host"),
            )
        })?;
        std::fs::write(dir.join(file), value.to_string()).map_err(|e| {
            Error::system(
                format!("failed to write {value} to {file} of cgroup {}", dir.display()),
                e,
            )
        })
    }

    /// All processes of the group and the groups below it.
    pub fn pids(&self) -> Vec<u32> {
        let Some(dir) = self.dir("pids").or(self.dir("memory")).or(self.dir("devices")) else {
            return Vec::new();
        };
        let mut pids = Vec::new();
        collect_pids(dir, &mut pids);
        // 0 stands for those of another namespace; a signal to it would be for this process's own group.
        pids.retain(|pid| *pid != 0);
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// How often the kernel killed something here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        let text = self.read("memory", file).unwrap_or_default();
        text.lines()
            .find_map(|l| l.strip_prefix("oom_kill "))
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or(0)
    }

    pub fn freeze(&self, frozen: bool) -> Result<()> {
        if self.is_v2() {
            self.write("", "cgroup.freeze", u8::from(frozen))
        } else {
            self.write("freezer", "freezer.state", if frozen { "FROZEN" } else { "THAWED" })
        }
    }

    pub fn is_frozen(&self) -> bool {
        match self.is_v2() {
            true => self.read("", "cgroup.freeze").is_some_and(|t| t.trim() == "1"),
            false => self.read("freezer", "freezer.state").is_some_and(|t| t.trim() != "THAWED"),
        }
    }

    /// True when everything in it stands still.
    pub fn settled(&self) -> bool {
        match self.is_v2() {
            true => self.read("", "cgroup.events").is_some_and(|t| t.contains("frozen 1")),
            false => self.read("freezer", "freezer.state").is_some_and(|t| t.trim() == "FROZEN"),
        }
    }

    /// Ends what is left in the group.
    pub fn kill_all(&self) {
        for pid in self.pids() {
            // SAFETY: plain system call without memory arguments.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        }
    }

    /// Removes the group's directories, those below it first. The parent stays: other daemons use it too.
    pub fn remove(&self) -> io::Result<()> {
        for dir in self.dirs() {
            remove_tree(dir)?;
        }
        Ok(())
    }

    /// Changes limits of a running container; zero fields stay.
    pub fn update(&self, r: &Resources) -> Result<()> {
        check_shares(r.cpu_shares)?;
        if self.is_v2() { self.update_v2(r) } else { self.update_v1(r) }
    }

    fn update_v1(&self, r: &Resources) -> Result<()> {
        if r.memory != 0 || r.memory_swap != 0 {
            self.update_memory_v1(r.memory, r.memory_swap)?;
        }
        if r.memory_reservation > 0 {
            self.write("memory", "memory.soft_limit_in_bytes", r.memory_reservation)?;
        }
        if r.cpu_shares > 0 {
            self.write("cpu", "cpu.shares", r.cpu_shares)?;
        }
        let (period, quota) = cpu_period_quota(r);
        if period > 0 {
            self.write("cpu", "cpu.cfs_period_us", period)?;
        }
        if quota != 0 {
            self.write("cpu", "cpu.cfs_quota_us", quota)?;
        }
        if !r.cpuset_cpus.is_empty() {
            self.write("cpuset", "cpuset.cpus", &r.cpuset_cpus)?;
        }
        if !r.cpuset_mems.is_empty() {
            self.write("cpuset", "cpuset.mems", &r.cpuset_mems)?;
        }
        if r.pids_limit != 0 {
            self.write("pids", "pids.max", pids_max(r.pids_limit))?;
        }
        if r.blkio_weight > 0 {
            let weight = if self.dir("blkio").is_some_and(|d| d.join("blkio.bfq.weight").exists()) {
                "blkio.bfq.weight"
            } else {
                "blkio.weight"
            };
            self.write("blkio", weight, r.blkio_weight)?;
        }
        Ok(())
    }

    /// The kernel refuses a memory limit above memory and swap together, so the order depends on the direction.
    fn update_memory_v1(&self, memory: i64, swap: i64) -> Result<()> {
        let both =
            self.dir("memory").is_some_and(|d| d.join("memory.memsw.limit_in_bytes").exists());
        let set_memory = || match memory {
            0 => Ok(()),
            _ => self.write("memory", "memory.limit_in_bytes", memory),
        };
        let set_swap = || match swap {
            0 => Ok(()),
            _ if both => self.write("memory", "memory.memsw.limit_in_bytes", swap),
            _ => Ok(()),
        };
        let now = self.read_number("memory", "memory.memsw.limit_in_bytes");
        if swap == -1 || (both && swap as u64 > now) {
            set_swap()?;
            set_memory()
        } else {
            set_memory()?;
            set_swap()
        }
    }

    fn update_v2(&self, r: &Resources) -> Result<()> {
        if r.memory > 0 {
            self.write("memory", "memory.max", r.memory)?;
        }
        if let Some(swap) = self.swap_v2(r) {
            self.write("memory", "memory.swap.max", swap)?;
        }
        if r.memory_reservation > 0 {
            self.write("memory", "memory.low", r.memory_reservation)?;
        }
        if r.cpu_shares > 0 {
            self.write("cpu", "cpu.weight", cpu_weight(r.cpu_shares))?;
        }
        let (period, quota) = cpu_period_quota(r);
        if period > 0 || quota != 0 {
            let period = if period > 0 { period } else { 100_000 };
            let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
            self.write("cpu", "cpu.max", format!("{quota} {period}"))?;
        }
        if !r.cpuset_cpus.is_empty() {
            self.write("cpuset", "cpuset.cpus", &r.cpuset_cpus)?;
        }
        if !r.cpuset_mems.is_empty() {
            self.write("cpuset", "cpuset.mems", &r.cpuset_mems)?;
        }
        if r.pids_limit != 0 {
            self.write("pids", "pids.max", pids_max(r.pids_limit))?;
        }
        if r.blkio_weight > 0 {
            match self.dir("io").is_some_and(|dir| dir.join("io.bfq.weight").exists()) {
                true => self.write("io", "io.bfq.weight", r.blkio_weight)?,
                false => self.write("io", "io.weight", io_weight(r.blkio_weight))?,
            }
        }
        Ok(())
    }

    /// v2 limits swap alone, Docker memory and swap together; `None` when it stays.
    fn swap_v2(&self, r: &Resources) -> Option<String> {
        if r.memory_swap == -1 {
            return Some("max".to_owned());
        }
        let memory = match r.memory {
            0 => self.read("memory", "memory.max")?.trim().parse().ok()?,
            given => given,
        };
        (r.memory_swap >= memory && memory > 0).then(|| (r.memory_swap - memory).to_string())
    }
}

const CONTROLLERS: [&str; 10] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "perf_event",
];

/// `cpu.weight` (1 to 10000, 100 by default) for shares (2 to 262144, 1024 by default): the curve that
/// runc has since 1.3.2 and that libcontainer has for a new container.
fn cpu_weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// `io.weight` (1 to 10000) for Docker's weight (10 to 1000), as runc has it.
pub(crate) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9_999 / 990
}

/// Is BFQ among the schedulers of this host's disks? Without it cgroup v2 has no weights of devices,
/// and one group's weight is in `io.weight`.
pub fn has_bfq() -> bool {
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    disks
        .filter_map(|disk| std::fs::read_to_string(disk.path().join("queue/scheduler")).ok())
        .any(|list| list.split_whitespace().any(|name| name.trim_matches(['[', ']']) == "bfq"))
}

/// The kernel takes other numbers silently for the nearest of these (sched(7), `MIN_SHARES`); runc refuses them.
pub fn check_shares(shares: u64) -> Result<()> {
    let refused = |text: &str| Err(Error::new(ErrorKind::System, text));
    match shares {
        1 => refused("the minimum allowed cpu-shares is 2"),
        262_145.. => refused("the maximum allowed cpu-shares is 262144"),
        _ => Ok(()),
    }
}

fn pids_max(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
}

fn collect_pids(dir: &Path, pids: &mut Vec<u32>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()));
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_pids(&entry.path(), pids);
        }
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    if let Ok(entries) = std::fs::read_dir(dir) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_tree(&entry.path())?;
            }
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_on_v1_hybrid_and_v2() {
        let v1 = "30 1 0:1 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  31 1 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  32 1 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let group = Cgroup::in_mounts(v1, "/docker/x");
        assert!(!group.is_v2());
        assert_eq!(group.dir("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/docker/x")));
        assert_eq!(group.dirs().len(), 2);
        let v2 =
            Cgroup::in_mounts("30 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "/docker/x");
        assert!(v2.is_v2());
        assert_eq!(v2.dir("memory"), Some(Path::new("/sys/fs/cgroup/docker/x")));
    }

    #[test]
    fn a_group_without_a_name_is_none_and_not_the_hosts() {
        for mounts in [
            "31 1 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            "30 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        ] {
            for path in ["", "/", "//"] {
                let group = Cgroup::in_mounts(mounts, path);
                assert!(group.dirs().is_empty() && group.pids().is_empty(), "{path:?}");
            }
        }
    }

    #[test]
    fn on_v2_swap_is_what_is_left_beside_memory() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup { unified: Some(dir.path().to_owned()), ..Cgroup::default() };
        let file = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        let update = |memory, memory_swap, blkio_weight| {
            group.update(&Resources { memory, memory_swap, blkio_weight, ..Default::default() })
        };
        update(100, 150, 500).unwrap();
        assert_eq!((file("memory.max").as_str(), file("memory.swap.max").as_str()), ("100", "50"));
        assert_eq!(file("io.weight"), "4950");
        update(0, 100, 0).unwrap();
        assert_eq!(file("memory.swap.max"), "0", "memory alone, as it is limited already");
        update(0, -1, 0).unwrap();
        assert_eq!(file("memory.swap.max"), "max");
    }

    #[test]
    fn weights_of_v2_span_those_of_docker() {
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 100, 10_000]);
        assert_eq!([10, 300, 1000].map(io_weight), [1, 2930, 10_000]);
    }
}

//! Limits of resources that make no sense, or that this kernel does not have.

use std::path::Path;

use bollard_stubs::models::HostConfig;

use crate::error::{Error, Result};

/// Docker's lower bound (moby daemon/daemon_unix.go `linuxMinMemory`).
const MEMORY_BYTES_MIN: i64 = 6 << 20;
const MEMORY_NODES: &str = "/sys/devices/system/node/online";

/// `--kernel-memory`, which only old clients send and new kernels do not have: never in force, and told.
pub fn kernel_memory(bytes: i64) -> Result<Option<String>> {
    match bytes {
        1..MEMORY_BYTES_MIN => {
            Err(Error::bad_parameter("Minimum kernel memory limit allowed is 6MB"))
        }
        MEMORY_BYTES_MIN.. => Ok(Some("Your kernel does not support kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded.".into())),
        _ => Ok(None),
    }
}

/// What only a create looks at: options that Windows has, and real-time scheduling (moby runconfig/hostconfig_unix.go).
pub(crate) fn at_create(host: &mut HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    let bad = |text: &str| Err(Error::bad_parameter(text));
    if host.io_maximum_iops.unwrap_or_default() > 0 {
        return bad("Invalid QoS settings: linux does not support configuration of maximum IOPs");
    }
    if host.io_maximum_bandwidth.unwrap_or_default() > 0 {
        return bad(
            "Invalid QoS settings: linux does not support configuration of maximum bandwidth",
        );
    }
    let period = host.cpu_realtime_period.unwrap_or_default();
    let runtime = host.cpu_realtime_runtime.unwrap_or_default();
    if period != 0 && runtime > period {
        return bad("cpu real-time runtime cannot be higher than cpu real-time period");
    }
    resources(host, warnings)?;
    if host.cpu_percent.take().unwrap_or_default() > 0 {
        warnings.push("linux does not support CPU percent. Percent discarded.".into());
    }
    Ok(())
}

/// Limits that make no sense, in the order dockerd looks at them.
pub(crate) fn resources(host: &mut HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    let bad = |text: &str| Err(Error::bad_parameter(text));
    let memory = host.memory.unwrap_or_default();
    let swap = host.memory_swap.unwrap_or_default();
    if memory != 0 && memory < MEMORY_BYTES_MIN {
        return bad("Minimum memory limit allowed is 6MB");
    }
    if memory > 0 && swap > 0 && swap < memory {
        return bad("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if memory == 0 && swap > 0 {
        return bad(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        );
    }
    // The client's word for "as the host has it".
    if host.memory_swappiness == Some(-1) {
        host.memory_swappiness = None;
    }
    if host.memory_swappiness.is_some_and(|percent| !(-1..=100).contains(&percent)) {
        return bad(&format!(
            "Invalid value: {}, valid memory swappiness range is 0-100",
            host.memory_swappiness.unwrap_or_default()
        ));
    }
    let reservation = host.memory_reservation.unwrap_or_default();
    if reservation > 0 && reservation < MEMORY_BYTES_MIN {
        return bad("Minimum memory reservation allowed is 6MB");
    }
    if memory > 0 && memory < reservation {
        return bad(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        );
    }
    // Docker stores the doubled value so that `inspect` shows what holds.
    if memory > 0 && swap == 0 {
        host.memory_swap = Some(memory.saturating_mul(2));
    }
    cpu(host)?;
    if host.pids_limit.is_some_and(|limit| limit == 0) {
        host.pids_limit = None;
    }
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified {
        not_on_v2(host, warnings);
    }
    let bfq = runtime::has_bfq();
    // The scheduler CFQ, which had weights before Linux 5.0.
    let cfq = Path::new("/sys/fs/cgroup/blkio/blkio.weight").exists();
    io_weights(host, unified || bfq || cfq, bfq || cfq, warnings);
    let weight = host.blkio_weight.unwrap_or_default();
    if weight > 0 && !(10..=1000).contains(&weight) {
        return bad("Range of blkio weight is from 10 to 1000");
    }
    if host.oom_kill_disable.unwrap_or_default() && memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.".into(),
        );
    }
    if !(-1000..=1000).contains(&host.oom_score_adj.unwrap_or_default()) {
        return bad(&format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj.unwrap_or_default()
        ));
    }
    if host.shm_size.unwrap_or_default() < 0 {
        return bad("SHM size can not be less than 0");
    }
    Ok(())
}

/// What cgroup v2 does not have is left out, in Docker's words.
fn not_on_v2(host: &mut HostConfig, warnings: &mut Vec<String>) {
    if host.oom_kill_disable.take().unwrap_or_default() {
        warnings
            .push("Your kernel does not support OomKillDisable. OomKillDisable discarded.".into());
    }
    if host.memory_swappiness.take().is_some() {
        warnings.push("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.".into());
    }
}

/// Weights of block I/O, of the container and of its devices, are left out where the kernel has none.
fn io_weights(host: &mut HostConfig, own: bool, devices: bool, warnings: &mut Vec<String>) {
    let mut discarded = |what: &str, name: &str| {
        warnings.push(format!(
            "Your kernel does not support Block I/O {what} or the cgroup is not mounted. {name} discarded."
        ));
    };
    if !own && host.blkio_weight.take().unwrap_or_default() > 0 {
        discarded("weight", "Weight");
    }
    if !devices && !host.blkio_weight_device.take().unwrap_or_default().is_empty() {
        discarded("weight_device", "Weight-device");
    }
}

fn cpu(host: &HostConfig) -> Result<()> {
    let bad = |text: &str| Err(Error::bad_parameter(text));
    let nano = host.nano_cpus.unwrap_or_default();
    if nano > 0 {
        if host.cpu_period.unwrap_or_default() > 0 {
            return bad("Conflicting options: Nano CPUs and CPU Period cannot both be set");
        }
        if host.cpu_quota.unwrap_or_default() > 0 {
            return bad("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
        }
    }
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if nano < 0 || nano > available as i64 * 1_000_000_000 {
        return bad(&format!(
            "Range of CPUs is from 0.01 to {available}.00, as there are only {available} CPUs available"
        ));
    }
    let period = host.cpu_period.unwrap_or_default();
    if period != 0 && !(1_000..=1_000_000).contains(&period) {
        return bad(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    let quota = host.cpu_quota.unwrap_or_default();
    if quota > 0 && quota < 1_000 {
        return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    let nodes = std::fs::read_to_string(MEMORY_NODES).unwrap_or_else(|_| "0".into());
    for (what, set) in [("CPUs", &host.cpuset_cpus), ("memory nodes", &host.cpuset_mems)] {
        let set = set.as_deref().unwrap_or_default();
        let highest = highest_of_set(set).map_err(|cause| {
            let flag = if what == "CPUs" { "cpus" } else { "mems" };
            Error::bad_parameter(format!("Invalid value {set} for cpuset {flag}: {cause}"))
        })?;
        if what == "memory nodes" && highest > highest_of_set(nodes.trim()).unwrap_or_default() {
            return bad(&format!(
                "Requested memory nodes are not available - requested {set}, available: {}",
                nodes.trim()
            ));
        }
        if what == "CPUs" && highest >= available as i64 {
            return bad(&format!(
                "Requested CPUs are not available - requested {set}, available: 0-{}",
                available - 1
            ));
        }
    }
    Ok(())
}

/// The kernel's highest number of a processor, as far as Docker knows it.
const MEMBER_MAX: u64 = 8_192;

/// `0-2,4`: the highest member, -1 of the empty set; what is wrong with it otherwise.
fn highest_of_set(text: &str) -> std::result::Result<i64, String> {
    if text.is_empty() {
        return Ok(-1);
    }
    let malformed = || format!("invalid format: {text}");
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| malformed());
    let mut highest = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return Err(malformed());
        }
        if last > MEMBER_MAX {
            return Err(format!("value of out range, maximum is {MEMBER_MAX}"));
        }
        highest = highest.max(last);
    }
    Ok(highest as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_left_out_and_told() {
        let device = bollard_stubs::models::ResourcesBlkioWeightDevice::default();
        let asked = HostConfig {
            oom_kill_disable: Some(true),
            memory_swappiness: Some(10),
            blkio_weight: Some(300),
            blkio_weight_device: Some(vec![device]),
            ..Default::default()
        };
        let (mut host, mut warnings) = (asked.clone(), Vec::new());
        io_weights(&mut host, true, true, &mut warnings);
        assert_eq!((&host, warnings.len()), (&asked, 0));
        not_on_v2(&mut host, &mut warnings);
        assert_eq!((host.blkio_weight, warnings.len()), (Some(300), 2));
        io_weights(&mut host, true, false, &mut warnings);
        assert_eq!((host.blkio_weight, warnings.len()), (Some(300), 3));
        io_weights(&mut host, false, false, &mut warnings);
        assert_eq!((host, warnings.len()), (HostConfig::default(), 4));
    }

    #[test]
    fn sets_of_processors() {
        for (text, highest) in [("0-2,7", Ok(7)), ("", Ok(-1)), ("0,0", Ok(0)), ("8192", Ok(8192))]
        {
            assert_eq!(highest_of_set(text), highest, "{text}");
        }
        for text in ["2-1", ",", "0,", ",0", "x", "-1", "1-"] {
            assert_eq!(highest_of_set(text), Err(format!("invalid format: {text}")), "{text}");
        }
        for text in ["8193", "99999999999", "0-8193"] {
            let error = Err("value of out range, maximum is 8192".to_owned());
            assert_eq!(highest_of_set(text), error, "{text}");
        }
    }

    #[test]
    fn what_linux_cannot_do_is_refused_at_create_or_told() {
        let refused = |host: HostConfig| {
            at_create(&mut host.clone(), &mut Vec::new()).map_err(|error| error.message)
        };
        let real_time = |period, runtime| HostConfig {
            cpu_realtime_period: Some(period),
            cpu_realtime_runtime: Some(runtime),
            ..Default::default()
        };
        assert!(refused(real_time(1_000, 1_000)).is_ok());
        let error = refused(real_time(1_000, 1_001)).expect_err("too much");
        assert_eq!(error, "cpu real-time runtime cannot be higher than cpu real-time period");
        let operations = HostConfig { io_maximum_iops: Some(5), ..Default::default() };
        assert!(refused(operations).expect_err("Windows has that").contains("maximum IOPs"));
        let bytes = HostConfig { io_maximum_bandwidth: Some(5), ..Default::default() };
        assert!(refused(bytes).expect_err("Windows has that").contains("maximum bandwidth"));
        let mut percent = HostConfig { cpu_percent: Some(5), ..Default::default() };
        let mut warnings = Vec::new();
        at_create(&mut percent, &mut warnings).expect("taken");
        assert_eq!(warnings, ["linux does not support CPU percent. Percent discarded."]);
        assert_eq!(percent.cpu_percent, None);
    }
}

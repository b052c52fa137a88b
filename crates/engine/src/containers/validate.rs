//! What dockerd refuses at create, in its words.

use std::collections::BTreeMap;
use std::path::Path;

use bollard_stubs::models::{
    ContainerConfig, HostConfig, RestartPolicy, RestartPolicyNameEnum as Policy,
};

use super::create::{CreateRequest, fill_host_defaults};
use super::{endpoints, stop};
use crate::Config;
use crate::error::{Error, Result};

/// Docker's lower bound (moby daemon/daemon_unix.go `linuxMinMemory`).
const MEMORY_BYTES_MIN: i64 = 6 << 20;

/// All that a create can refuse before it looks at images, names and networks of this host.
pub fn check_request(request: &mut CreateRequest, config: &Config) -> Result<()> {
    check(request, config)?;
    check_merged(&request.config)?;
    super::oci::check_security(&request.host_config, config)?;
    endpoints::wanted(request).map(drop)
}

/// Checks and completes a request; gives the warnings of the answer.
pub(crate) fn check(request: &mut CreateRequest, config: &Config) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    if request.config.image.as_deref().unwrap_or_default().is_empty() {
        return Err(Error::bad_parameter("no image specified"));
    }
    fill_host_defaults(&mut request.host_config, config);
    endpoints::check_ports(request)?;
    resources(&mut request.host_config, &mut warnings)?;
    let host = &request.host_config;
    restart_policy(host.restart_policy.as_ref(), host.auto_remove.unwrap_or_default())?;
    modes(host)?;
    shared_network(request)?;
    let host = &request.host_config;
    let published = host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
    if host.network_mode.as_deref() == Some("host") && published {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    extra_hosts(host)?;
    runtime::check_capabilities(&host.cap_add.clone().unwrap_or_default(), "CapAdd")?;
    runtime::check_capabilities(&host.cap_drop.clone().unwrap_or_default(), "CapDrop")?;
    for variable in request.config.env.iter().flatten() {
        if variable.is_empty() || variable.starts_with('=') {
            return Err(Error::bad_parameter(format!("invalid environment variable: {variable}")));
        }
    }
    if let Some(runtime) = host.runtime.as_deref()
        && !is_runtime(runtime, config)
    {
        return Err(Error::bad_parameter(format!("unknown or invalid runtime name: {runtime}")));
    }
    Ok(warnings)
}

/// `name:address` and `name:host-gateway`.
fn extra_hosts(host: &HostConfig) -> Result<()> {
    for pair in host.extra_hosts.iter().flatten() {
        let split =
            pair.split_once(':').filter(|(name, address)| !name.is_empty() && !address.is_empty());
        let Some((_, address)) = split else {
            return Err(Error::bad_parameter(format!("bad format for add-host: \"{pair}\"")));
        };
        if address != "host-gateway" && !is_address(address) {
            return Err(Error::bad_parameter(format!(
                "invalid IP address in add-host: \"{address}\""
            )));
        }
    }
    Ok(())
}

fn is_address(text: &str) -> bool {
    text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
}

/// The built-in one under its own and Docker's names, `runc`, and what the daemon was told.
pub(crate) fn is_runtime(name: &str, config: &Config) -> bool {
    matches!(name, "skep" | "runc" | "io.containerd.runc.v2") || config.runtimes.contains_key(name)
}

/// After the image's settings are in.
pub(crate) fn check_merged(config: &ContainerConfig) -> Result<()> {
    if let Some(signal) = config.stop_signal.as_deref().filter(|signal| !signal.is_empty()) {
        stop::signal_number(signal)?;
    }
    let directory = config.working_dir.as_deref().unwrap_or_default();
    if !directory.is_empty() && !directory.starts_with('/') {
        return Err(Error::bad_parameter(format!(
            "the working directory '{directory}' is invalid, it needs to be an absolute path"
        )));
    }
    let health = config.healthcheck.clone().unwrap_or_default();
    for (name, value) in [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ] {
        // Docker's least duration is a millisecond; zero means the default.
        if value.is_some_and(|nanos| nanos != 0 && nanos < 1_000_000) {
            return Err(Error::bad_parameter(format!(
                "{name} in Healthcheck cannot be less than 1ms"
            )));
        }
    }
    if health.retries.is_some_and(|retries| retries < 0) {
        return Err(Error::bad_parameter("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

/// `no`, `always`, `unless-stopped`, `on-failure[:n]`, and never together with `--rm`.
pub(crate) fn restart_policy(policy: Option<&RestartPolicy>, auto_remove: bool) -> Result<()> {
    let Some(policy) = policy else { return Ok(()) };
    let name = policy.name.unwrap_or(Policy::NO);
    let count = policy.maximum_retry_count.unwrap_or_default();
    let retrying = !matches!(name, Policy::NO | Policy::EMPTY);
    if retrying && auto_remove {
        return Err(Error::bad_parameter(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    if name != Policy::ON_FAILURE && count != 0 {
        let mut text =
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
                .to_owned();
        if count < 0 {
            text.push_str(" and cannot be negative");
        }
        return Err(Error::bad_parameter(text));
    }
    if count < 0 {
        return Err(Error::bad_parameter(
            "invalid restart policy: maximum retry count cannot be negative",
        ));
    }
    Ok(())
}

/// What a container in another one's network has from that one and cannot set (moby runconfig, `validateNetMode`).
fn shared_network(request: &CreateRequest) -> Result<()> {
    let host = &request.host_config;
    let mode = host.network_mode.as_deref().unwrap_or_default();
    let shared = mode.starts_with("container:");
    let refused = |text: &str| Err(Error::bad_parameter(format!("conflicting options: {text}")));
    if (shared || host.uts_mode.as_deref() == Some("host"))
        && !request.config.hostname.as_deref().unwrap_or_default().is_empty()
    {
        let what = if shared { "network" } else { "UTS" };
        return refused(&format!("hostname and the {what} mode"));
    }
    if !shared {
        return Ok(());
    }
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if some(&host.links) {
        return refused(
            "container type network can't be used with links. This would result in undefined behavior",
        );
    }
    if some(&host.dns) {
        return refused("dns and the network mode");
    }
    if some(&host.extra_hosts) {
        return refused("custom host-to-IP mapping and the network mode");
    }
    let endpoints = request.networking.endpoints_config.iter().flatten();
    let mut macs = endpoints.filter_map(|(_, settings)| settings.mac_address.as_deref());
    if macs.any(|mac| !mac.is_empty()) {
        return refused("mac-address and the network mode");
    }
    if host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty())
        || host.publish_all_ports.unwrap_or_default()
    {
        return refused("port publishing and the container type network mode");
    }
    if request.config.exposed_ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
        return refused("port exposing and the container type network mode");
    }
    Ok(())
}

fn modes(host: &HostConfig) -> Result<()> {
    let ipc = host.ipc_mode.as_deref().unwrap_or_default();
    if !matches!(ipc, "" | "private" | "shareable" | "host" | "none") && !joins(ipc) {
        return Err(Error::bad_parameter(format!("invalid IPC mode: {ipc}")));
    }
    let pid = host.pid_mode.as_deref().unwrap_or_default();
    if !matches!(pid, "" | "host") && !joins(pid) {
        return Err(Error::bad_parameter(format!("invalid PID mode: {pid}")));
    }
    let uts = host.uts_mode.as_deref().unwrap_or_default();
    if !matches!(uts, "" | "host") {
        return Err(Error::bad_parameter(format!("invalid UTS mode: {uts}")));
    }
    let user = host.userns_mode.as_deref().unwrap_or_default();
    if !matches!(user, "" | "host") {
        return Err(Error::bad_parameter(format!("invalid user namespace mode: {user}")));
    }
    if host.device_requests.as_ref().is_some_and(|requests| !requests.is_empty()) {
        return Err(Error::unsupported("device requests (--gpus)"));
    }
    if host.storage_opt.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(Error::bad_parameter(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
        ));
    }
    Ok(())
}

fn joins(mode: &str) -> bool {
    mode.strip_prefix("container:").is_some_and(|name| !name.is_empty())
}

const MEMORY_NODES: &str = "/sys/devices/system/node/online";

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
    let weight = host.blkio_weight.unwrap_or_default();
    if weight > 0 && !(10..=1000).contains(&weight) {
        return bad("Range of blkio weight is from 10 to 1000");
    }
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified {
        not_on_v2(host, warnings);
    }
    let bfq = runtime::has_bfq();
    // The scheduler CFQ, which had weights before Linux 5.0.
    let cfq = Path::new("/sys/fs/cgroup/blkio/blkio.weight").exists();
    io_weights(host, unified || bfq || cfq, bfq || cfq, warnings);
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
        let Some(highest) = highest_of_set(set) else {
            let flag = if what == "CPUs" { "cpus" } else { "mems" };
            return bad(&format!("Invalid value {set} for cpuset {flag}: invalid format: {set}"));
        };
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

/// `0-2,4`: the highest member, -1 of the empty set, none when malformed.
fn highest_of_set(text: &str) -> Option<i64> {
    let mut highest = -1;
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last < first {
            return None;
        }
        highest = highest.max(i64::from(last));
    }
    Some(highest)
}

/// What may wait for a log that does not block, unless `max-buffer-size` says otherwise, as in Docker.
const LOG_BUFFER_BYTES: u64 = 1_000_000;

fn log_driver(name: &str) -> Result<runtime::LogDriver> {
    Ok(match name {
        "json-file" => runtime::LogDriver::JsonFile,
        "local" => runtime::LogDriver::Local,
        "none" => runtime::LogDriver::None,
        "syslog" | "journald" | "gelf" | "fluentd" | "awslogs" | "splunk" | "etwlogs"
        | "gcplogs" | "logentries" => {
            return Err(Error::unsupported(format_args!(
                "log driver {name} (json-file, local and none are)"
            )));
        }
        other => {
            return Err(Error::bad_parameter(format!(
                "logger: no log driver named '{other}' is registered"
            )));
        }
    })
}

/// As Go's `strconv.ParseBool`.
fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What may wait for a log that does not block (moby daemon/logger/factory.go).
fn log_buffer(
    driver: runtime::LogDriver,
    options: &BTreeMap<String, String>,
) -> Result<Option<u64>> {
    let mode = options.get("mode").map(String::as_str).unwrap_or_default();
    let bytes = options.get("max-buffer-size");
    match (mode, bytes) {
        ("non-blocking", None) => Ok(Some(LOG_BUFFER_BYTES)),
        ("non-blocking", Some(text)) => size(text).map(Some).ok_or_else(|| {
            Error::bad_parameter(format!(
                "error parsing option max-buffer-size: invalid size: '{text}'"
            ))
        }),
        ("" | "blocking", Some(_)) if driver != runtime::LogDriver::None => {
            Err(Error::bad_parameter(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
            ))
        }
        ("" | "blocking", _) => Ok(None),
        _ => Err(Error::bad_parameter(format!("logger: logging mode not supported: {mode}"))),
    }
}

/// The log driver and its options, checked.
pub(crate) fn log_options(
    driver: &str,
    options: &BTreeMap<String, String>,
) -> Result<runtime::LogConfig> {
    let mut log =
        runtime::LogConfig { driver: log_driver(driver)?, max_file: 1, ..Default::default() };
    if log.driver == runtime::LogDriver::Local {
        (log.max_size, log.max_file, log.compress) = (20 << 20, 5, true);
    }
    log.buffer = log_buffer(log.driver, options)?;
    for (key, value) in options {
        match (key.as_str(), log.driver) {
            ("max-size", runtime::LogDriver::JsonFile | runtime::LogDriver::Local) => {
                log.max_size = match value.as_str() {
                    "-1" => 0,
                    value => size(value)
                        .ok_or_else(|| Error::bad_parameter(format!("invalid size: '{value}'")))?,
                };
            }
            ("max-file", runtime::LogDriver::JsonFile | runtime::LogDriver::Local) => {
                log.max_file = value.parse().ok().filter(|files| *files > 0).ok_or_else(|| {
                    Error::bad_parameter("max-file cannot be less than 1".to_owned())
                })?;
            }
            ("compress", runtime::LogDriver::JsonFile | runtime::LogDriver::Local) => {
                log.compress = switch(value).ok_or_else(|| {
                    Error::bad_parameter(format!(
                        "error reading compress log option: strconv.ParseBool: parsing \"{value}\": invalid syntax"
                    ))
                })?;
            }
            (
                "labels" | "labels-regex" | "env" | "env-regex" | "tag",
                runtime::LogDriver::JsonFile | runtime::LogDriver::Local,
            ) => {}
            ("mode" | "max-buffer-size", _) => {}
            (_, runtime::LogDriver::None) => {}
            _ => {
                return Err(Error::bad_parameter(format!(
                    "unknown log opt '{key}' for {driver} log driver"
                )));
            }
        }
    }
    if log.compress && (log.max_file < 2 || log.max_size == 0) {
        return Err(Error::bad_parameter(match log.driver {
            runtime::LogDriver::Local => "compression cannot be enabled when max file count is 1",
            _ => "compress cannot be true when max-file is less than 2 or max-size is not set",
        }));
    }
    if log.driver == runtime::LogDriver::JsonFile && log.max_size == 0 && log.max_file > 1 {
        log.max_file = 1;
    }
    Ok(log)
}

/// `10m`, `1g`, `512`: bytes.
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.trim().parse().ok()?;
    let factor: u64 = match text[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    (number >= 0.0).then_some((number * factor as f64) as u64)
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
    fn sizes_and_sets() {
        assert_eq!(size("10m"), Some(10 << 20));
        assert_eq!(size("1.5kb"), Some(1536));
        assert_eq!(size("12"), Some(12));
        assert_eq!(size("x"), None);
        assert_eq!(highest_of_set("0-2,7"), Some(7));
        assert_eq!(highest_of_set(""), Some(-1));
        assert_eq!(highest_of_set("2-1"), None);
    }

    #[test]
    fn a_log_option_nobody_knows_is_refused() {
        let options = BTreeMap::from([("colour".to_owned(), "red".to_owned())]);
        let error = log_options("json-file", &options).expect_err("unknown");
        assert_eq!(error.message, "unknown log opt 'colour' for json-file log driver");
        assert!(log_options("nonsense", &BTreeMap::new()).is_err());
        let buffer = |options: &[(&str, &str)]| {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            log_options("json-file", &options.iter().map(owned).collect()).map(|log| log.buffer)
        };
        let size = |text| ("max-buffer-size", text);
        assert_eq!(buffer(&[("mode", "non-blocking")]).expect("valid"), Some(1_000_000));
        assert_eq!(buffer(&[("mode", "non-blocking"), size("4k")]).expect("valid"), Some(4096));
        assert_eq!(buffer(&[("mode", "blocking")]).expect("valid"), None);
        assert!(buffer(&[size("4k")]).is_err() && buffer(&[("mode", "maybe")]).is_err());
    }
}

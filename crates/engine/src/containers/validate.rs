//! What dockerd refuses at create, in its words.

use std::collections::BTreeMap;

use bollard_stubs::models::{
    ContainerConfig, HostConfig, RestartPolicy, RestartPolicyNameEnum as Policy,
};

use super::create::{CreateRequest, fill_host_defaults};
use super::{endpoints, limits, stop};
use crate::Config;
use crate::error::{Error, Result};

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
    limits::at_create(&mut request.host_config, &mut warnings)?;
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
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if (shared || mode == "host") && some(&host.links) {
        let what = if shared { "container type network" } else { "host type networking" };
        return refused(&format!(
            "{what} can't be used with links. This would result in undefined behavior"
        ));
    }
    if !shared {
        return Ok(());
    }
    if mode == "container:" {
        return Err(Error::bad_parameter(
            "Invalid network mode: invalid container format container:<name|id>",
        ));
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
    if let Some(option) = host.storage_opt.iter().flatten().map(|(option, _)| option).min() {
        if !option.eq_ignore_ascii_case("size") {
            return Err(Error::bad_parameter(format!("Unknown option {option}")));
        }
        return Err(Error::bad_parameter(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
        ));
    }
    Ok(())
}

fn joins(mode: &str) -> bool {
    mode.strip_prefix("container:").is_some_and(|name| !name.is_empty())
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
                    "unknown log opt '{key}' for {}",
                    match log.driver {
                        runtime::LogDriver::Local => "log driver local",
                        _ => "json-file log driver",
                    }
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
    fn sizes() {
        assert_eq!(size("10m"), Some(10 << 20));
        assert_eq!(size("1.5kb"), Some(1536));
        assert_eq!(size("12"), Some(12));
        assert_eq!(size("x"), None);
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

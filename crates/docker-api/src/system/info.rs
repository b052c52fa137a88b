//! What `docker version` and `docker info` show.

use std::sync::OnceLock;

use engine::containers::{Phase, rfc3339};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::ApiState;
use crate::swarm::info_json;
use crate::version::{API_VERSION, API_VERSION_MIN};

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn version() -> Value {
    let kernel = rustix_uname().1;
    let arch = architecture();
    json!({
        "Platform": { "Name": "skep" },
        "Components": [{
            "Name": "Engine",
            "Version": VERSION,
            "Details": {
                "ApiVersion": API_VERSION.to_string(),
                "Arch": arch,
                "BuildTime": "",
                "Experimental": "false",
                "GitCommit": "",
                "GoVersion": "",
                "KernelVersion": kernel,
                "MinAPIVersion": API_VERSION_MIN.to_string(),
                "Os": "linux",
            },
        }],
        "Version": VERSION,
        "ApiVersion": API_VERSION.to_string(),
        "MinAPIVersion": API_VERSION_MIN.to_string(),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": kernel,
        "BuildTime": "",
    })
}

/// Go's names for the machine.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Host name, kernel release, machine.
fn rustix_uname() -> (String, String, String) {
    let name = engine::host::uname();
    (name.nodename, name.release, name.machine)
}

pub(super) async fn info(state: &ApiState) -> Value {
    let (engine, config) = (&state.engine, state.engine.config());
    let config = &*config;
    let node = state.cluster.node_info().await;
    let (hostname, kernel, machine) = rustix_uname();
    let phases: Vec<Phase> = engine.containers.all().iter().map(|c| c.phase()).collect();
    let count = |wanted: &[Phase]| phases.iter().filter(|phase| wanted.contains(phase)).count();
    let running = count(&[Phase::Running, Phase::Restarting]);
    let paused = count(&[Phase::Paused]);
    let features = kernel_features();
    let proxy = |own: &Option<String>| own.as_deref().map(hide_password).unwrap_or_default();
    let mut object = json!({
        "ID": engine.id(),
        "Containers": phases.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": phases.len() - running - paused,
        "Images": engine.images.store.list().len(),
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", engine::host::filesystem(&config.data_root)],
            ["Supports d_type", "true"], ["Using metacopy", "false"],
            ["Native Overlay Diff", "true"], ["userxattr", "false"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null", "overlay"],
            "Authorization": null,
            "Log": ["json-file", "local"],
        },
        "Debug": config.debug,
        "NFd": open_files(),
        "NGoroutines": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        "SystemTime": rfc3339(Some(OffsetDateTime::now_utc())),
        "LoggingDriver": config.log_driver,
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if features.unified { "2" } else { "1" },
        "NEventsListener": engine.events.listeners(),
        "KernelVersion": kernel,
        "OperatingSystem": os_release("PRETTY_NAME"),
        "OSVersion": os_release("VERSION_ID"),
        "OSType": "linux",
        "Architecture": machine,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": registry_config(config),
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": memory_total(),
        "GenericResources": null,
        "DockerRootDir": config.data_root,
        "HttpProxy": proxy(&config.http_proxy),
        "HttpsProxy": proxy(&config.https_proxy),
        "NoProxy": config.no_proxy.clone().unwrap_or_default(),
        "Name": hostname,
        "Labels": config.labels,
        "ExperimentalBuild": false,
        "ServerVersion": VERSION,
        "Runtimes": runtimes(config),
        "DefaultRuntime": config.default_runtime,
        "Swarm": info_json(&node),
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": config.init_path.as_deref().map_or("skep".into(), |path| path.to_string_lossy()),
        "ContainerdCommit": { "ID": "", "Expected": "" },
        "RuncCommit": { "ID": "", "Expected": "" },
        "InitCommit": { "ID": "", "Expected": "" },
        "SecurityOptions": security_options(config, features.unified),
        "DefaultAddressPools": config.default_address_pools.iter()
            .map(|pool| json!({ "Base": pool.base, "Size": pool.size }))
            .collect::<Vec<_>>(),
        "CDISpecDirs": [],
        "Warnings": warnings(engine, &features, &node.warnings),
    });
    if let (Some(all), Value::Object(limits)) = (object.as_object_mut(), limits(&features)) {
        all.extend(limits);
    }
    object
}

/// What the kernel lets containers be limited by.
fn limits(features: &Features) -> Value {
    json!({
        "MemoryLimit": features.memory,
        "SwapLimit": features.swap,
        "CpuCfsPeriod": features.cpu,
        "CpuCfsQuota": features.cpu,
        "CPUShares": features.cpu,
        "CPUSet": features.cpuset,
        "PidsLimit": features.pids,
        "IPv4Forwarding": sysctl("net/ipv4/ip_forward"),
        "BridgeNfIptables": sysctl("net/bridge/bridge-nf-call-iptables"),
        "BridgeNfIp6tables": sysctl("net/bridge/bridge-nf-call-ip6tables"),
        "OomKillDisable": features.memory && !features.unified,
    })
}

fn runtimes(config: &engine::Config) -> Value {
    let mut all = serde_json::Map::new();
    for name in ["skep", "runc", "io.containerd.runc.v2"] {
        all.insert(name.into(), json!({ "path": name }));
    }
    for (name, path) in &config.runtimes {
        all.insert(name.clone(), json!({ "path": path }));
    }
    Value::Object(all)
}

fn registry_config(config: &engine::Config) -> Value {
    let mut indexes = serde_json::Map::new();
    indexes.insert(
        "docker.io".into(),
        json!({ "Name": "docker.io", "Mirrors": config.registry_mirrors, "Secure": true, "Official": true }),
    );
    let (networks, names): (Vec<&String>, Vec<&String>) =
        config.insecure_registries.iter().partition(|registry| registry.contains('/'));
    for name in names {
        indexes.insert(
            name.clone(),
            json!({ "Name": name, "Mirrors": [], "Secure": false, "Official": false }),
        );
    }
    let mut cidrs: Vec<&str> = networks.iter().map(|network| network.as_str()).collect();
    // Docker trusts these always.
    cidrs.extend(["::1/128", "127.0.0.0/8"]);
    json!({
        "IndexConfigs": indexes,
        "InsecureRegistryCIDRs": cidrs,
        "Mirrors": config.registry_mirrors,
        "AllowNondistributableArtifactsCIDRs": null,
        "AllowNondistributableArtifactsHostnames": null,
    })
}

fn security_options(config: &engine::Config, unified: bool) -> Vec<String> {
    let mut options = Vec::new();
    if engine::containers::has_apparmor() {
        options.push("name=apparmor".to_owned());
    }
    let profile = match config.seccomp_profile.as_deref() {
        None | Some("") => "builtin",
        Some(other) => other,
    };
    options.push(format!("name=seccomp,profile={profile}"));
    if unified {
        options.push("name=cgroupns".to_owned());
    }
    if config.no_new_privileges {
        options.push("name=no-new-privileges".to_owned());
    }
    options
}

/// Security options were bare names then, and the execution driver was still told.
pub(super) fn as_before_1_25(info: &mut Value) {
    let names: Vec<String> = info["SecurityOptions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|option| option.as_str()?.split(',').next()?.strip_prefix("name="))
        .map(str::to_owned)
        .collect();
    info["SecurityOptions"] = json!(names);
    info["ExecutionDriver"] = json!("<not supported>");
}

/// The swarm's come last, and are in its own block as well.
fn warnings(engine: &engine::Engine, features: &Features, swarm: &[String]) -> Vec<String> {
    let mut warnings = [engine.config().warnings.clone(), engine.network.warnings()].concat();
    for (present, what) in [
        (features.memory, "memory limit"),
        (features.swap, "swap limit"),
        (features.cpu, "cpu cfs quota"),
        (features.pids, "pids limit"),
    ] {
        if !present {
            warnings.push(format!("WARNING: No {what} support"));
        }
    }
    if !sysctl("net/ipv4/ip_forward") {
        warnings.push("WARNING: IPv4 forwarding is disabled".into());
    }
    warnings.extend_from_slice(swarm);
    warnings
}

#[derive(Clone, Copy)]
struct Features {
    unified: bool,
    memory: bool,
    swap: bool,
    cpu: bool,
    cpuset: bool,
    pids: bool,
}

/// The cgroup controllers of this boot: they do not change.
fn kernel_features() -> Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    *FEATURES.get_or_init(|| {
        let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
        let root = std::path::Path::new("/sys/fs/cgroup");
        let has = |controller: &str| match &v2 {
            Some(list) => list.split_whitespace().any(|name| name == controller),
            None => root.join(controller).is_dir(),
        };
        Features {
            unified: v2.is_some(),
            memory: has("memory"),
            swap: v2.is_some() || root.join("memory/memory.memsw.limit_in_bytes").exists(),
            cpu: has("cpu"),
            cpuset: has("cpuset"),
            pids: has("pids"),
        }
    })
}

fn sysctl(name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|text| text.trim() != "0")
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn memory_total() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

fn os_release(key: &str) -> String {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .unwrap_or_else(|| if key == "PRETTY_NAME" { "Linux".into() } else { String::new() })
}

/// `http://user:secret@proxy` without the secret.
fn hide_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password may have an `@` of its own, a path may have one that means nothing.
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://xxxxx:xxxxx{}", &rest[at..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_proxy_s_password_is_not_shown() {
        assert_eq!(super::hide_password("http://me:pw@p:3128"), "http://xxxxx:xxxxx@p:3128");
        assert_eq!(super::hide_password("http://p:3128"), "http://p:3128");
        assert_eq!(super::hide_password("http://me:p@ss@p:3128/"), "http://xxxxx:xxxxx@p:3128/");
        assert_eq!(super::hide_password("http://p:3128/a@b"), "http://p:3128/a@b");
    }
}

//! `docker inspect` of a container, with every field that dockerd prints.

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use engine::containers::{
    Container, LogDriver, MountRecord, MountType, Phase, Spec, State, apparmor_profile, rfc3339,
};
use serde_json::{Map, Value, json};

use super::{list, ports};
use crate::ApiResult;

/// How long an answer waits until a run that has ended is cleared away.
const CLEARED_MAX: Duration = Duration::from_secs(2);

/// The whole object; sizes only when asked for, they cost a walk over the files.
pub(super) async fn inspect(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    size: bool,
) -> ApiResult<Value> {
    if container.state().ended.is_some() {
        // It still counts as running while its networks and mounts are let go, one after the other: as with the
        // Docker Engine the answer waits for that, and for something that hangs not for long.
        let cleared = async { container.ended().wait_for(|ended| *ended).await.is_ok() };
        let _ = tokio::time::timeout(CLEARED_MAX, cleared).await;
    }
    let mut object = container_json(engine, container);
    if size {
        let (own, all) = list::sizes(engine, container).await?;
        object["SizeRw"] = json!(own);
        object["SizeRootFs"] = json!(all);
    }
    Ok(object)
}

pub fn container_json(engine: &Engine, container: &Container) -> Value {
    let (spec, state) = (container.spec(), container.state());
    let words: Vec<&String> =
        spec.config.entrypoint.iter().chain(&spec.config.cmd).flatten().collect();
    let directory = container.directory();
    let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let started = state.started_at.is_some();
    let path = |name: &str| if started { file(name) } else { String::new() };
    json!({
        "Id": spec.id.as_str(),
        "Created": rfc3339(Some(spec.created)),
        "Path": words.first().map(|word| word.as_str()).unwrap_or_default(),
        "Args": words.iter().skip(1).collect::<Vec<_>>(),
        "State": state_json(&state),
        "Image": spec.image,
        "ResolvConfPath": path("resolv.conf"),
        "HostnamePath": path("hostname"),
        "HostsPath": path("hosts"),
        "LogPath": if started { log_path(&spec) } else { String::new() },
        "Name": format!("/{}", spec.name),
        "RestartCount": state.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": if started { apparmor_profile(&spec.host_config) } else { "" },
        "ExecIDs": exec_ids(engine, &spec),
        "HostConfig": host_config(&spec),
        "GraphDriver": graph_driver(engine, &spec),
        "Mounts": mounts(&spec),
        "Config": config(&spec),
        "NetworkSettings": network_settings(engine, &spec),
    })
}

fn log_path(spec: &Spec) -> String {
    match spec.log.driver {
        LogDriver::JsonFile => spec.log.path.to_string_lossy().into_owned(),
        _ => String::new(),
    }
}

fn exec_ids(engine: &Engine, spec: &Spec) -> Value {
    let ids = engine.execs.of_container(&spec.id);
    if ids.is_empty() { Value::Null } else { json!(ids) }
}

fn state_json(state: &State) -> Value {
    let restarting = state.phase == Phase::Restarting;
    let mut object = json!({
        "Status": state.phase.as_str(),
        "Running": restarting || matches!(state.phase, Phase::Running | Phase::Paused),
        "Paused": state.phase == Phase::Paused,
        "Restarting": restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.phase == Phase::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    });
    if let Some(health) = &state.health {
        let log: Vec<Value> = health
            .log
            .iter()
            .map(|probe| {
                json!({
                    "Start": rfc3339(Some(probe.start)),
                    "End": rfc3339(Some(probe.end)),
                    "ExitCode": probe.exit_code,
                    "Output": probe.output,
                })
            })
            .collect();
        object["Health"] = json!({
            "Status": health.status,
            "FailingStreak": health.failing_streak,
            "Log": log,
        });
    }
    object
}

/// What dockerd prints for fields nobody set.
fn over(defaults: Value, own: Value) -> Value {
    let (Value::Object(mut all), Value::Object(own)) = (defaults, own) else { return Value::Null };
    for (key, value) in own {
        // The client's empty word for the mode means the daemon's default.
        let unset = value.is_null() || (key == "CgroupnsMode" && value == "");
        if !unset {
            all.insert(key, value);
        }
    }
    Value::Object(all)
}

fn config(spec: &Spec) -> Value {
    let defaults = json!({
        "Hostname": "", "Domainname": "", "User": "",
        "AttachStdin": false, "AttachStdout": false, "AttachStderr": false,
        "Tty": false, "OpenStdin": false, "StdinOnce": false,
        "Env": null, "Cmd": null, "Image": "", "Volumes": null, "WorkingDir": "",
        "Entrypoint": null, "OnBuild": null, "Labels": {},
    });
    over(defaults, json!(spec.config))
}

fn host_config(spec: &Spec) -> Value {
    let masked = if spec.host_config.privileged.unwrap_or_default() {
        json!([null, null])
    } else {
        json!([engine::containers::MASKED_PATHS, engine::containers::READONLY_PATHS])
    };
    let defaults = json!({
        "Binds": null, "ContainerIDFile": "", "LogConfig": { "Type": "json-file", "Config": {} },
        "NetworkMode": "bridge", "PortBindings": {},
        "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
        "AutoRemove": false, "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [0, 0],
        "CapAdd": null, "CapDrop": null, "CgroupnsMode": default_cgroup_namespace(),
        "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": null, "GroupAdd": null,
        "IpcMode": "private", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
        "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false,
        "SecurityOpt": null, "UTSMode": "", "UsernsMode": "", "ShmSize": 67108864,
        "Runtime": "runc", "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0,
        "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [],
        "BlkioDeviceWriteBps": [], "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [],
        "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0,
        "CpusetCpus": "", "CpusetMems": "", "Devices": [], "DeviceCgroupRules": null,
        "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": null,
        "OomKillDisable": false, "PidsLimit": null, "Ulimits": [], "CpuCount": 0, "CpuPercent": 0,
        "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
        "MaskedPaths": masked[0], "ReadonlyPaths": masked[1],
    });
    over(defaults, json!(spec.host_config))
}

/// Docker's: private on cgroup v2, the host's below it.
fn default_cgroup_namespace() -> &'static str {
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified { "private" } else { "host" }
}

fn graph_driver(engine: &Engine, spec: &Spec) -> Value {
    let mut data = Map::new();
    if let Ok(rootfs) = engine.images.store.rootfs(&spec.id) {
        let lower: Vec<String> =
            rootfs.lower.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        data.insert("LowerDir".into(), json!(lower.join(":")));
        data.insert("MergedDir".into(), json!(rootfs.merged));
        data.insert("UpperDir".into(), json!(rootfs.upper));
        data.insert("WorkDir".into(), json!(rootfs.work));
    }
    json!({ "Name": "overlay2", "Data": data })
}

pub(super) fn mounts(spec: &Spec) -> Vec<Value> {
    spec.mounts.iter().filter(|record| record.listed).map(mount).collect()
}

fn mount(record: &MountRecord) -> Value {
    let kind = match record.kind {
        MountType::Bind => "bind",
        MountType::Volume => "volume",
        MountType::Tmpfs => "tmpfs",
    };
    let mut object = Map::new();
    object.insert("Type".into(), json!(kind));
    if record.kind == MountType::Volume {
        object.insert("Name".into(), json!(record.name));
    }
    object.insert("Source".into(), json!(record.source));
    object.insert("Destination".into(), json!(record.destination));
    if record.kind == MountType::Volume {
        object.insert("Driver".into(), json!(record.driver));
    }
    object.insert("Mode".into(), json!(record.mode));
    object.insert("RW".into(), json!(!record.read_only));
    object.insert("Propagation".into(), json!(record.propagation));
    Value::Object(object)
}

fn network_settings(engine: &Engine, spec: &Spec) -> Value {
    let sandbox = engine.network.sandbox(&spec.id);
    let networks = ports::networks(spec, sandbox.as_ref());
    // The old fields beside `Networks` repeat the default bridge's.
    let bridge = networks.get("bridge").cloned().unwrap_or_default();
    let of = |key: &str, default: Value| bridge.get(key).cloned().unwrap_or(default);
    json!({
        "Bridge": "",
        "SandboxID": sandbox.as_ref().map(|s| s.sandbox_id.clone()).unwrap_or_default(),
        "SandboxKey": sandbox
            .as_ref()
            .and_then(|s| s.netns.as_ref())
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        "Ports": ports::map(spec, sandbox.as_ref()),
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": of("EndpointID", json!("")),
        "Gateway": of("Gateway", json!("")),
        "GlobalIPv6Address": of("GlobalIPv6Address", json!("")),
        "GlobalIPv6PrefixLen": of("GlobalIPv6PrefixLen", json!(0)),
        "IPAddress": of("IPAddress", json!("")),
        "IPPrefixLen": of("IPPrefixLen", json!(0)),
        "IPv6Gateway": of("IPv6Gateway", json!("")),
        "MacAddress": of("MacAddress", json!("")),
        "Networks": networks,
    })
}

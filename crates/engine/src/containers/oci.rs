//! From Docker's objects to what the runtime runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bollard_stubs::models::{HostConfig, ThrottleDevice};
use runtime::{
    BlkioDevice, CgroupNs, ContainerSpec, Device, IpcMode, Mount, MountKind, Namespace, OciRuntime,
    Propagation, Resources, Seccomp, Ulimit,
};

use super::container::Spec;
use super::mounts::{MountRecord, MountType};
use super::stop;
use super::subpath::Pins;
use crate::Engine;
use crate::error::{Error, IoContext, Result};
use crate::network::SandboxState;
use crate::volumes::User;

impl Engine {
    /// Everything the runtime needs; `mounts` are the volumes, binds and the engine's own files.
    pub(super) fn runtime_spec(
        &self,
        spec: &Spec,
        rootfs: PathBuf,
        sandbox: &SandboxState,
        mounts: Vec<Mount>,
    ) -> Result<ContainerSpec> {
        let (config, host) = (&spec.config, &spec.host_config);
        let security = security(host, &self.config())?;
        Ok(ContainerSpec {
            id: spec.id.to_string(),
            rootfs,
            args: config.entrypoint.iter().chain(&config.cmd).flatten().cloned().collect(),
            env: self.environment(spec),
            cwd: config.working_dir.clone().unwrap_or_default(),
            user: config.user.clone().unwrap_or_default(),
            groups: host.group_add.clone().unwrap_or_default(),
            tty: config.tty.unwrap_or_default(),
            open_stdin: config.open_stdin.unwrap_or_default(),
            stdin_once: config.stdin_once.unwrap_or_default(),
            console_size: console_size(host),
            hostname: self.hostname(spec),
            domainname: config.domainname.clone().unwrap_or_default(),
            network: match &sandbox.netns {
                Some(path) => Namespace::Path(path.clone()),
                None => Namespace::Host,
            },
            ipc: self.ipc(spec)?,
            pid: self.pid_namespace(host)?,
            uts: if of_host(&host.uts_mode) { Namespace::Host } else { Namespace::Private },
            cgroup_ns: match host.cgroupns_mode.map(|mode| mode.to_string()).as_deref() {
                Some("host") => CgroupNs::Host,
                Some("private") => CgroupNs::Private,
                _ => CgroupNs::Default,
            },
            mounts,
            read_only: host.readonly_rootfs.unwrap_or_default(),
            shm_size: u64::try_from(host.shm_size.unwrap_or_default()).unwrap_or_default(),
            masked_paths: security.masked_paths,
            readonly_paths: security.readonly_paths,
            resources: resources(host),
            cgroup_parent: host
                .cgroup_parent
                .clone()
                .filter(|parent| !parent.is_empty())
                .unwrap_or_else(|| self.config().cgroup_parent.clone().unwrap_or_default()),
            devices: devices(host),
            device_cgroup_rules: host.device_cgroup_rules.clone().unwrap_or_default(),
            sysctls: host.sysctls.clone().unwrap_or_default().into_iter().collect(),
            ulimits: ulimits(host, &self.config().default_ulimits),
            oom_score_adj: host
                .oom_score_adj
                .and_then(|score| i32::try_from(score).ok())
                .unwrap_or_default(),
            privileged: host.privileged.unwrap_or_default(),
            cap_add: host.cap_add.clone().unwrap_or_default(),
            cap_drop: host.cap_drop.clone().unwrap_or_default(),
            no_new_privileges: security.no_new_privileges,
            seccomp: security.seccomp,
            apparmor: security.apparmor,
            init: host.init.unwrap_or(self.config().init),
            stop_signal: stop::signal_number(
                config.stop_signal.as_deref().filter(|text| !text.is_empty()).unwrap_or("SIGTERM"),
            )?,
            runtime: self.oci_runtime(host),
            log: spec.log.clone(),
            annotations: host.annotations.clone().unwrap_or_default().into_iter().collect(),
        })
    }

    /// In another container's network it is that one's, which may not have been there at the create.
    fn hostname(&self, spec: &Spec) -> String {
        let own = spec.config.hostname.clone().unwrap_or_default();
        let mode = spec.host_config.network_mode.as_deref().unwrap_or_default();
        let other = mode.strip_prefix("container:").filter(|_| own.is_empty());
        match other.and_then(|other| self.container(other).ok()) {
            Some(other) => other.spec().config.hostname.clone().unwrap_or_default(),
            None => own,
        }
    }

    /// The container's own variables after those of its links, which they may overrule.
    fn environment(&self, spec: &Spec) -> Vec<String> {
        let mut env = Vec::new();
        for link in spec.host_config.links.iter().flatten() {
            let (name, alias) = link.split_once(':').unwrap_or((link, link));
            let alias = alias.rsplit('/').next().unwrap_or(alias);
            if let Ok(other) = self.container(name) {
                env.extend(self.link_variables(spec, &other.spec(), alias));
            }
        }
        env.extend(spec.config.env.clone().unwrap_or_default());
        env
    }

    /// What `--link` has always set (moby daemon/links): name, ports, environment of the other.
    fn link_variables(&self, spec: &Spec, other: &Spec, alias: &str) -> Vec<String> {
        let prefix = alias.to_ascii_uppercase().replace('-', "_");
        let mut env = vec![format!("{prefix}_NAME=/{}/{alias}", spec.name)];
        let sandbox = self.network.sandbox(&other.id);
        let address = sandbox
            .and_then(|sandbox| sandbox.endpoints.get("bridge").cloned())
            .and_then(|endpoint| endpoint.addresses.iter().find(|cidr| cidr.is_v4()).copied());
        let mut ports: Vec<(u16, crate::network::Proto)> = other
            .config
            .exposed_ports
            .iter()
            .flatten()
            .filter_map(|text| super::endpoints::parse_port(text).ok())
            .collect();
        ports.sort();
        if let Some(address) = address.map(|cidr| cidr.addr) {
            for (at, (port, proto)) in ports.iter().enumerate() {
                let proto = proto.name();
                let url = format!("{proto}://{address}:{port}");
                if at == 0 {
                    env.push(format!("{prefix}_PORT={url}"));
                }
                let base = format!("{prefix}_PORT_{port}_{}", proto.to_ascii_uppercase());
                env.push(format!("{base}={url}"));
                env.push(format!("{base}_ADDR={address}"));
                env.push(format!("{base}_PORT={port}"));
                env.push(format!("{base}_PROTO={proto}"));
            }
        }
        for variable in other.config.env.iter().flatten() {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            if !matches!(name, "HOME" | "PATH") {
                env.push(format!("{prefix}_ENV_{name}={value}"));
            }
        }
        env
    }

    fn oci_runtime(&self, host: &HostConfig) -> OciRuntime {
        let name = host.runtime.as_deref().unwrap_or_default();
        match self.config().runtimes.get(name) {
            Some(path) => OciRuntime::Binary { path: path.clone(), args: Vec::new() },
            None if name == "runc" && self.config().default_runtime != "runc" => {
                OciRuntime::Binary { path: PathBuf::from("runc"), args: Vec::new() }
            }
            None => OciRuntime::BuiltIn,
        }
    }

    fn ipc(&self, spec: &Spec) -> Result<IpcMode> {
        let mode = spec.host_config.ipc_mode.as_deref().unwrap_or_default();
        Ok(match mode {
            "host" => IpcMode::Host,
            "none" => IpcMode::None,
            "shareable" => IpcMode::Shareable { shm: Some(self.make_shm(spec)?) },
            _ => match mode.strip_prefix("container:") {
                None => IpcMode::Private,
                Some(other) => {
                    let pid = self.running_pid(other, "IPC")?;
                    IpcMode::Path {
                        namespace: format!("/proc/{pid}/ns/ipc").into(),
                        shm: Some(self.shm_of(other)?),
                    }
                }
            },
        })
    }

    fn pid_namespace(&self, host: &HostConfig) -> Result<Namespace> {
        let mode = host.pid_mode.as_deref().unwrap_or_default();
        Ok(match mode.strip_prefix("container:") {
            Some(other) => {
                let pid = self.running_pid(other, "PID")?;
                Namespace::Path(format!("/proc/{pid}/ns/pid").into())
            }
            None if mode == "host" => Namespace::Host,
            None => Namespace::Private,
        })
    }

    fn running_pid(&self, other: &str, namespace: &str) -> Result<u32> {
        let other = self.container(other)?;
        if !other.is_running() {
            return Err(Error::conflict(format!(
                "cannot join {namespace} of a non running container: {}",
                other.id()
            )));
        }
        Ok(other.state().pid)
    }

    /// The container's volumes, binds and tmpfs, ready on the host for as long as the pins are held.
    pub(crate) fn ready_mounts(&self, spec: &Spec, user: &User) -> Result<(Vec<Mount>, Pins)> {
        // Parents before what lies below them.
        let mut records: Vec<&MountRecord> = spec.mounts.iter().collect();
        records.sort_by_key(|record| record.destination.matches('/').count());
        let mut pins = Pins::below(&self.config().exec_root);
        let ready = |record| self.ready_mount(user, record, &mut pins);
        let mounts = records.into_iter().map(ready).collect::<Result<_>>()?;
        Ok((mounts, pins))
    }

    fn ready_mount(&self, user: &User, record: &MountRecord, pins: &mut Pins) -> Result<Mount> {
        let kind = match record.kind {
            MountType::Tmpfs => MountKind::Tmpfs { options: record.tmpfs_options.clone() },
            MountType::Volume => {
                let mut source = self.volumes.mount(&record.name, user)?;
                if !record.subpath.is_empty() {
                    source = pins.pin(&source, &record.subpath)?;
                }
                MountKind::Bind { source, propagation: Propagation::RPrivate, recursive: true }
            }
            MountType::Bind => {
                let source = PathBuf::from(&record.source);
                if !source.exists() {
                    if !record.create_source {
                        return Err(Error::bad_parameter(format!(
                            "invalid mount config for type \"bind\": bind source path does not exist: {}",
                            record.source
                        )));
                    }
                    std::fs::create_dir_all(&source).during(format_args!(
                        "error while creating mount source path '{}'",
                        record.source
                    ))?;
                }
                MountKind::Bind {
                    source,
                    propagation: super::propagation::at_start(record)?,
                    recursive: !record.non_recursive,
                }
            }
        };
        Ok(Mount { destination: record.destination.clone(), kind, read_only: record.read_only })
    }
}

/// Height and width; zero leaves the kernel's.
fn console_size(host: &HostConfig) -> (u16, u16) {
    let size = |at: usize| {
        let size = host.console_size.as_ref().and_then(|sizes| sizes.get(at));
        size.map_or(0, |size| u16::try_from(*size).unwrap_or(0))
    };
    (size(0), size(1))
}

fn of_host(mode: &Option<String>) -> bool {
    mode.as_deref() == Some("host")
}

/// Limits in the runtime's form: `-1` lifts a limit, 0 leaves it as it is.
pub(crate) fn resources(host: &HostConfig) -> Resources {
    let unsigned =
        |number: Option<i64>| u64::try_from(number.unwrap_or_default()).unwrap_or_default();
    Resources {
        memory: host.memory.unwrap_or_default(),
        memory_reservation: host.memory_reservation.unwrap_or_default(),
        memory_swap: host.memory_swap.unwrap_or_default(),
        memory_swappiness: host.memory_swappiness.and_then(|percent| u64::try_from(percent).ok()),
        kernel_memory: 0,
        oom_kill_disable: host.oom_kill_disable.unwrap_or_default(),
        cpu_shares: unsigned(host.cpu_shares),
        nano_cpus: host.nano_cpus.unwrap_or_default(),
        cpu_period: host.cpu_period.unwrap_or_default(),
        cpu_quota: host.cpu_quota.unwrap_or_default(),
        cpu_realtime_period: host.cpu_realtime_period.unwrap_or_default(),
        cpu_realtime_runtime: host.cpu_realtime_runtime.unwrap_or_default(),
        cpuset_cpus: host.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: host.cpuset_mems.clone().unwrap_or_default(),
        pids_limit: host.pids_limit.unwrap_or_default(),
        blkio_weight: host.blkio_weight.unwrap_or_default(),
        blkio_weight_device: host
            .blkio_weight_device
            .iter()
            .flatten()
            .map(|device| BlkioDevice {
                path: device.path.clone().unwrap_or_default(),
                rate: device.weight.unwrap_or_default() as u64,
            })
            .collect(),
        device_read_bps: throttled(&host.blkio_device_read_bps),
        device_write_bps: throttled(&host.blkio_device_write_bps),
        device_read_iops: throttled(&host.blkio_device_read_iops),
        device_write_iops: throttled(&host.blkio_device_write_iops),
    }
}

fn throttled(devices: &Option<Vec<ThrottleDevice>>) -> Vec<BlkioDevice> {
    devices
        .iter()
        .flatten()
        .map(|device| BlkioDevice {
            path: device.path.clone().unwrap_or_default(),
            rate: u64::try_from(device.rate.unwrap_or_default()).unwrap_or_default(),
        })
        .collect()
}

fn devices(host: &HostConfig) -> Vec<Device> {
    host.devices
        .iter()
        .flatten()
        .map(|device| {
            let on_host = device.path_on_host.clone().unwrap_or_default();
            Device {
                container: device
                    .path_in_container
                    .clone()
                    .filter(|path| !path.is_empty())
                    .unwrap_or_else(|| on_host.clone()),
                permissions: device
                    .cgroup_permissions
                    .clone()
                    .filter(|text| !text.is_empty())
                    .unwrap_or_else(|| "rwm".into()),
                host: on_host.into(),
            }
        })
        .collect()
}

/// The request's over the daemon's.
fn ulimits(host: &HostConfig, defaults: &BTreeMap<String, (i64, i64)>) -> Vec<Ulimit> {
    let mut all: BTreeMap<String, (i64, i64)> = defaults.clone();
    for limit in host.ulimits.iter().flatten() {
        let soft = limit.soft.unwrap_or_default();
        all.insert(limit.name.clone().unwrap_or_default(), (soft, limit.hard.unwrap_or(soft)));
    }
    all.into_iter().map(|(name, (soft, hard))| Ulimit { name, soft, hard }).collect()
}

struct Security {
    masked_paths: Option<Vec<String>>,
    readonly_paths: Option<Vec<String>>,
    no_new_privileges: bool,
    seccomp: Seccomp,
    apparmor: Option<String>,
}

/// `--security-opt` in its forms `key=value`, `key:value` and bare words.
fn security(host: &HostConfig, config: &crate::Config) -> Result<Security> {
    let mut security = Security {
        masked_paths: host.masked_paths.clone(),
        readonly_paths: host.readonly_paths.clone(),
        no_new_privileges: config.no_new_privileges,
        seccomp: daemon_seccomp(config)?,
        apparmor: None,
    };
    for option in host.security_opt.iter().flatten() {
        let (key, value) =
            option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", "unconfined") => security.seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin") => security.seccomp = Seccomp::Default,
            ("seccomp", profile) => security.seccomp = Seccomp::Custom(profile.to_owned()),
            ("apparmor", profile) => security.apparmor = Some(profile.to_owned()),
            ("systempaths", "unconfined") => {
                security.masked_paths = Some(Vec::new());
                security.readonly_paths = Some(Vec::new());
            }
            // No SELinux on this engine: the label has nothing to act on, as in Docker without it.
            ("label" | "disable", _) => {}
            _ => {
                return Err(Error::bad_parameter(format!(
                    "invalid --security-opt 2: \"{option}\""
                )));
            }
        }
    }
    Ok(security)
}

/// The profile under which a container starts, as it is shown; empty without AppArmor.
pub fn apparmor_profile(host: &HostConfig) -> &str {
    if !runtime::apparmor::enabled() {
        return "";
    }
    let options = host.security_opt.iter().flatten();
    let mut asked = options.filter_map(|option| {
        let rest = option.strip_prefix("apparmor")?;
        rest.strip_prefix('=').or_else(|| rest.strip_prefix(':'))
    });
    runtime::apparmor::profile(asked.next_back(), host.privileged.unwrap_or_default())
}

fn daemon_seccomp(config: &crate::Config) -> Result<Seccomp> {
    Ok(match config.seccomp_profile.as_deref() {
        None | Some("" | "builtin") => Seccomp::Default,
        Some("unconfined") => Seccomp::Unconfined,
        Some(path) => Seccomp::Custom(
            std::fs::read_to_string(path)
                .during(format_args!("opening seccomp profile ({path}) failed"))?,
        ),
    })
}

/// Refuses at create what start would refuse.
pub(crate) fn check_security(host: &HostConfig, config: &crate::Config) -> Result<()> {
    security(host, config).map(drop)
}

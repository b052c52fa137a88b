//! `ContainerSpec`: what a service's containers are made of, JSON and wire.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wire::swarmkit as pb;
use wire::swarmkit::container_spec::Isolation;
use wire::swarmkit::mount::{Consistency, Type as MountType, bind_options::Propagation};

use super::fault::Fault;
use super::json::{Obj, Out, base64, nanos, texts};

const ISOLATIONS: &[(&str, Isolation)] = &[
    ("default", Isolation::Default),
    ("process", Isolation::Process),
    ("hyperv", Isolation::Hyperv),
];

const MOUNT_TYPES: &[(&str, MountType)] = &[
    ("bind", MountType::Bind),
    ("volume", MountType::Volume),
    ("tmpfs", MountType::Tmpfs),
    ("npipe", MountType::Npipe),
    ("cluster", MountType::Cluster),
];

const CONSISTENCIES: &[(&str, Consistency)] = &[
    ("default", Consistency::Default),
    ("consistent", Consistency::Consistent),
    ("cached", Consistency::Cached),
    ("delegated", Consistency::Delegated),
];

const PROPAGATIONS: &[(&str, Propagation)] = &[
    ("rprivate", Propagation::Rprivate),
    ("private", Propagation::Private),
    ("rshared", Propagation::Rshared),
    ("shared", Propagation::Shared),
    ("rslave", Propagation::Rslave),
    ("slave", Propagation::Slave),
];

/// The word for a value; the first word for a number that is none of them.
pub fn word_of<T: Copy + Into<i32>>(
    words: &'static [(&'static str, T)],
    value: i32,
) -> &'static str {
    words
        .iter()
        .find(|(_, known)| (*known).into() == value)
        .or(words.first())
        .map_or("", |(word, _)| *word)
}

pub fn read(spec: &Obj<'_>) -> Result<pb::ContainerSpec, Fault> {
    let isolation = spec.word("Isolation", ISOLATIONS)?;
    if isolation == Isolation::Hyperv {
        return Err(Fault::bad("invalid isolation: hyperv is for Windows containers"));
    }
    Ok(pb::ContainerSpec {
        image: spec.str("Image")?,
        labels: spec.map("Labels")?,
        command: spec.strings("Command")?,
        args: spec.strings("Args")?,
        hostname: spec.str("Hostname")?,
        env: spec.strings("Env")?,
        dir: spec.str("Dir")?,
        user: spec.str("User")?,
        groups: spec.strings("Groups")?,
        privileges: spec.obj("Privileges")?.map(|obj| read_privileges(obj)).transpose()?,
        init: spec.opt_bool("Init")?,
        stop_signal: spec.str("StopSignal")?,
        tty: spec.bool("TTY")?,
        open_stdin: spec.bool("OpenStdin")?,
        read_only: spec.bool("ReadOnly")?,
        mounts: spec.list("Mounts")?.into_iter().map(read_mount).collect::<Result<_, _>>()?,
        stop_grace_period: spec.duration("StopGracePeriod")?,
        healthcheck: spec.obj("Healthcheck")?.map(read_health).transpose()?,
        hosts: spec.strings("Hosts")?,
        dns_config: spec.obj("DNSConfig")?.map(read_dns).transpose()?,
        secrets: spec.list("Secrets")?.into_iter().map(read_secret).collect::<Result<_, _>>()?,
        configs: spec.list("Configs")?.into_iter().map(read_config).collect::<Result<_, _>>()?,
        isolation: isolation as i32,
        sysctls: spec.map("Sysctls")?,
        capability_add: spec.strings("CapabilityAdd")?,
        capability_drop: spec.strings("CapabilityDrop")?,
        ulimits: spec.list("Ulimits")?.into_iter().map(read_ulimit).collect::<Result<_, _>>()?,
        oom_score_adj: spec.i64("OomScoreAdj")?,
        ..Default::default()
    })
}

fn read_privileges(obj: Obj<'_>) -> Result<pb::Privileges, Fault> {
    use pb::privileges::*;
    let credential_spec = obj.obj("CredentialSpec")?.map(|spec| {
        let (config, file, registry) = (spec.str("Config")?, spec.str("File")?, spec.str("Registry")?);
        spec.done()?;
        use credential_spec::Source;
        let source = match (config.is_empty(), file.is_empty(), registry.is_empty()) {
            (false, true, true) => Source::Config(config),
            (true, false, true) => Source::File(file),
            (true, true, false) => Source::Registry(registry),
            (true, true, true) => return Err(Fault::bad("invalid CredentialSpec: must either provide \"file\", \"registry\", or \"config\" for credential spec")),
            _ => return Err(Fault::bad("invalid CredentialSpec: cannot specify both \"file\", \"registry\" and \"config\" credential specs")),
        };
        Ok(CredentialSpec { source: Some(source) })
    });
    let selinux_context = obj.obj("SELinuxContext")?.map(|context| {
        let read = SeLinuxContext {
            disable: context.bool("Disable")?,
            user: context.str("User")?,
            role: context.str("Role")?,
            r#type: context.str("Type")?,
            level: context.str("Level")?,
        };
        context.done()?;
        Ok::<_, Fault>(read)
    });
    let seccomp = obj.obj("Seccomp")?.map(|seccomp| {
        use seccomp_opts::SeccompMode;
        let modes = [
            ("default", SeccompMode::Default),
            ("unconfined", SeccompMode::Unconfined),
            ("custom", SeccompMode::Custom),
        ];
        let read = SeccompOpts {
            mode: seccomp.word("Mode", &modes)? as i32,
            profile: seccomp.bytes("Profile")?,
        };
        seccomp.done()?;
        Ok::<_, Fault>(read)
    });
    let apparmor = obj.obj("AppArmor")?.map(|apparmor| {
        use app_armor_opts::AppArmorMode;
        let modes = [("default", AppArmorMode::Default), ("disabled", AppArmorMode::Disabled)];
        let read = AppArmorOpts { mode: apparmor.word("Mode", &modes)? as i32 };
        apparmor.done()?;
        Ok::<_, Fault>(read)
    });
    let read = pb::Privileges {
        credential_spec: credential_spec.transpose()?,
        selinux_context: selinux_context.transpose()?,
        seccomp: seccomp.transpose()?,
        apparmor: apparmor.transpose()?,
        no_new_privileges: obj.bool("NoNewPrivileges")?,
    };
    obj.done()?;
    Ok(read)
}

fn read_mount(obj: Obj<'_>) -> Result<pb::Mount, Fault> {
    let mount_type =
        obj.word_or("Type", MOUNT_TYPES, |text| format!("invalid MountType: {text:?}"))?;
    if mount_type == MountType::Cluster {
        return Err(Fault::unsupported("mounts of type cluster"));
    }
    let read = pb::Mount {
        r#type: mount_type as i32,
        source: obj.str("Source")?,
        target: obj.str("Target")?,
        readonly: obj.bool("ReadOnly")?,
        consistency: obj.word("Consistency", CONSISTENCIES)? as i32,
        bind_options: obj.obj("BindOptions")?.map(read_bind).transpose()?,
        volume_options: obj.obj("VolumeOptions")?.map(read_volume).transpose()?,
        tmpfs_options: obj.obj("TmpfsOptions")?.map(read_tmpfs).transpose()?,
    };
    obj.done()?;
    Ok(read)
}

fn read_bind(obj: Obj<'_>) -> Result<pb::mount::BindOptions, Fault> {
    let read = pb::mount::BindOptions {
        propagation: obj.word_or("Propagation", PROPAGATIONS, |text| {
            format!("invalid MountPropagation: {text:?}")
        })? as i32,
        nonrecursive: obj.bool("NonRecursive")?,
        createmountpoint: obj.bool("CreateMountpoint")?,
        readonlynonrecursive: obj.bool("ReadOnlyNonRecursive")?,
        readonlyforcerecursive: obj.bool("ReadOnlyForceRecursive")?,
    };
    obj.done()?;
    Ok(read)
}

fn read_volume(obj: Obj<'_>) -> Result<pb::mount::VolumeOptions, Fault> {
    let read = pb::mount::VolumeOptions {
        nocopy: obj.bool("NoCopy")?,
        labels: obj.map("Labels")?,
        driver_config: obj.obj("DriverConfig")?.map(read_driver).transpose()?,
        subpath: obj.str("Subpath")?,
    };
    obj.done()?;
    Ok(read)
}

fn read_tmpfs(obj: Obj<'_>) -> Result<pb::mount::TmpfsOptions, Fault> {
    let options = match obj.get("Options") {
        None => String::new(),
        Some(options) => options.to_string(),
    };
    let read = pb::mount::TmpfsOptions {
        size_bytes: obj.i64("SizeBytes")?,
        mode: obj.u32("Mode")?,
        options,
    };
    obj.done()?;
    Ok(read)
}

pub fn read_driver(obj: Obj<'_>) -> Result<pb::Driver, Fault> {
    let read = pb::Driver { name: obj.str("Name")?, options: obj.map("Options")? };
    obj.done()?;
    Ok(read)
}

fn read_health(obj: Obj<'_>) -> Result<pb::HealthConfig, Fault> {
    let read = pb::HealthConfig {
        test: obj.strings("Test")?,
        interval: obj.duration("Interval")?,
        timeout: obj.duration("Timeout")?,
        start_period: obj.duration("StartPeriod")?,
        start_interval: obj.duration("StartInterval")?,
        retries: obj.i64("Retries")?.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32,
    };
    obj.done()?;
    Ok(read)
}

fn read_dns(obj: Obj<'_>) -> Result<pb::container_spec::DnsConfig, Fault> {
    let read = pb::container_spec::DnsConfig {
        nameservers: obj.strings("Nameservers")?,
        search: obj.strings("Search")?,
        options: obj.strings("Options")?,
    };
    obj.done()?;
    Ok(read)
}

fn read_file(obj: Obj<'_>) -> Result<pb::FileTarget, Fault> {
    let read = pb::FileTarget {
        name: obj.str("Name")?,
        uid: obj.str("UID")?,
        gid: obj.str("GID")?,
        mode: obj.u32("Mode")?,
    };
    obj.done()?;
    Ok(read)
}

fn read_secret(obj: Obj<'_>) -> Result<pb::SecretReference, Fault> {
    let file = obj.obj("File")?.map(read_file).transpose()?;
    let read = pb::SecretReference {
        secret_id: obj.str("SecretID")?,
        secret_name: obj.str("SecretName")?,
        target: file.map(pb::secret_reference::Target::File),
    };
    obj.done()?;
    Ok(read)
}

fn read_config(obj: Obj<'_>) -> Result<pb::ConfigReference, Fault> {
    use pb::config_reference::Target;
    let file = obj.obj("File")?.map(read_file).transpose()?;
    let runtime = obj.has("Runtime");
    let target = match (file, runtime) {
        (Some(_), true) => {
            return Err(Fault::bad("invalid Config: cannot specify both File and Runtime"));
        }
        (Some(file), false) => Some(Target::File(file)),
        (None, true) => Some(Target::Runtime(pb::RuntimeTarget {})),
        (None, false) => {
            return Err(Fault::bad("invalid Config: either File or Runtime should be set"));
        }
    };
    let read = pb::ConfigReference {
        config_id: obj.str("ConfigID")?,
        config_name: obj.str("ConfigName")?,
        target,
    };
    obj.done()?;
    Ok(read)
}

fn read_ulimit(obj: Obj<'_>) -> Result<pb::container_spec::Ulimit, Fault> {
    let read = pb::container_spec::Ulimit {
        name: obj.str("Name")?,
        soft: obj.i64("Soft")?,
        hard: obj.i64("Hard")?,
    };
    obj.done()?;
    Ok(read)
}

pub fn write(spec: &pb::ContainerSpec) -> Value {
    let list = |items: Vec<Value>| Value::Array(items);
    Out::new()
        .some("Image", spec.image.clone())
        .texts("Labels", &spec.labels)
        .some("Command", spec.command.clone())
        .some("Args", spec.args.clone())
        .some("Hostname", spec.hostname.clone())
        .some("Env", spec.env.clone())
        .some("Dir", spec.dir.clone())
        .some("User", spec.user.clone())
        .some("Groups", spec.groups.clone())
        .opt("Privileges", spec.privileges.as_ref().map(write_privileges))
        .opt("Init", spec.init)
        .some("StopSignal", spec.stop_signal.clone())
        .some("TTY", spec.tty)
        .some("OpenStdin", spec.open_stdin)
        .some("ReadOnly", spec.read_only)
        .some("Mounts", list(spec.mounts.iter().map(write_mount).collect()))
        .opt("StopGracePeriod", spec.stop_grace_period.as_ref().map(nanos))
        .opt("Healthcheck", spec.healthcheck.as_ref().map(write_health))
        .some("Hosts", spec.hosts.clone())
        .opt("DNSConfig", spec.dns_config.as_ref().map(write_dns))
        .some("Secrets", list(spec.secrets.iter().map(write_secret).collect()))
        .some("Configs", list(spec.configs.iter().map(write_config).collect()))
        .put("Isolation", word_of(ISOLATIONS, spec.isolation))
        .texts("Sysctls", &spec.sysctls)
        .some("CapabilityAdd", spec.capability_add.clone())
        .some("CapabilityDrop", spec.capability_drop.clone())
        .some("Ulimits", list(spec.ulimits.iter().map(write_ulimit).collect()))
        .some("OomScoreAdj", spec.oom_score_adj)
        .into()
}

fn write_ulimit(ulimit: &pb::container_spec::Ulimit) -> Value {
    json!({"Name": ulimit.name, "Hard": ulimit.hard, "Soft": ulimit.soft})
}

fn write_privileges(privileges: &pb::Privileges) -> Value {
    use pb::privileges::*;
    let credential =
        privileges.credential_spec.as_ref().and_then(|spec| spec.source.as_ref()).map(|source| {
            use credential_spec::Source;
            let (config, file, registry) = match source {
                Source::Config(text) => (text.as_str(), "", ""),
                Source::File(text) => ("", text.as_str(), ""),
                Source::Registry(text) => ("", "", text.as_str()),
            };
            json!({"Config": config, "File": file, "Registry": registry})
        });
    let selinux = privileges.selinux_context.as_ref().map(|context| {
        json!({"Disable": context.disable, "User": context.user, "Role": context.role,
               "Type": context.r#type, "Level": context.level})
    });
    let seccomp = privileges.seccomp.as_ref().map(|seccomp| {
        use seccomp_opts::SeccompMode;
        let mode = match seccomp.mode() {
            SeccompMode::Default => "default",
            SeccompMode::Unconfined => "unconfined",
            SeccompMode::Custom => "custom",
        };
        Out::new().some("Mode", mode).some("Profile", base64(&seccomp.profile))
    });
    let apparmor = privileges.apparmor.as_ref().map(|apparmor| {
        use app_armor_opts::AppArmorMode;
        let mode = match apparmor.mode() {
            AppArmorMode::Default => "default",
            AppArmorMode::Disabled => "disabled",
        };
        json!({"Mode": mode})
    });
    Out::new()
        .put("CredentialSpec", credential)
        .put("SELinuxContext", selinux)
        .opt("Seccomp", seccomp)
        .opt("AppArmor", apparmor)
        .some("NoNewPrivileges", privileges.no_new_privileges)
        .into()
}

fn write_mount(mount: &pb::Mount) -> Value {
    let bind = mount.bind_options.as_ref().map(|options| {
        Out::new()
            .some("Propagation", word_of(PROPAGATIONS, options.propagation))
            .some("NonRecursive", options.nonrecursive)
            .some("CreateMountpoint", options.createmountpoint)
            .some("ReadOnlyNonRecursive", options.readonlynonrecursive)
            .some("ReadOnlyForceRecursive", options.readonlyforcerecursive)
    });
    let volume = mount.volume_options.as_ref().map(|options| {
        Out::new()
            .some("NoCopy", options.nocopy)
            .texts("Labels", &options.labels)
            .some("Subpath", options.subpath.clone())
            .opt("DriverConfig", options.driver_config.as_ref().map(write_driver))
    });
    let tmpfs = mount.tmpfs_options.as_ref().map(|options| {
        let parsed: Option<Value> = serde_json::from_str(&options.options).ok();
        Out::new()
            .some("SizeBytes", options.size_bytes)
            .some("Mode", options.mode)
            .opt("Options", parsed)
    });
    let consistency = match mount.consistency() {
        Consistency::Default => "",
        _ => word_of(CONSISTENCIES, mount.consistency),
    };
    Out::new()
        .some("Type", word_of(MOUNT_TYPES, mount.r#type))
        .some("Source", mount.source.clone())
        .some("Target", mount.target.clone())
        .some("ReadOnly", mount.readonly)
        .some("Consistency", consistency)
        .opt("BindOptions", bind)
        .opt("VolumeOptions", volume)
        .opt("TmpfsOptions", tmpfs)
        .into()
}

pub fn write_driver(driver: &pb::Driver) -> Value {
    Out::new().some("Name", driver.name.clone()).texts("Options", &driver.options).into()
}

fn write_health(health: &pb::HealthConfig) -> Value {
    let time =
        |duration: &Option<prost_types::Duration>| duration.as_ref().map(nanos).unwrap_or_default();
    Out::new()
        .some("Test", health.test.clone())
        .some("Interval", time(&health.interval))
        .some("Timeout", time(&health.timeout))
        .some("StartPeriod", time(&health.start_period))
        .some("StartInterval", time(&health.start_interval))
        .some("Retries", health.retries)
        .into()
}

fn write_dns(dns: &pb::container_spec::DnsConfig) -> Value {
    Out::new()
        .some("Nameservers", dns.nameservers.clone())
        .some("Search", dns.search.clone())
        .some("Options", dns.options.clone())
        .into()
}

fn write_file(file: &pb::FileTarget) -> Value {
    json!({"Name": file.name, "UID": file.uid, "GID": file.gid, "Mode": file.mode})
}

fn write_secret(secret: &pb::SecretReference) -> Value {
    let file =
        secret.target.as_ref().map(|pb::secret_reference::Target::File(file)| write_file(file));
    json!({"File": file, "SecretID": secret.secret_id, "SecretName": secret.secret_name})
}

fn write_config(config: &pb::ConfigReference) -> Value {
    use pb::config_reference::Target;
    let out = Out::new();
    let out = match &config.target {
        Some(Target::File(file)) => out.put("File", write_file(file)),
        Some(Target::Runtime(_)) => out.put("Runtime", json!({})),
        None => out,
    };
    out.put("ConfigID", config.config_id.clone())
        .put("ConfigName", config.config_name.clone())
        .into()
}

/// Labels as dockerd shows them in annotations: `{}` when there are none.
pub fn labels(labels: &BTreeMap<String, String>) -> Value {
    texts(labels)
}

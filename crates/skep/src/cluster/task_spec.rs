//! A task of the swarm as a request to this host's engine: what `docker create` would have said.

use std::collections::BTreeMap;

use agent::Work;
use engine::containers::{CreateRequest, TaskEndpoint, TaskFile, TaskSpec};
use serde_json::{Map, Value, json};
use store::access::task_name;
use store::template::{self, Context};
use wire::swarmkit as pb;
use wire::swarmkit::mount::Type as MountType;

/// Why a task can never run as it is described.
pub type Rejected = String;

pub fn create_request(work: &Work, node: &pb::NodeDescription) -> Result<CreateRequest, Rejected> {
    let task = &work.task;
    let spec = task.spec.clone().unwrap_or_default();
    let Some(pb::task_spec::Runtime::Container(container)) = &spec.runtime else {
        return Err("only container tasks are supported by skep".into());
    };
    let context = context(work, container, node);
    let config = config(task, container, &context)?;
    let host_config = host_config(work, &spec, container, &context)?;
    Ok(CreateRequest {
        name: Some(task_name(task)),
        config: read("container settings", config)?,
        host_config: read("host settings", host_config)?,
        task: Some(TaskSpec {
            endpoints: endpoints(work),
            ingress: work.ingress.clone(),
            files: files(work, container, &context)?,
            attributes: BTreeMap::new(),
        }),
        ..Default::default()
    })
}

fn read<T: serde::de::DeserializeOwned>(what: &str, value: Value) -> Result<T, Rejected> {
    serde_json::from_value(value)
        .map_err(|error| format!("{what} of the task not understood: {error}"))
}

fn labels(task: &pb::Task, container: &pb::ContainerSpec) -> BTreeMap<String, String> {
    let mut labels = container.labels.clone();
    let service = task.service_annotations.as_ref().map_or("", |annotations| &annotations.name);
    let mut put =
        |key: &str, value: &str| labels.insert(format!("com.docker.swarm.{key}"), value.to_owned());
    put("task", "");
    put("task.id", &task.id);
    put("task.name", &task_name(task));
    put("node.id", &task.node_id);
    put("service.id", &task.service_id);
    put("service.name", service);
    labels
}

/// What the task's templates can see, in secrets and configs too.
fn context(work: &Work, container: &pb::ContainerSpec, node: &pb::NodeDescription) -> Context {
    let mut context = Context::new(&work.task, node);
    for line in &container.env {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        context.env.insert(key.to_owned(), value.to_owned());
    }
    for reference in &container.secrets {
        if let Some(pb::secret_reference::Target::File(file)) = &reference.target
            && let Some(secret) =
                work.secrets.iter().find(|secret| secret.id == reference.secret_id)
        {
            let data = secret.spec.clone().unwrap_or_default().data;
            context.secrets.insert(file.name.clone(), data);
        }
    }
    for reference in &container.configs {
        if let Some(pb::config_reference::Target::File(file)) = &reference.target
            && let Some(config) =
                work.configs.iter().find(|config| config.id == reference.config_id)
        {
            let data = config.spec.clone().unwrap_or_default().data;
            context.configs.insert(file.name.clone(), data);
        }
    }
    context
}

fn config(
    task: &pb::Task,
    container: &pb::ContainerSpec,
    context: &Context,
) -> Result<Value, Rejected> {
    let mut env = Vec::new();
    for line in &container.env {
        env.push(template::expand(line, context)?);
    }
    env.extend(task.assigned_generic_resources.iter().filter_map(generic_env));
    let mut config = json!({
        "Image": container.image,
        "Labels": labels(task, container),
        "Env": env,
        "User": container.user,
        "WorkingDir": container.dir,
        "Tty": container.tty,
        "OpenStdin": container.open_stdin,
        "Hostname": template::expand(&container.hostname, context)?,
    });
    if !container.stop_signal.is_empty() {
        config["StopSignal"] = json!(container.stop_signal);
    }
    // A command replaces the image's entrypoint and its arguments; arguments alone only these.
    if !container.command.is_empty() {
        config["Entrypoint"] = json!(container.command);
        config["Cmd"] = json!(container.args);
    } else if !container.args.is_empty() {
        config["Cmd"] = json!(container.args);
    }
    if let Some(grace) = &container.stop_grace_period {
        config["StopTimeout"] = json!(grace.seconds);
    }
    if let Some(health) = &container.healthcheck {
        let nanos = |time: &Option<prost_types::Duration>| {
            time.as_ref().map_or(0, |time| time.seconds * 1_000_000_000 + i64::from(time.nanos))
        };
        config["Healthcheck"] = json!({
            "Test": health.test, "Interval": nanos(&health.interval), "Timeout": nanos(&health.timeout),
            "Retries": health.retries, "StartPeriod": nanos(&health.start_period),
            "StartInterval": nanos(&health.start_interval),
        });
    }
    Ok(config)
}

fn generic_env(resource: &pb::GenericResource) -> Option<String> {
    use pb::generic_resource::Resource;
    let (kind, value) = match resource.resource.as_ref()? {
        Resource::NamedResourceSpec(named) => (&named.kind, named.value.clone()),
        Resource::DiscreteResourceSpec(discrete) => (&discrete.kind, discrete.value.to_string()),
    };
    Some(format!("DOCKER_RESOURCE_{}={value}", kind.to_uppercase()))
}

fn host_config(
    work: &Work,
    spec: &pb::TaskSpec,
    container: &pb::ContainerSpec,
    context: &Context,
) -> Result<Value, Rejected> {
    let mut host = Map::new();
    let mut put = |key: &str, value: Value| drop(host.insert(key.to_owned(), value));
    let mut mounts = Vec::new();
    for mount in &container.mounts {
        mounts.push(self::mount(mount, context)?);
    }
    put("Mounts", mounts.into());
    put("ReadonlyRootfs", json!(container.read_only));
    put("GroupAdd", json!(container.groups));
    put("Sysctls", json!(container.sysctls));
    put("CapAdd", json!(container.capability_add));
    put("CapDrop", json!(container.capability_drop));
    put(
        "ExtraHosts",
        json!(container.hosts.iter().filter_map(|line| extra_host(line)).collect::<Vec<_>>()),
    );
    put("OomScoreAdj", json!(container.oom_score_adj));
    put("PortBindings", host_ports(&work.task));
    put("NetworkMode", json!(network_mode(work)));
    if let Some(init) = container.init {
        put("Init", json!(init));
    }
    if container.pids_limit > 0 {
        put("PidsLimit", json!(container.pids_limit));
    }
    if let Some(dns) = &container.dns_config {
        put("Dns", json!(dns.nameservers));
        put("DnsSearch", json!(dns.search));
        put("DnsOptions", json!(dns.options));
    }
    let ulimits: Vec<Value> = container
        .ulimits
        .iter()
        .map(|limit| json!({"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}))
        .collect();
    put("Ulimits", ulimits.into());
    if let Some(driver) = work.task.log_driver.as_ref().or(spec.log_driver.as_ref()) {
        put("LogConfig", json!({"Type": driver.name, "Config": driver.options}));
    }
    for (key, value) in resources(spec) {
        put(key, value);
    }
    let security = security(container)?;
    if !security.is_empty() {
        put("SecurityOpt", json!(security));
    }
    Ok(Value::Object(host))
}

fn resources(spec: &pb::TaskSpec) -> Vec<(&'static str, Value)> {
    let Some(asked) = &spec.resources else { return Vec::new() };
    let mut resources = Vec::new();
    if let Some(limits) = &asked.limits {
        resources.push(("NanoCpus", json!(limits.nano_cpus)));
        resources.push(("Memory", json!(limits.memory_bytes)));
        if let Some(swap) = asked.swap_bytes {
            // Docker counts memory and swap together; -1 is no limit.
            let total = if swap < 0 { -1 } else { limits.memory_bytes + swap };
            resources.push(("MemorySwap", json!(total)));
        }
    }
    if let Some(reserved) = &asked.reservations {
        resources.push(("MemoryReservation", json!(reserved.memory_bytes)));
    }
    if let Some(swappiness) = asked.memory_swappiness {
        resources.push(("MemorySwappiness", json!(swappiness)));
    }
    resources
}

fn security(container: &pb::ContainerSpec) -> Result<Vec<String>, Rejected> {
    use pb::privileges::*;
    let Some(privileges) = &container.privileges else { return Ok(Vec::new()) };
    let mut options = Vec::new();
    if privileges.credential_spec.as_ref().is_some_and(|spec| spec.source.is_some()) {
        return Err("credential specs are for Windows containers".into());
    }
    if let Some(selinux) = &privileges.selinux_context {
        if selinux.disable {
            options.push("label=disable".into());
        }
        let parts = [
            ("user", &selinux.user),
            ("role", &selinux.role),
            ("type", &selinux.r#type),
            ("level", &selinux.level),
        ];
        options.extend(
            parts
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(key, value)| format!("label={key}:{value}")),
        );
    }
    if let Some(seccomp) = &privileges.seccomp {
        match seccomp.mode() {
            seccomp_opts::SeccompMode::Default => {}
            seccomp_opts::SeccompMode::Unconfined => options.push("seccomp=unconfined".into()),
            seccomp_opts::SeccompMode::Custom => {
                options.push(format!("seccomp={}", String::from_utf8_lossy(&seccomp.profile)));
            }
        }
    }
    if let Some(apparmor) = &privileges.apparmor
        && apparmor.mode() == app_armor_opts::AppArmorMode::Disabled
    {
        options.push("apparmor=unconfined".into());
    }
    if privileges.no_new_privileges {
        options.push("no-new-privileges=true".into());
    }
    Ok(options)
}

/// `IP name…` as the spec stores it becomes `name:IP`, as `docker run` takes it.
fn extra_host(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (ip, name) = (words.next()?, words.next()?);
    Some(format!("{name}:{ip}"))
}

fn mount(mount: &pb::Mount, context: &Context) -> Result<Value, Rejected> {
    use pb::mount::bind_options::Propagation;
    let kind = match mount.r#type() {
        MountType::Bind => "bind",
        MountType::Volume => "volume",
        MountType::Tmpfs => "tmpfs",
        MountType::Npipe => {
            return Err("invalid mount: named pipes are for Windows containers".into());
        }
        MountType::Cluster => {
            return Err("invalid mount: cluster volumes are not supported by skep yet".into());
        }
    };
    let mut shown = json!({
        "Type": kind,
        "Source": template::expand(&mount.source, context)?,
        "Target": template::expand(&mount.target, context)?,
        "ReadOnly": mount.readonly,
    });
    if let Some(options) = &mount.bind_options {
        let propagation = match options.propagation() {
            Propagation::Rprivate => "rprivate",
            Propagation::Private => "private",
            Propagation::Rshared => "rshared",
            Propagation::Shared => "shared",
            Propagation::Rslave => "rslave",
            Propagation::Slave => "slave",
        };
        shown["BindOptions"] = json!({
            "Propagation": propagation, "NonRecursive": options.nonrecursive,
            "CreateMountpoint": options.createmountpoint,
            "ReadOnlyNonRecursive": options.readonlynonrecursive,
            "ReadOnlyForceRecursive": options.readonlyforcerecursive,
        });
    }
    if let Some(options) = &mount.volume_options {
        let mut labels = BTreeMap::new();
        for (key, value) in &options.labels {
            labels.insert(key.clone(), template::expand(value, context)?);
        }
        shown["VolumeOptions"] =
            json!({"NoCopy": options.nocopy, "Labels": labels, "Subpath": options.subpath});
        if let Some(driver) = &options.driver_config {
            shown["VolumeOptions"]["DriverConfig"] =
                json!({"Name": driver.name, "Options": driver.options});
        }
    }
    if let Some(options) = &mount.tmpfs_options {
        shown["TmpfsOptions"] = json!({"SizeBytes": options.size_bytes, "Mode": options.mode});
    }
    Ok(shown)
}

/// Ports in host mode; those of the routing mesh are the ingress network's.
fn host_ports(task: &pb::Task) -> Value {
    let ports =
        task.endpoint.as_ref().map(|endpoint| endpoint.ports.as_slice()).unwrap_or_default();
    let mut bindings = Map::new();
    for port in ports {
        if port.publish_mode() != pb::port_config::PublishMode::Host {
            continue;
        }
        let protocol = match port.protocol() {
            pb::port_config::Protocol::Tcp => "tcp",
            pb::port_config::Protocol::Udp => "udp",
            pb::port_config::Protocol::Sctp => "sctp",
        };
        // 0 is "any free port": the engine chooses and the status tells.
        let host =
            if port.published_port == 0 { String::new() } else { port.published_port.to_string() };
        let key = format!("{}/{protocol}", port.target_port);
        let list = bindings.entry(key).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(json!({"HostIp": "", "HostPort": host}));
        }
    }
    Value::Object(bindings)
}

/// Tasks name the hosts' own networks, too: `--network host`.
fn network_mode(work: &Work) -> String {
    let named = |attachment: &pb::NetworkAttachment| {
        let network = attachment.network.as_ref()?;
        let driver =
            network.driver_state.as_ref().or(network.spec.as_ref()?.driver_config.as_ref())?;
        let name = network.spec.as_ref()?.annotations.as_ref()?.name.clone();
        (driver.name != "overlay").then_some(name)
    };
    match work.task.networks.iter().find_map(named) {
        Some(name) => name,
        None if work.endpoints.is_empty() => "bridge".into(),
        None => String::new(),
    }
}

fn endpoints(work: &Work) -> Vec<TaskEndpoint> {
    work.endpoints
        .iter()
        .map(|endpoint| TaskEndpoint {
            network: endpoint.network.to_string(),
            network_name: endpoint.network_name.clone(),
            addresses: endpoint.addresses.clone(),
            mac: Some(endpoint.mac),
            aliases: endpoint.aliases.clone(),
            driver_opts: BTreeMap::new(),
        })
        .collect()
}

/// Secrets and configs with the bytes that their files get.
fn files(
    work: &Work,
    container: &pb::ContainerSpec,
    context: &Context,
) -> Result<Vec<TaskFile>, Rejected> {
    let mut files = Vec::new();
    for reference in &container.secrets {
        let Some(pb::secret_reference::Target::File(file)) = &reference.target else { continue };
        let secret =
            work.secrets.iter().find(|secret| secret.id == reference.secret_id).ok_or_else(
                || format!("secret {} of the task did not arrive", reference.secret_name),
            )?;
        let spec = secret.spec.clone().unwrap_or_default();
        let data = match &spec.templating {
            Some(_) => template::expand_bytes(&spec.data, context)?,
            None => spec.data,
        };
        files.push(task_file(file, true, data)?);
    }
    for reference in &container.configs {
        let Some(pb::config_reference::Target::File(file)) = &reference.target else { continue };
        let config =
            work.configs.iter().find(|config| config.id == reference.config_id).ok_or_else(
                || format!("config {} of the task did not arrive", reference.config_name),
            )?;
        let spec = config.spec.clone().unwrap_or_default();
        let data = match &spec.templating {
            Some(_) => template::expand_bytes(&spec.data, context)?,
            None => spec.data,
        };
        files.push(task_file(file, false, data)?);
    }
    Ok(files)
}

fn task_file(file: &pb::FileTarget, secret: bool, data: Vec<u8>) -> Result<TaskFile, Rejected> {
    let id = |text: &str, what: &str| match text {
        "" => Ok(0),
        text => text
            .parse()
            .map_err(|_| format!("{what} {text:?} of file {:?} is no number", file.name)),
    };
    Ok(TaskFile {
        target: file.name.clone(),
        uid: id(&file.uid, "uid")?,
        gid: id(&file.gid, "gid")?,
        mode: file.mode,
        secret,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> pb::Task {
        let annotations =
            |name: &str| Some(pb::Annotations { name: name.into(), ..Default::default() });
        pb::Task {
            id: "tid".into(),
            slot: 2,
            node_id: "nid".into(),
            service_id: "sid".into(),
            service_annotations: annotations("web"),
            spec: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(pb::ContainerSpec {
                    image: "httpd".into(),
                    env: vec!["SLOT={{.Task.Slot}}".into()],
                    hostname: "{{.Service.Name}}-{{.Node.Hostname}}".into(),
                    hosts: vec!["1.2.3.4 db".into()],
                    args: vec!["x".into()],
                    ..Default::default()
                })),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn work(task: pb::Task) -> Work {
        Work {
            task,
            endpoints: Vec::new(),
            ingress: Vec::new(),
            secrets: Vec::new(),
            configs: Vec::new(),
        }
    }

    #[test]
    fn a_task_becomes_what_docker_create_would_say() {
        let node = pb::NodeDescription { hostname: "vm1".into(), ..Default::default() };
        let request = create_request(&work(task()), &node).unwrap();
        assert_eq!(request.name.as_deref(), Some("web.2.tid"));
        assert_eq!(request.config.env, Some(vec!["SLOT=2".to_owned()]));
        assert_eq!(request.config.hostname.as_deref(), Some("web-vm1"));
        assert_eq!(request.config.cmd, Some(vec!["x".to_owned()]));
        assert_eq!(request.host_config.extra_hosts, Some(vec!["db:1.2.3.4".to_owned()]));
        let labels = request.config.labels.unwrap();
        assert_eq!(labels.get("com.docker.swarm.task.name").map(String::as_str), Some("web.2.tid"));
        assert_eq!(labels.get("com.docker.swarm.service.id").map(String::as_str), Some("sid"));
    }

    #[test]
    fn a_global_service_has_the_node_in_place_of_the_slot() {
        let mut task = task();
        task.slot = 0;
        assert_eq!(task_name(&task), "web.nid.tid");
    }

    #[test]
    fn a_secret_that_did_not_arrive_rejects_the_task() {
        let mut task = task();
        if let Some(pb::task_spec::Runtime::Container(container)) =
            &mut task.spec.as_mut().unwrap().runtime
        {
            container.secrets.push(pb::SecretReference {
                secret_id: "x".into(),
                secret_name: "key".into(),
                target: Some(pb::secret_reference::Target::File(pb::FileTarget::default())),
            });
        }
        let error = create_request(&work(task), &pb::NodeDescription::default()).unwrap_err();
        assert!(error.contains("key"), "{error}");
    }
}

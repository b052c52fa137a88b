//! `ServiceSpec` and `TaskSpec`, JSON and wire.

use serde_json::{Value, json};
use wire::swarmkit as pb;
use wire::swarmkit::endpoint_spec::ResolutionMode;
use wire::swarmkit::port_config::{Protocol, PublishMode};
use wire::swarmkit::restart_policy::RestartCondition;
use wire::swarmkit::service_spec::Mode;
use wire::swarmkit::task_spec::Runtime;
use wire::swarmkit::update_config::{FailureAction, UpdateOrder};

use super::container::{self, word_of};
use super::fault::Fault;
use super::json::{Obj, Out, nanos};

const MISMATCH: &str = "mismatched Runtime and *Spec fields";
const CONDITIONS: &[(&str, RestartCondition)] = &[
    ("any", RestartCondition::Any),
    ("none", RestartCondition::None),
    ("on-failure", RestartCondition::OnFailure),
];
const FAILURE_ACTIONS: &[(&str, FailureAction)] = &[
    ("pause", FailureAction::Pause),
    ("continue", FailureAction::Continue),
    ("rollback", FailureAction::Rollback),
];
const ORDERS: &[(&str, UpdateOrder)] =
    &[("stop-first", UpdateOrder::StopFirst), ("start-first", UpdateOrder::StartFirst)];
const PROTOCOLS: &[(&str, Protocol)] =
    &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
const PUBLISH_MODES: &[(&str, PublishMode)] =
    &[("ingress", PublishMode::Ingress), ("host", PublishMode::Host)];
const RESOLUTION_MODES: &[(&str, ResolutionMode)] =
    &[("vip", ResolutionMode::Vip), ("dnsrr", ResolutionMode::Dnsrr)];

pub fn read(body: &Value) -> Result<pb::ServiceSpec, Fault> {
    let spec = Obj::root(body)?;
    let task = match spec.obj("TaskTemplate")? {
        Some(task) => read_task(task)?,
        None => return Err(Fault::bad(MISMATCH)),
    };
    let read = pb::ServiceSpec {
        annotations: Some(read_annotations(&spec)?),
        task: Some(task),
        mode: Some(read_mode(spec.obj("Mode")?)?),
        update: spec.obj("UpdateConfig")?.map(read_update).transpose()?,
        rollback: spec.obj("RollbackConfig")?.map(read_update).transpose()?,
        // The old place for networks: acted upon while the task names none, and shown as it came.
        networks: read_networks(&spec)?,
        endpoint: spec.obj("EndpointSpec")?.map(read_endpoint).transpose()?,
    };
    spec.done()?;
    Ok(read)
}

pub fn read_annotations(spec: &Obj<'_>) -> Result<pb::Annotations, Fault> {
    Ok(pb::Annotations {
        name: spec.str("Name")?,
        labels: spec.map("Labels")?,
        indices: Vec::new(),
    })
}

fn read_mode(mode: Option<Obj<'_>>) -> Result<Mode, Fault> {
    let one_replica = || Mode::Replicated(pb::ReplicatedService { replicas: 1 });
    let Some(mode) = mode else { return Ok(one_replica()) };
    let mut modes = Vec::new();
    if let Some(replicated) = mode.obj("Replicated")? {
        modes.push(Mode::Replicated(pb::ReplicatedService {
            replicas: replicated.opt_u64("Replicas")?.unwrap_or(1),
        }));
        replicated.done()?;
    }
    if let Some(global) = mode.obj("Global")? {
        modes.push(Mode::Global(pb::GlobalService {}));
        global.done()?;
    }
    if let Some(job) = mode.obj("ReplicatedJob")? {
        // A job without numbers runs once; with only the concurrency, as many times as that.
        let concurrent = job.opt_u64("MaxConcurrent")?.unwrap_or(1);
        let total_completions = job.opt_u64("TotalCompletions")?.unwrap_or(concurrent);
        modes.push(Mode::ReplicatedJob(pb::ReplicatedJob {
            max_concurrent: concurrent,
            total_completions,
        }));
        job.done()?;
    }
    if let Some(job) = mode.obj("GlobalJob")? {
        modes.push(Mode::GlobalJob(pb::GlobalJob {}));
        job.done()?;
    }
    mode.done()?;
    if modes.len() > 1 {
        return Err(Fault::bad("must specify only one service mode"));
    }
    Ok(modes.pop().unwrap_or_else(one_replica))
}

fn read_task(task: Obj<'_>) -> Result<pb::TaskSpec, Fault> {
    if task.has("PluginSpec") {
        return Err(Fault::unsupported("services of plugins (TaskTemplate.PluginSpec)"));
    }
    let (resources, pids) = read_resources(task.obj("Resources")?)?;
    let runtime = Some(read_runtime(&task, pids)?);
    let read = pb::TaskSpec {
        resources,
        restart: task.obj("RestartPolicy")?.map(read_restart).transpose()?,
        placement: task.obj("Placement")?.map(read_placement).transpose()?,
        log_driver: task.obj("LogDriver")?.map(container::read_driver).transpose()?,
        networks: read_networks(&task)?,
        force_update: task.u64("ForceUpdate")?,
        resource_references: Vec::new(),
        runtime,
    };
    task.done()?;
    Ok(read)
}

fn read_runtime(task: &Obj<'_>, pids: i64) -> Result<Runtime, Fault> {
    let container = task.obj("ContainerSpec")?;
    let attachment = task.obj("NetworkAttachmentSpec")?;
    match (task.str("Runtime")?.as_str(), container, attachment) {
        ("" | "container", Some(spec), None) => {
            let mut read = container::read(&spec)?;
            read.pids_limit = pids;
            spec.done()?;
            Ok(Runtime::Container(read))
        }
        ("attachment", None, Some(spec)) => {
            let container_id = spec.str("ContainerID")?;
            spec.done()?;
            Ok(Runtime::Attachment(pb::NetworkAttachmentSpec { container_id }))
        }
        ("" | "container" | "attachment" | "plugin", ..) => Err(Fault::bad(MISMATCH)),
        _ => Err(Fault::bad("unsupported runtime")),
    }
}

fn read_resources(
    resources: Option<Obj<'_>>,
) -> Result<(Option<pb::ResourceRequirements>, i64), Fault> {
    let Some(resources) = resources else { return Ok((None, 0)) };
    let mut pids = 0;
    let limits = match resources.obj("Limits")? {
        None => None,
        Some(limits) => {
            pids = limits.i64("Pids")?;
            let read = pb::Resources {
                nano_cpus: limits.i64("NanoCPUs")?,
                memory_bytes: limits.i64("MemoryBytes")?,
                generic: Vec::new(),
            };
            limits.done()?;
            Some(read)
        }
    };
    let reservations = match resources.obj("Reservations")? {
        None => None,
        Some(reserved) => {
            let read = pb::Resources {
                nano_cpus: reserved.i64("NanoCPUs")?,
                memory_bytes: reserved.i64("MemoryBytes")?,
                generic: read_generic(reserved.list("GenericResources")?)?,
            };
            reserved.done()?;
            Some(read)
        }
    };
    let read = pb::ResourceRequirements {
        limits,
        reservations,
        swap_bytes: resources.opt_i64("SwapBytes")?,
        memory_swappiness: resources.opt_i64("MemorySwappiness")?,
    };
    resources.done()?;
    Ok((Some(read), pids))
}

fn read_generic(list: Vec<Obj<'_>>) -> Result<Vec<pb::GenericResource>, Fault> {
    use pb::generic_resource::Resource;
    list.into_iter()
        .map(|item| {
            let named = item.obj("NamedResourceSpec")?;
            let discrete = item.obj("DiscreteResourceSpec")?;
            let resource = match (named, discrete) {
                (Some(named), None) => {
                    let read = pb::NamedGenericResource {
                        kind: named.str("Kind")?,
                        value: named.str("Value")?,
                    };
                    named.done()?;
                    Resource::NamedResourceSpec(read)
                }
                (None, Some(discrete)) => {
                    let read = pb::DiscreteGenericResource {
                        kind: discrete.str("Kind")?,
                        value: discrete.i64("Value")?,
                    };
                    discrete.done()?;
                    Resource::DiscreteResourceSpec(read)
                }
                _ => return Err(Fault::bad("a generic resource is either named or discrete")),
            };
            item.done()?;
            Ok(pb::GenericResource { resource: Some(resource) })
        })
        .collect()
}

fn read_restart(policy: Obj<'_>) -> Result<pb::RestartPolicy, Fault> {
    let read = pb::RestartPolicy {
        condition: policy.word_or("Condition", CONDITIONS, |text| {
            format!("invalid RestartCondition: {text:?}")
        })? as i32,
        delay: policy.duration("Delay")?,
        max_attempts: policy.u64("MaxAttempts")?,
        window: policy.duration("Window")?,
    };
    policy.done()?;
    Ok(read)
}

fn read_placement(placement: Obj<'_>) -> Result<pb::Placement, Fault> {
    use pb::placement_preference::Preference;
    let mut preferences = Vec::new();
    for preference in placement.list("Preferences")? {
        let Some(spread) = preference.obj("Spread")? else {
            return Err(Fault::bad("invalid placement preference: only spread is known"));
        };
        let spread_descriptor = spread.str("SpreadDescriptor")?;
        spread.done()?;
        preference.done()?;
        let preference = Some(Preference::Spread(pb::SpreadOver { spread_descriptor }));
        preferences.push(pb::PlacementPreference { preference });
    }
    let mut platforms = Vec::new();
    for platform in placement.list("Platforms")? {
        platforms.push(pb::Platform {
            architecture: platform.str("Architecture")?,
            os: platform.str("OS")?,
        });
        platform.done()?;
    }
    let read = pb::Placement {
        constraints: placement.strings("Constraints")?,
        preferences,
        platforms,
        max_replicas: placement.u64("MaxReplicas")?,
    };
    placement.done()?;
    Ok(read)
}

fn read_networks(from: &Obj<'_>) -> Result<Vec<pb::NetworkAttachmentConfig>, Fault> {
    from.list("Networks")?
        .into_iter()
        .map(|network| {
            let read = pb::NetworkAttachmentConfig {
                target: network.str("Target")?,
                aliases: network.strings("Aliases")?,
                addresses: Vec::new(),
                driver_attachment_opts: network.map("DriverOpts")?,
            };
            network.done()?;
            Ok(read)
        })
        .collect()
}

fn read_update(update: Obj<'_>) -> Result<pb::UpdateConfig, Fault> {
    let read = pb::UpdateConfig {
        parallelism: update.u64("Parallelism")?,
        delay: update.duration("Delay")?,
        failure_action: update.word_or("FailureAction", FAILURE_ACTIONS, |text| {
            format!("unrecognized update failure action {text}")
        })? as i32,
        monitor: update.duration("Monitor")?,
        max_failure_ratio: update.f32("MaxFailureRatio")?,
        order: update
            .word_or("Order", ORDERS, |text| format!("unrecognized update order {text}"))?
            as i32,
    };
    update.done()?;
    Ok(read)
}

fn read_endpoint(endpoint: Obj<'_>) -> Result<pb::EndpointSpec, Fault> {
    let mut ports = Vec::new();
    for port in endpoint.list("Ports")? {
        ports.push(pb::PortConfig {
            name: port.str("Name")?,
            protocol: port.word("Protocol", PROTOCOLS)? as i32,
            target_port: port.u32("TargetPort")?,
            published_port: port.u32("PublishedPort")?,
            publish_mode: port.word("PublishMode", PUBLISH_MODES)? as i32,
        });
        port.done()?;
    }
    let mode = endpoint
        .word_or("Mode", RESOLUTION_MODES, |text| format!("invalid resolution mode: {text:?}"))?;
    let read = pb::EndpointSpec { mode: mode as i32, ports };
    endpoint.done()?;
    Ok(read)
}

pub fn write(spec: &pb::ServiceSpec) -> Value {
    let networks: Vec<Value> = spec.networks.iter().map(write_network).collect();
    annotated(spec.annotations.as_ref())
        .put("TaskTemplate", write_task(&spec.task.clone().unwrap_or_default()))
        .put("Mode", write_mode(spec.mode.as_ref()))
        .opt("UpdateConfig", spec.update.as_ref().map(write_update))
        .opt("RollbackConfig", spec.rollback.as_ref().map(write_update))
        .some("Networks", networks)
        .opt("EndpointSpec", spec.endpoint.as_ref().map(write_endpoint_spec))
        .into()
}

/// `Name` and `Labels`; labels are never null in dockerd's answers.
pub fn annotated(annotations: Option<&pb::Annotations>) -> Out {
    let none = pb::Annotations::default();
    let annotations = annotations.unwrap_or(&none);
    Out::new()
        .some("Name", annotations.name.clone())
        .put("Labels", container::labels(&annotations.labels))
}

fn write_mode(mode: Option<&Mode>) -> Value {
    match mode {
        None => json!({}),
        Some(Mode::Replicated(replicated)) => {
            json!({"Replicated": {"Replicas": replicated.replicas}})
        }
        Some(Mode::Global(_)) => json!({"Global": {}}),
        Some(Mode::ReplicatedJob(job)) => json!({"ReplicatedJob": {
            "MaxConcurrent": job.max_concurrent, "TotalCompletions": job.total_completions}}),
        Some(Mode::GlobalJob(_)) => json!({"GlobalJob": {}}),
    }
}

pub fn write_task(task: &pb::TaskSpec) -> Value {
    let networks: Vec<Value> = task.networks.iter().map(write_network).collect();
    let (out, pids) = match &task.runtime {
        Some(Runtime::Container(spec)) => {
            (Out::new().put("ContainerSpec", container::write(spec)), spec.pids_limit)
        }
        Some(Runtime::Attachment(spec)) => {
            (Out::new().put("NetworkAttachmentSpec", json!({"ContainerID": spec.container_id})), 0)
        }
        Some(Runtime::Generic(_)) | None => (Out::new(), 0),
    };
    let runtime = match &task.runtime {
        Some(Runtime::Container(_)) => "container".to_owned(),
        Some(Runtime::Attachment(_)) => "attachment".to_owned(),
        Some(Runtime::Generic(generic)) => generic.kind.clone(),
        None => String::new(),
    };
    out.opt("Resources", task.resources.as_ref().map(|resources| write_resources(resources, pids)))
        .opt("RestartPolicy", task.restart.as_ref().map(write_restart))
        .opt("Placement", task.placement.as_ref().map(write_placement))
        .some("Networks", networks)
        .opt("LogDriver", task.log_driver.as_ref().map(container::write_driver))
        .put("ForceUpdate", task.force_update)
        .some("Runtime", runtime)
        .into()
}

fn write_resources(resources: &pb::ResourceRequirements, pids: i64) -> Value {
    let limits = resources.limits.as_ref().map(|limits| {
        Out::new()
            .some("NanoCPUs", limits.nano_cpus)
            .some("MemoryBytes", limits.memory_bytes)
            .some("Pids", pids)
    });
    Out::new()
        .opt("Limits", limits)
        .opt("Reservations", resources.reservations.as_ref().map(write_reserved))
        .opt("SwapBytes", resources.swap_bytes)
        .opt("MemorySwappiness", resources.memory_swappiness)
        .into()
}

pub fn write_reserved(resources: &pb::Resources) -> Value {
    Out::new()
        .some("NanoCPUs", resources.nano_cpus)
        .some("MemoryBytes", resources.memory_bytes)
        .some("GenericResources", write_generic(&resources.generic))
        .into()
}

pub fn write_generic(generic: &[pb::GenericResource]) -> Vec<Value> {
    use pb::generic_resource::Resource;
    generic
        .iter()
        .filter_map(|item| item.resource.as_ref())
        .map(|resource| match resource {
            Resource::NamedResourceSpec(named) => {
                json!({"NamedResourceSpec": {"Kind": named.kind, "Value": named.value}})
            }
            Resource::DiscreteResourceSpec(discrete) => {
                json!({"DiscreteResourceSpec": {"Kind": discrete.kind, "Value": discrete.value}})
            }
        })
        .collect()
}

fn write_restart(policy: &pb::RestartPolicy) -> Value {
    Out::new()
        .put("Condition", word_of(CONDITIONS, policy.condition))
        .opt("Delay", policy.delay.as_ref().map(nanos))
        .put("MaxAttempts", policy.max_attempts)
        .opt("Window", policy.window.as_ref().map(nanos))
        .into()
}

fn write_placement(placement: &pb::Placement) -> Value {
    use pb::placement_preference::Preference;
    let preferences: Vec<Value> = placement
        .preferences
        .iter()
        .filter_map(|preference| preference.preference.as_ref())
        .map(|Preference::Spread(over)| json!({"Spread": {"SpreadDescriptor": over.spread_descriptor}}))
        .collect();
    let platforms: Vec<Value> = placement.platforms.iter().map(write_platform).collect();
    Out::new()
        .some("Constraints", placement.constraints.clone())
        .some("Preferences", preferences)
        .some("MaxReplicas", placement.max_replicas)
        .some("Platforms", platforms)
        .into()
}

pub fn write_platform(platform: &pb::Platform) -> Value {
    Out::new()
        .some("Architecture", platform.architecture.clone())
        .some("OS", platform.os.clone())
        .into()
}

fn write_network(network: &pb::NetworkAttachmentConfig) -> Value {
    Out::new()
        .some("Target", network.target.clone())
        .some("Aliases", network.aliases.clone())
        .texts("DriverOpts", &network.driver_attachment_opts)
        .into()
}

fn write_update(update: &pb::UpdateConfig) -> Value {
    // Through text: an f32 widened to f64 would show digits that nobody wrote.
    let ratio: f64 = update.max_failure_ratio.to_string().parse().unwrap_or_default();
    let ratio = if ratio == 0.0 { json!(0) } else { json!(ratio) };
    Out::new()
        .put("Parallelism", update.parallelism)
        .some("Delay", update.delay.as_ref().map(nanos).unwrap_or_default())
        .put("FailureAction", word_of(FAILURE_ACTIONS, update.failure_action))
        .some("Monitor", update.monitor.as_ref().map(nanos).unwrap_or_default())
        .put("MaxFailureRatio", ratio)
        .put("Order", word_of(ORDERS, update.order))
        .into()
}

pub fn write_endpoint_spec(endpoint: &pb::EndpointSpec) -> Value {
    Out::new()
        .put("Mode", word_of(RESOLUTION_MODES, endpoint.mode))
        .some("Ports", write_ports(&endpoint.ports))
        .into()
}

pub fn write_ports(ports: &[pb::PortConfig]) -> Vec<Value> {
    ports
        .iter()
        .map(|port| {
            Out::new()
                .some("Name", port.name.clone())
                .put("Protocol", word_of(PROTOCOLS, port.protocol))
                .some("TargetPort", port.target_port)
                .some("PublishedPort", port.published_port)
                .put("PublishMode", word_of(PUBLISH_MODES, port.publish_mode))
                .into()
        })
        .collect()
}

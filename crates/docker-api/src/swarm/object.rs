//! The cluster's objects as the Engine API shows them.

use serde_json::{Value, json};
use wire::swarmkit as pb;
use wire::swarmkit::node_spec::Availability;
use wire::swarmkit::node_status::State as NodeState;
use wire::swarmkit::raft_member_status::Reachability;
use wire::swarmkit::update_status::UpdateState;

use super::container::write_driver;
use super::json::{Out, base64, texts, time};
use super::spec::{
    self, annotated, write_endpoint_spec, write_generic, write_platform, write_ports,
    write_reserved, write_task,
};

/// `ID`, `Version`, `CreatedAt`, `UpdatedAt`.
fn identified(id: &str, meta: Option<&pb::Meta>) -> Out {
    stamped(Out::new().put("ID", id), meta)
}

fn stamped(out: Out, meta: Option<&pb::Meta>) -> Out {
    let version = match meta.and_then(|meta| meta.version.as_ref()) {
        Some(version) => json!({"Index": version.index}),
        None => json!({}),
    };
    out.put("Version", version)
        .put("CreatedAt", time(meta.and_then(|meta| meta.created_at.as_ref())))
        .put("UpdatedAt", time(meta.and_then(|meta| meta.updated_at.as_ref())))
}

pub fn service(service: &pb::Service, status: Option<Value>) -> Value {
    identified(&service.id, service.meta.as_ref())
        .put("Spec", spec::write(&service.spec.clone().unwrap_or_default()))
        .opt("PreviousSpec", service.previous_spec.as_ref().map(spec::write))
        .put("Endpoint", endpoint(service.endpoint.as_ref()))
        .opt("UpdateStatus", service.update_status.as_ref().map(update_status))
        .opt("ServiceStatus", status)
        .opt("JobStatus", service.job_status.as_ref().map(job_status))
        .into()
}

fn endpoint(endpoint: Option<&pb::Endpoint>) -> Value {
    let Some(endpoint) = endpoint else { return json!({"Spec": {}}) };
    let addresses: Vec<Value> = endpoint
        .virtual_ips
        .iter()
        .map(|vip| {
            Out::new()
                .some("NetworkID", vip.network_id.clone())
                .some("Addr", vip.addr.clone())
                .into()
        })
        .collect();
    Out::new()
        .put("Spec", endpoint.spec.as_ref().map_or_else(|| json!({}), write_endpoint_spec))
        .some("Ports", write_ports(&endpoint.ports))
        .some("VirtualIPs", addresses)
        .into()
}

fn update_status(status: &pb::UpdateStatus) -> Value {
    let state = match status.state() {
        UpdateState::Unknown => "",
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    };
    Out::new()
        .some("State", state)
        .opt("StartedAt", status.started_at.as_ref().map(|stamp| time(Some(stamp))))
        .opt("CompletedAt", status.completed_at.as_ref().map(|stamp| time(Some(stamp))))
        .some("Message", status.message.clone())
        .into()
}

fn job_status(status: &pb::JobStatus) -> Value {
    json!({
        "JobIteration": iteration(status.job_iteration.unwrap_or_default()),
        "LastExecution": time(status.last_execution.as_ref()),
    })
}

/// The Docker Engine leaves out the first one's number, 0.
fn iteration(version: pb::Version) -> Value {
    Out::new().some("Index", version.index).into()
}

pub fn task_state(state: pb::TaskState) -> &'static str {
    use pb::TaskState::*;
    match state {
        New => "new",
        Pending => "pending",
        Assigned => "assigned",
        Accepted => "accepted",
        Preparing => "preparing",
        Ready => "ready",
        Starting => "starting",
        Running => "running",
        Complete => "complete",
        Shutdown => "shutdown",
        Failed => "failed",
        Rejected => "rejected",
        Remove => "remove",
        Orphaned => "orphaned",
    }
}

pub fn task(task: &pb::Task) -> Value {
    let annotations = task.annotations.clone().unwrap_or_default();
    let out = identified(&task.id, task.meta.as_ref())
        .some("Name", annotations.name)
        .put("Labels", texts(&annotations.labels))
        .put("Spec", write_task(&task.spec.clone().unwrap_or_default()))
        .some("ServiceID", task.service_id.clone())
        .some("Slot", task.slot)
        .some("NodeID", task.node_id.clone())
        .put("Status", task_status(&task.status.clone().unwrap_or_default()))
        .some("DesiredState", task_state(task.desired_state()))
        .some("NetworksAttachments", task.networks.iter().map(attachment).collect::<Vec<_>>())
        .some("GenericResources", write_generic(&task.assigned_generic_resources));
    let volumes: Vec<Value> = task
        .volumes
        .iter()
        .map(|volume| json!({"ID": volume.id, "Source": volume.source, "Target": volume.target}))
        .collect();
    out.opt("JobIteration", task.job_iteration.map(iteration))
        .put("Volumes", if volumes.is_empty() { Value::Null } else { volumes.into() })
        .into()
}

fn task_status(status: &pb::TaskStatus) -> Value {
    let container = status.runtime_status.as_ref().map(|pb::task_status::RuntimeStatus::Container(container)| {
        json!({"ContainerID": container.container_id, "PID": container.pid, "ExitCode": container.exit_code})
    });
    let ports =
        status.port_status.as_ref().map(|ports| write_ports(&ports.ports)).unwrap_or_default();
    Out::new()
        .put("Timestamp", time(status.timestamp.as_ref()))
        .some("State", task_state(status.state()))
        .some("Message", status.message.clone())
        .some("Err", status.err.clone())
        .opt("ContainerStatus", container)
        .put("PortStatus", Out::new().some("Ports", ports))
        .into()
}

fn attachment(attachment: &pb::NetworkAttachment) -> Value {
    Out::new()
        .put("Network", attachment.network.as_ref().map_or_else(|| json!({}), network))
        .some("Addresses", attachment.addresses.clone())
        .into()
}

/// A network as tasks show it (`GET /networks` shows another form).
fn network(network: &pb::Network) -> Value {
    let spec = network.spec.clone().unwrap_or_default();
    let pb::network_spec::ConfigFrom::Network(from) =
        spec.config_from.clone().unwrap_or(pb::network_spec::ConfigFrom::Network(String::new()));
    let written = annotated(spec.annotations.as_ref())
        .opt("DriverConfiguration", spec.driver_config.as_ref().map(write_driver))
        .some("IPv6Enabled", spec.ipv6_enabled)
        .some("Internal", spec.internal)
        .some("Attachable", spec.attachable)
        .some("Ingress", spec.ingress)
        .opt("IPAMOptions", spec.ipam.as_ref().map(ipam))
        .opt("ConfigFrom", (!from.is_empty()).then(|| json!({"Network": from})))
        .put("Scope", "swarm");
    identified(&network.id, network.meta.as_ref())
        .put("Spec", written)
        .put("DriverState", network.driver_state.as_ref().map_or_else(|| json!({}), write_driver))
        .opt("IPAMOptions", network.ipam.as_ref().map(ipam))
        .into()
}

fn ipam(ipam: &pb::IpamOptions) -> Value {
    let configs: Vec<Value> = ipam
        .configs
        .iter()
        .map(|config| {
            Out::new()
                .some("Subnet", config.subnet.clone())
                .some("Range", config.range.clone())
                .some("Gateway", config.gateway.clone())
                .into()
        })
        .collect();
    Out::new()
        .put("Driver", ipam.driver.as_ref().map_or_else(|| json!({}), write_driver))
        .some("Configs", configs)
        .into()
}

pub fn node(node: &pb::Node) -> Value {
    let spec = node.spec.clone().unwrap_or_default();
    let role = match spec.desired_role() {
        pb::NodeRole::Worker => "worker",
        pb::NodeRole::Manager => "manager",
    };
    let written = annotated(spec.annotations.as_ref())
        .put("Role", role)
        .put("Availability", availability(spec.availability()));
    let status = node.status.clone().unwrap_or_default();
    let state = match status.state() {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    };
    let status = Out::new()
        .put("State", state)
        .some("Message", status.message.clone())
        .some("Addr", status.addr.clone());
    identified(&node.id, node.meta.as_ref())
        .put("Spec", written)
        .put("Description", description(&node.description.clone().unwrap_or_default()))
        .put("Status", status)
        .opt("ManagerStatus", node.manager_status.as_ref().map(manager_status))
        .into()
}

pub fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

fn manager_status(status: &pb::ManagerStatus) -> Value {
    let reachability = match status.reachability() {
        Reachability::Unknown => "unknown",
        Reachability::Unreachable => "unreachable",
        Reachability::Reachable => "reachable",
    };
    Out::new()
        .some("Leader", status.leader)
        .put("Reachability", reachability)
        .some("Addr", status.addr.clone())
        .into()
}

fn description(description: &pb::NodeDescription) -> Value {
    let engine = description.engine.clone().unwrap_or_default();
    let plugins: Vec<Value> = engine
        .plugins
        .iter()
        .map(|plugin| {
            Out::new().some("Type", plugin.r#type.clone()).some("Name", plugin.name.clone()).into()
        })
        .collect();
    let engine = Out::new()
        .some("EngineVersion", engine.engine_version.clone())
        .texts("Labels", &engine.labels)
        .some("Plugins", plugins);
    let tls = description.tls_info.clone().unwrap_or_default();
    Out::new()
        .some("Hostname", description.hostname.clone())
        .put("Platform", write_platform(&description.platform.clone().unwrap_or_default()))
        .put("Resources", write_reserved(&description.resources.clone().unwrap_or_default()))
        .put("Engine", engine)
        .put("TLSInfo", tls_info(&tls))
        .into()
}

pub fn tls_info(tls: &pb::NodeTlsInfo) -> Out {
    Out::new()
        .some("TrustRoot", String::from_utf8_lossy(&tls.trust_root).into_owned())
        .some("CertIssuerSubject", base64(&tls.cert_issuer_subject))
        .some("CertIssuerPublicKey", base64(&tls.cert_issuer_public_key))
}

/// The data of a secret is never shown.
pub fn secret(secret: &pb::Secret) -> Value {
    let spec = secret.spec.clone().unwrap_or_default();
    let written = annotated(spec.annotations.as_ref())
        .opt("Driver", spec.driver.as_ref().map(write_driver))
        .opt("Templating", spec.templating.as_ref().map(write_driver));
    identified(&secret.id, secret.meta.as_ref()).put("Spec", written).into()
}

pub fn config(config: &pb::Config) -> Value {
    let spec = config.spec.clone().unwrap_or_default();
    let written = annotated(spec.annotations.as_ref())
        .some("Data", base64(&spec.data))
        .opt("Templating", spec.templating.as_ref().map(write_driver));
    identified(&config.id, config.meta.as_ref()).put("Spec", written).into()
}

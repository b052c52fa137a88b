//! The swarm itself: its spec, its state, and the bodies of init and join.

use axum::http::StatusCode;
use serde_json::{Value, json};
use wire::swarmkit as pb;
use wire::swarmkit::node_spec::Availability;

use super::api::{InitRequest, JoinRequest, NodeInfo};
use super::container::{read_driver, write_driver};
use super::fault::Fault;
use super::json::{Obj, Out, duration, nanos, texts};
use super::object::tls_info;
use super::spec::read_annotations;

pub const AVAILABILITIES: &[(&str, Availability)] = &[
    ("active", Availability::Active),
    ("pause", Availability::Pause),
    ("drain", Availability::Drain),
];

const HEARTBEAT_DEFAULT: i64 = 5_000_000_000;
const CERT_EXPIRY_DEFAULT: i64 = 7_776_000_000_000_000;
const CERT_EXPIRY_MIN: i64 = 3_600_000_000_000;
const CERT_EXPIRY_SHORT: &str =
    "rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s";
const HEARTBEAT_NEGATIVE: &str =
    "rpc error: code = InvalidArgument desc = heartbeat time period cannot be a negative duration";
/// What is asked of every new swarm, and refused before there is one.
const LISTEN_EMPTY: &str = "invalid ListenAddr \"\": invalid empty address";
const SUBNET_SIZE_MAX: u32 = 29;

/// Docker's defaults (GET /swarm right after a plain `docker swarm init`).
pub fn default_spec() -> pb::ClusterSpec {
    pb::ClusterSpec {
        annotations: Some(pb::Annotations { name: "default".into(), ..Default::default() }),
        acceptance_policy: None,
        orchestration: Some(pb::OrchestrationConfig { task_history_retention_limit: 5 }),
        raft: Some(pb::RaftConfig {
            snapshot_interval: 10_000,
            keep_old_snapshots: 0,
            log_entries_for_slow_followers: 500,
            heartbeat_tick: 1,
            election_tick: 10,
        }),
        dispatcher: Some(pb::DispatcherConfig {
            heartbeat_period: Some(duration(HEARTBEAT_DEFAULT)),
        }),
        ca_config: Some(pb::CaConfig {
            node_cert_expiry: Some(duration(CERT_EXPIRY_DEFAULT)),
            ..Default::default()
        }),
        task_defaults: Some(pb::TaskDefaults { log_driver: None }),
        encryption_config: Some(pb::EncryptionConfig { auto_lock_managers: false }),
    }
}

/// What the body says, laid over a spec that already stands; absent and zero values leave it as it is.
pub fn merge_spec(body: &Obj<'_>, mut spec: pb::ClusterSpec) -> Result<pb::ClusterSpec, Fault> {
    let annotations = read_annotations(body)?;
    if annotations != pb::Annotations::default() {
        spec.annotations = Some(annotations);
    }
    if let Some(orchestration) = body.obj("Orchestration")? {
        if let Some(limit) = orchestration.opt_i64("TaskHistoryRetentionLimit")? {
            spec.orchestration.get_or_insert_default().task_history_retention_limit = limit;
        }
        orchestration.done()?;
    }
    if let Some(raft) = body.obj("Raft")? {
        merge_raft(&raft, spec.raft.get_or_insert_default())?;
        raft.done()?;
    }
    if let Some(dispatcher) = body.obj("Dispatcher")? {
        let period = dispatcher.i64("HeartbeatPeriod")?;
        if period < 0 {
            return Err(Fault::bad(HEARTBEAT_NEGATIVE));
        }
        if period != 0 {
            spec.dispatcher.get_or_insert_default().heartbeat_period = Some(duration(period));
        }
        dispatcher.done()?;
    }
    // A given authority is for one update, as with dockerd: its key is never told again, and the
    // certificate alone would be refused.
    if let Some(ca) = &mut spec.ca_config {
        ca.signing_ca_cert.clear();
        ca.signing_ca_key.clear();
    }
    if let Some(ca) = body.obj("CAConfig")? {
        merge_ca(&ca, spec.ca_config.get_or_insert_default())?;
        ca.done()?;
    }
    if let Some(defaults) = body.obj("TaskDefaults")? {
        if let Some(driver) = defaults.obj("LogDriver")? {
            spec.task_defaults.get_or_insert_default().log_driver = Some(read_driver(driver)?);
        }
        defaults.done()?;
    }
    if let Some(encryption) = body.obj("EncryptionConfig")? {
        if let Some(lock) = encryption.opt_bool("AutoLockManagers")? {
            spec.encryption_config.get_or_insert_default().auto_lock_managers = lock;
        }
        encryption.done()?;
    }
    Ok(spec)
}

fn merge_raft(body: &Obj<'_>, raft: &mut pb::RaftConfig) -> Result<(), Fault> {
    let keep = |value: u64, before: u64| if value == 0 { before } else { value };
    raft.snapshot_interval = keep(body.u64("SnapshotInterval")?, raft.snapshot_interval);
    raft.log_entries_for_slow_followers =
        keep(body.u64("LogEntriesForSlowFollowers")?, raft.log_entries_for_slow_followers);
    raft.keep_old_snapshots = body.opt_u64("KeepOldSnapshots")?.unwrap_or(raft.keep_old_snapshots);
    let (election, heartbeat) = (body.u32("ElectionTick")?, body.u32("HeartbeatTick")?);
    raft.election_tick = if election == 0 { raft.election_tick } else { election };
    raft.heartbeat_tick = if heartbeat == 0 { raft.heartbeat_tick } else { heartbeat };
    Ok(())
}

fn merge_ca(body: &Obj<'_>, ca: &mut pb::CaConfig) -> Result<(), Fault> {
    let expiry = body.i64("NodeCertExpiry")?;
    if expiry != 0 {
        if expiry < CERT_EXPIRY_MIN {
            return Err(Fault::bad(CERT_EXPIRY_SHORT));
        }
        ca.node_cert_expiry = Some(duration(expiry));
    }
    if !body.list("ExternalCAs")?.is_empty() {
        return Err(Fault::unsupported("external certificate authorities (CAConfig.ExternalCAs)"));
    }
    ca.signing_ca_cert = body.str("SigningCACert")?.into_bytes();
    ca.signing_ca_key = body.str("SigningCAKey")?.into_bytes();
    ca.force_rotate = body.u64("ForceRotate")?.max(ca.force_rotate);
    Ok(())
}

pub fn read_init(body: &Value) -> Result<InitRequest, Fault> {
    let body = Obj::root(body)?;
    let spec = match body.obj("Spec")? {
        None => default_spec(),
        Some(spec) => {
            let read = merge_spec(&spec, default_spec()).map_err(unsettled)?;
            spec.done()?;
            read
        }
    };
    let (default_addr_pool, subnet_size) = pools(&body)?;
    let request = InitRequest {
        listen_addr: body.str("ListenAddr")?,
        advertise_addr: body.str("AdvertiseAddr")?,
        data_path_addr: body.str("DataPathAddr")?,
        data_path_port: body.u32("DataPathPort")?,
        default_addr_pool,
        subnet_size,
        force_new_cluster: body.bool("ForceNewCluster")?,
        // Older clients say it here as well as in the spec.
        spec: with_lock(spec, body.bool("AutoLockManagers")?),
        availability: body.word("Availability", AVAILABILITIES)?,
    };
    body.done()?;
    check_init(&request)?;
    Ok(request)
}

/// dockerd begins the swarm first and fails to change it then, with status 500.
fn unsettled(fault: Fault) -> Fault {
    match [CERT_EXPIRY_SHORT, HEARTBEAT_NEGATIVE].contains(&fault.message.as_str()) {
        true => Fault::internal(format!("error updating cluster settings: {}", fault.message)),
        false => fault,
    }
}

/// Refuses what dockerd 20.10 refuses before a swarm begins, in its words; it answers 500 to bad numbers and pools.
fn check_init(request: &InitRequest) -> Result<(), Fault> {
    let failed = |message| Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR, message));
    if request.listen_addr.is_empty() {
        return Err(Fault::bad(LISTEN_EMPTY));
    }
    let name = request.spec.annotations.as_ref().map_or("", |annotations| &annotations.name);
    if !["", "default"].contains(&name) {
        return Err(Fault::bad("swarm spec must be named \"default\""));
    }
    let port = request.data_path_port;
    if port != 0 && !(1024..=49151).contains(&port) {
        return failed(format!("Datapath port number is not in valid range (1024-49151) : {port}"));
    }
    let size = if request.subnet_size == 0 { DEFAULT_MASK } else { request.subnet_size };
    if size > SUBNET_SIZE_MAX {
        return failed(format!("subnet size is out of range: {size}"));
    }
    for pool in &request.default_addr_pool {
        let Some(bits) = prefix_length(pool) else {
            return failed(format!("invalid base pool {pool}: invalid CIDR address: {pool}"));
        };
        if size < bits {
            return failed(format!(
                "invalid CIDR: \"{pool}\". Subnet size is too small for pool: {size}"
            ));
        }
    }
    Ok(())
}

/// Where overlays get their subnets from. As with the Docker Engine a request that says nothing of
/// pools, which is not what its command sends, names the default one, whatever the size it asks for.
fn pools(body: &Obj<'_>) -> Result<(Vec<String>, u32), Fault> {
    let (pools, size) = (body.strings("DefaultAddrPool")?, body.u32("SubnetSize")?);
    match body.has("DefaultAddrPool") {
        true => Ok((pools, size)),
        false => Ok((vec![DEFAULT_POOL.to_owned()], DEFAULT_MASK)),
    }
}

/// The length of the prefix of `address/length`; none where that is no CIDR address.
pub(super) fn prefix_length(cidr: &str) -> Option<u32> {
    let (address, length) = cidr.split_once('/')?;
    let address: std::net::IpAddr = address.parse().ok()?;
    let length: u32 = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some(length)
}

fn with_lock(mut spec: pb::ClusterSpec, lock: bool) -> pb::ClusterSpec {
    if lock {
        spec.encryption_config.get_or_insert_default().auto_lock_managers = true;
    }
    spec
}

pub fn read_join(body: &Value) -> Result<JoinRequest, Fault> {
    let body = Obj::root(body)?;
    let request = JoinRequest {
        listen_addr: body.str("ListenAddr")?,
        advertise_addr: body.str("AdvertiseAddr")?,
        data_path_addr: body.str("DataPathAddr")?,
        remote_addrs: body.strings("RemoteAddrs")?,
        join_token: body.str("JoinToken")?,
        availability: body.word("Availability", AVAILABILITIES)?,
    };
    body.done()?;
    if request.listen_addr.is_empty() {
        return Err(Fault::bad(LISTEN_EMPTY));
    }
    if request.remote_addrs.is_empty() {
        return Err(Fault::bad("at least 1 RemoteAddr is required to join"));
    }
    Ok(request)
}

pub fn write_spec(spec: &pb::ClusterSpec) -> Value {
    let annotations = spec.annotations.clone().unwrap_or_default();
    let raft = spec.raft.unwrap_or_default();
    let ca = spec.ca_config.clone().unwrap_or_default();
    let orchestration =
        spec.orchestration.as_ref().map_or(0, |limit| limit.task_history_retention_limit);
    let heartbeat =
        spec.dispatcher.as_ref().and_then(|dispatcher| dispatcher.heartbeat_period.as_ref());
    let external: Vec<Value> = ca
        .external_cas
        .iter()
        .map(|external| {
            json!({"Protocol": "cfssl", "URL": external.url, "Options": external.options,
                   "CACert": String::from_utf8_lossy(&external.ca_cert)})
        })
        .collect();
    let ca_config = Out::new()
        .some("NodeCertExpiry", ca.node_cert_expiry.as_ref().map(nanos).unwrap_or_default())
        .some("ExternalCAs", external)
        .some("ForceRotate", ca.force_rotate);
    let driver = spec.task_defaults.as_ref().and_then(|defaults| defaults.log_driver.as_ref());
    let lock = spec.encryption_config.as_ref().is_some_and(|config| config.auto_lock_managers);
    Out::new()
        .some("Name", annotations.name)
        .put("Labels", texts(&annotations.labels))
        .put("Orchestration", json!({"TaskHistoryRetentionLimit": orchestration}))
        .put(
            "Raft",
            Out::new()
                .some("SnapshotInterval", raft.snapshot_interval)
                .put("KeepOldSnapshots", raft.keep_old_snapshots)
                .some("LogEntriesForSlowFollowers", raft.log_entries_for_slow_followers)
                .put("ElectionTick", raft.election_tick)
                .put("HeartbeatTick", raft.heartbeat_tick),
        )
        .put(
            "Dispatcher",
            Out::new().some("HeartbeatPeriod", heartbeat.map(nanos).unwrap_or_default()),
        )
        .put("CAConfig", ca_config)
        .put("TaskDefaults", Out::new().opt("LogDriver", driver.map(write_driver)))
        .put("EncryptionConfig", json!({"AutoLockManagers": lock}))
        .into()
}

/// What holds where `swarm init` said nothing.
const DEFAULT_MASK: u32 = 24;
const DEFAULT_POOL: &str = "10.0.0.0/8";

/// `ClusterInfo`: the part of `GET /swarm` that `GET /info` shows too.
pub fn info(cluster: &pb::Cluster) -> Out {
    let version = cluster
        .meta
        .as_ref()
        .and_then(|meta| meta.version.as_ref())
        .map_or(0, |version| version.index);
    let meta = cluster.meta.unwrap_or_default();
    let root = cluster.root_ca.clone().unwrap_or_default();
    let pools: Value = match cluster.default_address_pool.as_slice() {
        [] => Value::Null,
        pools => pools.to_vec().into(),
    };
    Out::new()
        .put("ID", cluster.id.clone())
        .put("Version", json!({"Index": version}))
        .put("CreatedAt", super::json::time(meta.created_at.as_ref()))
        .put("UpdatedAt", super::json::time(meta.updated_at.as_ref()))
        .put("Spec", write_spec(&cluster.spec.clone().unwrap_or_default()))
        .put("TLSInfo", tls_info(&trust(&root)))
        .put("RootRotationInProgress", root.root_rotation.is_some())
        .put("DefaultAddrPool", pools)
        .put(
            "SubnetSize",
            if cluster.subnet_size == 0 { DEFAULT_MASK } else { cluster.subnet_size },
        )
        .put("DataPathPort", cluster.vxlanudp_port)
}

/// The issuer of new certificates, as nodes report theirs.
fn trust(root: &pb::RootCa) -> pb::NodeTlsInfo {
    let (subject, key) = super::pem::subject_and_key(&root.ca_cert).unwrap_or_default();
    pb::NodeTlsInfo {
        trust_root: root.ca_cert.clone(),
        cert_issuer_subject: subject,
        cert_issuer_public_key: key,
    }
}

pub fn write(cluster: &pb::Cluster) -> Value {
    let tokens =
        cluster.root_ca.as_ref().and_then(|root| root.join_tokens.clone()).unwrap_or_default();
    info(cluster)
        .put("JoinTokens", json!({"Worker": tokens.worker, "Manager": tokens.manager}))
        .into()
}

/// The `Swarm` block of `GET /info`.
pub fn info_json(node: &NodeInfo) -> Value {
    let mut managers: Vec<Value> =
        node.remote_managers.iter().map(|(id, addr)| json!({"NodeID": id, "Addr": addr})).collect();
    managers.sort_by_key(|manager| manager["NodeID"].to_string());
    Out::new()
        .put("NodeID", node.node_id.clone())
        .put("NodeAddr", node.node_addr.clone())
        .put("LocalNodeState", node.state.as_str())
        .put("ControlAvailable", node.control_available)
        .put("Error", node.error.clone())
        .put("RemoteManagers", if managers.is_empty() { Value::Null } else { managers.into() })
        .some("Nodes", node.nodes)
        .some("Managers", node.managers)
        .opt("Cluster", node.cluster.as_ref().map(info))
        .some("Warnings", node.warnings.clone())
        .into()
}

//! The first objects of a new cluster, as SwarmKit stores them: one entry of the log.

use std::collections::BTreeMap;

use model::Instant;
use prost_types::Duration;
use rand_chacha::ChaCha8Rng;
use store::{Store, Transaction};
use wire::swarmkit as pb;

use crate::control::PREDEFINED_LABEL;
use crate::start::{Bootstrap, Identity};

const TASK_HISTORY: i64 = 5;
const HEARTBEAT_SECONDS: i64 = 5;
const CERTIFICATE_SECONDS: i64 = 90 * 24 * 3600;
const SUBNET_BITS: u32 = 24;
/// The networks of every host that services may name.
const PREDEFINED: [(&str, &str); 2] = [("bridge", "bridge"), ("host", "host")];
pub(crate) const DATA_PATH_PORT: u32 = 4789;

/// Cluster, this node, and the networks.
pub(crate) fn actions(
    store: &Store,
    identity: &Identity,
    bootstrap: Bootstrap,
    now: Instant,
    version: u64,
    dice: &mut ChaCha8Rng,
) -> Result<Vec<pb::StoreAction>, store::Error> {
    let mut transaction = Transaction::new(store);
    let port =
        if bootstrap.data_path_port == 0 { DATA_PATH_PORT } else { bootstrap.data_path_port };
    transaction.create(node(identity, &bootstrap, port))?;
    transaction.create(cluster(identity, bootstrap, port, dice))?;
    transaction.create(ingress(model::swarm_id(dice)))?;
    for (name, driver) in PREDEFINED {
        transaction.create(predefined(model::swarm_id(dice), name, driver))?;
    }
    Ok(transaction.finish(now, version))
}

fn cluster(
    identity: &Identity,
    bootstrap: Bootstrap,
    port: u32,
    dice: &mut ChaCha8Rng,
) -> pb::Cluster {
    let roots = bootstrap.root.roots;
    let spec = with_defaults(bootstrap.spec);
    let locked = spec.encryption_config.as_ref().is_some_and(|e| e.auto_lock_managers);
    let unlock_keys = locked.then(|| pb::EncryptionKey {
        subsystem: crate::control::MANAGER_SUBSYSTEM.into(),
        key: bootstrap.unlock_key.unwrap_or_else(|| ca::token::new_unlock_key(dice)),
        ..Default::default()
    });
    let force_rotate = spec.ca_config.as_ref().map_or(0, |config| config.force_rotate);
    pb::Cluster {
        id: identity.cluster_id.clone(),
        spec: Some(spec),
        root_ca: Some(pb::RootCa {
            ca_key: bootstrap
                .root
                .signer
                .map(|s| s.key.pem().as_bytes().to_vec())
                .unwrap_or_default(),
            ca_cert_hash: ca::root_digest(&roots),
            join_tokens: Some(pb::JoinTokens {
                worker: ca::join_token(&roots, dice),
                manager: ca::join_token(&roots, dice),
            }),
            ca_cert: roots,
            root_rotation: None,
            last_forced_rotation: force_rotate,
        }),
        unlock_keys: unlock_keys.into_iter().collect(),
        default_address_pool: bootstrap.address_pools,
        subnet_size: if bootstrap.subnet_size == 0 { SUBNET_BITS } else { bootstrap.subnet_size },
        vxlanudp_port: port,
        ..Default::default()
    }
}

/// What the user left out, filled with Docker's values.
fn with_defaults(mut spec: pb::ClusterSpec) -> pb::ClusterSpec {
    spec.annotations.get_or_insert_default().name = "default".into();
    spec.orchestration
        .get_or_insert(pb::OrchestrationConfig { task_history_retention_limit: TASK_HISTORY });
    spec.raft.get_or_insert(pb::RaftConfig {
        snapshot_interval: 10_000,
        keep_old_snapshots: 0,
        log_entries_for_slow_followers: 500,
        heartbeat_tick: 1,
        election_tick: 10,
    });
    spec.dispatcher
        .get_or_insert_default()
        .heartbeat_period
        .get_or_insert(Duration { seconds: HEARTBEAT_SECONDS, nanos: 0 });
    spec.ca_config
        .get_or_insert_default()
        .node_cert_expiry
        .get_or_insert(Duration { seconds: CERTIFICATE_SECONDS, nanos: 0 });
    spec.encryption_config.get_or_insert_default();
    spec.task_defaults.get_or_insert_default();
    spec
}

fn node(identity: &Identity, bootstrap: &Bootstrap, port: u32) -> pb::Node {
    let role = pb::NodeRole::Manager as i32;
    let issued = pb::issuance_status::State::Issued as i32;
    pb::Node {
        id: identity.node_id.clone(),
        role,
        certificate: Some(pb::Certificate {
            role,
            csr: bootstrap.request.clone(),
            cn: identity.node_id.clone(),
            status: Some(pb::IssuanceStatus { state: issued, err: String::new() }),
            certificate: bootstrap.certificate.clone(),
        }),
        spec: Some(pb::NodeSpec {
            desired_role: role,
            membership: pb::node_spec::Membership::Accepted as i32,
            availability: bootstrap.availability as i32,
            ..Default::default()
        }),
        vxlanudp_port: port,
        ..Default::default()
    }
}

/// The routing mesh's network; its subnet is the allocator's business.
fn ingress(id: String) -> pb::Network {
    let annotations = pb::Annotations { name: "ingress".into(), ..Default::default() };
    pb::Network {
        id,
        spec: Some(pb::NetworkSpec {
            annotations: Some(annotations),
            driver_config: Some(pb::Driver::default()),
            ipam: Some(pb::IpamOptions {
                driver: Some(pb::Driver::default()),
                configs: vec![pb::IpamConfig::default()],
            }),
            ingress: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn predefined(id: String, name: &str, driver: &str) -> pb::Network {
    let labels = BTreeMap::from([(PREDEFINED_LABEL.to_owned(), "true".to_owned())]);
    let annotations = pb::Annotations { name: name.into(), labels, ..Default::default() };
    pb::Network {
        id,
        spec: Some(pb::NetworkSpec {
            annotations: Some(annotations),
            driver_config: Some(pb::Driver { name: driver.into(), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

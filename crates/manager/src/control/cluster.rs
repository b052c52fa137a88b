//! The cluster object: read without its secrets, changed with tokens and keys rotated.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use wire::control::Response;
use wire::swarmkit as pb;

use super::{
    Decided, Desk, answer, filter, invalid, lacking, not_found, rotation, seen, store_error,
    unimplemented, validate,
};
use crate::Failure;

/// Under this name the cluster keeps the key that unlocks managers.
pub(crate) const MANAGER_SUBSYSTEM: &str = "swarm-manager";

pub fn get(desk: &Desk<'_>, request: pb::GetClusterRequest) -> Decided {
    let id = request.cluster_id;
    if id.is_empty() {
        return Err(lacking());
    }
    let cluster = desk.store.get::<pb::Cluster>(&id).ok_or_else(|| not_found("cluster", &id))?;
    let cluster = Some(without_secrets(cluster));
    answer(Response::GetCluster(pb::GetClusterResponse { cluster }))
}

pub fn list(desk: &Desk<'_>, request: pb::ListClustersRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let clusters =
        desk.store.all::<pb::Cluster>().filter(|c| filter::common!(c.as_ref(), &filters));
    let clusters = clusters.map(|cluster| without_secrets(cluster)).collect();
    answer(Response::ListClusters(pb::ListClustersResponse { clusters }))
}

pub fn update(desk: &mut Desk<'_>, request: pb::UpdateClusterRequest) -> Decided {
    let id = request.cluster_id;
    let version = request.cluster_version.filter(|_| !id.is_empty()).ok_or_else(lacking)?;
    let spec = request.spec.ok_or_else(lacking)?;
    check(&spec)?;
    let cluster = desk.store.get::<pb::Cluster>(&id).ok_or_else(|| not_found("cluster", &id))?;
    let mut cluster = pb::Cluster::clone(cluster);
    super::nodes::forget_expired(&mut cluster, desk.now.unix().0);
    cluster.spec = Some(spec);
    let wanted = request.rotation.unwrap_or_default();
    let roots = cluster.root_ca.get_or_insert_default().ca_cert.clone();
    let tokens = cluster.root_ca.get_or_insert_default().join_tokens.get_or_insert_default();
    if wanted.worker_join_token {
        tokens.worker = ca::join_token(&roots, desk.dice);
    }
    if wanted.manager_join_token {
        tokens.manager = ca::join_token(&roots, desk.dice);
    }
    rotation::begin(desk, &mut cluster)?;
    renew_unlock_key(&mut cluster, wanted.manager_unlock_key, desk.dice);
    seen(&mut cluster, &version);
    let mut transaction = desk.transaction();
    transaction.update(cluster).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let cluster = store.get::<pb::Cluster>(&id).ok_or_else(|| not_found("cluster", &id))?;
            let cluster = Some(without_secrets(cluster));
            Ok(Response::UpdateCluster(pb::UpdateClusterResponse { cluster }))
        }),
    )
}

fn check(spec: &pb::ClusterSpec) -> Result<(), Failure> {
    if validate::name(spec.annotations.as_ref()) != "default" {
        return Err(invalid("modification of cluster name is not allowed"));
    }
    if let Some(config) = &spec.ca_config {
        if let Some(expiry) = &config.node_cert_expiry
            && Duration::try_from(*expiry).is_ok_and(|expiry| expiry < ca::certificate::EXPIRY_MIN)
        {
            return Err(invalid("minimum certificate expiry time is: 1h0m0s"));
        }
        if !config.external_cas.is_empty() {
            return Err(unimplemented(
                "not supported by skep yet: external certificate authorities",
            ));
        }
    }
    let period =
        spec.dispatcher.as_ref().and_then(|dispatcher| dispatcher.heartbeat_period.as_ref());
    if period.is_some_and(|period| period.seconds < 0 || period.nanos < 0) {
        return Err(invalid("heartbeat time period cannot be a negative duration"));
    }
    Ok(())
}

/// A manager's unlock key exists exactly as long as autolock is on.
fn renew_unlock_key(cluster: &mut pb::Cluster, rotate: bool, dice: &mut ChaCha8Rng) {
    let encryption = cluster.spec.as_ref().and_then(|spec| spec.encryption_config.as_ref());
    let locked = encryption.is_some_and(|encryption| encryption.auto_lock_managers);
    let ours = |key: &pb::EncryptionKey| key.subsystem == MANAGER_SUBSYSTEM;
    if !locked || rotate {
        cluster.unlock_keys.retain(|key| !ours(key));
    }
    if locked && !cluster.unlock_keys.iter().any(ours) {
        cluster.unlock_keys.push(pb::EncryptionKey {
            subsystem: MANAGER_SUBSYSTEM.into(),
            key: ca::token::new_unlock_key(dice),
            ..Default::default()
        });
    }
}

/// Empty when autolock is off.
pub(crate) fn unlock_key(cluster: &pb::Cluster) -> &[u8] {
    let ours = cluster.unlock_keys.iter().find(|key| key.subsystem == MANAGER_SUBSYSTEM);
    ours.map(|key| key.key.as_slice()).unwrap_or_default()
}

/// What every caller of a list may see. Tokens are among it: managers hand them out.
fn without_secrets(cluster: &pb::Cluster) -> pb::Cluster {
    let mut spec = cluster.spec.clone();
    if let Some(config) = spec.as_mut().and_then(|spec| spec.ca_config.as_mut()) {
        config.signing_ca_key.clear();
    }
    let root_ca = cluster.root_ca.as_ref().map(|root| pb::RootCa {
        ca_key: Vec::new(),
        root_rotation: root.root_rotation.as_ref().map(|rotation| pb::RootRotation {
            ca_key: Vec::new(),
            cross_signed_ca_cert: Vec::new(),
            ..rotation.clone()
        }),
        ..root.clone()
    });
    pb::Cluster {
        id: cluster.id.clone(),
        meta: cluster.meta,
        spec,
        root_ca,
        blacklisted_certificates: cluster.blacklisted_certificates.clone(),
        default_address_pool: cluster.default_address_pool.clone(),
        subnet_size: cluster.subnet_size,
        vxlanudp_port: cluster.vxlanudp_port,
        ..Default::default()
    }
}

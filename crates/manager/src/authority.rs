//! The CA and NodeCA services: who may have a certificate, and the signing of it.

use std::time::Duration;

use model::Instant;
use rand_chacha::ChaCha8Rng;
use store::{Change, Store, Transaction};
use wire::swarmkit as pb;

use crate::{Caller, Code, Failure};

/// How long a certificate of this cluster lives.
pub(crate) fn node_expiry(cluster: &pb::Cluster) -> Duration {
    let config = cluster.spec.as_ref().and_then(|spec| spec.ca_config.as_ref());
    let expiry = config.and_then(|config| config.node_cert_expiry);
    expiry
        .and_then(|expiry| Duration::try_from(expiry).ok())
        .filter(|expiry| *expiry >= ca::certificate::EXPIRY_MIN)
        .unwrap_or(ca::certificate::EXPIRY_DEFAULT)
}

/// What `IssueNodeCertificate` comes to: the node to be written, and its id.
pub(crate) fn issue<'a>(
    store: &'a Store,
    caller: &Caller,
    request: &pb::IssueNodeCertificateRequest,
    dice: &mut ChaCha8Rng,
) -> Result<(Transaction<'a>, String), Failure> {
    if request.csr.is_empty() || request.csr.len() > ca::certificate::PEM_BYTES_MAX {
        return Err(Failure::new(Code::InvalidArgument, "InvalidArgument"));
    }
    let cluster = store.cluster().ok_or_else(not_running)?;
    let mut transaction = Transaction::new(store);
    if caller.is_member() && caller.organization == cluster.id {
        let node = renewal(store, &caller.node_id, request)?;
        transaction.update(node).map_err(internal)?;
        return Ok((transaction, caller.node_id.clone()));
    }
    let tokens = cluster.root_ca.as_ref().and_then(|root| root.join_tokens.as_ref());
    let role = tokens.and_then(|tokens| ca::token::role_of(&request.token, tokens));
    let Some(role) = role else {
        let reason = "A valid join token is necessary to join this cluster";
        return Err(Failure::new(Code::InvalidArgument, reason));
    };
    let id = model::swarm_id(dice);
    let node = pb::Node {
        id: id.clone(),
        role: role as i32,
        certificate: Some(certificate(&id, role, request, pb::issuance_status::State::Pending)),
        spec: Some(pb::NodeSpec {
            desired_role: role as i32,
            membership: pb::node_spec::Membership::Accepted as i32,
            availability: request.availability,
            ..Default::default()
        }),
        vxlanudp_port: cluster.vxlanudp_port,
        ..Default::default()
    };
    transaction.create(node).map_err(internal)?;
    Ok((transaction, id))
}

fn renewal(
    store: &Store,
    id: &str,
    request: &pb::IssueNodeCertificateRequest,
) -> Result<pb::Node, Failure> {
    let node = store.get::<pb::Node>(id).ok_or_else(|| {
        let reason = format!("node {id} not found when attempting to renew certificate");
        Failure::new(Code::NotFound, reason)
    })?;
    let mut node = pb::Node::clone(node);
    let state = pb::issuance_status::State::Renew;
    node.certificate = Some(certificate(id, node.role(), request, state));
    Ok(node)
}

fn certificate(
    id: &str,
    role: pb::NodeRole,
    request: &pb::IssueNodeCertificateRequest,
    state: pb::issuance_status::State,
) -> pb::Certificate {
    pb::Certificate {
        role: role as i32,
        csr: request.csr.clone(),
        cn: id.into(),
        status: Some(pb::IssuanceStatus { state: state as i32, err: String::new() }),
        certificate: Vec::new(),
    }
}

/// The answer to `NodeCertificateStatus` if there is one; `None` while the node has to wait.
pub(crate) fn status(
    store: &Store,
    id: &str,
) -> Result<Option<pb::NodeCertificateStatusResponse>, Failure> {
    use pb::issuance_status::State;
    if id.is_empty() {
        return Err(Failure::new(Code::InvalidArgument, "InvalidArgument"));
    }
    let node = store.get::<pb::Node>(id);
    let node = node.ok_or_else(|| Failure::new(Code::NotFound, "NotFound"))?;
    let certificate = node.certificate.clone().unwrap_or_default();
    let status = certificate.status.clone().unwrap_or_default();
    let settled = matches!(status.state(), State::Issued | State::Failed | State::Rotate);
    Ok(settled.then_some(pb::NodeCertificateStatusResponse {
        status: Some(status),
        certificate: Some(certificate),
    }))
}

/// Signs what waits to be signed. A request that cannot be signed fails for good; without the
/// authority's key everything waits.
pub(crate) fn sign_pending(store: &Store, now: Instant, dice: &mut ChaCha8Rng) -> Vec<Change> {
    let pending: Vec<_> = store.all::<pb::Node>().filter(|node| is_pending(node)).collect();
    let Some(cluster) = store.cluster().filter(|_| !pending.is_empty()) else { return Vec::new() };
    let root = cluster.root_ca.as_ref().map(ca::Root::from_cluster);
    let Some(Ok(root)) = root.filter(|root| root.as_ref().is_ok_and(|root| root.signer.is_some()))
    else {
        return Vec::new();
    };
    let expiry = node_expiry(cluster);
    pending
        .into_iter()
        .take(store::ACTIONS_MAX)
        .map(|node| Change::update(signed(node, &root, &cluster.id, now, expiry, dice)))
        .collect()
}

fn is_pending(node: &pb::Node) -> bool {
    use pb::issuance_status::State;
    let status = node.certificate.as_ref().and_then(|certificate| certificate.status.as_ref());
    let accepted = node
        .spec
        .as_ref()
        .is_some_and(|spec| spec.membership() == pb::node_spec::Membership::Accepted);
    accepted && status.is_some_and(|status| matches!(status.state(), State::Pending | State::Renew))
}

fn signed(
    node: &pb::Node,
    root: &ca::Root,
    cluster: &str,
    now: Instant,
    expiry: Duration,
    dice: &mut ChaCha8Rng,
) -> pb::Node {
    use pb::issuance_status::State;
    let mut node = node.clone();
    let role = node.role();
    let identity = ca::Identity { node_id: node.id.clone(), role, organization: cluster.into() };
    let certificate = node.certificate.get_or_insert_default();
    let status = match root.sign(&certificate.csr, &identity, now, expiry, dice) {
        Ok(issued) => {
            certificate.certificate = issued.chain;
            certificate.role = role as i32;
            pb::IssuanceStatus { state: State::Issued as i32, err: String::new() }
        }
        Err(error) => pb::IssuanceStatus { state: State::Failed as i32, err: error.to_string() },
    };
    certificate.status = Some(status);
    node
}

pub(crate) fn roots(store: &Store) -> Result<pb::GetRootCaCertificateResponse, Failure> {
    let cluster = store.cluster().ok_or_else(not_running)?;
    let certificate = cluster.root_ca.as_ref().map(|root| root.ca_cert.clone()).unwrap_or_default();
    Ok(pb::GetRootCaCertificateResponse { certificate })
}

pub(crate) fn unlock_key(store: &Store) -> Result<pb::GetUnlockKeyResponse, Failure> {
    let cluster = store.cluster().ok_or_else(not_running)?;
    Ok(pb::GetUnlockKeyResponse {
        unlock_key: crate::control::unlock_key(cluster).to_vec(),
        version: cluster.meta.as_ref().and_then(|meta| meta.version),
    })
}

fn not_running() -> Failure {
    Failure::new(Code::Aborted, "CA signer is stopped")
}

fn internal(error: store::Error) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

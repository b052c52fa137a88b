//! Another certificate authority in place of the old one, without a node losing touch.
//!
//! The new authority signs at once, with its own certificate signed by the old one appended; nodes
//! renew batch by batch; when every node's certificate comes from the new one, it alone remains.

use rand_chacha::ChaCha8Rng;
use store::{Change, Store};
use wire::swarmkit as pb;

use super::{Desk, invalid};
use crate::{Code, Failure};

/// Nodes that are asked to renew at one time.
const BATCH_MAX: usize = 30;

/// Starts a rotation when the spec asks for one that has not been started.
pub(super) fn begin(desk: &mut Desk<'_>, cluster: &mut pb::Cluster) -> Result<(), Failure> {
    let config = cluster.spec.as_ref().and_then(|spec| spec.ca_config.clone()).unwrap_or_default();
    let root = cluster.root_ca.get_or_insert_default();
    let forced = config.force_rotate != root.last_forced_rotation;
    let given = (config.signing_ca_cert.as_slice(), config.signing_ca_key.as_slice());
    let next = match given {
        ([], []) if !forced => return Ok(()),
        ([], []) => ca::Root::create(desk.now, desk.dice).map_err(failed)?,
        (certificate, []) => {
            let same = trimmed(certificate) == trimmed(&root.ca_cert);
            let reason = "rotating to a given certificate needs its key";
            return if same && !forced { Ok(()) } else { Err(invalid(reason)) };
        }
        ([], _) => {
            let reason =
                "if a signing CA key is provided, the signing CA cert must also be provided";
            return Err(invalid(reason));
        }
        (certificate, _) if trimmed(certificate) == trimmed(&root.ca_cert) && !forced => {
            return Ok(());
        }
        (certificate, key) => given_root(certificate, key)?,
    };
    let current = ca::Root::from_cluster(&pb::RootCa { root_rotation: None, ..root.clone() });
    let current = current.map_err(failed)?;
    let crossed = current.cross_sign(&next.roots, desk.now, desk.dice).map_err(failed)?;
    let signer = next.signer.ok_or_else(|| invalid("the new root has no key"))?;
    root.last_forced_rotation = config.force_rotate;
    root.root_rotation = Some(pb::RootRotation {
        ca_cert: next.roots,
        ca_key: signer.key.pem().as_bytes().to_vec(),
        cross_signed_ca_cert: crossed,
    });
    Ok(())
}

fn given_root(certificate: &[u8], key: &[u8]) -> Result<ca::Root, Failure> {
    let key = ca::Key::from_pem(key).map_err(|error| invalid(error.to_string()))?;
    if !key.owns(certificate).map_err(|error| invalid(error.to_string()))? {
        return Err(invalid("the given certificate is not for the given key"));
    }
    let mut root =
        ca::Root::trusted(certificate.to_vec()).map_err(|error| invalid(error.to_string()))?;
    let certificate = certificate.to_vec();
    root.signer = Some(ca::certificate::Signer { certificate, key, intermediates: Vec::new() });
    Ok(root)
}

fn trimmed(pem: &[u8]) -> &[u8] {
    pem.trim_ascii()
}

fn failed(error: ca::Error) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

/// The next step of a rotation under way: more nodes to renew, or the end of it.
pub(crate) fn finish_rotation(store: &Store, dice: &mut ChaCha8Rng) -> Vec<Change> {
    let Some(cluster) = store.cluster() else { return Vec::new() };
    let Some(root) = &cluster.root_ca else { return Vec::new() };
    let Some(next) = &root.root_rotation else { return Vec::new() };
    let Ok((subject, key)) = ca::certificate::issuer_info(&next.ca_cert) else { return Vec::new() };
    let is_behind = |node: &&std::sync::Arc<pb::Node>| {
        let info = node.description.as_ref().and_then(|description| description.tls_info.as_ref());
        !info.is_some_and(|info| {
            info.cert_issuer_subject == subject && info.cert_issuer_public_key == key
        })
    };
    let behind: Vec<_> = store.all::<pb::Node>().filter(is_behind).collect();
    if behind.is_empty() {
        return vec![Change::update(concluded(cluster, dice))];
    }
    use pb::issuance_status::State;
    let state = |node: &pb::Node| {
        let status = node.certificate.as_ref().and_then(|certificate| certificate.status.as_ref());
        status.map_or(State::Unknown, |status| status.state())
    };
    let asked = behind.iter().filter(|node| state(node) == State::Rotate).count();
    let settled = behind
        .iter()
        .filter(|node| matches!(state(node), State::Issued | State::Unknown | State::Failed));
    settled
        .take(BATCH_MAX.saturating_sub(asked))
        .map(|node| {
            let mut node = pb::Node::clone(node);
            let status = node.certificate.get_or_insert_default().status.get_or_insert_default();
            status.set_state(State::Rotate);
            Change::update(node)
        })
        .collect()
}

fn concluded(cluster: &pb::Cluster, dice: &mut ChaCha8Rng) -> pb::Cluster {
    let mut cluster = cluster.clone();
    let root = cluster.root_ca.get_or_insert_default();
    if let Some(next) = root.root_rotation.take() {
        root.ca_cert_hash = ca::root_digest(&next.ca_cert);
        root.join_tokens = Some(pb::JoinTokens {
            worker: ca::join_token(&next.ca_cert, dice),
            manager: ca::join_token(&next.ca_cert, dice),
        });
        root.ca_cert = next.ca_cert;
        root.ca_key = next.ca_key;
    }
    cluster
}

//! Who calls this node's manager, by the certificate that was shown.

use manager::Caller;
use transport::Peer;

/// What the manager wants to know of a caller.
pub fn caller(peer: &Peer) -> Caller {
    let subject = peer.subject.as_ref();
    Caller {
        node_id: peer.node_id().to_owned(),
        organization: subject.map(|subject| subject.cluster_id.clone()).unwrap_or_default(),
        units: subject
            .map(|subject| transport::identity::unit_of(subject.role).to_owned())
            .into_iter()
            .collect(),
        address: Some(peer.address.ip()),
        forwarded_by: peer.forwarded_by.clone(),
    }
}

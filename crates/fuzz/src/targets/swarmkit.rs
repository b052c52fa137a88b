//! SwarmKit's objects and calls, NetworkDB's rows: what is decoded is encoded to the same again.

use prost::Message;
use store::Store;
use wire::swarmkit as pb;

/// Decodes; what it got must come through an encoding unchanged. Compared by bytes: NaN equals nothing.
fn round<M: Message + Default>(data: &[u8]) -> Option<M> {
    let message = M::decode(data).ok()?;
    let bytes = message.encode_to_vec();
    let again = M::decode(bytes.as_slice()).map(|again| again.encode_to_vec());
    assert!(again.is_ok_and(|again| again == bytes), "not the same again");
    Some(message)
}

macro_rules! by_number {
    ($number:expr, $data:expr, [$($name:path),* $(,)?]) => {{
        let readers: &[fn(&[u8])] = &[$(|data| drop(round::<$name>(data))),*];
        readers[usize::from($number) % readers.len()]($data);
    }};
}

/// The first byte says which message the rest is.
pub fn message(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    entry(body);
    by_number!(
        *kind,
        body,
        [
            pb::StoreSnapshot,
            pb::AssignmentsMessage,
            pb::SessionMessage,
            pb::UpdateTaskStatusRequest,
            pb::IssueNodeCertificateRequest,
            pb::JoinRequest,
            pb::StreamRaftMessageRequest,
            pb::CreateServiceRequest,
            pb::UpdateClusterRequest,
            pb::CreateNetworkRequest,
            pb::Cluster,
            wire::raftpb::Message,
            wire::raftpb::ConfChange,
            wire::networkdb::GossipMessage,
            wire::networkdb::NodeEvent,
            wire::networkdb::NetworkPushPull,
            wire::networkdb::TableEvent,
            wire::networkdb::BulkSyncMessage,
            wire::networkdb::CompoundMessage,
            wire::networktable::EndpointRecord,
            wire::networktable::PeerRecord,
        ]
    );
}

/// A committed entry changes the store, and the store comes through its snapshot unchanged.
fn entry(body: &[u8]) {
    let Some(request) = round::<pb::InternalRaftRequest>(body) else { return };
    let mut store = Store::default();
    let _touched = store.apply(request.action);
    let saved = store.save();
    let again = Store::restore(saved.clone());
    assert!(again.save().encode_to_vec() == saved.encode_to_vec(), "a snapshot loses something");
    for task in store.all::<pb::Task>() {
        assert!(store.tasks_of_service(&task.service_id).any(|other| other.id == task.id));
    }
}

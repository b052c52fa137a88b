//! What belongs to a snapshot besides the store.

use prost::Message as _;
use prost::encoding::WireType;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::raft::Proposed;

/// The field of a snapshot that holds the store, and the bytes that its key and length take.
const STORE_FIELD: u32 = 3;
const STORE_HEAD_BYTES_MAX: usize = 11;

/// Where the log stands, and who is a member: what belongs to a snapshot of the store of that moment.
#[derive(Clone, Debug)]
pub struct Mark {
    pub(crate) at: Proposed,
    pub(crate) conf_state: raftpb::ConfState,
    pub(crate) membership: pb::ClusterSnapshot,
}

impl Mark {
    /// The whole snapshot. `put` appends the store's bytes, so many, to what is there already:
    /// a large store is not copied.
    pub fn snapshot(self, length: usize, put: impl FnOnce(&mut Vec<u8>)) -> raftpb::Snapshot {
        let version = pb::snapshot::Version::V0 as i32;
        let head = pb::Snapshot { version, membership: Some(self.membership), store: None };
        let mut data = Vec::with_capacity(head.encoded_len() + length + STORE_HEAD_BYTES_MAX);
        // The store is the last of its fields, and may be written behind the others.
        head.encode_raw(&mut data);
        prost::encoding::encode_key(STORE_FIELD, WireType::LengthDelimited, &mut data);
        prost::encoding::encode_varint(length as u64, &mut data);
        put(&mut data);
        raftpb::Snapshot {
            data: Some(data.into()),
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some(self.conf_state),
                index: Some(self.at.index),
                term: Some(self.at.term),
            }),
        }
    }
}

pub(crate) fn decode_snapshot(data: &[u8]) -> Option<(pb::StoreSnapshot, pb::ClusterSnapshot)> {
    let snapshot = pb::Snapshot::decode(data).ok()?;
    Some((snapshot.store.unwrap_or_default(), snapshot.membership.unwrap_or_default()))
}

/// A snapshot that cannot be read must not replace a log that can.
pub(crate) fn whole(message: &raftpb::Message) -> bool {
    message.snapshot.as_ref().is_some_and(|snapshot| decode_snapshot(snapshot.data()).is_some())
}

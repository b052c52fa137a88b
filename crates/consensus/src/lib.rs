//! raft-rs driven by events, in etcd's wire format.

//! Raft log, snapshots, local records; sealed.

//! The cluster's tables: snapshots, transactions that become raft entries.

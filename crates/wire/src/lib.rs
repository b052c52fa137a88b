//! Every byte between nodes: SwarmKit, NetworkDB and raft messages, and the memberlist codec.
//!
//! The modules nest as the protocol's packages do, so that generated code finds its neighbours.

pub mod docker {
    pub mod swarmkit {
        /// SwarmKit's objects and calls, `docker.swarmkit.v1`.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/docker.swarmkit.v1.rs"));
        }
    }
}

/// NetworkDB's messages inside memberlist user messages.
pub mod networkdb {
    include!(concat!(env!("OUT_DIR"), "/networkdb.rs"));
}

/// The values of NetworkDB's two tables.
pub mod networktable {
    include!(concat!(env!("OUT_DIR"), "/networktable.rs"));
}

/// etcd raft's messages.
pub mod raftpb {
    include!(concat!(env!("OUT_DIR"), "/raftpb.rs"));
}

pub mod control;
pub mod memberlist;

pub use docker::swarmkit::v1 as swarmkit;

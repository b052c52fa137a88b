//! The embedded resolver's sockets: one process per host that outlives the daemon.

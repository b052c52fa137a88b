//! Compiles the project's own .proto files into Rust, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "proto/swarmkit/control.proto",
        "proto/swarmkit/ca.proto",
        "proto/swarmkit/dispatcher.proto",
        "proto/swarmkit/raft.proto",
        "proto/swarmkit/snapshot.proto",
        "proto/swarmkit/resource.proto",
        "proto/swarmkit/health.proto",
        "proto/swarmkit/logbroker.proto",
        "proto/swarmkit/watch.proto",
        "proto/networkdb/networkdb.proto",
        "proto/networkdb/rows.proto",
        "proto/raftpb/raft.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    // Ordered maps: the same object must give the same bytes on every manager.
    prost_build::Config::new()
        .btree_map(["."])
        // What may be large, and is held by the log, by the disk and by whoever sends it at once.
        .bytes([".raftpb.Snapshot.data", ".raftpb.Entry.Data"])
        .compile_fds(descriptors)?;
    Ok(())
}

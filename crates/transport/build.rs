//! Compiles SwarmKit's services; their messages are the `wire` crate's.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../wire/proto");
    let files = ["control", "ca", "dispatcher", "raft", "resource", "health", "logbroker", "watch"]
        .map(|name| format!("../wire/proto/swarmkit/{name}.proto"));
    let descriptors = protox::compile(files, ["../wire/proto"])?;
    tonic_prost_build::configure()
        .extern_path(".docker.swarmkit.v1", "::wire::docker::swarmkit::v1")
        .extern_path(".raftpb", "::wire::raftpb")
        .compile_fds(descriptors)?;
    Ok(())
}

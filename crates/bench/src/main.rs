//! Benchmarks beside a peer in the same interleaved run.
fn main() {}

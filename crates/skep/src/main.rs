//! skep: the command line; everything else is a room of its own.
fn main() {}

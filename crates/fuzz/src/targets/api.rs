//! Bodies, queries and filters of Engine API calls.

/// The first byte says which call the rest is the body of.
pub fn body(data: &[u8]) {
    if let Some((kind, body)) = data.split_first() {
        docker_api::fuzz::body(*kind, body);
    }
}

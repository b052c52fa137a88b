//! Further processes in running containers. Owner: the runtime area.

#[derive(Default)]
pub struct Execs {}

impl Execs {
    pub fn new() -> Self {
        Self::default()
    }

    /// Ids of the execs of one container.
    pub fn of_container(&self, _container: &str) -> Vec<String> {
        Vec::new()
    }
}

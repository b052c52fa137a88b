//! Further processes in running containers. Owner: the runtime area.

#[derive(Default)]
pub struct Execs {}

impl Execs {
    pub fn new() -> Self {
        Self::default()
    }
}

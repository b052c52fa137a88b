//! The exit status on disk, for a daemon that was away: room for it is taken before the container starts.

use crate::protocol::EXIT_FILE;
use crate::runtime::ExitStatus;

/// Room for an exit status; one block of a file system holds it.
const EXIT_BYTES: usize = 512;
const EXIT_DRAFT: &str = "exit.json.new";

/// Takes the room for the exit status while the disk has some: a container may end on a full one.
pub fn reserve_exit() -> std::io::Result<()> {
    std::fs::write(EXIT_DRAFT, [b' '; EXIT_BYTES])
}

/// Whole or not at all: a daemon that was away reads it. The draft's own blocks are written over,
/// and white space after JSON means nothing.
pub fn write_exit(status: &ExitStatus) -> std::io::Result<()> {
    use std::io::Write;
    let mut text = serde_json::to_vec(status)?;
    text.resize(text.len().max(EXIT_BYTES), b' ');
    let mut draft = std::fs::File::options().write(true).open(EXIT_DRAFT)?;
    draft.write_all(&text)?;
    std::fs::rename(EXIT_DRAFT, EXIT_FILE)
}

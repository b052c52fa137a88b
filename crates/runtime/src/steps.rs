//! Named steps on demand: tests see what a crash at one of them leaves behind (docs/decisions/0200-engine-crash-steps.md).
//!
//! With `SKEP_STEPS=<directory>` every step appends its name to `<directory>/passed`, and the process that comes to
//! the one in `<directory>/crash` ends: `<step>#<n>`, the n-th of that name in `passed`. Both files are the test's,
//! which so chooses anew for each operation without a new daemon.

use std::fs::File;
use std::io::Write;
use std::path::Path;

pub const VARIABLE: &str = "SKEP_STEPS";

/// This process has passed the step; it ends here by SIGKILL if the test wishes so.
pub fn pass(directory: &Path, name: &str) {
    let crash = std::fs::read_to_string(directory.join("crash")).unwrap_or_default();
    // A name that is not written makes the test miss the step, which it notices.
    let passed = count(&directory.join("passed"), name).unwrap_or_default();
    if crash == format!("{name}#{passed}") {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}

/// The same in a process that has no tracing: a shim.
pub(crate) fn of_shim(name: &str) {
    if let Some(directory) = std::env::var_os(VARIABLE) {
        pass(Path::new(&directory), name);
    }
}

/// Appends the name; how often it stands there now.
fn count(file: &Path, name: &str) -> std::io::Result<usize> {
    let mut open = File::options().create(true).append(true).open(file)?;
    open.write_all(format!("{name}\n").as_bytes())?;
    Ok(std::fs::read_to_string(file)?.lines().filter(|line| *line == name).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_from_when_the_test_begins_the_file_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("passed");
        for (name, times) in [("image named", 1), ("layer published", 1), ("image named", 2)] {
            assert_eq!(count(&file, name).expect("written"), times);
        }
        std::fs::write(&file, "").expect("anew");
        assert_eq!(count(&file, "image named").expect("written"), 1);
    }
}

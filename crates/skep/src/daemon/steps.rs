//! Crashes on demand: the daemon ends itself with SIGKILL at a named step, so that tests see what a
//! crash there leaves behind.
//!
//! Rooms name their steps with trace events of the target `step`, which cost nothing unless this
//! listens. With `SKEP_STEPS=<directory>` every step appends its name to `<directory>/passed`, and
//! the daemon ends where `<directory>/crash` says: `<step>#<n>`, the n-th of that name in `passed`.
//! Both files are the test's, which so chooses anew for each operation without a new daemon.

use std::fmt::Debug;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

const TARGET: &str = "step";

/// The directory of the two files; steps of all threads pass one after another.
pub struct Steps(Mutex<PathBuf>);

impl Steps {
    /// `None`, and no cost, unless a test asks for it.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn from_environment<S>() -> Result<Option<impl Layer<S>>>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Some(directory) = std::env::var_os("SKEP_STEPS").map(PathBuf::from) else {
            return Ok(None);
        };
        std::fs::read_dir(&directory)
            .with_context(|| format!("SKEP_STEPS {}", directory.display()))?;
        let steps = Steps(Mutex::new(directory));
        Ok(Some(steps.with_filter(Targets::new().with_target(TARGET, tracing::Level::TRACE))))
    }
}

impl<S: Subscriber> Layer<S> for Steps {
    fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut name = Name(String::new());
        event.record(&mut name);
        let directory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let crash = std::fs::read_to_string(directory.join("crash")).unwrap_or_default();
        // A name that is not written makes the test miss the step, which it notices.
        let passed = pass(&directory.join("passed"), &name.0).unwrap_or_default();
        if crash == format!("{}#{passed}", name.0) {
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        }
    }
}

/// Appends the name; how often it stands there now.
fn pass(file: &Path, name: &str) -> std::io::Result<usize> {
    let mut open = File::options().create(true).append(true).open(file)?;
    open.write_all(format!("{name}\n").as_bytes())?;
    Ok(std::fs::read_to_string(file)?.lines().filter(|line| *line == name).count())
}

struct Name(String);

impl Visit for Name {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_from_when_the_test_begins_the_file_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("passed");
        for (name, count) in [("image named", 1), ("layer published", 1), ("image named", 2)] {
            assert_eq!(pass(&file, name).expect("written"), count);
        }
        std::fs::write(&file, "").expect("anew");
        assert_eq!(pass(&file, "image named").expect("written"), 1);
    }
}

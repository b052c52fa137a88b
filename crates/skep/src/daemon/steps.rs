//! Crashes on demand: the daemon ends itself with SIGKILL at a named step, so that tests see what a
//! crash there leaves behind.
//!
//! Rooms name their steps with trace events of the target `step`, which cost nothing unless this
//! listens; see [`runtime::steps`].

use std::fmt::Debug;
use std::path::PathBuf;
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
        let Some(directory) = std::env::var_os(runtime::steps::VARIABLE).map(PathBuf::from) else {
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
        runtime::steps::pass(&directory, &name.0);
    }
}

struct Name(String);

impl Visit for Name {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

//! The host's containers: what was asked for, how it stands, and the steps between.

mod container;
mod record;
mod names;
mod registry;
mod create;
mod logging;
mod validate;
mod limits;
mod merge;
mod mounts;
mod propagation;
mod endpoints;
mod start;
mod files;
mod oci;
mod stop;
mod exit;
mod health;
mod remove;
mod change;
mod connect;
mod restore;
mod shm;
mod subpath;

pub use container::{
    Container, Health, HealthProbe, Life, Phase, Spec, State, TaskEndpoint, TaskFile, TaskSpec,
};
pub use create::{CreateRequest, Created};
pub use endpoints::{endpoint, parse_port};
pub use limits::kernel_memory;
pub use mounts::{MountRecord, MountType};
pub use names::generated as generated_name;
pub use oci::apparmor_profile;
pub use registry::Containers;
pub use remove::RemoveOptions;
pub use runtime::{LogDriver, MASKED_PATHS, READONLY_PATHS, apparmor::enabled as has_apparmor};
pub use stop::{WaitFor, signal_number};
pub(crate) use subpath::Pins;
pub use validate::{check_request, size};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Are these options of a log driver that skep has?
pub(crate) fn check_log_options(
    driver: &str,
    options: &std::collections::BTreeMap<String, String>,
) -> crate::Result<()> {
    validate::log_options(driver, options).map(drop)
}

/// As Go prints a time in JSON; none is Go's zero.
pub fn rfc3339(at: Option<OffsetDateTime>) -> String {
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "0001-01-01T00:00:00Z".into())
}

/// Replaces a file as a whole and durably; for the engine's other parts.
pub(crate) fn replace_file(
    directory: &std::path::Path,
    name: &str,
    text: &[u8],
) -> crate::error::Result<()> {
    record::replace(directory, name, text, 0o600, true)
}

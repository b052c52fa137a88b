//! The daemon's log on standard error; its level follows `debug` at a reload.

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::settings::Settings;
use super::steps::Steps;

/// Libraries speak up from warnings on; their debug lines would drown ours.
const LIBRARIES: &str =
    "h2=warn,hyper=warn,tower=warn,rustls=warn,netlink_proto=warn,libcontainer=warn,raft=warn";

/// Changes what is logged from now on.
pub struct Level(reload::Handle<EnvFilter, Registry>);

/// Starts the log; once for each process.
///
/// # Errors
/// When something else logs already, or the steps' file cannot be opened.
pub fn start(settings: &Settings) -> Result<Level> {
    let (filter, handle) = reload::Layer::new(filter(settings)?);
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = match settings.log_format.as_str() {
        "json" => format.json().with_filter(filter).boxed(),
        _ => format.with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(lines).with(Steps::from_environment()?).try_init()?;
    Ok(Level(handle))
}

/// The log of the resolver, whose standard error is a file below the exec root. A line that finds no room there is lost:
/// told of on the same file it would end the process, and with it every name on the host.
///
/// # Errors
/// As for the daemon's.
pub fn start_plain() -> Result<()> {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false);
    let lines = lines.with_filter(tracing_subscriber::filter::LevelFilter::INFO);
    Ok(tracing_subscriber::registry().with(lines).with(Steps::from_environment()?).try_init()?)
}

impl Level {
    pub fn follow(&self, settings: &Settings) -> Result<()> {
        Ok(self.0.reload(filter(settings)?)?)
    }
}

fn filter(settings: &Settings) -> Result<EnvFilter> {
    let level = match settings.log_level.as_str() {
        _ if settings.engine.debug => "debug",
        "fatal" => "error",
        level => level,
    };
    EnvFilter::try_new(format!("{level},{LIBRARIES}")).context("--log-level")
}

//! `skep daemon`: one process per host, with dockerd's flags and files.

mod settings;
mod options;
mod absent;
mod values;
mod listen;
mod pidfile;
mod metrics;
pub(crate) mod log;
mod memory;
mod steps;
mod notify;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use settings::Settings;

pub use settings::command;

pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let started =
        Settings::parse(arguments.clone()).and_then(|settings| start(settings, arguments));
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to start daemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings, arguments: Vec<OsString>) -> Result<()> {
    settings.engine.check()?;
    if settings.validate {
        println!("configuration OK");
        return Ok(());
    }
    let level = log::start(&settings)?;
    for warning in &settings.engine.warnings {
        tracing::warn!("{warning}");
    }
    // Everything that speaks TLS shares ring; a second provider would be a second set of bugs.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    if let Some(score) = settings.oom_score {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .context("--oom-score-adjust")?;
    }
    runtime::limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(Told { settings, arguments, level }));
    end(runtime);
    ended
}

/// Work that cannot be interrupted (a layer that is unpacked, a commit) is cut off after this; the next start puts
/// right what it leaves, as after a crash.
const END_MAX: Duration = Duration::from_secs(3);

fn end(runtime: tokio::runtime::Runtime) {
    runtime.shutdown_timeout(END_MAX);
}

/// What the daemon was told, and how to hear it again.
struct Told {
    settings: Settings,
    arguments: Vec<OsString>,
    level: log::Level,
}

async fn run(mut told: Told) -> Result<()> {
    // From here on a signal is heard, also while the daemon still starts.
    let mut signals = Signals::listen()?;
    let _pidfile = pidfile::Pidfile::write(&told.settings.pidfile)?;
    let sockets = listen::bind(&told.settings).await?;
    let engine = engine::Engine::open(told.settings.engine.clone()).await?;
    let counters = Arc::<transport::gate::Counters>::default();
    let cluster = crate::cluster::start(engine.clone(), counters.clone()).await;
    if let Some(address) = &told.settings.metrics_addr {
        metrics::serve(address, engine.clone(), cluster.clone(), counters)
            .await
            .with_context(|| format!("--metrics-addr {address}"))?;
    }
    let api = docker_api::router(docker_api::ApiState {
        engine: engine.clone(),
        cluster: cluster.clone(),
    });
    // The files of the sockets go when this does.
    let _files = sockets.serve(&api);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "the API answers");
    notify::tell("READY=1");
    tokio::spawn(memory::keep_small());
    let signal = loop {
        match signals.next().await {
            Heard::End(signal) => break signal,
            Heard::Reload => told.reload(&engine),
        }
    };
    // Containers, names and the data plane live on without the daemon.
    tracing::info!(signal, "the daemon ends; containers run on");
    notify::tell("STOPPING=1");
    cluster.hand_over().await;
    Ok(())
}

impl Told {
    /// SIGHUP: daemon.json again. What cannot be used changes nothing.
    fn reload(&mut self, engine: &Arc<engine::Engine>) {
        let again = Settings::parse_again(self.arguments.clone()).and_then(|settings| {
            settings.engine.check()?;
            engine.reload(&settings.engine)?;
            self.level.follow(&settings)?;
            Ok(settings)
        });
        let settings = match again {
            Ok(settings) => settings,
            Err(error) => {
                tracing::error!("error reconfiguring the daemon, nothing is changed: {error:#}");
                return;
            }
        };
        let (now, later) = settings.changed(&self.settings);
        for key in later {
            tracing::warn!(
                "{key} has changed in the configuration and takes effect when the daemon is restarted; containers run on"
            );
        }
        tracing::info!(changed = now.join(", "), "reloaded configuration");
        // What waits is compared with what is in force the next time too.
        self.settings.take_over(&settings);
    }
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
}

enum Heard {
    End(&'static str),
    Reload,
}

impl Signals {
    fn listen() -> Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Heard {
        loop {
            tokio::select! {
                _ = self.term.recv() => return Heard::End("SIGTERM"),
                _ = self.int.recv() => return Heard::End("SIGINT"),
                _ = self.hup.recv() => return Heard::Reload,
                // dockerd writes its stacks; a daemon that ended instead would be a surprise.
                _ = self.usr1.recv() => {
                    tracing::warn!("SIGUSR1: skep has no stacks to write; --metrics-addr has figures, SIGHUP reloads");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_long_does_not_hold_up_the_end() {
        let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
        let (begun, begins) = std::sync::mpsc::channel();
        runtime.spawn_blocking(move || {
            begun.send(()).expect("awaited");
            loop {
                std::thread::park();
            }
        });
        begins.recv().expect("it begins");
        end(runtime);
    }
}

//! `skep daemon`: one process per host, with dockerd's flags and files.

mod settings;
mod options;
mod values;
mod listen;
mod pidfile;
mod metrics;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use settings::Settings;

pub use settings::command;

pub fn main(arguments: Vec<OsString>) -> ExitCode {
    match Settings::parse(arguments).and_then(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to start daemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings) -> Result<()> {
    if settings.validate {
        println!("configuration OK");
        return Ok(());
    }
    log(&settings)?;
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(settings))
}

fn log(settings: &Settings) -> Result<()> {
    let level = if settings.engine.debug { "debug" } else { &settings.log_level };
    let level = if level == "fatal" { "error" } else { level };
    // Libraries speak up from warnings on; their debug lines would drown ours.
    let filter = EnvFilter::try_new(format!("{level},h2=warn,hyper=warn,tower=warn,rustls=warn,netlink_proto=warn,libcontainer=warn,raft=warn"))
        .with_context(|| format!("--log-level {level} is not one of debug, info, warn, error, fatal"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(filter);
    match settings.log_format.as_str() {
        "json" => subscriber.json().init(),
        _ => subscriber.init(),
    }
    Ok(())
}

async fn run(settings: Settings) -> Result<()> {
    let _pidfile = pidfile::Pidfile::write(&settings.pidfile)?;
    let listeners = listen::bind(&settings).await?;
    let engine = engine::Engine::open(settings.engine.clone()).await?;
    let counters = Arc::<transport::gate::Counters>::default();
    let cluster = crate::cluster::start(engine.clone(), counters.clone()).await;
    if let Some(address) = &settings.metrics_addr {
        metrics::serve(address, engine.clone(), counters)
            .await
            .with_context(|| format!("--metrics-addr {address}"))?;
    }
    let api = docker_api::router(docker_api::ApiState { engine, cluster });
    for listener in listeners {
        tokio::spawn(listen::serve(listener, api.clone()));
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "the API answers");
    let signal = wait_for_end().await?;
    // Containers, names and the data plane live on without the daemon.
    tracing::info!(signal, "the daemon ends; containers run on");
    remove_sockets(&settings);
    Ok(())
}

/// Until SIGTERM or SIGINT; SIGHUP is answered by dockerd with a reload, and here with a word.
async fn wait_for_end() -> Result<&'static str> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok("SIGTERM"),
            _ = int.recv() => return Ok("SIGINT"),
            _ = hup.recv() => tracing::warn!("reloading daemon.json is not supported by skep yet: restart the daemon, containers run on"),
        }
    }
}

fn remove_sockets(settings: &Settings) {
    for path in settings.hosts.iter().filter_map(|host| host.strip_prefix("unix://")) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(path, %error, "the socket was not removed");
        }
    }
}

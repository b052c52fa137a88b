//! `skep daemon`: one process per host, dockerd's flags and files.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;

#[derive(Parser, Debug)]
#[command(name = "dockerd")]
struct Flags {
    #[arg(short = 'H', long = "host")]
    hosts: Vec<String>,
    #[arg(long, default_value = "/var/lib/skep")]
    data_root: String,
    #[arg(long, default_value = "/run/skep")]
    exec_root: String,
}

pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let flags = Flags::parse_from(arguments);
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed to start daemon: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to start daemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let engine =
        engine::Engine::open(engine::Config::below(&flags.data_root, &flags.exec_root)).await?;
    let state =
        docker_api::ApiState { engine, cluster: Arc::new(docker_api::swarm::Inactive::default()) };
    let service = docker_api::router(state);
    for host in &flags.hosts {
        let Some(path) = host.strip_prefix("unix://") else {
            anyhow::bail!("host {host}: not yet")
        };
        let _ = std::fs::remove_file(path);
        let listener = tokio::net::UnixListener::bind(path)?;
        let service = service.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(async move {
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let io = TokioIo::new(stream);
                    let _ = builder.serve_connection_with_upgrades(io, service).await;
                });
            }
        });
    }
    tokio::signal::ctrl_c().await?;
    Ok(())
}

//! `cargo xtask demo`: the user's document, start to end, on hosts made for it.

mod options;
mod show;
mod walk;
mod swarm_steps;
mod network_steps;
mod failure_steps;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use lab::{Engine, Lab, Plan};

use crate::demo::options::Options;
use crate::demo::walk::Walk;
use crate::{setup, suite};

pub fn main(words: &[String]) -> Result<()> {
    let Some(options) = Options::parse(words)? else {
        println!("{}", options::USAGE);
        return Ok(());
    };
    if lab::command::sh("id -u")? != "0" {
        bail!(
            "the demo makes network namespaces and mounts on this machine: run it as root, e.g. sudo cargo xtask demo"
        );
    }
    setup::install()?;
    // SKEP_BIN names a binary that was built before, for example a release.
    if std::env::var_os("SKEP_BIN").is_none() {
        println!("building skep");
        suite::cargo(&["build", "--package", "skep", "--package", "lab", "--bins"])?;
    }
    let start = Instant::now();
    let lab = hosts(&options)?;
    let mut walk = Walk { lab: &lab, options: &options, tasks: Vec::new() };
    let outcome = walk.all();
    if outcome.is_err() {
        for host in &lab.hosts {
            eprintln!("--- the end of the log of {}\n{}", host.name, host.log_tail(12));
        }
    }
    if options.keep {
        how_to_go_on(lab)?;
    } else {
        lab.down().context("cleaning up")?;
    }
    outcome?;
    println!(
        "\nThe walk-through held on {} hosts in {:.1} s.",
        options.host_count(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn hosts(options: &Options) -> Result<Lab> {
    let mut plan = Plan::skep(options.hosts)?;
    plan.routed = options.routed;
    plan.ipv6 = options.ipv6;
    if options.with_dockerd {
        plan.engines.push(Engine::Dockerd);
    }
    println!("making {} hosts", plan.engines.len());
    let lab = Lab::up(&plan)?;
    match &options.image {
        None => lab.import_httpd("httpd:latest")?,
        Some(archive) => {
            for host in &lab.hosts {
                println!("{}", host.docker(&["load", "-i", archive])?);
            }
        }
    }
    Ok(lab)
}

fn how_to_go_on(lab: Lab) -> Result<()> {
    println!("\nThe hosts stay up. To go on by hand, in one shell for each host:");
    for host in &lab.hosts {
        println!("  export DOCKER_HOST={}   # {} {}", host.docker_host(), host.name, host.address);
        println!(
            "  nsenter -t {} -n -u -i -m -p   # or a shell on {} itself",
            host.init_pid(),
            host.name
        );
    }
    let lab_binary = suite::target_folder()?.join("lab");
    println!("To take them down:\n  {} down {}", lab_binary.display(), lab.keep()?.display());
    Ok(())
}

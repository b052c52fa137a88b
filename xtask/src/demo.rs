//! `cargo xtask demo`: the user's document, start to end, on hosts made for it.

mod options;
mod show;
mod walk;
mod image;
mod swarm_steps;
mod network_steps;
mod packet_steps;
mod failure_steps;
pub mod promises;

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
    // A binary that was built before, for example an installed one, needs nothing for building.
    if std::env::var_os("SKEP_BIN").is_none() {
        setup::install()?;
        println!("building skep");
        suite::cargo(&["build", "--package", "skep", "--package", "lab", "--bins"])?;
    }
    lab::interrupt::listen()?;
    let start = Instant::now();
    let lab = hosts(&options)?;
    let outcome = walk_through(&lab, &options);
    if outcome.is_err() && !lab::interrupt::interrupted() {
        for host in &lab.hosts {
            eprintln!("--- the end of the log of {}\n{}", host.name, host.log_tail(12));
        }
    }
    if options.keep && !lab::interrupt::interrupted() {
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
    println!("they are in {}", lab.folder.display());
    Ok(lab)
}

fn walk_through(lab: &Lab, options: &Options) -> Result<()> {
    let reference = image::provide(lab, options.image.as_deref())?;
    Walk { lab, options, reference, tasks: Vec::new() }.all()
}

fn how_to_go_on(lab: Lab) -> Result<()> {
    println!("\nThe hosts stay up. To go on by hand, in one shell for each host:");
    for host in &lab.hosts {
        println!("  export DOCKER_HOST={}   # {} {}", host.docker_host(), host.name, host.address);
        println!("  nsenter -t {} -n -u -i -m -p   # a shell on the host itself", host.init_pid());
    }
    println!("The world outside, for curl:\n  nsenter --net=/run/netns/{} sh", lab.router);
    let lab_binary = suite::target_folder()?.join("lab");
    println!("To take them down:\n  {} down {}", lab_binary.display(), lab.keep()?.display());
    Ok(())
}

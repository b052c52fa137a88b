//! Services beyond their bare running: transcripts of the Docker Engine on two hosts, and images of a registry.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::load::until_running;
use e2e::transcript::run_on;
use e2e::{hosts, refused};
use lab::host::wait_until;
use lab::{Host, Lab, registry};

#[test]
fn tasks_are_as_their_service_says() -> Result<()> {
    let lab = hosts(2)?;
    run_on(&lab.hosts, "tasks", include_str!("../transcripts/swarm-tasks.txt"))?;
    lab.down()
}

#[test]
fn jobs_run_to_their_end() -> Result<()> {
    let lab = hosts(2)?;
    run_on(&lab.hosts, "jobs", include_str!("../transcripts/swarm-jobs.txt"))?;
    lab.down()
}

#[test]
fn a_swarm_is_seen_as_with_docker() -> Result<()> {
    let lab = hosts(2)?;
    run_on(&lab.hosts, "views", include_str!("../transcripts/swarm-views.txt"))?;
    lab.down()
}

const PASSWORD: &str = "geheimes-wort";
/// `PASSWORD` for `user`, as htpasswd -B has it (cost 4).
const HASHED: &str = "user:$2b$04$abcdefghijklmnopqrstuuqdzPPN7QQs3RVVE9luZ0UbRZIwbIhPy\n";
const APP: &str = "127.0.0.1:5001/team/app:1";

#[test]
fn images_come_from_a_registry() -> Result<()> {
    let lab = hosts(2)?;
    lab.swarm(1)?;
    for host in &lab.hosts {
        let passwords = host.folder.join("passwords");
        fs::write(&passwords, HASHED)?;
        let settings = [
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "test"),
            ("REGISTRY_AUTH_HTPASSWD_PATH", &passwords.display().to_string()),
        ];
        registry::start(host, 5001, &settings)?;
        login(host)?;
        host.dk(&format!("tag httpd:latest {APP}"))?;
        host.dk(&format!("push -q {APP}"))?;
        host.dk(&format!("rmi {APP}"))?;
    }
    credentials_travel_where_they_are_sent(&lab)?;
    a_digest_is_pinned_unless_not_asked_for(&lab)?;
    lab.down()
}

/// The CLI's configuration is the lab's: one login serves both hosts.
fn login(host: &Host) -> Result<()> {
    use std::io::Write;
    let words = ["login", "-u", "user", "--password-stdin", "127.0.0.1:5001"];
    let mut child = host.cli(&words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(PASSWORD.as_bytes())?;
    ensure!(child.wait()?.success(), "no login on {}", host.name);
    Ok(())
}

fn credentials_travel_where_they_are_sent(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    let there = "--constraint node.hostname==sathish-vm2 --no-resolve-image";
    manager.dk(&format!("service create -q -d --name bare {there} {APP}"))?;
    wait_until(Duration::from_secs(30), || {
        let errors = manager.dk("service ps --no-trunc --format {{.Error}} bare")?;
        Ok(errors.contains("No such image"))
    })
    .context("a task without credentials says why it has no image")?;
    manager.dk(&format!("service create -q -d --name sent --with-registry-auth {there} {APP}"))?;
    until_running(manager, "sent", 1)?;
    // They are kept with the service, are shown to nobody, and serve its later tasks.
    let shown = manager.dk("service inspect sent")?;
    ensure!(!shown.contains("PullOptions") && !shown.contains("geheim"), "{shown}");
    lab.host(2).dk("ps -q").and_then(|ids| lab.host(2).dk(&format!("rm -f {ids}")))?;
    wait_until(Duration::from_secs(30), || {
        Ok(lab.host(2).try_docker(&["rmi", "-f", APP])?.status.success())
    })?;
    manager.dk("service update -q -d --no-resolve-image --force sent")?;
    until_running(manager, "sent", 1)?;
    manager.dk("service rm bare sent").map(drop)
}

fn a_digest_is_pinned_unless_not_asked_for(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    let image = "{{.Spec.TaskTemplate.ContainerSpec.Image}}";
    let here = "--constraint node.hostname==sathish-vm1 --with-registry-auth";
    manager.dk(&format!("service create -q -d --name pinned {here} {APP}"))?;
    let pinned = manager.dk(&format!("service inspect -f {image} pinned"))?;
    ensure!(pinned.starts_with(&format!("{APP}@sha256:")), "{pinned}");
    until_running(manager, "pinned", 1)?;
    let shown = manager.dk("service ls --format {{.Image}} --filter name=pinned")?;
    ensure!(shown == APP, "{shown}");
    manager.dk(&format!("service create -q -d --name loose --no-resolve-image {here} {APP}"))?;
    let loose = manager.dk(&format!("service inspect -f {image} loose"))?;
    ensure!(loose == APP, "{loose}");
    until_running(manager, "loose", 1)?;
    let gone = APP.replace("app:1", "app:2");
    let output = manager.try_docker(&["service", "create", "-q", "-d", "--name", "gone", &gone])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.contains("could not be accessed"), "{said}");
    refused(manager, "service update --image BAD pinned", "is not a valid repository/tag")?;
    manager.dk("service rm pinned loose gone").map(drop)
}

//! Three managers of skep: a lost leader is replaced; with two lost the third still answers and serves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::load::until_running;
use e2e::{hosts_of_skep, refused};
use lab::host::wait_until;
use lab::{Host, Lab};

/// For another leader, and for the replacement of tasks whose host is gone.
const SETTLED_MAX: Duration = Duration::from_secs(60);

#[test]
fn what_runs_outlives_the_managers() -> Result<()> {
    let lab = hosts_of_skep(3)?;
    lab.swarm(3)?;
    let survivor = lab.host(2);
    survivor.dk("service create -q --no-resolve-image --name web --replicas 3 -p 80:80 httpd")?;
    until_running(survivor, "web", 3)?;
    let before = containers(survivor)?;
    lab.host(1).power_off()?;
    wait_until(SETTLED_MAX, || Ok(leader(survivor)?.is_some_and(|name| name != lab.host(1).name)))
        .context("no other leader")?;
    survivor.dk("config create again /etc/hostname")?;
    lab.host(3).power_off()?;
    without_a_quorum(&lab, survivor)?;
    // What the lost hosts ran may have come here, too.
    let now = containers(survivor)?;
    ensure!(before.lines().all(|id| now.contains(id)), "of {before} these run: {now}");
    survivor
        .dk(&format!("swarm init --force-new-cluster --advertise-addr {}", survivor.address))?;
    until_running(survivor, "web", 3).context("after --force-new-cluster")?;
    survivor.dk("config create restored /etc/hostname")?;
    lab.down()
}

/// Questions are answered and the port serves; a change says what is wrong and what to do.
fn without_a_quorum(lab: &Lab, survivor: &Host) -> Result<()> {
    wait_until(SETTLED_MAX, || Ok(leader(survivor)?.is_none()))
        .context("a leader without a quorum")?;
    ensure!(survivor.dk("service ls --format {{.Name}}")?.trim() == "web");
    survivor.dk("service ps web")?;
    survivor.dk("network inspect ingress")?;
    refused(survivor, "service scale -d web=4", "--force-new-cluster")?;
    let page = lab.host(2).sh("wget -q -O - http://127.0.0.1/")?;
    ensure!(page.contains("It works!"), "{page}");
    Ok(())
}

fn containers(host: &Host) -> Result<String> {
    host.dk("ps -q --no-trunc --filter label=com.docker.swarm.service.name=web")
}

/// The leader that is there to answer, as `node ls` tells it.
fn leader(host: &Host) -> Result<Option<String>> {
    let nodes = host.dk("node ls --format {{.Hostname}}={{.ManagerStatus}}")?;
    Ok(nodes.lines().find_map(|line| line.strip_suffix("=Leader").map(str::to_owned)))
}

/// What a user can rely on: two nodes that have joined share new tasks evenly, and a manager that
/// heard nobody, because it was stopped itself, takes no task from a node that went on.
#[test]
fn a_manager_that_was_held_up_blames_no_node() -> Result<()> {
    let lab = hosts_of_skep(2)?;
    lab.swarm(1)?;
    let (first, second) = (lab.host(1), lab.host(2));
    first.dk(
        "service create -q --no-resolve-image --detach=false --name web --replicas 4 -p 80:80 httpd",
    )?;
    let before = containers(second)?;
    ensure!(before.lines().count() == 2, "half of the tasks are here: {before}");
    let pid = first.daemon_pid()?;
    first.exec(&["kill", "-STOP", &pid])?;
    // Longer than any node may be silent.
    std::thread::sleep(Duration::from_secs(9));
    first.exec(&["kill", "-CONT", &pid])?;
    let heard_again = std::time::Instant::now();
    while heard_again.elapsed() < Duration::from_secs(6) {
        let nodes = first.dk("node ls --format {{.Hostname}}={{.Status}}")?;
        ensure!(nodes.lines().all(|node| node.ends_with("=Ready")), "{nodes}");
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure!(containers(second)? == before, "they were replaced");
    ensure!(first.dk("service ps -q web")?.lines().count() == 4, "{}", first.dk("service ps web")?);
    lab.down()
}

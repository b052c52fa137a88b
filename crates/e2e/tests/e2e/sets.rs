//! One set of managers with both engines: skep follows the Docker Engine, leads it, and hands back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cases;
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

const SETTLED_MAX: Duration = Duration::from_secs(90);
/// As much as the Docker Engine takes in one config, so often that a snapshot is more than 4 MiB.
const BIG: usize = 490_000;
const BIGS: usize = 10;
/// Entries between snapshots, so that who was away for so many needs one.
const INTERVAL: usize = 30;

/// The steps build on each other.
const STEPS: &[(&str, fn(&Lab) -> Result<()>)] = &[
    ("skep catches up by a big snapshot", skep_catches_up_by_a_big_snapshot),
    ("skep leads when the leader dies", skep_leads_when_the_leader_dies),
    ("the docker engine catches up from skep", the_docker_engine_catches_up_from_skep),
    ("skep hands back and follows", skep_hands_back_and_follows),
    ("leaders change among the others", leaders_change_among_the_others),
    ("each has everything", each_has_everything),
];

#[test]
fn a_set_of_managers_with_both_engines() -> Result<()> {
    let mut plan = Plan::skep(3)?;
    plan.engines = vec![Engine::Dockerd, Engine::Dockerd, Engine::Skep];
    let lab = Lab::up(&plan)?;
    lab.import_httpd("httpd:latest")?;
    lab.swarm(3)?;
    let first = lab.host(1);
    first.dk(&format!("swarm update --snapshot-interval {INTERVAL}"))?;
    first.dk("service create -q -d --no-resolve-image --name app --mode global --env N=0 --stop-grace-period 1s httpd")?;
    until_updated(&lab, first, 0)?;
    cases(&lab, STEPS)
}

/// The running host that the asked one believes to lead.
fn leader<'a>(lab: &'a Lab, asked: &Host) -> Option<&'a Host> {
    let nodes = asked.dk("node ls --format {{.Hostname}}={{.ManagerStatus}}").ok()?;
    let name = nodes.lines().find_map(|line| line.strip_suffix("=Leader"))?;
    lab.hosts.iter().find(|host| host.name == name)
}

fn until_leads(lab: &Lab, asked: &Host, wanted: &[usize]) -> Result<()> {
    wait_until(SETTLED_MAX, || {
        Ok(leader(lab, asked).is_some_and(|host| wanted.contains(&host.number)))
    })
    .with_context(|| format!("none of {wanted:?} leads: {:?}", asked.dk("node ls")))
}

fn until_reachable(asked: &Host) -> Result<()> {
    wait_until(SETTLED_MAX, || {
        let nodes = asked.dk("node ls --format {{.Status}}/{{.ManagerStatus}}")?;
        Ok(nodes.lines().all(|node| matches!(node, "Ready/Leader" | "Ready/Reachable")))
    })
    .with_context(|| asked.dk("node ls").unwrap_or_default())
}

/// Every node runs the service's newest version, and nothing else of it.
fn until_updated(lab: &Lab, asked: &Host, version: u32) -> Result<()> {
    let wanted = format!("\"N={version}\"");
    wait_until(SETTLED_MAX, || {
        for host in &lab.hosts {
            let ids = host.dk("ps -q --filter label=com.docker.swarm.service.name=app")?;
            let one = !ids.is_empty() && !ids.contains('\n');
            if !one
                || !host.docker(&["inspect", "-f", "{{json .Config.Env}}", &ids])?.contains(&wanted)
            {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .with_context(|| asked.dk("service ps app").unwrap_or_default())
}

fn update(lab: &Lab, asked: &Host, version: u32) -> Result<()> {
    asked.dk(&format!(
        "service update -q -d --no-resolve-image --update-parallelism 0 --env-add N={version} app"
    ))?;
    until_updated(lab, asked, version)
}

/// So many entries that the log before them is compacted, as objects that can be counted.
fn entries(asked: &Host, name: &str, count: usize, bytes: usize) -> Result<()> {
    let file = asked.folder.join("text");
    std::fs::write(&file, "x".repeat(bytes))?;
    let file = file.display().to_string();
    (0..count).try_for_each(|number| {
        asked.docker(&["config", "create", &format!("{name}{number}"), &file]).map(drop)
    })
}

fn configs(asked: &Host) -> Result<usize> {
    Ok(asked.dk("config ls -q")?.lines().count())
}

fn skep_catches_up_by_a_big_snapshot(lab: &Lab) -> Result<()> {
    let (first, skep) = (lab.host(1), lab.host(3));
    until_leads(lab, skep, &[1])?;
    skep.stop()?;
    entries(first, "big", BIGS, BIG)?;
    entries(first, "small", INTERVAL * 2, 10)?;
    skep.start()?;
    until_reachable(first)?;
    update(lab, skep, 1)
}

fn skep_leads_when_the_leader_dies(lab: &Lab) -> Result<()> {
    let (first, second, skep) = (lab.host(1), lab.host(2), lab.host(3));
    first.stop()?;
    until_leads(lab, skep, &[3]).context("skep misses the leader first")?;
    until_leads(lab, second, &[3])?;
    // The Docker Engine forwards to skep and shows what skep answers.
    ensure!(configs(second)? == BIGS + INTERVAL * 2, "{}", configs(second)?);
    second.dk("secret create word /etc/hostname").map(drop)
}

/// What happened meanwhile is more than the log still holds.
fn the_docker_engine_catches_up_from_skep(lab: &Lab) -> Result<()> {
    let (first, second, skep) = (lab.host(1), lab.host(2), lab.host(3));
    entries(second, "later", INTERVAL * 2, 10)?;
    first.start()?;
    until_reachable(skep)?;
    until_leads(lab, first, &[3])?;
    update(lab, first, 2)
}

fn skep_hands_back_and_follows(lab: &Lab) -> Result<()> {
    let (first, skep) = (lab.host(1), lab.host(3));
    skep.stop()?;
    until_leads(lab, first, &[1, 2])?;
    ensure!(configs(first)? == BIGS + INTERVAL * 4, "{}", configs(first)?);
    ensure!(first.dk("secret ls --format {{.Name}}")? == "word");
    skep.start()?;
    until_reachable(first)?;
    update(lab, skep, 3)
}

/// A leader that is demoted hands over; promoted again it follows.
fn leaders_change_among_the_others(lab: &Lab) -> Result<()> {
    let skep = lab.host(3);
    let old = leader(lab, skep).context("nobody leads")?;
    let others: Vec<usize> = (1..=3).filter(|number| *number != old.number).collect();
    // A change that the node makes itself may come in between the command's reading and writing.
    wait_until(SETTLED_MAX, || {
        Ok(skep.try_docker(&["node", "demote", &old.name])?.status.success())
    })?;
    until_leads(lab, skep, &others)?;
    wait_until(SETTLED_MAX, || Ok(old.dk("info -f {{.Swarm.ControlAvailable}}")? == "false"))?;
    // As above, its change of certificate.
    wait_until(SETTLED_MAX, || {
        Ok(skep.try_docker(&["node", "promote", &old.name])?.status.success())
    })?;
    wait_until(SETTLED_MAX, || Ok(old.dk("info -f {{.Swarm.ControlAvailable}}")? == "true"))?;
    until_reachable(skep)?;
    update(lab, old, 4)
}

/// Alone, skep answers from its own copy.
fn each_has_everything(lab: &Lab) -> Result<()> {
    let skep = lab.host(3);
    for host in &lab.hosts[..2] {
        ensure!(configs(host)? == BIGS + INTERVAL * 4, "{}", host.name);
    }
    for host in &lab.hosts[..2] {
        host.kill()?;
    }
    wait_until(SETTLED_MAX, || Ok(leader(lab, skep).is_none())).context("it leads alone")?;
    ensure!(configs(skep)? == BIGS + INTERVAL * 4, "of its own: {}", configs(skep)?);
    let big = skep.docker(&["config", "inspect", "-f", "{{len .Spec.Data}}", "big7"])?;
    ensure!(big == BIG.to_string(), "a config of {big} bytes");
    ensure!(skep.dk("secret ls --format {{.Name}}")? == "word");
    Ok(())
}

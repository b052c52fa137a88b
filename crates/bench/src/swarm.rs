//! Two hosts in a swarm: how long services take to come, to grow and to go. Their program ends
//! when it is told to: otherwise going would take the ten seconds of grace on any engine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

use crate::engine::engine_pss;
use crate::figures::{Report, seconds};

const ROUNDS: usize = 3;
const SETTLED_MAX: Duration = Duration::from_secs(120);

pub fn run(skep: &Path, report: &mut Report) -> Result<()> {
    let mut samples = [Samples::default(), Samples::default()];
    let mut labs = Vec::new();
    for engine in [Engine::Skep, Engine::Dockerd] {
        let plan = Plan { engines: vec![engine; 2], skep: skep.to_path_buf(), ..Plan::skep(2)? };
        let lab = Lab::up(&plan)?;
        lab.import_program("load", r#"CMD ["load","serve","80"]"#)?;
        lab.swarm(1)?;
        lab.host(1).dk("network create -d overlay web")?;
        labs.push(lab);
    }
    for number in 1..=ROUNDS {
        for (lab, samples) in labs.iter().zip(&mut samples) {
            let taken = seconds(|| round(lab, samples))?;
            eprintln!("round {number} of {ROUNDS} on {:?}: {taken:.0} s", lab.host(1).engine);
        }
    }
    for (lab, samples) in labs.iter().zip(&mut samples) {
        samples.memory.push(engine_pss(lab.host(1))?);
        samples.failover.push(failover(lab)?);
    }
    let [ours, theirs] = samples;
    report.add(
        "service of 6 replicas, published port, all running",
        "s",
        ours.published,
        Ok(theirs.published),
    );
    report.add("service of 6 replicas, all running", "s", ours.plain, Ok(theirs.plain));
    report.add("scale 6 to 20", "s", ours.scale, Ok(theirs.scale));
    report.add("service of 50 replicas, all running", "s", ours.fifty, Ok(theirs.fifty));
    report.add("removal of 6 replicas", "s", ours.removal, Ok(theirs.removal));
    report.add(
        "a host is cut off until its tasks run elsewhere",
        "s",
        ours.failover,
        Ok(theirs.failover),
    );
    report.add("manager, proportional memory", "MiB", ours.memory, Ok(theirs.memory));
    drop(labs);
    leader_lost(skep, report)
}

/// Three managers, the leader killed: how long until another one takes a change.
fn leader_lost(skep: &Path, report: &mut Report) -> Result<()> {
    let mut samples = [Vec::new(), Vec::new()];
    let mut labs = Vec::new();
    for engine in [Engine::Skep, Engine::Dockerd] {
        let plan = Plan { engines: vec![engine; 3], skep: skep.to_path_buf(), ..Plan::skep(3)? };
        let lab = Lab::up(&plan)?;
        lab.swarm(3)?;
        labs.push(lab);
    }
    for number in 0..ROUNDS {
        for (lab, samples) in labs.iter().zip(&mut samples) {
            samples.push(leader_killed(lab, number).context("a manager is lost")?);
        }
    }
    let [ours, theirs] = samples;
    report.add("the leader is killed until another manager takes a change", "s", ours, Ok(theirs));
    Ok(())
}

fn leader_killed(lab: &Lab, number: usize) -> Result<f64> {
    let mut leader = None;
    wait_until(SETTLED_MAX, || {
        let nodes = lab.host(1).dk("node ls --format {{.ManagerStatus}}={{.Hostname}}")?;
        leader = nodes.lines().find_map(|line| line.strip_prefix("Leader=")).map(str::to_owned);
        Ok(leader.is_some() && nodes.matches("Reachable=").count() == lab.hosts.len() - 1)
    })?;
    let is_leader = |host: &&Host| leader.as_ref() == Some(&host.name);
    let leader = lab.hosts.iter().find(is_leader).context("no leader")?;
    let other = lab.hosts.iter().find(|host| host.number != leader.number).context("alone")?;
    leader.kill()?;
    let taken = seconds(|| {
        let create = format!("config create change{number} /etc/hostname");
        wait_until(SETTLED_MAX, || Ok(other.dk(&create).is_ok()))
    })?;
    leader.start()?;
    Ok(taken)
}

#[derive(Default)]
struct Samples {
    published: Vec<f64>,
    plain: Vec<f64>,
    scale: Vec<f64>,
    fifty: Vec<f64>,
    removal: Vec<f64>,
    failover: Vec<f64>,
    memory: Vec<f64>,
}

fn round(lab: &Lab, samples: &mut Samples) -> Result<()> {
    samples.published.push(seconds(|| create(lab, 6, "-p 80:80"))?);
    samples.removal.push(seconds(|| remove(lab))?);
    samples.plain.push(seconds(|| create(lab, 6, ""))?);
    samples.scale.push(seconds(|| {
        lab.host(1).dk("service scale -d web=20")?;
        settled(lab, 20)
    })?);
    remove(lab)?;
    samples.fifty.push(seconds(|| create(lab, 50, ""))?);
    remove(lab)
}

fn create(lab: &Lab, replicas: usize, more: &str) -> Result<()> {
    lab.host(1).dk(&format!(
        "service create -q -d --no-resolve-image --name web --network web --replicas {replicas} {more} load"
    ))?;
    settled(lab, replicas)
}

/// Until the manager shows `count` tasks running.
fn settled(lab: &Lab, count: usize) -> Result<()> {
    wait_until(SETTLED_MAX, || {
        Ok(lab.host(1).dk("service ls --format {{.Replicas}}")? == format!("{count}/{count}"))
    })
}

/// Until no container is left on either host.
fn remove(lab: &Lab) -> Result<()> {
    lab.host(1).dk("service rm web")?;
    wait_until(SETTLED_MAX, || {
        Ok(lab.hosts.iter().all(|host| host.dk("ps -aq").is_ok_and(|list| list.is_empty())))
    })
}

fn failover(lab: &Lab) -> Result<f64> {
    create(lab, 6, "")?;
    lab.host(2).cut()?;
    seconds(|| {
        wait_until(SETTLED_MAX, || {
            let format = "{{.Node}} {{.DesiredState}} {{.CurrentState}}";
            let list = lab.host(1).docker(&["service", "ps", "--format", format, "web"])?;
            Ok(list.lines().filter(|row| row.starts_with("sathish-vm1 Running Running")).count()
                == 6)
        })
    })
}

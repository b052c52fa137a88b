//! One swarm with both engines: skep manages Docker Engine workers, and the other way round.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{cases, refused, until_pinged};
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

/// The steps build on each other, so each direction is one case after the other in one lab.
const STEPS: &[(&str, fn(&Lab) -> Result<()>)] = &[
    ("the node is shown as what it is", the_node_is_shown_as_what_it_is),
    ("a service runs on both and finds its other half", a_service_runs_on_both),
    ("logs and exec reach both", logs_and_exec_reach_both),
    ("jobs complete on both", jobs_complete_on_both),
    ("an update replaces every task", an_update_replaces_every_task),
    ("certificates and tokens change while joined", certificates_and_tokens_change_while_joined),
    ("a drained node gives its tasks away", a_drained_node_gives_its_tasks_away),
    ("a node leaves and comes back", a_node_leaves_and_comes_back),
];

#[test]
fn skep_manages_docker_engine_workers() -> Result<()> {
    both(Engine::Skep, Engine::Dockerd)
}

#[test]
fn the_docker_engine_manages_skep_workers() -> Result<()> {
    both(Engine::Dockerd, Engine::Skep)
}

fn both(manager: Engine, worker: Engine) -> Result<()> {
    let mut plan = Plan::skep(2)?;
    plan.engines = vec![manager, worker];
    let lab = Lab::up(&plan)?;
    lab.import_httpd("httpd:latest")?;
    lab.swarm(1)?;
    cases(&lab, STEPS)
}

fn the_node_is_shown_as_what_it_is(lab: &Lab) -> Result<()> {
    let format = "{{.Status.State}} {{.Description.Platform.OS}}/{{.Description.Platform.Architecture}} {{.Description.Engine.EngineVersion}}";
    for host in &lab.hosts {
        let shown = lab.host(1).docker(&["node", "inspect", "-f", format, &host.name])?;
        let version = host.docker(&["version", "-f", "{{.Server.Version}}"])?;
        ensure!(shown == format!("ready linux/x86_64 {version}"), "{}: {shown}", host.name);
        let plugins = lab.host(1).docker(&[
            "node",
            "inspect",
            "-f",
            "{{json .Description.Engine.Plugins}}",
            &host.name,
        ])?;
        for (kind, name) in [("Network", "overlay"), ("Volume", "local"), ("Log", "json-file")] {
            let plugin = format!(r#"{{"Type":"{kind}","Name":"{name}"}}"#);
            ensure!(plugins.contains(&plugin), "{}: {plugin} not in {plugins}", host.name);
        }
    }
    Ok(())
}

/// The container of a service on a host, once it runs there.
fn container(host: &Host, service: &str) -> Result<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let mut found = String::new();
    wait_until(Duration::from_secs(60), || {
        found = host.docker(&["ps", "-q", "--filter", &filter])?;
        Ok(!found.is_empty() && !found.contains('\n'))
    })
    .with_context(|| format!("a container of {service} on {}", host.name))?;
    Ok(found)
}

fn until_running(lab: &Lab, service: &str, nodes: &[&str]) -> Result<()> {
    let format = "{{.Node}} {{.DesiredState}} {{.CurrentState}}";
    wait_until(Duration::from_secs(90), || {
        let list = lab.host(1).docker(&["service", "ps", "--format", format, service])?;
        let running = list.lines().filter(|line| line.contains(" Running Running ")).count();
        Ok(running == nodes.len()
            && nodes.iter().all(|node| list.contains(&format!("{node} Running Running"))))
    })
    .with_context(|| {
        lab.host(1).dk(&format!("service ps --no-trunc {service}")).unwrap_or_default()
    })
}

const BOTH: &[&str] = &["sathish-vm1", "sathish-vm2"];

fn a_service_runs_on_both(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    manager.dk("network create -d overlay --attachable shared")?;
    let file = manager.folder.join("text");
    std::fs::write(&file, "told to few")?;
    let file = file.display().to_string();
    manager.docker(&["secret", "create", "word", &file])?;
    manager.docker(&["config", "create", "page", &file])?;
    // No service address: this kernel has no IPVS for the Docker Engine to make one with.
    manager.dk("service create -q --detach --no-resolve-image --name pair --mode global --endpoint-mode dnsrr --network shared --secret word --config source=page,target=/page --env VERSION=1 httpd")?;
    until_running(lab, "pair", BOTH)?;
    for host in &lab.hosts {
        let held =
            host.docker(&["exec", &container(host, "pair")?, "cat", "/run/secrets/word", "/page"])?;
        ensure!(held == "told to fewtold to few", "{}: {held}", host.name);
    }
    reaches_every_task(lab)
}

/// Each engine lists both hosts, whoever manages.
fn lists_both_peers(host: &Host, lab: &Lab) -> Result<()> {
    let format = "{{range .Peers}}{{.IP}} {{end}}";
    let mut peers = String::new();
    wait_until(Duration::from_secs(30), || {
        peers = host.docker(&["network", "inspect", "-f", format, "shared"])?;
        let mut listed: Vec<&str> = peers.split_whitespace().collect();
        listed.sort_unstable();
        Ok(listed == [lab.host(1).address.as_str(), lab.host(2).address.as_str()])
    })
    .with_context(|| format!("{}: peers {peers}", host.name))
}

/// By the name of all, by each address, from each side.
fn reaches_every_task(lab: &Lab) -> Result<()> {
    let format = "{{(index .NetworksAttachments 0).Addresses}}";
    let running = ["service", "ps", "-q", "--filter", "desired-state=running", "pair"];
    let mut addresses = Vec::new();
    for task in lab.host(1).docker(&running)?.lines() {
        let shown = lab.host(1).docker(&["inspect", "--type", "task", "-f", format, task])?;
        let shown = shown.trim_matches(['[', ']']).split('/').next().unwrap_or_default().to_owned();
        addresses.push(shown);
    }
    ensure!(addresses.len() == 2, "{addresses:?}");
    for host in &lab.hosts {
        lists_both_peers(host, lab)?;
        let container = container(host, "pair")?;
        let inside = |words: &[&str]| host.docker(&[&["exec", &container], words].concat());
        wait_until(Duration::from_secs(30), || {
            let names = inside(&["nslookup", "tasks.pair"]).unwrap_or_default();
            Ok(addresses.iter().all(|address| names.contains(address.as_str())))
        })
        .with_context(|| format!("{}: tasks.pair is not {addresses:?}", host.name))?;
        for address in &addresses {
            until_pinged(host, &container, &["-c", "1", address])?;
            let page = inside(&["wget", "-qO-", &format!("http://{address}/")])?;
            ensure!(page == lab::image::IT_WORKS, "{}: {page}", host.name);
        }
    }
    Ok(())
}

fn logs_and_exec_reach_both(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    manager.docker(&[
        "service",
        "create",
        "-q",
        "--detach",
        "--no-resolve-image",
        "--name",
        "talker",
        "--mode",
        "global",
        "--hostname",
        "on-{{.Node.Hostname}}",
        "httpd",
        "sh",
        "-c",
        "echo hello from $(hostname); exec sleep 600",
    ])?;
    wait_until(Duration::from_secs(60), || {
        let logs = manager.dk("service logs talker")?;
        Ok(BOTH.iter().all(|node| logs.contains(&format!("hello from on-{node}"))))
    })
    .context("service logs of both nodes")?;
    for host in &lab.hosts {
        let name = host.docker(&["exec", &container(host, "talker")?, "hostname"])?;
        ensure!(name == format!("on-{}", host.name), "{name}");
    }
    manager.dk("service rm talker").map(drop)
}

fn jobs_complete_on_both(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    let job = "service create -q --detach --no-resolve-image --restart-delay 0s";
    manager.dk(&format!("{job} --name each --mode global-job httpd sleep 2"))?;
    manager.dk(&format!(
        "{job} --name some --mode replicated-job --replicas 5 --max-concurrent 2 httpd sleep 1"
    ))?;
    for (name, total) in [("each", "(2/2 completed)"), ("some", "(5/5 completed)")] {
        wait_until(Duration::from_secs(60), || {
            let format = "{{.Name}} {{.Replicas}}";
            let list = manager.docker(&["service", "ls", "--format", format])?;
            Ok(list.lines().any(|line| line.starts_with(name) && line.ends_with(total)))
        })
        .with_context(|| format!("{name} is {total}"))?;
        let format = "{{.Node}} {{.DesiredState}} {{.CurrentState}}";
        let tasks = manager.docker(&["service", "ps", "--format", format, name])?;
        ensure!(tasks.lines().all(|line| line.contains(" Complete Complete ")), "{tasks}");
        for host in &lab.hosts {
            ensure!(tasks.contains(&host.name), "nothing of {name} on {}: {tasks}", host.name);
        }
        manager.docker(&["service", "rm", name])?;
    }
    Ok(())
}

fn an_update_replaces_every_task(lab: &Lab) -> Result<()> {
    let before: Vec<String> =
        lab.hosts.iter().map(|host| container(host, "pair")).collect::<Result<_>>()?;
    lab.host(1)
        .dk("service update -q --no-resolve-image --env-add VERSION=2 --detach=false pair")?;
    until_running(lab, "pair", BOTH)?;
    for (host, before) in lab.hosts.iter().zip(before) {
        let mut now = String::new();
        wait_until(Duration::from_secs(30), || {
            now = container(host, "pair")?;
            Ok(now != before)
        })?;
        let version = host.docker(&["exec", &now, "sh", "-c", "echo $VERSION"])?;
        ensure!(version == "2", "{}: {version}", host.name);
    }
    reaches_every_task(lab)
}

/// The new certificate authority is everybody's, the new token opens and the old one does not, and
/// nothing that ran was disturbed.
fn certificates_and_tokens_change_while_joined(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    let before: Vec<String> =
        lab.hosts.iter().map(|host| container(host, "pair")).collect::<Result<_>>()?;
    let (old_root, old_token) =
        (manager.dk("swarm ca")?, manager.dk("swarm join-token -q worker")?);
    manager.dk("swarm ca --rotate --detach=false --quiet")?;
    let root = manager.dk("swarm ca")?;
    ensure!(root != old_root, "the root did not change");
    let format = "{{.Description.TLSInfo.TrustRoot}}";
    wait_until(Duration::from_secs(60), || {
        let trusted = |host: &Host| manager.docker(&["node", "inspect", "-f", format, &host.name]);
        Ok(lab
            .hosts
            .iter()
            .all(|host| trusted(host).is_ok_and(|shown| shown.trim() == root.trim())))
    })
    .context("every node trusts the new root alone")?;
    for host in &lab.hosts {
        let file = host.folder.join("data/swarm/certificates/swarm-root-ca.crt");
        let held = std::fs::read_to_string(&file)?;
        ensure!(held.trim() == root.trim(), "{}: {held}", host.name);
    }
    let token = manager.dk("swarm join-token -q worker")?;
    ensure!(token != old_token, "the token speaks of the old root");
    let rotated = manager.dk("swarm join-token --rotate -q worker")?;
    ensure!(rotated != token && rotated == manager.dk("swarm join-token -q worker")?, "{rotated}");
    for (host, before) in lab.hosts.iter().zip(before) {
        ensure!(container(host, "pair")? == before, "{}: another container", host.name);
    }
    until_running(lab, "pair", BOTH)?;
    reaches_every_task(lab)
}

fn a_drained_node_gives_its_tasks_away(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    manager.dk("service create -q --detach --no-resolve-image --name moving --replicas 4 httpd")?;
    wait_until(Duration::from_secs(60), || {
        let format = "{{.CurrentState}}";
        let list = manager.docker(&["service", "ps", "--format", format, "moving"])?;
        Ok(list.lines().filter(|line| line.starts_with("Running")).count() == 4)
    })?;
    manager.dk("node update --availability drain sathish-vm2")?;
    until_running(lab, "moving", &["sathish-vm1"; 4])?;
    wait_until(Duration::from_secs(60), || Ok(lab.host(2).dk("ps -q")?.is_empty()))?;
    manager.dk("node update --availability active sathish-vm2")?;
    manager.dk("service rm moving")?;
    until_running(lab, "pair", BOTH)
}

fn a_node_leaves_and_comes_back(lab: &Lab) -> Result<()> {
    let (manager, worker) = (lab.host(1), lab.host(2));
    let old = worker.docker(&["info", "-f", "{{.Swarm.NodeID}}"])?;
    worker.dk("swarm leave")?;
    wait_until(Duration::from_secs(60), || {
        Ok(manager.docker(&["node", "inspect", "-f", "{{.Status.State}}", &old])? == "down")
    })?;
    manager.docker(&["node", "rm", &old])?;
    wait_until(Duration::from_secs(60), || Ok(worker.dk("ps -aq")?.is_empty()))?;
    let address = format!("{}:2377", manager.address);
    let wrong = format!("SWMTKN-1-{}-{}", "1".repeat(50), "1".repeat(25));
    refused(
        worker,
        &format!("swarm join --token {wrong} {address}"),
        "remote CA does not match fingerprint",
    )?;
    let token = manager.dk("swarm join-token -q worker")?;
    worker.docker(&["swarm", "join", "--token", &token, &address])?;
    let new = worker.docker(&["info", "-f", "{{.Swarm.NodeID}}"])?;
    ensure!(new != old, "a node that left comes back as another one");
    until_running(lab, "pair", BOTH)?;
    reaches_every_task(lab)
}

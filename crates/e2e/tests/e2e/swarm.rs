//! Two hosts in a swarm: services, secrets, updates, drain; beyond what the walk-through shows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{cases, hosts, refused};
use lab::Lab;
use lab::host::wait_until;

#[test]
fn two_hosts() -> Result<()> {
    let lab = hosts(2)?;
    refused(lab.host(1), "node ls", "This node is not a swarm manager")?;
    lab.swarm(1)?;
    cases(
        &lab,
        &[
            ("a worker is no manager", a_worker_is_no_manager),
            ("a service is scaled up and down", a_service_is_scaled),
            ("a service is updated and rolled back", a_service_is_updated_and_rolled_back),
            ("secrets and configs reach the task", secrets_and_configs_reach_the_task),
            ("a drained node gives its tasks away", a_drained_node_gives_its_tasks_away),
            ("a task that cannot be placed says why", a_task_that_cannot_be_placed_says_why),
            ("a global service runs on every node", a_global_service_runs_on_every_node),
            ("service logs come from every node", service_logs_come_from_every_node),
            ("followed logs go on in later tasks", followed_logs_go_on_in_later_tasks),
            ("wrong services are refused", wrong_services_are_refused),
            ("a node leaves and comes back", a_node_leaves_and_comes_back),
        ],
    )
}

const CREATE: &str = "service create -q --no-resolve-image --detach=false";

fn running(lab: &Lab, service: &str) -> Result<usize> {
    let format = "{{.DesiredState}} {{.CurrentState}}";
    let list = lab.host(1).docker(&["service", "ps", "--format", format, service])?;
    Ok(list.lines().filter(|line| line.starts_with("Running Running")).count())
}

fn until_running(lab: &Lab, service: &str, count: usize) -> Result<()> {
    wait_until(Duration::from_secs(40), || Ok(running(lab, service)? == count))
        .with_context(|| lab.host(1).dk(&format!("service ps {service}")).unwrap_or_default())
}

fn a_worker_is_no_manager(lab: &Lab) -> Result<()> {
    refused(lab.host(2), "node ls", "This node is not a swarm manager")?;
    refused(lab.host(2), "swarm init", "already part of a swarm")
}

fn a_service_is_scaled(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk(&format!("{CREATE} --name scaled --replicas 2 httpd"))?;
    ensure!(running(lab, "scaled")? == 2);
    host.dk("service scale scaled=5")?;
    ensure!(running(lab, "scaled")? == 5);
    host.dk("service scale scaled=1")?;
    until_running(lab, "scaled", 1)?;
    host.dk("service rm scaled")?;
    wait_until(Duration::from_secs(30), || {
        Ok(lab.host(2).dk("ps -q")?.is_empty() && lab.host(1).dk("ps -q")?.is_empty())
    })
}

fn a_service_is_updated_and_rolled_back(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk(&format!("{CREATE} --name changed --replicas 2 --env VERSION=1 httpd"))?;
    let answer = host.dk(
        "service update --env-add VERSION=2 --update-order start-first --detach=false changed",
    )?;
    ensure!(answer.contains("converged"), "{answer}");
    let env = host.docker(&[
        "service",
        "inspect",
        "-f",
        "{{.Spec.TaskTemplate.ContainerSpec.Env}}",
        "changed",
    ])?;
    ensure!(env == "[VERSION=2]", "{env}");
    host.dk("service rollback changed")?;
    let env = host.docker(&[
        "service",
        "inspect",
        "-f",
        "{{.Spec.TaskTemplate.ContainerSpec.Env}}",
        "changed",
    ])?;
    ensure!(env == "[VERSION=1]", "{env}");
    host.dk("service rm changed").map(drop)
}

fn secrets_and_configs_reach_the_task(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let file = host.folder.join("secret");
    std::fs::write(&file, "s3cret")?;
    host.docker(&["secret", "create", "key", &file.display().to_string()])?;
    host.docker(&["config", "create", "conf", &file.display().to_string()])?;
    host.dk(&format!("{CREATE} --name keeper --secret source=key,target=k,mode=0400 --config source=conf,target=/etc/c --constraint node.hostname==sathish-vm1 httpd"))?;
    let task = host.dk("ps -q --filter label=com.docker.swarm.service.name=keeper")?;
    let seen = host.docker(&[
        "exec",
        &task,
        "sh",
        "-c",
        "cat /run/secrets/k /etc/c; stat -c %a /run/secrets/k",
    ])?;
    ensure!(seen == "s3crets3cret400", "{seen}");
    refused(host, "secret rm key", "in use")?;
    host.dk("service rm keeper")?;
    wait_until(Duration::from_secs(20), || {
        Ok(host.try_docker(&["secret", "rm", "key"])?.status.success())
    })?;
    host.dk("config rm conf").map(drop)
}

fn a_drained_node_gives_its_tasks_away(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk(&format!("{CREATE} --name moving --replicas 4 httpd"))?;
    host.dk("node update --availability drain sathish-vm2")?;
    wait_until(Duration::from_secs(40), || {
        let format = "{{.Node}} {{.DesiredState}} {{.CurrentState}}";
        let list = host.docker(&["service", "ps", "--format", format, "moving"])?;
        Ok(list.lines().filter(|line| line.starts_with("sathish-vm1 Running Running")).count() == 4)
    })?;
    host.dk("node update --availability active sathish-vm2")?;
    host.dk("service rm moving").map(drop)
}

fn a_task_that_cannot_be_placed_says_why(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("service create -q --no-resolve-image --detach --name lost --constraint node.labels.zone==none httpd")?;
    wait_until(Duration::from_secs(10), || {
        let error =
            host.docker(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "lost"])?;
        Ok(error.contains("no suitable node") && error.contains("scheduling constraints"))
    })?;
    host.dk("service rm lost").map(drop)
}

fn a_global_service_runs_on_every_node(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk(&format!("{CREATE} --name everywhere --mode global httpd"))?;
    let nodes = host.docker(&["service", "ps", "--format", "{{.Node}}", "everywhere"])?;
    ensure!(nodes.contains("sathish-vm1") && nodes.contains("sathish-vm2"), "{nodes}");
    host.dk("service rm everywhere").map(drop)
}

fn service_logs_come_from_every_node(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.docker(&[
        "service",
        "create",
        "-q",
        "--no-resolve-image",
        "--name",
        "talker",
        "--mode",
        "global",
        "httpd",
        "sh",
        "-c",
        "echo hello from $(hostname); sleep 600",
    ])?;
    wait_until(Duration::from_secs(20), || {
        let logs = host.dk("service logs talker")?;
        Ok(logs.lines().filter(|line| line.contains("hello from")).count() == 2)
    })?;
    host.dk("service rm talker").map(drop)
}

/// All on one host, which has finished with the first task when the second one starts.
fn followed_logs_go_on_in_later_tasks(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let create = "service create -q --no-resolve-image --name retold --stop-grace-period 1s";
    let mut create: Vec<&str> = create.split(' ').collect();
    create.extend(["--constraint", "node.role==manager"]);
    create.extend(["httpd", "sh", "-c", "echo hello from $(hostname); sleep 600"]);
    host.docker(&create)?;
    let said = host.folder.join("retold.said");
    let output = std::fs::File::create(&said)?;
    let mut client = host.cli(&["service", "logs", "-f", "retold"]).stdout(output).spawn()?;
    let lines = |count| {
        wait_until(Duration::from_secs(20), || {
            let said = std::fs::read_to_string(&said)?;
            Ok(said.lines().filter(|line| line.contains("hello from")).count() == count)
        })
    };
    let followed = lines(1).and_then(|()| {
        for count in 2..4 {
            host.dk("service update -q --detach=false --force retold")?;
            lines(count).with_context(|| format!("the line of task {count}"))?;
        }
        Ok(())
    });
    client.kill()?;
    client.wait()?;
    host.dk("service rm retold")?;
    followed
}

fn wrong_services_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk(&format!("{CREATE} --name first -p 8000:80 httpd"))?;
    refused(
        host,
        "service create --no-resolve-image --name first httpd",
        "name conflicts with an existing object",
    )?;
    refused(
        host,
        "service create --no-resolve-image --name second -p 8000:80 httpd",
        "already in use by service 'first'",
    )?;
    refused(host, "service create --no-resolve-image --name bad_name! httpd", "name")?;
    refused(host, "service inspect nobody", "nobody")?;
    refused(
        host,
        "service create --no-resolve-image --name third --network nowhere httpd",
        "network nowhere not found",
    )?;
    host.dk("service rm first").map(drop)
}

fn a_node_leaves_and_comes_back(lab: &Lab) -> Result<()> {
    let (manager, worker) = (lab.host(1), lab.host(2));
    worker.dk("swarm leave")?;
    wait_until(Duration::from_secs(40), || {
        Ok(manager
            .docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?
            .contains("sathish-vm2 Down"))
    })?;
    manager.dk("node rm sathish-vm2")?;
    refused(manager, "swarm leave", "--force")?;
    let token = manager.dk("swarm join-token -q worker")?;
    worker.dk(&format!("swarm join --token {token} {}:2377", manager.address))?;
    wait_until(Duration::from_secs(20), || {
        Ok(manager
            .docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?
            .contains("sathish-vm2 Ready"))
    })
}

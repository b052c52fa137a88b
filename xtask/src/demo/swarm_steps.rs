//! Steps 1 to 4: the swarm, the network, the service and its tasks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::host::wait_until;

use super::show::{docker, must, title};
use super::walk::Walk;

/// How long a node may take from `join` to Ready.
const READY_MAX: Duration = Duration::from_secs(20);

impl Walk<'_> {
    pub fn swarm(&self) -> Result<()> {
        title(1, "a swarm of hosts");
        let manager = self.manager();
        docker(manager, &format!("swarm init --advertise-addr {}", manager.address))?;
        for host in &self.lab.hosts[1..] {
            let role = if host.number <= self.options.managers() { "manager" } else { "worker" };
            let token = manager.docker(&["swarm", "join-token", "-q", role])?;
            docker(host, &format!("swarm join --token {token} {}:2377", manager.address))?;
        }
        let ready = || {
            let states = manager.dk("node ls --format {{.Status}}/{{.Availability}}")?;
            Ok(states.lines().filter(|state| *state == "Ready/Active").count()
                == self.options.host_count())
        };
        wait_until(READY_MAX, ready).context("not every node is Ready and Active")?;
        let nodes = docker(manager, "node ls")?;
        let ids = manager.dk("node ls -q")?;
        must(ids.lines().all(|id| id.len() == 25), "node ids have 25 characters", &ids)?;
        let own = nodes.lines().find(|line| line.contains(" * ")).unwrap_or_default();
        must(
            own.contains(&manager.name) && own.contains("Leader"),
            "the first host is the leader, marked *",
            &nodes,
        )
    }

    pub fn network(&self) -> Result<()> {
        title(2, "a network across the hosts");
        let manager = self.manager();
        let create = if self.options.ipv6 {
            "network create web --driver overlay --ipv6 --subnet 10.0.1.0/24 --subnet fd00:77::/64"
        } else {
            "network create web --driver overlay"
        };
        let id = docker(manager, create)?;
        must(id.len() == 25, "the command prints the network's id", &id)?;
        let list = docker(manager, "network ls")?;
        let seen = manager.dk("network ls --format {{.Name}}/{{.Driver}}/{{.Scope}}")?;
        for line in [
            "bridge/bridge/local",
            "docker_gwbridge/bridge/local",
            "host/host/local",
            "ingress/overlay/swarm",
            "none/null/local",
            "web/overlay/swarm",
        ] {
            must(seen.lines().any(|l| l == line), &format!("the list has {line}"), &list)?;
        }
        Ok(())
    }

    pub fn service(&self) -> Result<()> {
        title(3, "a service of six tasks");
        let start = Instant::now();
        let image = &self.options.reference;
        let answer = docker(
            self.manager(),
            &format!("service create --replicas 6 --network web --name web -p 80:80 {image}"),
        )?;
        println!("  ({:.1} s)", start.elapsed().as_secs_f64());
        must(answer.contains("overall progress: 6 out of 6 tasks"), "six tasks run", &answer)?;
        must(answer.contains("converged"), "the service converged", &answer)
    }

    pub fn service_ps(&mut self) -> Result<()> {
        title(4, "where the tasks are");
        let list = docker(self.manager(), "service ps web")?;
        let format = "{{.Name}} {{.ID}} {{.Node}} {{.DesiredState}} {{.CurrentState}}";
        let rows =
            self.manager().docker(&["service", "ps", "--no-trunc", "--format", format, "web"])?;
        self.tasks.clear();
        for row in rows.lines() {
            let words: Vec<&str> = row.split_whitespace().collect();
            must(words.len() > 4 && words[3] == "Running" && words[4] == "Running", row, &list)?;
            let host = self
                .lab
                .hosts
                .iter()
                .find(|host| host.name == words[2])
                .context("an unknown node")?;
            let name = format!("{}.{}", words[0], words[1]);
            self.tasks.push(super::walk::Task { name, host: host.number, address: String::new() });
        }
        let fair = 6 / self.options.host_count()..=6usize.div_ceil(self.options.host_count());
        for host in &self.lab.hosts {
            let count = self.tasks.iter().filter(|task| task.host == host.number).count();
            must(fair.contains(&count), &format!("{count} tasks on {}", host.name), &list)?;
        }
        must(self.tasks.len() == 6, "six tasks", &list)
    }
}

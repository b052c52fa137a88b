//! Steps 1 to 4: the swarm, the network, the service and its tasks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::Host;
use lab::host::wait_until;

use super::show::{docker, docker_at_terminal, must, title};
use super::walk::{Task, Walk};

/// How long a node may take from `join` to Ready on a busy machine.
const READY_MAX: Duration = Duration::from_secs(90);
const ID_LENGTH: usize = 25;

impl Walk<'_> {
    pub fn swarm(&self) -> Result<()> {
        title(1, "a swarm of hosts");
        let manager = self.manager();
        let init = docker(manager, &format!("swarm init --advertise-addr {}", manager.address))?;
        let as_worker = join_command(&init)?;
        for host in &self.lab.hosts[1..] {
            let (role, join) = if host.number <= self.options.managers() {
                ("manager", join_command(&manager.dk("swarm join-token manager")?)?)
            } else {
                ("worker", as_worker.clone())
            };
            let answer = docker(host, &join)?;
            let joined = answer == format!("This node joined a swarm as a {role}.");
            must(joined, &format!("{} is a {role}", host.name), &answer)?;
        }
        self.check_nodes()
    }

    fn check_nodes(&self) -> Result<()> {
        let manager = self.manager();
        let states = "node ls --format {{.Status}}/{{.Availability}}";
        let ready = || {
            let all = manager.dk(states)?;
            Ok(all.lines().filter(|state| *state == "Ready/Active").count()
                == self.options.host_count())
        };
        wait_until(READY_MAX, ready)
            .with_context(|| manager.dk("node ls").unwrap_or_default())
            .context("not every node is Ready and Active")?;
        let list = docker(manager, "node ls")?;
        let format = "{{.ID}}|{{.Self}}|{{.Hostname}}|{{.ManagerStatus}}|{{.EngineVersion}}";
        let rows = manager.docker(&["node", "ls", "--format", format])?;
        for host in &self.lab.hosts {
            let row = rows.lines().find(|row| row.contains(&format!("|{}|", host.name)));
            let words: Vec<&str> = row.unwrap_or_default().split('|').collect();
            let [id, own, name, status, version] = words[..] else {
                return must(false, &format!("{} is in the list", host.name), &list);
            };
            let expected = match host.number {
                1 => "Leader",
                n if n <= self.options.managers() => "Reachable",
                _ => "",
            };
            let holds = id.len() == ID_LENGTH
                && (own == "true") == (host.number == 1)
                && status == expected
                && !version.is_empty();
            must(
                holds,
                &format!(
                    "{name}: {ID_LENGTH} characters of id, Ready, Active, manager status {expected:?}, version {version}"
                ),
                &list,
            )?;
        }
        let marked: Vec<&str> = list.lines().filter(|line| line.contains(" * ")).collect();
        must(
            marked.len() == 1 && marked[0].contains(&manager.name),
            "the asked host alone is marked *",
            &list,
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
        must(id.len() == ID_LENGTH, "the command prints the network's id", &id)?;
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
        let image = &self.reference;
        let screen = docker_at_terminal(
            self.manager(),
            &format!("service create --replicas 6 --network web --name web -p 80:80 {image}"),
        )?;
        println!("  ({:.1} s)", start.elapsed().as_secs_f64());
        must(screen.contains("overall progress: 6 out of 6 tasks"), "six tasks run", &screen)?;
        let bars = (1..=6).filter(|slot| {
            screen
                .lines()
                .any(|line| line.starts_with(&format!("{slot}/6: running")) && line.ends_with(']'))
        });
        must(bars.count() == 6, "six bars say running", &screen)?;
        let last = screen.lines().last().unwrap_or_default();
        must(
            last.starts_with("verify: Service ") && last.ends_with(" converged"),
            "the service converged",
            &screen,
        )
    }

    pub fn service_ps(&mut self) -> Result<()> {
        title(4, "where the tasks are");
        let list = docker(self.manager(), "service ps web")?;
        let format = "{{.Name}} {{.ID}} {{.Node}} {{.DesiredState}} {{.CurrentState}}";
        let rows =
            self.manager().docker(&["service", "ps", "--no-trunc", "--format", format, "web"])?;
        self.tasks.clear();
        for (row, number) in rows.lines().zip(1..) {
            let words: Vec<&str> = row.split_whitespace().collect();
            let holds = words.len() > 5
                && words[0] == format!("web.{number}")
                && words[3] == "Running"
                && words[4] == "Running"
                && row.ends_with(" ago");
            must(holds, &format!("web.{number}: desired Running, Running ... ago"), &list)?;
            let host = self.lab.hosts.iter().find(|host| host.name == words[2]);
            let host = host.context("an unknown node")?.number;
            let name = format!("{}.{}", words[0], words[1]);
            self.tasks.push(Task { name, host, address: String::new(), address6: String::new() });
        }
        must(self.tasks.len() == 6, "six tasks", &list)?;
        self.check_shares(&list)
    }

    /// Three each on two hosts; in general as even as numbers allow.
    fn check_shares(&self, list: &str) -> Result<()> {
        let hosts = self.options.host_count();
        let fair = 6 / hosts..=6usize.div_ceil(hosts);
        let count = |host: &Host| self.tasks.iter().filter(|task| task.host == host.number).count();
        for host in &self.lab.hosts {
            must(
                fair.contains(&count(host)),
                &format!("{} tasks on {}", count(host), host.name),
                list,
            )?;
        }
        Ok(())
    }
}

/// The `docker swarm join ...` that the answer tells the user to type, without `docker`.
fn join_command(answer: &str) -> Result<String> {
    let line = answer.lines().find_map(|line| line.trim().strip_prefix("docker swarm join "));
    line.map(|rest| format!("swarm join {rest}"))
        .with_context(|| format!("no join command in: {answer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_command_is_taken_from_what_init_says() {
        let said = "Swarm initialized.\n\n    docker swarm join --token SWMTKN-1-a-b 192.0.2.1:2377\n\nTo add a manager, run 'docker swarm join-token manager'.";
        assert_eq!(
            join_command(said).expect("a command"),
            "swarm join --token SWMTKN-1-a-b 192.0.2.1:2377"
        );
        assert!(join_command("nothing").is_err());
    }
}

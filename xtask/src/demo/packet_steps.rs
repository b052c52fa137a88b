//! Steps 8 and 9: tasks find and reach each other, and what that looks like on the wire.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use lab::capture::{Capture, Encapsulated};
use lab::host::wait_until;
use lab::{Engine, Host};

use super::network_steps::KNOWN_MAX;
use super::show::{docker, docker_at_terminal, must, title};
use super::walk::{Task, Walk};

const ICMP: u8 = 1;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// An image without ping or nslookup gets these from busybox, at this place.
const TOOLS: &str = "/tmp/busybox";

impl Walk<'_> {
    pub fn names(&mut self) -> Result<()> {
        title(8, "tasks find each other by name");
        self.bring_tools()?;
        let hosts = self.busy_hosts();
        let first = *hosts.first().context("no host has a task")?;
        for other in &hosts[1..] {
            self.ping(first, other)?;
            self.ping(other, first)?;
        }
        for host in self.balancing_hosts() {
            if self.task_on(host).is_ok() {
                self.service_names(host)?;
            }
        }
        self.outside(first)
    }

    /// Copies busybox into tasks whose image has no ping.
    fn bring_tools(&self) -> Result<()> {
        if self.options.image.is_none() {
            return Ok(());
        }
        for host in self.busy_hosts() {
            let task = self.task_on(host)?;
            let busybox = lab::image::busybox()?.display().to_string();
            docker(host, &format!("cp {busybox} {}:{TOOLS}", task.name))?;
        }
        Ok(())
    }

    /// `ping` as a task of this image can call it.
    fn tool(&self, name: &str) -> String {
        if self.options.image.is_some() { format!("{TOOLS} {name}") } else { name.to_owned() }
    }

    fn ping(&self, host: &Host, to: &Host) -> Result<()> {
        let (task, other) = (self.task_on(host)?, self.task_on(to)?);
        self.wait_for_name(host, task, other)?;
        let ping = self.tool("ping");
        let line = format!("container exec -it {} {ping} -c 3 {}", task.name, other.name);
        let answer = docker_at_terminal(host, &line)?;
        let fact = format!("a task on {} reaches one on {} by its name", host.name, to.name);
        must(answer.contains("3 packets received"), &fact, &answer)?;
        // A name with addresses of both families is reached at either.
        let at = [&other.address, &other.address6];
        let known = at.iter().any(|at| !at.is_empty() && answer.contains(&format!("({at})")));
        must(known, &format!("at {}", other.address), &answer)?;
        // The way back from the address to `web.N.<task id>.web`, which other pings show.
        let lookup = self.tool("nslookup");
        let answer = docker(host, &format!("exec {} {lookup} {}", task.name, other.address))?;
        let name = format!("name = {}.web", other.name);
        must(answer.contains(&name), &format!("the address's {name}"), &answer)?;
        // The Docker Engine's overlay driver tells its peers IPv4 addresses alone.
        let both_ours = [host, to].iter().all(|host| host.engine == Engine::Skep);
        if both_ours && !other.address6.is_empty() {
            let line = format!("exec {} {ping} -6 -c 3 {}", task.name, other.address6);
            let answer = docker(host, &line)?;
            must(answer.contains("3 packets received"), "also over IPv6", &answer)?;
        }
        Ok(())
    }

    fn wait_for_name(&self, host: &Host, task: &Task, other: &Task) -> Result<()> {
        let line = format!("exec {} {} -c 1 -W 1 {}", task.name, self.tool("ping"), other.name);
        let words: Vec<&str> = line.split_whitespace().collect();
        wait_until(KNOWN_MAX, || Ok(host.try_docker(&words)?.status.success()))
            .with_context(|| format!("{} does not reach {}", task.name, other.name))
    }

    fn service_names(&self, host: &Host) -> Result<()> {
        let task = self.task_on(host)?;
        let lookup = self.tool("nslookup");
        let vip = docker(host, &format!("exec {} {lookup} -type=a web", task.name))?;
        let found = addresses(&vip);
        must(found.len() == 1, "web is one address, the service's", &vip)?;
        let known: BTreeSet<String> = self.tasks.iter().map(|task| task.address.clone()).collect();
        must(found.is_disjoint(&known), "which is no task's", &vip)?;
        let all = docker(host, &format!("exec {} {lookup} -type=a tasks.web", task.name))?;
        must(addresses(&all) == known, "tasks.web are the six", &all)
    }

    /// Packages could be installed from inside: the world is reached through docker_gwbridge.
    fn outside(&self, host: &Host) -> Result<()> {
        let (task, router) = (self.task_on(host)?, self.lab.gateway(host));
        let answer =
            docker(host, &format!("exec {} {} -c 1 {router}", task.name, self.tool("ping")))?;
        must(answer.contains("1 packets received"), "a task reaches the world outside", &answer)
    }

    pub fn packets(&self) -> Result<()> {
        title(9, "the packet on the wire");
        let hosts = self.busy_hosts();
        let source = hosts[0];
        // The second host as in the document, and the last, which is the Docker Engine's if any is.
        let mut targets = vec![hosts[1]];
        if self.options.with_dockerd {
            targets.extend(hosts.last());
        }
        for target in targets {
            self.capture(source, target)?;
        }
        Ok(())
    }

    fn capture(&self, source: &Host, target: &Host) -> Result<()> {
        let (task, other) = (self.task_on(source)?, self.task_on(target)?);
        println!("\n{}# tcpdump -i eth0 udp port 4789", target.name);
        let capture = Capture::start(target)?;
        docker(
            source,
            &format!("exec {} {} -c 3 {}", task.name, self.tool("ping"), other.address),
        )?;
        let packets = capture.finish(|packet| packet.inner_protocol == ICMP, 6)?;
        println!("\n{}# (decoded)", target.name);
        for packet in &packets {
            println!("{}", line(packet));
        }
        let seen = format!("{packets:?}");
        let count = |kind, from: (&Host, &Task), to: (&Host, &Task)| {
            let expected = |packet: &&Encapsulated| {
                packet.outer_source.to_string() == from.0.address
                    && packet.outer_target.to_string() == to.0.address
                    && (packet.udp_target, packet.vni) == (4789, 4097)
                    && packet.inner_source.to_string() == from.1.address
                    && packet.inner_target.to_string() == to.1.address
                    && (packet.inner_protocol, packet.inner_first) == (ICMP, kind)
            };
            packets.iter().filter(expected).count()
        };
        let (here, there) = ((source, task), (target, other));
        must(
            count(ECHO_REQUEST, here, there) == 3,
            &format!(
                "three echo requests in VXLAN, VNI 4097, {} > {}",
                source.address, target.address
            ),
            &seen,
        )?;
        must(count(ECHO_REPLY, there, here) == 3, "and three replies, the same way back", &seen)
    }
}

/// The addresses that nslookup found, the server's own left out.
fn addresses(answer: &str) -> BTreeSet<String> {
    let found = answer.split("Name:").skip(1).flat_map(str::lines);
    found
        .filter_map(|line| line.strip_prefix("Address"))
        .filter_map(|l| l.split(": ").nth(1))
        .map(|a| a.trim().to_owned())
        .collect()
}

fn line(packet: &Encapsulated) -> String {
    let inner = match (packet.inner_protocol, packet.inner_first) {
        (ICMP, ECHO_REQUEST) => "ICMP echo request".to_owned(),
        (ICMP, ECHO_REPLY) => "ICMP echo reply".to_owned(),
        (protocol, _) => format!("IP protocol {protocol}"),
    };
    format!(
        "IP {} > {} | UDP to {} | VXLAN, VNI {} | IP {} > {} | {inner}",
        packet.outer_source,
        packet.outer_target,
        packet.udp_target,
        packet.vni,
        packet.inner_source,
        packet.inner_target,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_s_own_address_is_no_answer() {
        let text = "Server:\t\t127.0.0.11\nAddress:\t127.0.0.11:53\n\nNon-authoritative answer:\nName:\ttasks.web\nAddress: 10.0.1.3\nName:\ttasks.web\nAddress: 10.0.1.4\n";
        assert_eq!(addresses(text), BTreeSet::from(["10.0.1.3".to_owned(), "10.0.1.4".to_owned()]));
    }
}

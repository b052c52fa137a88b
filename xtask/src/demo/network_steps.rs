//! Steps 5 to 9: what the hosts know of the network, and what goes through it.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::Host;
use lab::capture::{Capture, Encapsulated};
use lab::host::wait_until;
use serde_json::Value;

use super::show::{docker, docker_words, must, title};
use super::walk::Walk;

/// How long the last node may take to learn of the last task.
const KNOWN_MAX: Duration = Duration::from_secs(10);
/// Connections from outside until each of six tasks has surely been met: missing one of six by
/// chance in 120 has a probability of 2e-9.
const CONNECTIONS: usize = 120;
const ICMP: u8 = 1;

impl Walk<'_> {
    pub fn inspect(&mut self) -> Result<()> {
        title(5, "the network as each host sees it");
        let mut lb = BTreeSet::new();
        for host in self.lab.hosts.clone() {
            let peers = self.options.host_count();
            wait_until(KNOWN_MAX, || {
                let network = self.json(&host, "network inspect web")?;
                Ok(network[0]["Peers"].as_array().is_some_and(|list| list.len() == peers))
            })
            .context("Peers")?;
            let text = docker(&host, "network inspect web")?;
            let network: Value = serde_json::from_str(&text)?;
            lb.insert(self.check_network(&host, &network[0], &text)?);
        }
        let addresses: BTreeSet<&str> =
            self.tasks.iter().map(|task| task.address.as_str()).collect();
        must(addresses.len() == 6, "six tasks, six addresses", &format!("{:?}", self.tasks))?;
        must(
            lb.len() == self.lab.hosts.len(),
            "an lb address of its own on each host",
            &format!("{lb:?}"),
        )
    }

    /// Checks one host's answer; gives its lb address.
    fn check_network(&mut self, host: &Host, network: &Value, text: &str) -> Result<String> {
        must(
            network["Scope"] == "swarm" && network["Driver"] == "overlay",
            "scope swarm, driver overlay",
            text,
        )?;
        let config = &network["IPAM"]["Config"][0];
        must(
            config["Subnet"] == "10.0.1.0/24" && config["Gateway"] == "10.0.1.1",
            "10.0.1.0/24 via 10.0.1.1",
            text,
        )?;
        let vni = &network["Options"]["com.docker.network.driver.overlay.vxlanid_list"];
        must(vni == "4097" || self.options.ipv6, "VNI 4097", text)?;
        let containers = network["Containers"].as_object().context("Containers")?;
        let own: Vec<String> = self
            .tasks
            .iter()
            .filter(|task| task.host == host.number)
            .map(|task| task.name.clone())
            .collect();
        must(
            containers.len() == own.len() + 1,
            "the host's own tasks and its lb endpoint, no others",
            text,
        )?;
        for task in self.tasks.iter_mut().filter(|task| task.host == host.number) {
            let entry = containers
                .values()
                .find(|entry| entry["Name"] == task.name.as_str())
                .context("a task is missing")?;
            let address = entry["IPv4Address"].as_str().unwrap_or_default();
            task.address = address.trim_end_matches("/24").to_owned();
            let mac = entry["MacAddress"].as_str().unwrap_or_default();
            must(
                address.starts_with("10.0.1.") && mac.starts_with("02:42:0a:00:01:"),
                &task.name,
                text,
            )?;
        }
        must(containers["lb-web"]["Name"] == "web-endpoint", "lb-web is web-endpoint", text)?;
        let peers: BTreeSet<&str> = network["Peers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|peer| peer["IP"].as_str())
            .collect();
        let hosts: BTreeSet<&str> =
            self.lab.hosts.iter().map(|host| host.address.as_str()).collect();
        must(peers == hosts, "the peers are the hosts", text)?;
        Ok(containers["lb-web"]["IPv4Address"].as_str().unwrap_or_default().to_owned())
    }

    pub fn resolv_conf(&self) -> Result<()> {
        title(6, "names inside a task");
        let task = self.task_on(1)?;
        let host = self.lab.host(1);
        let text = docker(host, &format!("exec {} cat /etc/resolv.conf", task.name))?;
        must(
            text.lines().any(|line| line == "nameserver 127.0.0.11"),
            "nameserver 127.0.0.11",
            &text,
        )?;
        must(text.lines().any(|line| line.contains("ndots:0")), "options ndots:0", &text)?;
        let mounts =
            docker_words(host, &["exec", &task.name, "sh", "-c", "mount | grep resolv.conf"])?;
        must(mounts.contains("/etc/resolv.conf"), "it is a mount", &mounts)
    }

    pub fn mesh(&self) -> Result<()> {
        title(7, "every host answers the published port");
        for host in self.skep_hosts() {
            println!("\nclient# curl {}", host.address);
            let answer = self.ask_from_outside(&host.address, "/")?;
            println!("{answer}");
            must(answer == lab::image::IT_WORKS, &format!("{} answers", host.address), &answer)?;
        }
        if self.options.image.is_some() {
            return Ok(());
        }
        for host in self.skep_hosts() {
            self.check_spread(host)?;
        }
        Ok(())
    }

    /// Connections from outside spread over all tasks, and the tasks see the client's own address.
    fn check_spread(&self, host: &Host) -> Result<()> {
        let mut names = BTreeSet::new();
        let mut clients = BTreeSet::new();
        for _ in 0..CONNECTIONS {
            let answer = self.ask_from_outside(&host.address, "/cgi-bin/addr")?;
            let (client, name) = answer.split_once(' ').with_context(|| answer.clone())?;
            names.insert(name.to_owned());
            clients
                .insert(client.trim_matches(['[', ']']).trim_start_matches("::ffff:").to_owned());
        }
        must(
            names.len() == 6,
            &format!("{} reaches all six tasks", host.address),
            &format!("{names:?}"),
        )?;
        let own = if self.options.routed {
            host.address.replace(".109", ".1")
        } else {
            "192.168.68.1".into()
        };
        if !self.options.with_dockerd {
            must(
                clients == BTreeSet::from([own]),
                "the tasks see the client's own address",
                &format!("{clients:?}"),
            )?;
        }
        Ok(())
    }

    fn ask_from_outside(&self, address: &str, path: &str) -> Result<String> {
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net=/run/netns/{}", self.lab.router));
        curl.args(["curl", "-sS", "-4", "--max-time", "5"]).arg(format!("http://{address}{path}"));
        lab::command::run(&mut curl)
    }

    pub fn names(&self) -> Result<()> {
        title(8, "tasks find each other by name");
        for (from, to) in [(1, 2), (2, 1)] {
            let (task, other) = (self.task_on(from)?, self.task_on(to)?);
            let host = self.lab.host(from);
            self.wait_for_name(host, &task.name, &other.name)?;
            let answer = docker(host, &format!("exec {} ping -c 3 {}", task.name, other.name))?;
            must(
                answer.contains("3 packets received"),
                &format!("{} reaches {}", task.name, other.name),
                &answer,
            )?;
            must(answer.contains(&other.address), &format!("at {}", other.address), &answer)?;
        }
        let (task, host) = (self.task_on(1)?, self.lab.host(1));
        let vip = docker(host, &format!("exec {} nslookup -type=a web", task.name))?;
        must(addresses(&vip).len() == 1, "web is one address, the service's", &vip)?;
        must(
            !self.tasks.iter().any(|task| addresses(&vip).contains(&task.address)),
            "which is no task's",
            &vip,
        )?;
        let all = docker(host, &format!("exec {} nslookup -type=a tasks.web", task.name))?;
        must(addresses(&all).len() == 6, "tasks.web are six", &all)
    }

    fn wait_for_name(&self, host: &Host, task: &str, name: &str) -> Result<()> {
        wait_until(KNOWN_MAX, || {
            Ok(host
                .try_docker(&["exec", task, "ping", "-c", "1", "-W", "1", name])?
                .status
                .success())
        })
        .with_context(|| format!("{task} does not reach {name}"))
    }

    pub fn packets(&self) -> Result<()> {
        title(9, "the packet on the wire");
        let (task, other) = (self.task_on(1)?, self.task_on(2)?);
        let (source, target) = (self.lab.host(1), self.lab.host(2));
        let capture = Capture::start(target)?;
        docker(source, &format!("exec {} ping -c 3 {}", task.name, other.address))?;
        let packets = capture.finish(6)?;
        for packet in &packets {
            println!("{}", line(packet));
        }
        let expected = |packet: &&Encapsulated| {
            packet.outer_source.to_string() == source.address
                && packet.outer_target.to_string() == target.address
                && packet.udp_target == 4789
                && packet.vni == 4097
                && packet.inner_source.to_string() == task.address
                && packet.inner_target.to_string() == other.address
                && packet.inner_protocol == ICMP
        };
        let count = packets.iter().filter(expected).count();
        must(
            count == 3,
            "three echo requests in VXLAN, VNI 4097, from host to host",
            &format!("{packets:?}"),
        )
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
    format!(
        "{} > {} UDP {} VXLAN vni {} | {} > {} protocol {}",
        packet.outer_source,
        packet.outer_target,
        packet.udp_target,
        packet.vni,
        packet.inner_source,
        packet.inner_target,
        packet.inner_protocol
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

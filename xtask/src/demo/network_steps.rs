//! Steps 5 to 7: what the hosts know of the network, names inside a task, and the published port.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::Host;
use lab::host::wait_until;
use serde_json::Value;

use super::show::{docker, docker_words, must, title};
use super::walk::Walk;

/// How long the last node may take to learn of the last task.
pub const KNOWN_MAX: Duration = Duration::from_secs(60);
/// Connections from outside until each of six tasks has surely been met: missing one of six by
/// chance in 120 has a probability of 2e-9.
const CONNECTIONS: usize = 120;

impl Walk<'_> {
    pub fn inspect(&mut self) -> Result<()> {
        title(5, "the network as each host sees it");
        let busy: Vec<Host> = self.busy_hosts().into_iter().cloned().collect();
        let mut lb = BTreeSet::new();
        for host in &busy {
            wait_until(KNOWN_MAX, || {
                let network = self.json(host, "network inspect web")?;
                Ok(network[0]["Peers"].as_array().is_some_and(|list| list.len() == busy.len()))
            })
            .with_context(|| format!("Peers on {}", host.name))?;
            let text = docker(host, "network inspect web")?;
            let network: Value = serde_json::from_str(&text)?;
            check_definition(&network[0], &text)?;
            if self.options.ipv6 {
                check_ipv6(&network[0], &text)?;
            }
            lb.insert(self.check_containers(host, &network[0], &text)?);
            check_peers(&busy, &network[0], &text)?;
        }
        self.check_idle_hosts()?;
        let addresses: BTreeSet<&str> =
            self.tasks.iter().map(|task| task.address.as_str()).collect();
        must(addresses.len() == 6, "six tasks, six addresses", &format!("{:?}", self.tasks))?;
        let own = lb.len() == busy.len() && lb.iter().all(|a| !addresses.contains(a.as_str()));
        must(own, "an lb address of its own on each host", &format!("{lb:?}"))
    }

    /// Checks the host's own part of its answer; gives its lb address.
    fn check_containers(&mut self, host: &Host, network: &Value, text: &str) -> Result<String> {
        let containers = network["Containers"].as_object().context("Containers")?;
        let own = self.tasks.iter().filter(|task| task.host == host.number).count();
        must(
            containers.len() == own + 1,
            "the host's own tasks and its lb endpoint, no others",
            text,
        )?;
        for task in self.tasks.iter_mut().filter(|task| task.host == host.number) {
            let id = host.dk(&format!("inspect --format {{{{.Id}}}} {}", task.name))?;
            let entry = &containers.get(&id).with_context(|| format!("no entry {id}"))?;
            let address = entry["IPv4Address"].as_str().unwrap_or_default();
            let mac = entry["MacAddress"].as_str().unwrap_or_default();
            let last = address.strip_prefix("10.0.1.").and_then(|rest| rest.strip_suffix("/24"));
            let last: u8 = last.and_then(|last| last.parse().ok()).context("IPv4Address")?;
            let holds =
                entry["Name"] == task.name.as_str() && mac == format!("02:42:0a:00:01:{last:02x}");
            must(holds, &format!("{}: {address}, {mac}", task.name), text)?;
            task.address = format!("10.0.1.{last}");
            // SwarmKit gives a task one address; where there is a second, it is used below.
            let six = entry["IPv6Address"].as_str().unwrap_or_default();
            if !six.is_empty() {
                let inside = six.starts_with("fd00:77::") && six.ends_with("/64");
                must(inside, &format!("and {six}"), text)?;
                task.address6 = six.trim_end_matches("/64").to_owned();
            }
        }
        let lb = &containers.get("lb-web").context("no lb-web")?;
        must(lb["Name"] == "web-endpoint", "lb-web is web-endpoint", text)?;
        let address = lb["IPv4Address"].as_str().unwrap_or_default();
        Ok(address.trim_end_matches("/24").to_owned())
    }

    /// A network comes to a worker with its first task; a manager knows all.
    fn check_idle_hosts(&self) -> Result<()> {
        for host in &self.lab.hosts {
            if self.task_on(host).is_ok() {
                continue;
            }
            let output = host.try_docker(&["network", "inspect", "web"])?;
            let said = String::from_utf8_lossy(&output.stderr);
            let manages = host.number <= self.options.managers();
            let holds = if manages { output.status.success() } else { said.contains("not found") };
            must(holds, &format!("{} has no task; it knows web: {manages}", host.name), &said)?;
        }
        Ok(())
    }

    pub fn resolv_conf(&self) -> Result<()> {
        title(6, "names inside a task");
        for host in self.busy_hosts() {
            let task = self.task_on(host)?;
            let text = docker(host, &format!("exec {} cat /etc/resolv.conf", task.name))?;
            let has = |line: &str| text.lines().any(|l| l == line);
            must(has("nameserver 127.0.0.11"), "nameserver 127.0.0.11", &text)?;
            must(has("options ndots:0"), "options ndots:0", &text)?;
            let look = ["exec", &task.name, "sh", "-c", "grep resolv.conf /proc/mounts"];
            let mounts = docker_words(host, &look)?;
            must(mounts.contains(" /etc/resolv.conf "), "it is a mount", &mounts)?;
        }
        Ok(())
    }

    pub fn mesh(&self) -> Result<()> {
        title(7, "every host answers the published port");
        let hosts = self.balancing_hosts();
        let mut pages = BTreeSet::new();
        for host in &hosts {
            println!("\nclient# curl {}", host.address);
            let answer = self.ask_from_outside(&host.address, "/")?;
            println!("{answer}");
            pages.insert(answer);
        }
        let expected = BTreeSet::from([lab::image::IT_WORKS.to_owned()]);
        let seen = format!("{pages:?}");
        if self.options.image.is_some() {
            return must(pages.len() == 1, "all give the same page", &seen);
        }
        must(pages == expected, "all say that it works", &seen)?;
        for host in hosts {
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
            &format!("{CONNECTIONS} connections to {} reach all six tasks", host.address),
            &format!("{names:?}"),
        )?;
        // Towards a task on a Docker Engine node, the node in between must stand in for the client.
        if !self.options.with_dockerd {
            must(
                clients == BTreeSet::from([self.lab.gateway(host)]),
                "the tasks see the client's own address",
                &format!("{clients:?}"),
            )?;
        }
        Ok(())
    }

    pub fn ask_from_outside(&self, address: &str, path: &str) -> Result<String> {
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net=/run/netns/{}", self.lab.router));
        curl.args(["curl", "-sS", "-4", "--max-time", "5"]).arg(format!("http://{address}{path}"));
        lab::command::run(&mut curl)
    }
}

fn check_definition(network: &Value, text: &str) -> Result<()> {
    let kind = network["Scope"] == "swarm" && network["Driver"] == "overlay";
    must(kind, "scope swarm, driver overlay", text)?;
    must(has_subnet(network, "10.0.1.0/24", "10.0.1.1"), "10.0.1.0/24 via 10.0.1.1", text)?;
    let vni = &network["Options"]["com.docker.network.driver.overlay.vxlanid_list"];
    must(vni == "4097", "VNI 4097", text)
}

fn check_ipv6(network: &Value, text: &str) -> Result<()> {
    let second = has_subnet(network, "fd00:77::/64", "fd00:77::1");
    must(network["EnableIPv6"] == true && second, "IPv6, fd00:77::/64", text)
}

/// The docker command sends several subnets in no order of its own.
fn has_subnet(network: &Value, subnet: &str, gateway: &str) -> bool {
    let configs = network["IPAM"]["Config"].as_array();
    let found = |config: &Value| config["Subnet"] == subnet && config["Gateway"] == gateway;
    configs.is_some_and(|configs| configs.iter().any(found))
}

fn check_peers(hosts: &[Host], network: &Value, text: &str) -> Result<()> {
    let list = network["Peers"].as_array().context("Peers")?;
    let addresses: BTreeSet<&str> = list.iter().filter_map(|peer| peer["IP"].as_str()).collect();
    let expected: BTreeSet<&str> = hosts.iter().map(|host| host.address.as_str()).collect();
    must(addresses == expected, "the peers are the hosts", text)?;
    let names: BTreeSet<&str> = list.iter().filter_map(|peer| peer["Name"].as_str()).collect();
    let digits = |name: &&str| name.len() == 12 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let named = names.len() == hosts.len() && names.iter().all(digits);
    must(named, "each with a name of 12 hexadecimal digits", text)
}

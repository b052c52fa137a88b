//! The ten steps in order, and what later steps need to know of earlier ones.

use anyhow::{Context, Result};
use lab::{Engine, Host, Lab};
use serde_json::Value;

use super::options::Options;

pub struct Walk<'a> {
    pub lab: &'a Lab,
    pub options: &'a Options,
    /// The service's image.
    pub reference: String,
    pub tasks: Vec<Task>,
}

/// A task of the service and where it runs.
#[derive(Clone, Debug)]
pub struct Task {
    /// `web.N.<task id>`, the container's name.
    pub name: String,
    /// The host's number, from 1.
    pub host: usize,
    pub address: String,
    /// Empty where the swarm gives tasks IPv4 addresses only, as SwarmKit does.
    pub address6: String,
}

impl Walk<'_> {
    pub fn all(&mut self) -> Result<()> {
        self.swarm().context("step 1")?;
        self.network().context("step 2")?;
        self.service().context("step 3")?;
        self.service_ps().context("step 4")?;
        self.inspect().context("step 5")?;
        self.resolv_conf().context("step 6")?;
        self.mesh().context("step 7")?;
        self.names().context("step 8")?;
        self.packets().context("step 9")?;
        self.always_running().context("step 10")
    }

    pub fn manager(&self) -> &Host {
        self.lab.host(1)
    }

    /// Can this host balance: virtual addresses and the mesh? The Docker Engine needs IPVS for
    /// both, and not every kernel has it.
    pub fn balances(&self, host: &Host) -> bool {
        host.engine == Engine::Skep || host.sh("test -e /proc/net/ip_vs").is_ok()
    }

    /// Hosts that can balance; of the others the reader is told why they are left out.
    pub fn balancing_hosts(&self) -> Vec<&Host> {
        let (can, cannot): (Vec<_>, Vec<_>) =
            self.lab.hosts.iter().partition(|host| self.balances(host));
        for host in cannot {
            println!(
                "  {} is left out: the Docker Engine's virtual addresses and mesh need IPVS, which this kernel lacks",
                host.name
            );
        }
        can
    }

    /// Hosts with a task, in order; six tasks leave some of seven hosts without one.
    pub fn busy_hosts(&self) -> Vec<&Host> {
        let busy = |host: &&Host| self.tasks.iter().any(|task| task.host == host.number);
        self.lab.hosts.iter().filter(busy).collect()
    }

    /// The first task on a host.
    pub fn task_on(&self, host: &Host) -> Result<&Task> {
        let task = self.tasks.iter().find(|task| task.host == host.number);
        task.with_context(|| format!("no task on {}", host.name))
    }

    /// A JSON answer of the docker CLI.
    pub fn json(&self, host: &Host, line: &str) -> Result<Value> {
        let answer = host.dk(line)?;
        serde_json::from_str(&answer).with_context(|| format!("docker {line}: {answer}"))
    }
}

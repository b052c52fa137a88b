//! The ten steps in order, and what later steps need to know of earlier ones.

use anyhow::{Context, Result};
use lab::{Engine, Host, Lab};
use serde_json::Value;

use super::options::Options;

pub struct Walk<'a> {
    pub lab: &'a Lab,
    pub options: &'a Options,
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

    /// Hosts whose mesh and virtual addresses can work: the Docker Engine needs IPVS for both, and
    /// not every kernel has it.
    pub fn skep_hosts(&self) -> impl Iterator<Item = &Host> {
        self.lab.hosts.iter().filter(|host| host.engine == Engine::Skep)
    }

    /// The first task on host `number`.
    pub fn task_on(&self, number: usize) -> Result<&Task> {
        let task = self.tasks.iter().find(|task| task.host == number);
        task.with_context(|| format!("no task on host {number}"))
    }

    /// A JSON answer of the docker CLI.
    pub fn json(&self, host: &Host, line: &str) -> Result<Value> {
        let answer = host.dk(line)?;
        serde_json::from_str(&answer).with_context(|| format!("docker {line}: {answer}"))
    }
}

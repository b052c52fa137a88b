//! One worker is cut off for a while and comes back, with what it ran still running.

use std::collections::BTreeSet;
use std::time::Duration;

use manager::Call;
use wire::swarmkit as pb;

use crate::client;
use crate::world::World;

/// Long enough for everything to come up, or back.
const SETTLED_MAX: Duration = Duration::from_secs(60);

/// Replicas that only the worker may run.
const PINNED: usize = 3;

/// What was seen of a service that may run anywhere, and of one that only the worker may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    pub wanted: usize,
    /// Of both, on the worker before it was cut off.
    pub before: usize,
    /// Of them, those that nobody else may run.
    pub pinned: usize,
    /// Elsewhere, when the time was over.
    pub elsewhere: usize,
    /// Everywhere, once the worker was back for a minute.
    pub after: usize,
    /// On the worker, never having stopped.
    pub adopted: usize,
    /// Started on any host since the worker was back.
    pub started: usize,
}

impl World {
    /// Cuts one worker off for so many seconds.
    pub fn cut_off(&mut self, seconds: u64, anywhere: usize) -> Result<CutOff, String> {
        self.found()?;
        let worker = self.hosts.len() - 1;
        let only = vec![format!("node.id=={}", self.hosts[worker].node_id)];
        self.start_service("web", anywhere, Vec::new())?;
        self.start_service("pinned", PINNED, only)?;
        self.run(SETTLED_MAX)?;
        let before = self.running_on(worker);
        self.cut.insert(worker);
        self.run(Duration::from_secs(seconds))?;
        let elsewhere = self.running() - self.running_on(worker).len();
        self.cut.clear();
        let starts = self.starts;
        self.run(SETTLED_MAX)?;
        self.check_in_the_end()?;
        Ok(CutOff {
            wanted: anywhere + PINNED,
            before: before.len(),
            pinned: PINNED,
            elsewhere,
            after: self.running(),
            adopted: self.running_on(worker).intersection(&before).count(),
            started: self.starts - starts,
        })
    }

    fn start_service(
        &mut self,
        name: &str,
        replicas: usize,
        constraints: Vec<String>,
    ) -> Result<(), String> {
        let mut spec = client::spec(name, replicas as u64, "image", &self.network);
        let placement = pb::Placement { constraints, ..Default::default() };
        spec.task.get_or_insert_default().placement = Some(placement);
        let caller = self.caller(0);
        let request = pb::CreateServiceRequest { spec: Some(spec) };
        self.ask(caller, Call::Control(request.into())).map(drop)
    }

    fn running(&self) -> usize {
        (0..self.hosts.len()).map(|host| self.running_on(host).len()).sum()
    }

    fn running_on(&self, host: usize) -> BTreeSet<String> {
        let containers = self.hosts[host].containers.iter();
        containers
            .filter(|(_, container)| container.running)
            .map(|(task, _)| task.clone())
            .collect()
    }
}

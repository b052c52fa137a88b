//! The beginning: a cluster as `swarm init` and `swarm join` make it, without faults.

use std::time::Duration;

use agent::Agent;
use manager::{Answer, Bootstrap, Call, Caller, Identity, Manager};
use rand::{Rng, RngCore};
use wire::swarmkit as pb;

use crate::executor;
use crate::host::Host;
use crate::world::{CLUSTER, START, World};

impl World {
    /// A cluster as `swarm init` and `swarm join` make it, without faults.
    pub(crate) fn found(&mut self) -> Result<(), String> {
        let root = ca::Root::create(START, &mut self.dice).map_err(|error| error.to_string())?;
        let address = "10.0.0.1:2377".to_owned();
        self.hosts.push(Host::new("node1".into(), address.clone(), 0, 0));
        let identity = Identity { node_id: "node1".into(), cluster_id: CLUSTER.into(), address };
        let bootstrap = Bootstrap {
            spec: self.cluster_spec(),
            root,
            address_pools: vec!["10.0.0.0/8".into()],
            // A global service has a task on each of up to 200 nodes, beside those of others.
            subnet_size: 22,
            data_path_port: 0,
            availability: pb::node_spec::Availability::Active,
            request: Vec::new(),
            certificate: Vec::new(),
            unlock_key: None,
            host_networks: Vec::new(),
        };
        let dice = self.fork();
        let (manager, effects) = Manager::bootstrap(START, dice, identity.clone(), bootstrap);
        self.hosts[0].identity = Some(identity);
        self.hosts[0].manager = Some(manager);
        self.do_for_manager(0, effects);
        self.run(Duration::from_secs(1))?;
        self.start_agent(0);
        let csr = ca::Key::generate().and_then(|key| key.request());
        let csr = csr.map_err(|error| error.to_string())?;
        for number in 1..self.plan.managers + self.plan.workers {
            self.join(number < self.plan.managers, &csr)?;
        }
        let spec = pb::NetworkSpec {
            annotations: Some(pb::Annotations { name: "net".into(), ..Default::default() }),
            driver_config: Some(pb::Driver { name: "overlay".into(), ..Default::default() }),
            ..Default::default()
        };
        let request = pb::CreateNetworkRequest { spec: Some(spec) };
        let caller = self.caller(0);
        let answer = self.ask(caller, Call::Control(request.into()))?;
        let Answer::Control(wire::control::Response::CreateNetwork(made)) = answer else {
            return Err("another answer".into());
        };
        self.network = made.network.map(|network| network.id).unwrap_or_default();
        self.run(Duration::from_secs(2))
    }

    fn cluster_spec(&self) -> pb::ClusterSpec {
        let interval = self.plan.weather.snapshot_interval;
        let raft = (interval > 0).then(|| pb::RaftConfig {
            snapshot_interval: interval,
            log_entries_for_slow_followers: interval / 2,
            ..Default::default()
        });
        pb::ClusterSpec { raft, ..Default::default() }
    }

    /// How wrong a host's clock is: nanoseconds, and parts in a million.
    pub(crate) fn roll_clock(&mut self) -> (i64, i64) {
        let weather = self.plan.weather;
        let skew = weather.skew_ms * 1_000_000;
        let skew = self.dice.random_range(-skew..=skew);
        (skew, self.dice.random_range(-weather.drift_ppm..=weather.drift_ppm))
    }

    /// Asks the leader and waits.
    pub(crate) fn ask(&mut self, caller: Caller, call: Call) -> Result<Answer, String> {
        for _ in 0..100 {
            let Some(leader) = self.leader() else {
                self.run(Duration::from_millis(500))?;
                continue;
            };
            let ticket = self.ticket();
            let (caller, call) = (caller.clone(), Box::new(call.clone()));
            self.tell_manager(leader, manager::Event::Call { ticket, caller, call });
            for _ in 0..100 {
                if let Some(reply) = self.replies.remove(&ticket) {
                    return reply.map_err(|failure| failure.message);
                }
                self.run(Duration::from_millis(20))?;
            }
        }
        Err("no answer".into())
    }

    pub(crate) fn join(&mut self, manager: bool, csr: &[u8]) -> Result<(), String> {
        let leader = self.leader().ok_or("nobody leads")?;
        let store = self.hosts[leader].manager.as_ref().ok_or("nobody leads")?.store();
        let tokens = store.cluster().and_then(|cluster| cluster.root_ca.clone());
        let tokens = tokens.and_then(|root| root.join_tokens).unwrap_or_default();
        let token = if manager { tokens.manager } else { tokens.worker };
        let request =
            pb::IssueNodeCertificateRequest { csr: csr.to_vec(), token, ..Default::default() };
        let answer = self.ask(Caller::default(), Call::IssueNodeCertificate(request))?;
        let Answer::IssueNodeCertificate(issued) = answer else { return Err("odd".into()) };
        let address = format!("10.0.0.{}:2377", self.hosts.len() + 1);
        let (skew, drift) = self.roll_clock();
        let host = self.hosts.len();
        self.hosts.push(Host::new(issued.node_id.clone(), address.clone(), skew, drift));
        if manager {
            let identity = Identity {
                node_id: issued.node_id,
                cluster_id: CLUSTER.into(),
                address: address.clone(),
            };
            self.hosts[host].identity = Some(identity.clone());
            let caller = self.caller(host);
            let request = pb::JoinRequest { addr: address };
            let answer = self.ask(caller, Call::Join(request))?;
            let Answer::Join(response) = answer else { return Err("odd".into()) };
            let dice = self.fork();
            let now = self.hosts[host].local(self.now);
            let (manager, effects) = Manager::join(now, dice, identity, response);
            self.hosts[host].manager = Some(manager);
            self.do_for_manager(host, effects);
            self.run(Duration::from_secs(2))?;
        }
        self.start_agent(host);
        Ok(())
    }

    pub(crate) fn start_agent(&mut self, host: usize) {
        let description =
            pb::NodeDescription { hostname: format!("host{host}"), ..Default::default() };
        let mut seed = [0; 32];
        self.dice.fill_bytes(&mut seed);
        let config = agent::Config {
            node_id: self.hosts[host].node_id.clone(),
            data_path: std::net::Ipv4Addr::new(10, 0, 0, host as u8 + 1).into(),
            gossip_name: format!("{host:012x}"),
            description,
            node: None,
            mesh_open: false,
            had_peers: false,
            seed,
        };
        if self.hosts[host].managers.is_empty() {
            let managers = self.hosts.iter().filter(|host| host.identity.is_some());
            self.hosts[host].managers = managers.map(|host| host.address.clone()).collect();
        }
        let records = self.hosts[host].records.values().cloned().collect::<Vec<_>>();
        self.hosts[host].agent = Some(Agent::new(config, records.clone()));
        self.tell_agent(host, agent::Event::Deadline);
        for record in records {
            let id = record.task.id.clone();
            let known = self.hosts[host].containers.get(&id);
            let finished = known.is_some_and(|container| container.finished);
            if !known.is_some_and(|container| container.running) {
                let container = finished.then(|| executor::ended(&id, 0));
                let event = agent::Event::Exited { task: id, container, message: String::new() };
                self.tell_agent(host, event);
            }
        }
    }
}

//! What hundreds of nodes would have in their kernels and resolvers: beside each gossip lives the
//! agent of its node, and netplan plans what it wants.

use agent::{Agent, Container, OverlayState, Stage};
use netplan::addr::{Cidr, Mac};
use netplan::view::{Bridge, Link, Sandbox, SandboxId, View};
use wire::swarmkit::{self as swarm, TaskState};

use super::*;

pub const INGRESS: &str = "ingress";
/// What an agent puts together before it looks at its networks.
const TOGETHER: Duration = Duration::from_millis(10);

/// A network's addresses begin with these two numbers.
fn base(network: usize) -> String {
    format!("10.{}", if network == 0 { 0 } else { 100 + network })
}

pub fn network_id(network: usize) -> String {
    if network == 0 { INGRESS.to_owned() } else { format!("net{network:02}") }
}

/// An address by its number in its network.
pub fn place(network: usize, number: usize) -> IpAddr {
    format!("{}.{}.{}", base(network), number >> 8, number & 255).parse().unwrap()
}

/// A node's own address on a network.
pub fn own(network: usize, node: usize) -> IpAddr {
    place(network, 10 + node)
}

pub fn virtual_address(network: usize, service: usize) -> IpAddr {
    place(network, 2_000 + service)
}

fn object(network: usize) -> swarm::Network {
    let options = [(
        "com.docker.network.driver.overlay.vxlanid_list".to_owned(),
        (4_096 + network).to_string(),
    )];
    swarm::Network {
        id: network_id(network),
        spec: Some(swarm::NetworkSpec {
            annotations: Some(swarm::Annotations {
                name: network_id(network),
                ..Default::default()
            }),
            ingress: network == 0,
            ..Default::default()
        }),
        driver_state: Some(swarm::Driver { name: "overlay".into(), options: options.into() }),
        ipam: Some(swarm::IpamOptions {
            driver: None,
            configs: vec![swarm::IpamConfig {
                subnet: format!("{}.0.0/16", base(network)),
                gateway: place(network, 1).to_string(),
                ..Default::default()
            }],
        }),
        ..Default::default()
    }
}

fn attach(network: usize, address: IpAddr) -> swarm::NetworkAttachment {
    swarm::NetworkAttachment {
        network: Some(object(network)),
        addresses: vec![format!("{address}/16")],
        ..Default::default()
    }
}

/// A task as its manager made it.
#[derive(Clone, Debug)]
pub struct Task {
    pub id: String,
    pub service: usize,
    pub network: usize,
    pub node: usize,
    pub address: IpAddr,
    /// On the ingress network, where the service has a published port.
    pub entered: Option<IpAddr>,
    pub healthy: bool,
}

impl Task {
    pub fn service_name(&self) -> String {
        format!("service{}", self.service)
    }

    pub fn name(&self) -> String {
        format!("{}.1.{}", self.service_name(), self.id)
    }

    pub fn port(&self) -> u16 {
        8_000 + self.service as u16
    }

    pub fn container(&self) -> String {
        format!("{:0>64}", self.id)
    }

    fn object(&self) -> swarm::Task {
        let virtual_ips = [Some(self.network), self.entered.map(|_| 0)].into_iter().flatten();
        let virtual_ips = virtual_ips.map(|network| swarm::endpoint::VirtualIp {
            network_id: network_id(network),
            addr: format!("{}/16", virtual_address(network, self.service)),
        });
        let port = swarm::PortConfig {
            target_port: 80,
            published_port: self.port().into(),
            ..Default::default()
        };
        let mut status = swarm::TaskStatus::default();
        status.set_state(TaskState::Assigned);
        let mut task = swarm::Task {
            id: self.id.clone(),
            service_id: format!("id of {}", self.service),
            slot: 1,
            node_id: format!("node{}", self.node),
            service_annotations: Some(swarm::Annotations {
                name: self.service_name(),
                ..Default::default()
            }),
            networks: std::iter::once(attach(self.network, self.address))
                .chain(self.entered.map(|address| attach(0, address)))
                .collect(),
            endpoint: Some(swarm::Endpoint {
                ports: self.entered.map(|_| port).into_iter().collect(),
                virtual_ips: virtual_ips.collect(),
                ..Default::default()
            }),
            status: Some(status),
            ..Default::default()
        };
        task.set_desired_state(TaskState::Running);
        task
    }
}

/// A node's agent, and what came of it last.
pub struct Post {
    node: usize,
    agent: Agent,
    /// The agent's time stands still while rows come in: it looks at all of them together.
    now: Instant,
    assigned: usize,
    /// The task that is being begun.
    coming: Option<Task>,
    /// Who is on a network is told anew each time: the last word counts.
    peers: BTreeMap<NetworkId, agent::Event>,
    works: BTreeMap<String, (Task, agent::Work)>,
    /// Those that were asked to end, and take their time.
    stopping: BTreeSet<String>,
    state: OverlayState,
    pub zones: BTreeMap<NetworkId, dns::Zone>,
}

impl Post {
    /// A node whose manager says that it is on these networks; and what its gossip has to do.
    pub fn new(now: Instant, node: usize, networks: &[usize]) -> (Self, Vec<Event>) {
        let config = agent::Config {
            node_id: format!("node{node}"),
            data_path: address(node).ip(),
            gossip_name: format!("{node:012x}"),
            description: swarm::NodeDescription::default(),
            node: None,
            had_peers: false,
            mesh_open: true,
            seed: [node as u8; 32],
        };
        let agent = Agent::new(config, Vec::new());
        let mut post = Self {
            node,
            agent,
            now,
            assigned: 0,
            coming: None,
            peers: BTreeMap::new(),
            works: BTreeMap::new(),
            stopping: BTreeSet::new(),
            state: OverlayState::default(),
            zones: BTreeMap::new(),
        };
        let attachments = networks.iter().map(|id| attach(*id, own(*id, node)));
        let object = swarm::Node {
            id: format!("node{node}"),
            attachments: attachments.collect(),
            vxlanudp_port: 4_789,
            ..Default::default()
        };
        let message = swarm::SessionMessage {
            session_id: "session".into(),
            node: Some(object),
            ..Default::default()
        };
        let mut said = post.tell(agent::Event::Deadline);
        said.extend(post.tell(agent::Event::Session(Box::new(message))));
        said.extend(post.assign(Vec::new()));
        (post, said)
    }

    fn assign(&mut self, changes: Vec<swarm::AssignmentChange>) -> Vec<Event> {
        let before = self.assigned;
        self.assigned += 1;
        self.tell(agent::Event::Assignments(swarm::AssignmentsMessage {
            r#type: i32::from(before > 0),
            applies_to: if before > 0 { before.to_string() } else { String::new() },
            results_in: self.assigned.to_string(),
            changes,
        }))
    }

    /// Begins a task here.
    pub fn begin(&mut self, now: Instant, task: &Task) -> Vec<Event> {
        let item = Some(swarm::assignment::Item::Task(task.object()));
        let change =
            swarm::AssignmentChange { assignment: Some(swarm::Assignment { item }), action: 0 };
        self.now = now.max(self.now);
        self.coming = Some(task.clone());
        self.assign(vec![change])
    }

    /// A task's container ends, by itself or because it was asked to.
    pub fn end(&mut self, now: Instant, task: &Task) -> Vec<Event> {
        self.now = now.max(self.now);
        let (task, message) = (task.id.clone(), "exit 1".to_owned());
        self.works.remove(&task);
        let ended = match self.stopping.remove(&task) {
            true => staged(task, Stage::Shutdown),
            false => agent::Event::Exited { task, container: None, message },
        };
        self.tell(ended)
    }

    /// A task's health check fails: it gets no new connection until it has ended.
    pub fn sicken(&mut self, now: Instant, task: &Task) -> Vec<Event> {
        self.now = now.max(self.now);
        self.tell(agent::Event::Health { task: task.id.clone(), healthy: false })
    }

    /// The tasks that run here.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.works.values().map(|(task, _)| task)
    }

    /// Looks at everything that came in.
    pub fn catch_up(&mut self, now: Instant) -> Vec<Event> {
        let mut said = Vec::new();
        for (_, peers) in std::mem::take(&mut self.peers) {
            said.extend(self.tell(peers));
        }
        self.now = now.max(self.now) + TOGETHER;
        said.extend(self.tell(agent::Event::Deadline));
        said
    }

    /// What the gossip tells the node, as the shell would pass it on.
    pub fn hear(&mut self, effect: &Effect) -> Vec<Event> {
        let event = match effect.clone() {
            Effect::RowChanged { network, table, key, owner, new, .. } => {
                agent::Event::Row { network, table, key, owner, value: new }
            }
            Effect::NodeUp(member) => {
                let skep = member.is_skep();
                agent::Event::MemberUp { name: member.name, address: member.address.ip(), skep }
            }
            Effect::NodeDown(member) => agent::Event::MemberDown { name: member.name },
            Effect::HostSilent(member) => agent::Event::HostSilent { name: member.name },
            Effect::Synced { network } => agent::Event::Synced { network },
            Effect::PeersChanged { network, peers, failed } => {
                let names = peers.into_iter().map(|(name, _)| name).collect();
                let failed = failed.into_iter().collect();
                let event = agent::Event::Peers { network: network.clone(), names, failed };
                self.peers.insert(network, event);
                return Vec::new();
            }
            _ => return Vec::new(),
        };
        self.tell(event)
    }

    fn tell(&mut self, event: agent::Event) -> Vec<Event> {
        let mut said = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.agent.step(self.now, event) {
                events.extend(self.do_it(effect, &mut said));
            }
        }
        said
    }

    /// The executor does at once what it is asked for; the managers take every report.
    fn do_it(&mut self, effect: agent::Effect, said: &mut Vec<Event>) -> Option<agent::Event> {
        use agent::Effect as Do;
        match effect {
            Do::Heartbeat(_) => {
                return Some(agent::Event::HeartbeatDone { period_nanos: 3_600_000_000_000 });
            }
            Do::Report(_) => return Some(agent::Event::Reported { ok: true }),
            Do::Prepare(work) => {
                let task = self.coming.take().expect("a task that was given");
                let id = task.id.clone();
                self.works.insert(id.clone(), (task, *work));
                return Some(staged(id, Stage::Prepare));
            }
            Do::Start { task } => return Some(staged(task, Stage::Start)),
            Do::Shutdown { task } => drop(self.stopping.insert(task)),
            Do::Overlays(state) => self.state = state,
            Do::Zones(zones) => self.zones = zones,
            Do::JoinNetwork(network) => said.push(Event::JoinNetwork { network }),
            Do::PutRow { network, table, key, value } => {
                said.push(Event::PutRow { network, table: table.to_owned(), key, value });
            }
            Do::DeleteRow { network, table, key } => {
                said.push(Event::DeleteRow { network, table: table.to_owned(), key });
            }
            _ => {}
        }
        None
    }

    /// What the node's kernel should hold, as netplan plans it.
    pub fn planned(&self) -> netplan::objects::World {
        let mut view = View { overlays: self.state.overlays.clone(), ..View::default() };
        view.host.data_path = Some(address(self.node).ip());
        view.host.vxlan_port = self.state.vxlan_port;
        for (id, (_, work)) in &self.works {
            let links = work.endpoints.iter().enumerate().map(|(number, endpoint)| {
                link(&endpoint.network, number, &format!("{id}-{number}"), &endpoint.addresses)
            });
            let sandbox = Sandbox {
                links: links.collect(),
                resolver: None,
                published: Vec::new(),
                ingress: work.ingress.clone(),
            };
            view.sandboxes.insert(SandboxId(id.clone()), sandbox);
        }
        let ingress = NetworkId::new(INGRESS);
        if let Some(own) = self.state.overlays.get(&ingress).and_then(|overlay| overlay.lb_address)
        {
            let gateway = NetworkId::new("docker_gwbridge");
            let bridge = |number: u8| Cidr::new([172, 18, 0, number].into(), 16);
            view.bridges.insert(gateway.clone(), gateway_bridge(bridge(1)));
            let outer = link(&gateway, 1, "vethingr1", &[bridge(2)]);
            let links = vec![link(&ingress, 0, "vethingr0", &[own]), outer];
            let sandbox =
                Sandbox { links, resolver: None, published: Vec::new(), ingress: Vec::new() };
            view.sandboxes.insert(SandboxId::ingress(), sandbox);
        }
        netplan::desired::desired(&view)
    }
}

/// Through which published ports come in.
fn gateway_bridge(address: Cidr) -> Bridge {
    Bridge {
        ifname: "docker_gwbridge".to_owned(),
        addresses: vec![address],
        mtu: 1_500,
        internal: false,
        icc: false,
        masquerade: true,
        foreign: false,
    }
}

fn link(network: &NetworkId, number: usize, peer: &str, addresses: &[Cidr]) -> Link {
    Link {
        network: network.clone(),
        ifname: format!("eth{number}"),
        peer: peer.to_owned(),
        mac: Mac::for_ip(addresses[0].addr),
        addresses: addresses.to_vec(),
        gateways: Vec::new(),
        routes: Vec::new(),
    }
}

fn staged(task: String, stage: Stage) -> agent::Event {
    let container =
        Container { container_id: format!("{task:0>64}"), pid: 7, ..Default::default() };
    agent::Event::Staged { task, stage, result: Ok(container) }
}

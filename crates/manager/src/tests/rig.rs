//! A swarm's managers in one thread: their disks, their network, their clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use consensus::{Recovered, Write};
use model::Instant;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wire::control::{Call as ControlCall, Request};
use wire::raftpb;
use wire::swarmkit as pb;

use crate::{
    Answer, Bootstrap, Call, Caller, Code, Effect, Event, Failure, Identity, Manager, Message,
    Open, Reply, StreamId, Ticket,
};

pub const START: Instant = Instant::from_nanos(1_790_000_000_000_000_000);
pub const CLUSTER: &str = "cluster0";

#[derive(Default, Clone)]
pub struct Disk {
    pub recovered: Recovered,
}

impl Disk {
    fn write(&mut self, write: Write) {
        let held = &mut self.recovered;
        held.identity = write.identity.unwrap_or_else(|| held.identity.clone());
        if let Some(snapshot) = write.snapshot {
            held.entries.retain(|entry| entry.index() > write.compact_to);
            held.snapshot = Some(snapshot);
        }
        if let Some(first) = write.entries.first() {
            held.entries.retain(|entry| entry.index() < first.index());
        }
        held.entries.extend(write.entries);
        held.hard_state = write.hard_state.unwrap_or(held.hard_state);
    }
}

pub struct Host {
    pub manager: Option<Manager>,
    pub disk: Disk,
    pub identity: Identity,
    pub removed: bool,
}

pub struct Rig {
    pub now: Instant,
    pub dice: ChaCha8Rng,
    pub hosts: BTreeMap<String, Host>,
    pub replies: BTreeMap<Ticket, Reply>,
    pub cut: Option<String>,
    pub messages: BTreeMap<StreamId, Vec<Message>>,
    pub closed: BTreeMap<StreamId, Result<(), Failure>>,
    pub complaints: Vec<String>,
    network: VecDeque<(String, raftpb::Message)>,
    tickets: u64,
}

pub fn spec() -> pb::ClusterSpec {
    pb::ClusterSpec::default()
}

pub fn manager_of(node: &str) -> Caller {
    Caller {
        node_id: node.into(),
        organization: CLUSTER.into(),
        units: vec![ca::MANAGER_UNIT.into()],
        ..Default::default()
    }
}

pub fn worker_of(node: &str) -> Caller {
    Caller { units: vec![ca::WORKER_UNIT.into()], ..manager_of(node) }
}

impl Rig {
    pub fn new(seed: u64) -> Self {
        Self::on_a_host_that_reaches(seed, &[])
    }

    pub fn on_a_host_that_reaches(seed: u64, networks: &[&str]) -> Self {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let identity = Identity {
            node_id: "node1".into(),
            cluster_id: CLUSTER.into(),
            address: "10.0.0.1:2377".into(),
        };
        let root = ca::Root::create(START, &mut dice).unwrap();
        let bootstrap = Bootstrap {
            spec: spec(),
            root,
            address_pools: vec!["10.0.0.0/8".into()],
            subnet_size: 0,
            data_path_port: 0,
            availability: pb::node_spec::Availability::Active,
            request: Vec::new(),
            certificate: Vec::new(),
            unlock_key: None,
            host_networks: networks.iter().map(|text| (*text).to_owned()).collect(),
        };
        let fork = ChaCha8Rng::seed_from_u64(dice.random());
        let (manager, effects) = Manager::bootstrap(START, fork, identity.clone(), bootstrap);
        let mut rig = Self {
            now: START,
            dice,
            hosts: BTreeMap::new(),
            replies: BTreeMap::new(),
            cut: None,
            messages: BTreeMap::new(),
            closed: BTreeMap::new(),
            complaints: Vec::new(),
            network: VecDeque::new(),
            tickets: 0,
        };
        rig.put("node1", identity, manager, effects);
        rig.settle();
        rig
    }

    pub fn put(&mut self, node: &str, identity: Identity, manager: Manager, effects: Vec<Effect>) {
        let host = Host { manager: Some(manager), disk: Disk::default(), identity, removed: false };
        self.hosts.insert(node.into(), host);
        self.perform(node, effects);
    }

    pub fn perform(&mut self, node: &str, effects: Vec<Effect>) {
        let mut probes = Vec::new();
        let mut snapshots = Vec::new();
        for effect in effects {
            let Some(host) = self.hosts.get_mut(node) else { return };
            match effect {
                Effect::Persist(write) => host.disk.write(*write),
                Effect::Send { address, message, .. } => {
                    let to = self.hosts.iter().find(|(_, host)| host.identity.address == address);
                    let to = to.map(|(to, _)| to.clone()).unwrap_or_default();
                    let cut = self.cut.as_deref();
                    if (cut == Some(node)) == (cut == Some(to.as_str())) || cut.is_none() {
                        self.network.push_back((to, *message));
                    }
                }
                Effect::Probe { ticket, address } => probes.push((ticket, address)),
                Effect::Reply { ticket, reply } => {
                    assert!(self.replies.insert(ticket, reply).is_none(), "answered twice");
                }
                Effect::Complaint(text) => self.complaints.push(text),
                Effect::Removed => host.removed = true,
                Effect::Snapshot(snapshot) => snapshots.push(snapshot.encode()),
                Effect::Message { stream, message } => {
                    self.messages.entry(stream).or_default().push(*message);
                }
                Effect::Close { stream, end } => {
                    assert!(self.closed.insert(stream, end).is_none(), "closed twice");
                }
                _ => {}
            }
        }
        for snapshot in snapshots {
            self.step(node, Event::Snapshot(Box::new(snapshot)));
        }
        for (ticket, address) in probes {
            let far = self.hosts.iter().find(|(_, host)| host.identity.address == address);
            let cut = |name: &str| self.cut.as_deref() == Some(name);
            // A joiner is not among the hosts yet; it answers.
            let healthy =
                far.is_none_or(|(name, host)| host.manager.is_some() && cut(name) == cut(node));
            self.step(node, Event::Probed { ticket, healthy });
        }
    }

    pub fn step(&mut self, node: &str, event: Event) {
        let now = self.now;
        let manager = self.hosts.get_mut(node).and_then(|host| host.manager.as_mut());
        let Some(manager) = manager else { return };
        let effects = manager.step(now, event);
        self.perform(node, effects);
    }

    /// Delivers and pumps until nobody has anything to do at this moment.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if let Some((to, message)) = self.network.pop_front() {
                self.step(&to, Event::Raft(Box::new(message)));
                continue;
            }
            let now = self.now;
            let due = self.hosts.iter().find(|(_, host)| {
                let manager = host.manager.as_ref();
                manager.and_then(Manager::deadline).is_some_and(|deadline| deadline <= now)
            });
            let Some((node, _)) = due else { return };
            let node = node.clone();
            self.step(&node, Event::Deadline);
        }
        panic!("the managers do not come to rest");
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(500);
            self.settle();
        }
    }

    pub fn leader(&self) -> Option<String> {
        let leads = |host: &Host| host.manager.as_ref().is_some_and(Manager::leads);
        let mut leaders =
            self.hosts.iter().filter(|(node, host)| leads(host) && self.cut.as_ref() != Some(node));
        leaders.next().map(|(node, _)| node.clone())
    }

    pub fn manager(&self, node: &str) -> &Manager {
        self.hosts[node].manager.as_ref().expect("it runs")
    }

    /// Begins a call; the ticket finds its answer later.
    pub fn begin(&mut self, node: &str, caller: Caller, call: Call) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.step(node, Event::Call { ticket, caller, call: Box::new(call) });
        self.settle();
        ticket
    }

    pub fn open(&mut self, node: &str, caller: Caller, open: Open) -> StreamId {
        self.tickets += 1;
        let stream = StreamId(self.tickets);
        self.step(node, Event::Open { stream, caller, open });
        self.settle();
        stream
    }

    pub fn call(&mut self, node: &str, caller: Caller, call: Call) -> Result<Answer, Failure> {
        let ticket = self.begin(node, caller, call);
        self.replies.remove(&ticket).expect("it is answered")
    }

    pub fn control<C: ControlCall>(&mut self, request: C) -> Result<C::Answer, Failure> {
        let leader = self.leader().expect("somebody leads");
        let request: Request = request.into();
        match self.call(&leader, manager_of(&leader), Call::Control(request))? {
            Answer::Control(response) => Ok(C::answer(response).expect("the method's own answer")),
            _ => Err(Failure::new(Code::Internal, "another call's answer")),
        }
    }

    pub fn cluster(&self) -> pb::Cluster {
        let leader = self.leader().expect("somebody leads");
        pb::Cluster::clone(self.manager(&leader).store().cluster().expect("there is a cluster"))
    }

    /// A node gets its certificate as `docker swarm join` does.
    pub fn enroll(&mut self, token: &str) -> Result<(String, Vec<u8>), Failure> {
        let leader = self.leader().expect("somebody leads");
        let csr = ca::Key::generate().unwrap().request().unwrap();
        let request =
            pb::IssueNodeCertificateRequest { csr, token: token.into(), ..Default::default() };
        let answer = self.call(&leader, Caller::default(), Call::IssueNodeCertificate(request))?;
        let Answer::IssueNodeCertificate(issued) = answer else { panic!("another answer") };
        let request = pb::NodeCertificateStatusRequest { node_id: issued.node_id.clone() };
        let answer = self.call(&leader, Caller::default(), Call::NodeCertificateStatus(request))?;
        let Answer::NodeCertificateStatus(status) = answer else { panic!("another answer") };
        Ok((issued.node_id, status.certificate.unwrap_or_default().certificate))
    }

    /// Another manager joins, with everything that takes.
    pub fn add_manager(&mut self) -> String {
        let token = self.cluster().root_ca.unwrap().join_tokens.unwrap().manager;
        let (node, _) = self.enroll(&token).expect("the token is good");
        let address = format!("10.0.0.{}:2377", self.hosts.len() + 1);
        let leader = self.leader().expect("somebody leads");
        let request = pb::JoinRequest { addr: address.clone() };
        let answer =
            self.call(&leader, manager_of(&node), Call::Join(request)).expect("it may join");
        let Answer::Join(response) = answer else { panic!("another answer") };
        let identity = Identity { node_id: node.clone(), cluster_id: CLUSTER.into(), address };
        let dice = ChaCha8Rng::seed_from_u64(self.dice.random());
        let (manager, effects) = Manager::join(self.now, dice, identity.clone(), response);
        self.put(&node, identity, manager, effects);
        self.run(Duration::from_secs(3));
        node
    }

    pub fn force(&mut self, node: &str, address: &str) {
        let dice = ChaCha8Rng::seed_from_u64(self.dice.random());
        let host = self.hosts.get_mut(node).expect("it exists");
        host.identity.address = address.into();
        let (identity, recovered) = (host.identity.clone(), host.disk.recovered.clone());
        let (manager, effects) = Manager::restore_alone(self.now, dice, identity, recovered);
        host.manager = Some(manager);
        self.perform(node, effects);
        self.settle();
    }

    pub fn restart(&mut self, node: &str) {
        let dice = ChaCha8Rng::seed_from_u64(self.dice.random());
        let host = self.hosts.get_mut(node).expect("it exists");
        let (identity, recovered) = (host.identity.clone(), host.disk.recovered.clone());
        let (manager, effects) = Manager::restore(self.now, dice, identity, recovered);
        host.manager = Some(manager);
        self.perform(node, effects);
        self.settle();
    }
}

//! One manager whose cluster grows, and what that costs it.
//!
//! Only the manager is real: the workers answer at once. What should be a constant is, or somebody's
//! loop looks at everything for every change.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use manager::{
    Answer, Bootstrap, Call, Caller, Effect, Event, Identity, Manager, Message, Open, Reply,
    StreamId, Ticket,
};
use model::Instant;
use pb::assignment::Item;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wire::swarmkit as pb;

const CLUSTER: &str = "cluster0";
const SERVICES_PER_NETWORK: usize = 200;
/// Ingress has an address on each node: as many as a /16 has.
const SUBNET_SIZE: u32 = 16;
/// Events that come while a snapshot is encoded aside.
const SNAPSHOT_EVENTS: u64 = 100;
/// Simulated time between two events.
const TICK: Duration = Duration::from_micros(20);

struct Worker {
    id: String,
    session: Option<StreamId>,
    session_id: String,
    beats_at: Instant,
}

/// One manager, its workers, and what it cost.
pub struct Swarm {
    now: Instant,
    manager: Manager,
    queue: VecDeque<Event>,
    workers: Vec<Worker>,
    /// What the workers and the manager's certificate request are signed with: one key for all.
    csr: Vec<u8>,
    services: usize,
    /// Tasks of each service.
    replicas: usize,
    network: String,
    /// Which worker a stream belongs to.
    streams: BTreeMap<StreamId, usize>,
    /// Whose answer is waited for, and the answer.
    asked: Ticket,
    answer: Option<Reply>,
    numbers: u64,
    /// A snapshot that is encoded aside, and the event before which it is done.
    snapshot: Option<(u64, manager::Snapshot)>,
    clock: fn() -> Duration,
    pub cost: Cost,
}

/// What a manager did, counted from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub events: u64,
    pub heartbeats: u64,
    /// Objects that it read of its store for beats, and for everything else.
    pub beat_reads: u64,
    pub reads: u64,
    /// Bytes of entries for the log, and of snapshots.
    pub logged: u64,
    pub saved: u64,
    pub snapshots: u64,
    /// Changes that workers were told of.
    pub told: u64,
    /// Time within the manager, the longest that one event kept others waiting, and time aside.
    pub busy: Duration,
    pub longest: Duration,
    pub aside: Duration,
}

fn caller(node: &str, unit: &str) -> Caller {
    Caller {
        node_id: node.into(),
        organization: CLUSTER.into(),
        units: vec![unit.into()],
        ..Default::default()
    }
}

impl Swarm {
    /// `clock` tells how long this thread has run, whatever else the machine does meanwhile.
    pub fn found(replicas: usize, clock: fn() -> Duration) -> Self {
        let now = Instant::from_nanos(1_790_000_000_000_000_000);
        let mut dice = ChaCha8Rng::seed_from_u64(1);
        let identity = Identity {
            node_id: "manager".into(),
            cluster_id: CLUSTER.into(),
            address: "10.0.0.1:2377".into(),
        };
        let bootstrap = Bootstrap {
            spec: pb::ClusterSpec::default(),
            root: ca::Root::create(now, &mut dice).expect("a root"),
            address_pools: vec!["10.0.0.0/8".into()],
            subnet_size: SUBNET_SIZE,
            data_path_port: 0,
            availability: pb::node_spec::Availability::Drain,
            request: Vec::new(),
            certificate: Vec::new(),
            unlock_key: None,
            host_networks: Vec::new(),
        };
        let dice = ChaCha8Rng::seed_from_u64(dice.random());
        let (manager, effects) = Manager::bootstrap(now, dice, identity, bootstrap);
        let mut swarm = Self {
            now,
            manager,
            queue: VecDeque::new(),
            workers: Vec::new(),
            csr: ca::Key::generate().and_then(|key| key.request()).expect("a request"),
            services: 0,
            replicas,
            network: String::new(),
            streams: BTreeMap::new(),
            asked: Ticket(0),
            answer: None,
            numbers: 0,
            snapshot: None,
            clock,
            cost: Cost::default(),
        };
        swarm.perform(effects);
        swarm.settle();
        swarm
    }

    fn step(&mut self, event: Event) {
        self.now = self.now + TICK;
        let beat =
            matches!(&event, Event::Call { call, .. } if matches!(**call, Call::Heartbeat(_)));
        let (begin, reads) = ((self.clock)(), self.manager.store().reads());
        let effects = self.manager.step(self.now, event);
        let took = (self.clock)().saturating_sub(begin);
        self.cost.busy += took;
        self.cost.longest = self.cost.longest.max(took);
        let reads = self.manager.store().reads() - reads;
        if beat {
            self.cost.beat_reads += reads;
        } else {
            self.cost.reads += reads;
        }
        self.cost.events += 1;
        self.perform(effects);
        if let Some((_, snapshot)) = self.snapshot.take_if(|(at, _)| *at <= self.cost.events) {
            let begin = (self.clock)();
            let snapshot = Box::new(snapshot.encode());
            self.cost.aside += (self.clock)().saturating_sub(begin);
            self.queue.push_front(Event::Snapshot(snapshot));
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(write) => self.persist(&write),
                Effect::Snapshot(snapshot) => {
                    assert!(self.snapshot.is_none(), "one at a time");
                    self.snapshot = Some((self.cost.events + SNAPSHOT_EVENTS, *snapshot));
                }
                Effect::Reply { ticket, reply } if ticket == self.asked => {
                    self.answer = Some(reply);
                }
                Effect::Message { stream, message } => self.told(stream, *message),
                Effect::Close { stream, .. } => self.closed(stream),
                _ => {}
            }
        }
    }

    fn persist(&mut self, write: &manager::event::Write) {
        let entries = write.entries.iter().map(|entry| entry.data().len() as u64);
        self.cost.logged += entries.sum::<u64>();
        if let Some(snapshot) = &write.snapshot {
            self.cost.snapshots += 1;
            self.cost.saved += snapshot.data().len() as u64;
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Everything that is due now, and what follows from it.
    fn settle(&mut self) {
        loop {
            while let Some(event) = self.queue.pop_front() {
                self.step(event);
            }
            match self.manager.deadline() {
                Some(at) if at <= self.now => self.step(Event::Deadline),
                _ => return,
            }
        }
    }

    /// Lets simulated time pass; the workers beat.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let beat = self.workers.iter().filter(|it| it.session.is_some()).map(|it| it.beats_at);
            let next = beat.chain(self.manager.deadline()).min().unwrap_or(end).min(end);
            self.now = self.now.max(next);
            let now = self.now;
            for index in 0..self.workers.len() {
                let worker = &mut self.workers[index];
                if worker.session.is_some() && worker.beats_at <= now {
                    worker.beats_at = now + Duration::from_millis(2_500);
                    let session_id = worker.session_id.clone();
                    self.cost.heartbeats += 1;
                    let request = pb::HeartbeatRequest { session_id };
                    self.call(index, Call::Heartbeat(request));
                }
            }
            self.settle();
        }
    }

    fn call(&mut self, worker: usize, call: Call) {
        let ticket = Ticket(self.number());
        let caller = caller(&self.workers[worker].id, ca::WORKER_UNIT);
        self.queue.push_back(Event::Call { ticket, caller, call: Box::new(call) });
    }

    fn open(&mut self, worker: usize, open: Open) -> StreamId {
        let stream = StreamId(self.number());
        self.streams.insert(stream, worker);
        let caller = caller(&self.workers[worker].id, ca::WORKER_UNIT);
        self.queue.push_back(Event::Open { stream, caller, open });
        stream
    }

    fn told(&mut self, stream: StreamId, message: Message) {
        let Some(&worker) = self.streams.get(&stream) else { return };
        match message {
            Message::Session(message) if self.workers[worker].session_id.is_empty() => {
                self.workers[worker].session_id = message.session_id.clone();
                self.workers[worker].beats_at = self.now;
                let request = pb::AssignmentsRequest { session_id: message.session_id };
                self.open(worker, Open::Assignments(request));
            }
            Message::Assignments(message) => self.assigned(worker, message),
            _ => {}
        }
    }

    /// A worker does at once what it is told, and says so.
    fn assigned(&mut self, worker: usize, message: pb::AssignmentsMessage) {
        let mut updates = Vec::new();
        self.cost.told += message.changes.len() as u64;
        for change in message.changes {
            let Some(Item::Task(task)) = change.assignment.and_then(|it| it.item) else { continue };
            let wanted = match task.desired_state() {
                pb::TaskState::New => continue,
                state if state <= pb::TaskState::Running => state,
                _ => pb::TaskState::Shutdown,
            };
            let status = task.status.unwrap_or_default();
            if status.state() < wanted {
                let status = pb::TaskStatus { state: wanted as i32, ..status };
                updates.push(pb::update_task_status_request::TaskStatusUpdate {
                    task_id: task.id,
                    status: Some(status),
                });
            }
        }
        if !updates.is_empty() {
            let session_id = self.workers[worker].session_id.clone();
            let request = pb::UpdateTaskStatusRequest { session_id, updates };
            self.call(worker, Call::UpdateTaskStatus(request));
        }
    }

    fn closed(&mut self, stream: StreamId) {
        if let Some(worker) = self.streams.remove(&stream)
            && self.workers[worker].session == Some(stream)
        {
            self.workers[worker].session = None;
        }
    }

    fn control(&mut self, request: impl Into<wire::control::Request>) -> wire::control::Response {
        let ticket = Ticket(self.number());
        let caller = caller("manager", ca::MANAGER_UNIT);
        let call = Box::new(Call::Control(request.into()));
        self.queue.push_back(Event::Call { ticket, caller, call });
        self.asked = ticket;
        self.settle();
        match self.answer.take() {
            Some(Ok(Answer::Control(response))) => response,
            Some(Err(failure)) => panic!("{failure}"),
            _ => panic!("no answer"),
        }
    }

    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub fn tasks(&self) -> usize {
        self.services * self.replicas
    }

    /// One more worker.
    pub fn join(&mut self) {
        let root = self.manager.store().cluster().and_then(|cluster| cluster.root_ca.clone());
        let token = root.and_then(|root| root.join_tokens).unwrap_or_default().worker;
        let ticket = Ticket(self.number());
        let request =
            pb::IssueNodeCertificateRequest { csr: self.csr.clone(), token, ..Default::default() };
        let call = Box::new(Call::IssueNodeCertificate(request));
        self.queue.push_back(Event::Call { ticket, caller: Caller::default(), call });
        self.asked = ticket;
        self.settle();
        let Some(Ok(Answer::IssueNodeCertificate(issued))) = self.answer.take() else {
            panic!("not let in")
        };
        let worker = self.workers.len();
        let (id, beats_at) = (issued.node_id, self.now);
        self.workers.push(Worker { id, session: None, session_id: String::new(), beats_at });
        let description = pb::NodeDescription {
            hostname: format!("host{worker}"),
            platform: Some(pb::Platform { architecture: "x86_64".into(), os: "linux".into() }),
            ..Default::default()
        };
        let request = pb::SessionRequest { description: Some(description), ..Default::default() };
        self.workers[worker].session = Some(self.open(worker, Open::Session(request)));
        self.settle();
    }

    fn network(&mut self, number: usize) -> String {
        let pool =
            pb::IpamConfig { subnet: format!("10.{}.0.0/16", 100 + number), ..Default::default() };
        let spec = pb::NetworkSpec {
            annotations: named(format!("net{number}")),
            driver_config: Some(pb::Driver { name: "overlay".into(), ..Default::default() }),
            ipam: Some(pb::IpamOptions { configs: vec![pool], ..Default::default() }),
            ..Default::default()
        };
        match self.control(pb::CreateNetworkRequest { spec: Some(spec) }) {
            wire::control::Response::CreateNetwork(made) => made.network.unwrap_or_default().id,
            _ => panic!("another answer"),
        }
    }

    /// One more service, until everything runs that can.
    pub fn deploy(&mut self) {
        if self.services.is_multiple_of(SERVICES_PER_NETWORK) {
            self.network = self.network(self.services / SERVICES_PER_NETWORK);
        }
        let spec = self.spec(self.services, "image");
        self.control(pb::CreateServiceRequest { spec: Some(spec) });
        self.services += 1;
    }

    /// Another image for the last service, until the update is over.
    pub fn update(&mut self, image: &str) {
        let name = format!("service{}", self.services - 1);
        let stored = self.manager.store().by_name::<pb::Service>(&name).next().cloned();
        let stored = stored.expect("the last service");
        let request = pb::UpdateServiceRequest {
            service_id: stored.id.clone(),
            service_version: stored.meta.as_ref().and_then(|meta| meta.version),
            spec: Some(self.spec(self.services - 1, image)),
            ..Default::default()
        };
        self.control(request);
        self.pass(Duration::from_secs(60));
    }

    /// The first worker falls silent until its tasks run elsewhere; how many they were.
    pub fn lose_a_node(&mut self) -> usize {
        let lost = self.workers[0].id.clone();
        let held = self.manager.store().tasks_of_node(&lost).count();
        self.workers[0].session = None;
        self.pass(Duration::from_secs(30));
        held
    }

    /// It comes back under the same name.
    pub fn find_it_again(&mut self) {
        self.workers[0].session_id.clear();
        let request = pb::SessionRequest::default();
        self.workers[0].session = Some(self.open(0, Open::Session(request)));
        self.settle();
    }

    fn spec(&self, number: usize, image: &str) -> pb::ServiceSpec {
        let container = pb::ContainerSpec { image: image.into(), ..Default::default() };
        let target = self.network.clone();
        let network = pb::NetworkAttachmentConfig { target, ..Default::default() };
        let replicas = self.replicas as u64;
        pb::ServiceSpec {
            annotations: named(format!("service{number}")),
            task: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                networks: vec![network],
                ..Default::default()
            }),
            mode: Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService { replicas })),
            update: Some(pb::UpdateConfig { parallelism: 10, ..Default::default() }),
            endpoint: Some(pb::EndpointSpec::default()),
            ..Default::default()
        }
    }

    /// Tasks that run and are wanted.
    pub fn running(&self) -> usize {
        let tasks = self.manager.store().all::<pb::Task>();
        let runs = |task: &pb::Task| store::access::state(task) == pb::TaskState::Running;
        tasks.filter(|task| runs(task) && store::access::is_wanted(task)).count()
    }
}

fn named(name: String) -> Option<pb::Annotations> {
    Some(pb::Annotations { name, ..Default::default() })
}

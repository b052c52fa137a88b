//! One manager while its cluster grows to a thousand workers and a hundred thousand tasks: time and memory per step.
//!
//! `cargo run --release -p sim --example growth [WORKERS [TASKS_PER_WORKER]]`. Only the manager is
//! real: the workers answer at once. What should be a constant in each column is, or somebody's
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
const STEPS: usize = 5;
const REPLICAS: usize = 100;
const SERVICES_PER_NETWORK: usize = 200;
/// Simulated time between two events.
const TICK: Duration = Duration::from_micros(20);

struct Worker {
    id: String,
    session: Option<StreamId>,
    session_id: String,
    beats_at: Instant,
}

struct Swarm {
    now: Instant,
    manager: Manager,
    queue: VecDeque<Event>,
    workers: Vec<Worker>,
    /// Which worker a stream belongs to.
    streams: BTreeMap<StreamId, usize>,
    replies: BTreeMap<Ticket, Reply>,
    numbers: u64,
    /// Processor time within the manager, and the longest that it kept others waiting.
    busy: Duration,
    longest: Duration,
    written: usize,
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
    fn found() -> Self {
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
            subnet_size: 0,
            data_path_port: 0,
            availability: pb::node_spec::Availability::Drain,
            request: Vec::new(),
            certificate: Vec::new(),
            unlock_key: None,
        };
        let dice = ChaCha8Rng::seed_from_u64(dice.random());
        let (manager, effects) = Manager::bootstrap(now, dice, identity, bootstrap);
        let mut swarm = Self {
            now,
            manager,
            queue: VecDeque::new(),
            workers: Vec::new(),
            streams: BTreeMap::new(),
            replies: BTreeMap::new(),
            numbers: 0,
            busy: Duration::ZERO,
            longest: Duration::ZERO,
            written: 0,
        };
        swarm.perform(effects);
        swarm.settle();
        swarm
    }

    fn step(&mut self, event: Event) {
        self.now = self.now + TICK;
        let begin = processor_time();
        let effects = self.manager.step(self.now, event);
        let took = processor_time().saturating_sub(begin);
        self.busy += took;
        self.longest = self.longest.max(took);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(write) => self.written += write.entries.len(),
                Effect::Reply { ticket, reply } => drop(self.replies.insert(ticket, reply)),
                Effect::Message { stream, message } => self.told(stream, *message),
                Effect::Close { stream, .. } => self.closed(stream),
                _ => {}
            }
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
    fn pass(&mut self, time: Duration) {
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
        self.settle();
        match self.replies.remove(&ticket) {
            Some(Ok(Answer::Control(response))) => response,
            Some(Err(failure)) => panic!("{failure}"),
            _ => panic!("no answer"),
        }
    }

    fn join(&mut self, csr: &[u8]) {
        let root = self.manager.store().cluster().and_then(|cluster| cluster.root_ca.clone());
        let token = root.and_then(|root| root.join_tokens).unwrap_or_default().worker;
        let ticket = Ticket(self.number());
        let request =
            pb::IssueNodeCertificateRequest { csr: csr.to_vec(), token, ..Default::default() };
        let call = Box::new(Call::IssueNodeCertificate(request));
        self.queue.push_back(Event::Call { ticket, caller: Caller::default(), call });
        self.settle();
        let Some(Ok(Answer::IssueNodeCertificate(issued))) = self.replies.remove(&ticket) else {
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

    fn running(&self) -> usize {
        let tasks = self.manager.store().all::<pb::Task>();
        tasks.filter(|task| store::access::state(task) == pb::TaskState::Running).count()
    }
}

fn named(name: String) -> Option<pb::Annotations> {
    Some(pb::Annotations { name, ..Default::default() })
}

fn service(name: String, network: &str, image: &str) -> pb::ServiceSpec {
    let container = pb::ContainerSpec { image: image.into(), ..Default::default() };
    let network = pb::NetworkAttachmentConfig { target: network.into(), ..Default::default() };
    pb::ServiceSpec {
        annotations: named(name),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            networks: vec![network],
            ..Default::default()
        }),
        mode: Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService {
            replicas: REPLICAS as u64,
        })),
        update: Some(pb::UpdateConfig { parallelism: 10, ..Default::default() }),
        endpoint: Some(pb::EndpointSpec::default()),
        ..Default::default()
    }
}

/// How long this thread has run, whatever else the machine does meanwhile.
fn processor_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident memory in MiB, from the kernel.
fn memory() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(f64::NAN) * 4096.0 / (1 << 20) as f64
}

fn main() {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<usize>().expect("a number"));
    let workers = words.next().unwrap_or(1_000);
    let tasks = words.next().unwrap_or(100) * workers;
    let csr = ca::Key::generate().and_then(|key| key.request()).expect("a request");
    let mut swarm = Swarm::found();
    let mut network = String::new();
    let mut services = 0;
    println!(
        "| workers | tasks | join, ms each | place, µs per task | longest step, ms | idle, ms per s | node lost, µs per task | update, µs per task | memory, MiB |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for step in 1..=STEPS {
        let join = measured(&mut swarm, |swarm| {
            while swarm.workers.len() < workers * step / STEPS {
                swarm.join(&csr);
            }
        });
        let joined = (workers / STEPS).max(1) as f64;
        swarm.longest = Duration::ZERO;
        let before = swarm.running();
        let place = measured(&mut swarm, |swarm| {
            while services * REPLICAS < tasks * step / STEPS {
                if services % SERVICES_PER_NETWORK == 0 {
                    network = swarm.network(services / SERVICES_PER_NETWORK);
                }
                let spec = service(format!("service{services}"), &network, "image");
                swarm.control(pb::CreateServiceRequest { spec: Some(spec) });
                services += 1;
            }
        });
        let running = swarm.running();
        assert_eq!(running, services * REPLICAS, "everything runs");
        let placed = (running - before) as f64;
        let idle = measured(&mut swarm, |swarm| swarm.pass(Duration::from_secs(10)));
        let (lost, moved) = lose_a_node(&mut swarm);
        let updated = update_one(&mut swarm, services - 1, &network, step);
        println!(
            "| {} | {running} | {:.2} | {:.0} | {:.1} | {:.2} | {:.0} | {:.0} | {:.0} |",
            swarm.workers.len(),
            join.as_secs_f64() * 1e3 / joined,
            place.as_secs_f64() * 1e6 / placed.max(1.0),
            swarm.longest.as_secs_f64() * 1e3,
            idle.as_secs_f64() * 1e3 / 10.0,
            lost.as_secs_f64() * 1e6 / moved.max(1) as f64,
            updated.as_secs_f64() * 1e6 / REPLICAS as f64,
            memory(),
        );
    }
}

/// Processor time that the manager was busy meanwhile.
fn measured(swarm: &mut Swarm, what: impl FnOnce(&mut Swarm)) -> Duration {
    let before = swarm.busy;
    what(swarm);
    swarm.busy - before
}

/// One worker goes silent; the time until its tasks run elsewhere, and how many they were.
fn lose_a_node(swarm: &mut Swarm) -> (Duration, usize) {
    let lost = swarm.workers[0].id.clone();
    let held = swarm.manager.store().tasks_of_node(&lost).count();
    swarm.workers[0].session = None;
    let took = measured(swarm, |swarm| swarm.pass(Duration::from_secs(30)));
    // It comes back under the same name.
    swarm.workers[0].session_id.clear();
    let request = pb::SessionRequest::default();
    swarm.workers[0].session = Some(swarm.open(0, Open::Session(request)));
    swarm.settle();
    (took, held)
}

fn update_one(swarm: &mut Swarm, number: usize, network: &str, step: usize) -> Duration {
    let name = format!("service{number}");
    let stored = swarm.manager.store().by_name::<pb::Service>(&name).next().cloned();
    let stored = stored.expect("the last service");
    let request = pb::UpdateServiceRequest {
        service_id: stored.id.clone(),
        service_version: stored.meta.as_ref().and_then(|meta| meta.version),
        spec: Some(service(name, network, &format!("image{step}"))),
        ..Default::default()
    };
    measured(swarm, |swarm| {
        swarm.control(request);
        swarm.pass(Duration::from_secs(60));
    })
}

//! The event queue, and who hears of what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use agent::Stage;
use manager::{StreamId, Ticket};
use model::Instant;
use prost::Message as _;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::Plan;
use crate::check::JobSlot;
use crate::client::Client;
use crate::host::Host;

pub(crate) const START: Instant = Instant::from_nanos(1_790_000_000_000_000_000);
pub(crate) const CLUSTER: &str = "cluster0";

pub(crate) enum Happening {
    ManagerDeadline { host: usize, life: u64 },
    AgentDeadline { host: usize, life: u64 },
    Raft { from: usize, to: usize, message: Box<raftpb::Message> },
    ToManager { host: usize, event: Box<manager::Event> },
    ToAgent { host: usize, session: u64, event: Box<agent::Event> },
    Staged { host: usize, life: u64, task: String, stage: Stage },
    Finished { host: usize, task: String },
    Snapshot { host: usize, begun: u64, snapshot: Box<raftpb::Snapshot> },
    User,
    UserGivesUp(Ticket),
    Fault,
    Restart { host: usize, agent: bool, manager: bool },
    Healed,
    Check,
}

impl Happening {
    /// What tells it from others in the trace: its kind, whom it reaches, and which one it is. Not
    /// its bytes: keys and signatures are the operating system's dice.
    fn mark(&self) -> (u8, usize, usize) {
        match self {
            Happening::ManagerDeadline { host, .. } => (0, *host, 0),
            Happening::AgentDeadline { host, .. } => (1, *host, 0),
            Happening::Raft { to, message, .. } => (2, *to, message.index() as usize),
            Happening::ToManager { host, .. } => (3, *host, 0),
            Happening::ToAgent { host, session, .. } => (4, *host, *session as usize),
            Happening::Staged { host, stage, .. } => (5, *host, *stage as usize),
            Happening::User => (6, 0, 0),
            Happening::UserGivesUp(ticket) => (7, ticket.0 as usize, 0),
            Happening::Fault => (8, 0, 0),
            Happening::Restart { host, .. } => (9, *host, 0),
            Happening::Healed => (10, 0, 0),
            Happening::Check => (11, 0, 0),
            Happening::Finished { host, .. } => (12, *host, 0),
            Happening::Snapshot { host, .. } => (13, *host, 0),
        }
    }
}

/// Who waits for an answer.
pub(crate) struct Waiting {
    pub(crate) host: usize,
    pub(crate) session: u64,
    pub(crate) manager: usize,
    pub(crate) heartbeat: bool,
}

/// A stream between an agent and a manager.
pub(crate) struct Stream {
    pub(crate) host: usize,
    pub(crate) session: u64,
    pub(crate) manager: usize,
    /// Nothing overtakes on a stream.
    pub(crate) last: Instant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub acknowledged: usize,
    pub faults: usize,
    pub leaders: usize,
    pub events: usize,
    /// Objects in the leader's store at the end.
    pub tasks: usize,
    /// Of everything that happened, when and to whom, and of what is stored in the end: the same
    /// seed gives the same one.
    pub trace: u64,
}

pub struct World {
    pub(crate) plan: Plan,
    pub(crate) now: Instant,
    pub(crate) dice: ChaCha8Rng,
    pub(crate) hosts: Vec<Host>,
    pub(crate) queue: BTreeMap<(Instant, u64), Happening>,
    pub(crate) sequence: u64,
    pub(crate) numbers: u64,
    pub(crate) calls: BTreeMap<Ticket, Waiting>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    /// Hosts on the other side.
    pub(crate) cut: BTreeSet<usize>,
    /// Managers that raft messages do not reach, though theirs reach others.
    pub(crate) deaf: BTreeSet<usize>,
    pub(crate) troubled: bool,
    pub(crate) client: Client,
    pub(crate) network: String,
    /// A digest of each version of each object, whoever applied it first.
    pub(crate) applied: BTreeMap<(String, u64), u64>,
    /// Slots of jobs whose work was done, and in which version that was known.
    pub(crate) done: BTreeSet<JobSlot>,
    pub(crate) known_done: BTreeMap<JobSlot, u64>,
    /// Who led in each term.
    pub(crate) led: BTreeMap<u64, usize>,
    trace: DefaultHasher,
    pub(crate) replies: BTreeMap<Ticket, manager::Reply>,
    /// Containers that were started.
    pub(crate) starts: usize,
    pub(crate) report: Report,
    pub(crate) broken: Option<String>,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            now: START,
            dice: ChaCha8Rng::seed_from_u64(plan.seed),
            hosts: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            numbers: 0,
            calls: BTreeMap::new(),
            streams: BTreeMap::new(),
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            troubled: false,
            client: Client::default(),
            network: String::new(),
            applied: BTreeMap::new(),
            done: BTreeSet::new(),
            known_done: BTreeMap::new(),
            led: BTreeMap::new(),
            trace: DefaultHasher::new(),
            replies: BTreeMap::new(),
            starts: 0,
            report: Report::default(),
            broken: None,
        }
    }

    /// Simulated seconds since the beginning.
    pub fn clock(&self) -> String {
        format!("{:.3} s", self.now.since(START).as_secs_f64())
    }

    pub fn live(&mut self) -> Result<Report, String> {
        self.found()?;
        self.troubled = true;
        self.after(Duration::from_secs(1), Happening::User);
        self.after(Duration::from_secs(3), Happening::Fault);
        self.after(Duration::from_secs(1), Happening::Check);
        self.after(Duration::from_secs(self.plan.trouble), Happening::Healed);
        self.run(Duration::from_secs(self.plan.trouble + self.plan.healing))?;
        self.check_in_the_end()?;
        self.report.acknowledged = self.client.acknowledged;
        self.report.leaders = self.led.len();
        let leader = self.leader().and_then(|leader| self.hosts[leader].manager.as_ref());
        self.report.tasks = leader.map_or(0, |leader| leader.store().count::<pb::Task>());
        if let Some(leader) = leader {
            for task in leader.store().all::<pb::Task>() {
                task.encode_to_vec().hash(&mut self.trace);
            }
        }
        self.report.trace = self.trace.finish();
        Ok(self.report)
    }

    // ---- the queue

    pub(crate) fn after(&mut self, delay: Duration, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    pub(crate) fn at(&mut self, at: Instant, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), happening);
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.numbers += 1;
        Ticket(self.numbers)
    }

    pub(crate) fn run(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        while let Some(((at, _), _)) = self.queue.first_key_value() {
            if *at > end {
                break;
            }
            let Some(((at, _), happening)) = self.queue.pop_first() else { break };
            self.now = at;
            self.report.events += 1;
            (at.as_nanos(), happening.mark()).hash(&mut self.trace);
            self.happen(happening);
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
        }
        self.now = end;
        Ok(())
    }

    pub(crate) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ManagerDeadline { host, life } => {
                if self.hosts[host].manager_life == life {
                    self.tell_manager(host, manager::Event::Deadline);
                }
            }
            Happening::AgentDeadline { host, life } => {
                if self.hosts[host].agent_life == life {
                    self.tell_agent(host, agent::Event::Deadline);
                }
            }
            Happening::Raft { from, to, message } => {
                if self.linked(from, to) {
                    self.tell_manager(to, manager::Event::Raft(message));
                }
            }
            Happening::ToManager { host, event } => self.tell_manager(host, *event),
            Happening::ToAgent { host, session, event } => {
                if self.hosts[host].session == session {
                    self.tell_agent(host, *event);
                }
            }
            Happening::Staged { host, life, task, stage } => {
                if self.hosts[host].executor_life == life {
                    self.staged(host, task, stage);
                }
            }
            Happening::Finished { host, task } => self.finished(host, task),
            Happening::Snapshot { host, begun, snapshot } => {
                if self.hosts[host].manager_begun == begun {
                    self.tell_manager(host, manager::Event::Snapshot(snapshot));
                }
            }
            Happening::User => self.user_acts(),
            Happening::UserGivesUp(ticket) => self.user_gives_up(ticket),
            Happening::Fault => self.fault(),
            Happening::Restart { host, agent, manager } => self.restart(host, agent, manager),
            Happening::Healed => self.heal(),
            Happening::Check => {
                self.after(Duration::from_secs(1), Happening::Check);
                if let Err(broken) = self.check_addresses() {
                    self.broken.get_or_insert(broken);
                }
            }
        }
    }
}

//! The event queue, the network between hosts, and the faults.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent::{Agent, Stage};
use manager::{Answer, Call, Caller, Effect, Manager, Message, Open, StreamId, Ticket};
use model::Instant;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::Plan;
use crate::client::Client;
use crate::host::Host;

pub(crate) const START: Instant = Instant::from_nanos(1_790_000_000_000_000_000);
pub(crate) const CLUSTER: &str = "cluster0";
/// A connection that is cut is noticed after so long at most.
const CUT_NOTICED_MS: u64 = 8_000;

pub(crate) enum Happening {
    ManagerDeadline { host: usize, life: u64 },
    AgentDeadline { host: usize, life: u64 },
    Raft { from: usize, to: usize, message: Box<raftpb::Message> },
    ToManager { host: usize, event: Box<manager::Event> },
    ToAgent { host: usize, session: u64, event: Box<agent::Event> },
    Staged { host: usize, life: u64, task: String, stage: Stage },
    User,
    UserGivesUp(Ticket),
    Fault,
    Restart { host: usize, agent: bool, manager: bool },
    Healed,
    Check,
}

/// Who waits for an answer.
pub(crate) struct Waiting {
    pub(crate) host: usize,
    pub(crate) session: u64,
    pub(crate) manager: usize,
    heartbeat: bool,
}

/// A stream between an agent and a manager.
pub(crate) struct Stream {
    pub(crate) host: usize,
    pub(crate) session: u64,
    pub(crate) manager: usize,
    /// Nothing overtakes on a stream.
    last: Instant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub acknowledged: usize,
    pub faults: usize,
    pub leaders: usize,
    pub events: usize,
    /// Objects in the leader's store at the end.
    pub tasks: usize,
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
    pub(crate) troubled: bool,
    pub(crate) client: Client,
    pub(crate) network: String,
    pub(crate) applied: BTreeMap<(String, u64), Vec<u8>>,
    pub(crate) replies: BTreeMap<Ticket, manager::Reply>,
    pub(crate) leaders: BTreeSet<(u64, usize)>,
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
            troubled: false,
            client: Client::default(),
            network: String::new(),
            applied: BTreeMap::new(),
            replies: BTreeMap::new(),
            leaders: BTreeSet::new(),
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
        self.report.leaders = self.leaders.len();
        let leader = self.leader().and_then(|leader| self.hosts[leader].manager.as_ref());
        self.report.tasks = leader.map_or(0, |leader| leader.store().count::<pb::Task>());
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

    // ---- the network

    pub(crate) fn linked(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&a) == self.cut.contains(&b)
    }

    pub(crate) fn latency(&mut self) -> Duration {
        Duration::from_micros(self.dice.random_range(200..8_000))
    }

    /// When a connection that was cut is found to be dead.
    pub(crate) fn noticed(&mut self) -> Duration {
        Duration::from_millis(self.dice.random_range(100..CUT_NOTICED_MS))
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |host: &Host| host.manager.as_ref().is_some_and(Manager::leads);
        self.hosts.iter().position(leads)
    }

    pub(crate) fn caller(&self, host: usize) -> Caller {
        let host = &self.hosts[host];
        let unit = if host.identity.is_some() { ca::MANAGER_UNIT } else { ca::WORKER_UNIT };
        Caller {
            node_id: host.node_id.clone(),
            organization: CLUSTER.into(),
            units: vec![unit.into()],
            address: host.address.split(':').next().and_then(|ip| ip.parse().ok()),
            ..Default::default()
        }
    }

    // ---- managers

    pub(crate) fn tell_manager(&mut self, host: usize, event: manager::Event) {
        let now = self.hosts[host].local(self.now);
        let Some(manager) = self.hosts[host].manager.as_mut() else { return };
        let effects = manager.step(now, event);
        self.do_for_manager(host, effects);
    }

    pub(crate) fn do_for_manager(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            if let Some(left) = &mut self.hosts[host].dies_after {
                if *left == 0 {
                    return self.lose_power(host);
                }
                *left -= 1;
            }
            self.one_for_manager(host, effect);
            if self.hosts[host].manager.is_none() {
                return;
            }
        }
        self.hosts[host].manager_life += 1;
        let life = self.hosts[host].manager_life;
        let deadline = self.hosts[host].manager.as_ref().and_then(Manager::deadline);
        if let Some(at) = deadline {
            let at = self.hosts[host].global(at);
            self.at(at, Happening::ManagerDeadline { host, life });
        }
    }

    pub(crate) fn one_for_manager(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Persist(write) => self.hosts[host].disk.write(*write),
            Effect::Send { address, message, .. } => self.send_raft(host, &address, message),
            Effect::Probe { ticket, .. } => {
                self.tell_manager(host, manager::Event::Probed { ticket, healthy: true });
            }
            Effect::Reply { ticket, reply } => self.reply(host, ticket, reply),
            Effect::Message { stream, message } => {
                let event = match *message {
                    Message::Session(message) => agent::Event::Session(Box::new(message)),
                    Message::Assignments(message) => agent::Event::Assignments(message),
                    _ => return,
                };
                self.send_on(stream, event, false);
            }
            Effect::Close { stream, .. } => {
                let reason = "closed by the manager".to_owned();
                self.send_on(stream, agent::Event::SessionLost { reason }, true);
            }
            Effect::Touched(touched) => {
                if let Err(broken) = self.check_applied(&touched) {
                    self.broken.get_or_insert(broken);
                }
            }
            Effect::Leader(Some(leader)) if leader.here => {
                self.leaders.insert((self.leaders.len() as u64, host));
            }
            _ => {}
        }
    }

    pub(crate) fn send_raft(&mut self, from: usize, address: &str, message: Box<raftpb::Message>) {
        let Some(to) = self.hosts.iter().position(|host| host.address == address) else { return };
        if !self.linked(from, to) || (self.troubled && self.dice.random_bool(0.02)) {
            return;
        }
        let slow = self.troubled && self.dice.random_bool(0.01);
        let mut delay = self.latency();
        if slow {
            delay = Duration::from_millis(self.dice.random_range(100..2_000));
        }
        self.after(delay, Happening::Raft { from, to, message });
    }

    pub(crate) fn reply(&mut self, manager: usize, ticket: Ticket, reply: manager::Reply) {
        self.user_hears(ticket, &reply);
        let Some(caller) = self.calls.remove(&ticket) else {
            self.replies.insert(ticket, reply);
            return;
        };
        let event = match (&reply, caller.heartbeat) {
            (Ok(Answer::Heartbeat(answer)), _) => {
                let period = answer.period.unwrap_or_default();
                let nanos = period.seconds as u64 * 1_000_000_000 + period.nanos as u64;
                agent::Event::HeartbeatDone { period_nanos: nanos }
            }
            (Err(_), true) => agent::Event::SessionLost { reason: "refused".into() },
            (answer, _) => agent::Event::Reported { ok: answer.is_ok() },
        };
        let delay = self.latency();
        if self.linked(manager, caller.host) {
            let (host, session) = (caller.host, caller.session);
            self.after(delay, Happening::ToAgent { host, session, event: Box::new(event) });
        } else {
            self.call_fails(&caller);
        }
    }

    /// The answer never comes; the caller gives up after a while.
    pub(crate) fn call_fails(&mut self, caller: &Waiting) {
        let event = match caller.heartbeat {
            true => agent::Event::SessionLost { reason: "no answer".into() },
            false => agent::Event::Reported { ok: false },
        };
        let delay = self.noticed();
        let (host, session) = (caller.host, caller.session);
        self.after(delay, Happening::ToAgent { host, session, event: Box::new(event) });
    }

    pub(crate) fn send_on(&mut self, stream: StreamId, event: agent::Event, last: bool) {
        let delay = self.latency();
        let noticed = self.noticed();
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let (host, session, manager) = (open.host, open.session, open.manager);
        let at = (self.now + delay).max(open.last);
        open.last = at;
        if self.cut.contains(&host) == self.cut.contains(&manager) {
            self.at(at, Happening::ToAgent { host, session, event: Box::new(event) });
            if last {
                self.streams.remove(&stream);
            }
        } else {
            self.break_stream(stream, noticed);
        }
    }

    /// Both sides find out, each in its own time.
    pub(crate) fn break_stream(&mut self, stream: StreamId, noticed: Duration) {
        let Some(open) = self.streams.remove(&stream) else { return };
        let event = Box::new(agent::Event::SessionLost { reason: "cut".into() });
        let (host, session) = (open.host, open.session);
        self.after(noticed, Happening::ToAgent { host, session, event });
        self.close_at_manager(open.manager, stream);
    }

    pub(crate) fn close_at_manager(&mut self, host: usize, stream: StreamId) {
        let delay = self.noticed();
        let event = Box::new(manager::Event::Closed { stream });
        self.after(delay, Happening::ToManager { host, event });
    }

    // ---- agents

    pub(crate) fn tell_agent(&mut self, host: usize, event: agent::Event) {
        let now = self.hosts[host].local(self.now);
        let Some(agent) = self.hosts[host].agent.as_mut() else { return };
        let effects = agent.step(now, event);
        for effect in effects {
            self.one_for_agent(host, effect);
        }
        self.hosts[host].agent_life += 1;
        let life = self.hosts[host].agent_life;
        if let Some(at) = self.hosts[host].agent.as_ref().and_then(Agent::deadline) {
            let at = self.hosts[host].global(at);
            self.at(at, Happening::AgentDeadline { host, life });
        }
    }

    pub(crate) fn one_for_agent(&mut self, host: usize, effect: agent::Effect) {
        match effect {
            agent::Effect::OpenSession(request) => self.open_session(host, request),
            agent::Effect::CloseSession => self.close_session(host),
            agent::Effect::OpenAssignments(request) => {
                if let Some(manager) = self.hosts[host].session_manager {
                    self.open(host, manager, Open::Assignments(request));
                }
            }
            agent::Effect::Heartbeat(request) => self.call(host, Call::Heartbeat(request)),
            agent::Effect::Report(request) => self.call(host, Call::UpdateTaskStatus(request)),
            agent::Effect::Managers(peers) => {
                let peers = peers.into_iter().filter_map(|peer| peer.peer);
                self.hosts[host].managers = peers.map(|peer| peer.addr).collect();
            }
            agent::Effect::Persist(record) => {
                let id = record.task.id.clone();
                self.hosts[host].records.insert(id, *record);
            }
            agent::Effect::Forget { task } => drop(self.hosts[host].records.remove(&task)),
            effect => self.execute(host, effect),
        }
    }

    /// Through any manager to the one that leads, as that one knows it.
    pub(crate) fn way_to_leader(&self, host: usize) -> Option<usize> {
        let known = &self.hosts[host].managers;
        let address = known.get(self.hosts[host].turn % known.len().max(1))?;
        let first = self.hosts.iter().position(|other| other.address == *address)?;
        let manager = self.hosts[first].manager.as_ref()?;
        let leader = manager.leader()?;
        let leader = self.hosts.iter().position(|other| other.address == leader.address)?;
        let through = self.linked(host, first) && self.linked(first, leader);
        (through && self.hosts[leader].manager.is_some()).then_some(leader)
    }

    pub(crate) fn open_session(&mut self, host: usize, request: pb::SessionRequest) {
        self.close_session(host);
        self.hosts[host].turn += 1;
        match self.way_to_leader(host) {
            Some(leader) => {
                self.hosts[host].session_manager = Some(leader);
                self.open(host, leader, Open::Session(request));
            }
            None => {
                let event = Box::new(agent::Event::SessionLost { reason: "no way".into() });
                let delay = self.latency();
                let session = self.hosts[host].session;
                self.after(delay, Happening::ToAgent { host, session, event });
            }
        }
    }

    pub(crate) fn close_session(&mut self, host: usize) {
        self.hosts[host].session += 1;
        self.hosts[host].session_manager = None;
        for stream in std::mem::take(&mut self.hosts[host].streams) {
            if let Some(open) = self.streams.remove(&stream) {
                self.close_at_manager(open.manager, stream);
            }
        }
    }

    pub(crate) fn open(&mut self, host: usize, manager: usize, open: Open) {
        let stream = StreamId(self.ticket().0);
        let session = self.hosts[host].session;
        let delay = self.latency();
        self.streams.insert(stream, Stream { host, session, manager, last: self.now });
        self.hosts[host].streams.push(stream);
        if self.linked(host, manager) && self.hosts[manager].manager.is_some() {
            let caller = self.caller(host);
            let event = Box::new(manager::Event::Open { stream, caller, open });
            self.after(delay, Happening::ToManager { host: manager, event });
        } else {
            let noticed = self.noticed();
            self.break_stream(stream, noticed);
        }
    }

    pub(crate) fn call(&mut self, host: usize, call: Call) {
        let session = self.hosts[host].session;
        let heartbeat = matches!(call, Call::Heartbeat(_));
        let Some(manager) = self.hosts[host].session_manager else {
            return self.call_fails(&Waiting { host, session, manager: host, heartbeat });
        };
        let caller = Waiting { host, session, manager, heartbeat };
        if !self.linked(host, manager) || self.hosts[manager].manager.is_none() {
            return self.call_fails(&caller);
        }
        let ticket = self.ticket();
        self.calls.insert(ticket, caller);
        let caller = self.caller(host);
        let event = Box::new(manager::Event::Call { ticket, caller, call: Box::new(call) });
        let delay = self.latency();
        self.after(delay, Happening::ToManager { host: manager, event });
    }
}

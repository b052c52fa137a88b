//! A worker: task stages, its view of the network, what it reports.
//!
//! [`Agent::step`] takes what managers, the executor and the gossip say, and says what follows.

pub mod event;
mod life;
pub mod network;
mod rows;
mod claims;
mod session;
mod shown;
mod told;
#[cfg(test)]
mod tests;

pub use event::{
    Config, Container, Effect, Endpoint, Event, Guest, Key, Listed, OverlayState, Record, Stage,
    StageError, Work,
};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Instant, NetworkId};
use netplan::view::{NodeEngine, Proto};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use store::access::TaskState;
use wire::swarmkit as pb;

use life::{Life, Wish};
use network::Picture;
use rows::Rows;
use session::{Session, Take};
use told::Told;

/// Rows that arrive close together are looked at together.
const ROWS_TOGETHER: Duration = Duration::from_millis(5);
/// Rows of one owner that are answered for together. The owner of more waits for a fixed time.
const FOLLOWED_MAX: usize = 16_384;
/// A task that leaves is not stopped sooner, for the requests that are under way.
const DRAIN_MIN: Duration = Duration::from_millis(200);
/// After a start with tasks from before: how long the networks are left as they are, so that what
/// the gossip has not said yet is not taken for gone.
const SETTLE_MAX: Duration = Duration::from_secs(10);
const SETTLE_AFTER_MEMBER: Duration = Duration::from_secs(2);
const SETTLE_AFTER_SESSION: Duration = Duration::from_secs(4);

/// One node's agent.
pub struct Agent {
    config: Config,
    dice: ChaCha8Rng,
    session: Session,
    node: Option<pb::Node>,
    lives: BTreeMap<String, Life>,
    secrets: BTreeMap<String, pb::Secret>,
    configs: BTreeMap<String, pb::Config>,
    attached: BTreeMap<String, Guest>,
    rows: Rows,
    told: Told,
    /// The prints of others' rows, by owner, network and key, that wait for a picture to follow them.
    followed: BTreeMap<String, BTreeMap<(NetworkId, String), u64>>,
    shown: Picture,
    claims_refused: u64,
    /// None until they are known.
    ports_taken: Option<BTreeSet<(Proto, u16)>>,
    joined: BTreeSet<NetworkId>,
    /// This host has come up again, and may not be known on the ingress network yet.
    mesh_shut: bool,
    /// The picture may have changed: look at it then.
    look_at: Option<Instant>,
    /// Until then the networks stay as an earlier life of the daemon left them.
    settles: Option<Instant>,
    /// However long the rows of others are in coming, the networks are not left alone for longer.
    settles_max: Instant,
    /// Networks whose rows are here.
    synced: BTreeSet<NetworkId>,
    adopted: bool,
}

impl Agent {
    /// `records` are the tasks that the disk kept; those whose containers live on are adopted.
    pub fn new(config: Config, records: Vec<Record>) -> Self {
        let dice = ChaCha8Rng::from_seed(config.seed);
        let session = Session::new(config.description.clone());
        let lives: BTreeMap<String, Life> = records
            .into_iter()
            .map(|record| (record.task.id.clone(), Life::adopt(record)))
            .collect();
        Self {
            node: config.node.clone(),
            dice,
            session,
            // A node without tasks has published ports, and networks of containers of the user's.
            adopted: lives.values().any(Life::is_present)
                || config.node.as_ref().is_some_and(|node| !node.attachments.is_empty()),
            mesh_shut: config.node.is_some() && !config.mesh_open,
            lives,
            config,
            secrets: BTreeMap::new(),
            configs: BTreeMap::new(),
            attached: BTreeMap::new(),
            rows: Rows::default(),
            told: Told::default(),
            followed: BTreeMap::new(),
            shown: Picture::default(),
            claims_refused: 0,
            ports_taken: None,
            joined: BTreeSet::new(),
            look_at: None,
            settles: None,
            settles_max: Instant::default(),
            synced: BTreeSet::new(),
        }
    }

    /// Takes one event and says what follows from it. Begin with [`Event::Deadline`].
    #[must_use]
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if std::mem::take(&mut self.adopted) {
            self.settles_max = now + SETTLE_MAX;
            self.settles = Some(self.settles_max);
            self.look_at = Some(now);
        }
        self.take(now, event, &mut effects);
        self.settle(now);
        let mut work = Vec::new();
        self.advance(now, &mut effects, &mut work);
        if self.look_at.into_iter().chain(self.settles).any(|at| at <= now) {
            self.look_at = None;
            self.show(now, &mut effects);
        }
        // Only now: a container starts in a network that was told first.
        effects.extend(work);
        self.report(now);
        self.session.tick(now, &mut self.dice, &mut effects);
        effects
    }

    /// When [`Event::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let lives = self.lives.values().filter_map(Life::deadline).min();
        [self.session.deadline(), lives, self.look_at, self.settles].into_iter().flatten().min()
    }

    /// Rows of the gossip that could not be read.
    pub fn rows_dropped(&self) -> u64 {
        self.rows.dropped
    }

    /// How often a row of another node claimed what it may not.
    pub fn claims_refused(&self) -> u64 {
        self.claims_refused
    }

    fn take(&mut self, now: Instant, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Deadline => {}
            Event::Session(message) => self.told(now, *message, effects),
            Event::SessionLost { .. } => self.session.lose(now, &mut self.dice, effects),
            Event::HeartbeatDone { period_nanos } => {
                self.session.heartbeat_done(now, Duration::from_nanos(period_nanos));
            }
            Event::Assignments(message) => match self.session.take(message) {
                Take::Reopen(effect) => effects.push(effect),
                Take::Complete(changes) => self.assign(changes, true, effects),
                Take::Incremental(changes) => self.assign(changes, false, effects),
            },
            Event::Reported { ok } => self.session.reported(now, ok),
            Event::Described(description) => self.session.describe(now, description, effects),
            Event::Staged { task, stage, result } => {
                self.with(&task, now, |life| life.staged(now, stage, result));
            }
            Event::Exited { task, container, message } => {
                self.with(&task, now, |life| life.exited(now, container, message));
            }
            Event::Health { task, healthy } => self.with(&task, now, |life| life.health(healthy)),
            Event::Peers { network, mut names, failed } => {
                names.remove(&self.config.gossip_name);
                self.told.peers(now, network, names, failed, &self.rows);
            }
            Event::Synced { network } => drop(self.synced.insert(network)),
            Event::Applied { by, rows } => {
                self.told.applied(now, &by, &rows);
                if self.mesh_shut {
                    self.look_at = Some(now);
                }
            }
            Event::Row { network, table, key, owner, value } => {
                self.follow(&network, &table, &key, &owner, value.as_deref());
                self.rows.put(network, &table, key, owner, value.as_deref());
                self.look_soon(now);
            }
            Event::MemberUp { name, skep, .. } => self.member_up(now, name, skep),
            Event::MemberDown { name } => {
                self.rows.member_down(&name);
                self.look_soon(now);
            }
            Event::PortsTaken(ports) => self.ports_taken = Some(ports),
            Event::HostSilent { name } => {
                self.rows.host_silent(name);
                self.look_soon(now);
            }
            Event::Attached { task, guest } => {
                self.attached.insert(task.clone(), guest.clone());
                self.with(&task, now, |life| life.attached = Some(guest));
            }
            Event::Detached { task } => {
                self.attached.remove(&task);
                self.with(&task, now, |life| life.attached = None);
            }
        }
    }

    fn with(&mut self, task: &str, now: Instant, change: impl FnOnce(&mut Life)) {
        if let Some(life) = self.lives.get_mut(task) {
            change(life);
            self.look_at = Some(now);
        }
    }

    /// The owner of a row about an endpoint hears when this node sends where the row says.
    fn follow(&mut self, network: &str, table: &str, key: &str, owner: &str, value: Option<&[u8]>) {
        if table != gossip::ENDPOINT_TABLE
            || owner == self.config.gossip_name
            || self.rows.engine(owner) != NodeEngine::Skep
        {
            return;
        }
        let rows = self.followed.entry(owner.to_owned()).or_default();
        let network = NetworkId::new(network);
        let at = (network.clone(), key.to_owned());
        rows.remove(&at);
        if let Some(value) = value
            && rows.len() < FOLLOWED_MAX
        {
            rows.insert(at, gossip::row_print(&network, key, value));
        }
    }

    /// Tells the owners which of their rows are followed; one that is refused waits until it is
    /// believed.
    fn answer(&mut self, new: &Picture, effects: &mut Vec<Effect>) {
        let refused = |network: &NetworkId, key: &str| {
            new.refused.contains(&(network.clone(), gossip::ENDPOINT_TABLE, key.to_owned()))
        };
        self.followed.retain(|to, rows| {
            let mut prints = BTreeSet::new();
            rows.retain(|(network, key), print| {
                let waits = refused(network, key);
                if !waits {
                    prints.insert(*print);
                }
                waits
            });
            if !prints.is_empty() {
                let rows = prints.into_iter().collect();
                effects.push(Effect::Applied { to: to.clone(), rows });
            }
            !rows.is_empty()
        });
    }

    fn look_soon(&mut self, now: Instant) {
        let soon = now + ROWS_TOGETHER;
        self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
    }

    fn member_up(&mut self, now: Instant, name: String, skep: bool) {
        if name == self.config.gossip_name {
            return;
        }
        if !self.rows.is_up(&name) {
            // Its rows are on their way.
            self.settle_by(now + SETTLE_AFTER_MEMBER);
        }
        self.rows.member_up(name, skep);
        self.look_soon(now);
    }

    /// For want of a better sign. Where connections go to other nodes the rows of these are such a one:
    /// on a busy host they may take longer, and without them the connections would lead nowhere.
    fn settle_by(&mut self, settled: Instant) {
        if !self.config.had_peers {
            self.settles = self.settles.map(|at| at.min(settled));
        }
    }

    /// The networks may be touched when what others have announced is here.
    fn settle(&mut self, now: Instant) {
        let Some(at) = self.settles else { return };
        if self.config.had_peers && self.rows.members() == 0 && !self.session.is_known() {
            // Nobody is there to say what of it is no longer so.
            self.settles_max = now + SETTLE_MAX;
            self.settles = Some(self.settles_max);
            return;
        }
        let mut shared = self.joined.iter().filter(|id| self.told.has_peers(id));
        let missing = shared.any(|id| !self.synced.contains(id));
        if !missing && !self.synced.is_empty() {
            self.settles = Some(at.min(now));
        } else if missing && at <= now && now < self.settles_max {
            self.settles = Some(self.settles_max);
        }
    }

    fn is_settling(&self, now: Instant) -> bool {
        self.settles.is_some_and(|at| at > now)
    }

    fn told(&mut self, now: Instant, message: pb::SessionMessage, effects: &mut Vec<Effect>) {
        if message.node.is_some() && message.node != self.node {
            self.node = message.node.clone();
            self.look_at = Some(now);
        }
        if self.session.told(message, now, effects) {
            // One that is alone need not wait for others' rows for long.
            self.settle_by(now + SETTLE_AFTER_SESSION);
            for (id, life) in &mut self.lives {
                if life.needs_others() {
                    life.unreported = true;
                } else if life.state() >= TaskState::Accepted {
                    self.session.report(id, &life.status);
                }
            }
        }
    }

    fn assign(
        &mut self,
        changes: Vec<pb::AssignmentChange>,
        complete: bool,
        effects: &mut Vec<Effect>,
    ) {
        use pb::assignment::Item;
        use pb::assignment_change::AssignmentAction;
        let mut kept = BTreeSet::new();
        let mut dropped = Vec::new();
        for change in changes {
            let update = change.action() == AssignmentAction::Update;
            let Some(item) = change.assignment.and_then(|assignment| assignment.item) else {
                continue;
            };
            match (item, update) {
                (Item::Task(task), true) => {
                    kept.insert(task.id.clone());
                    self.assign_task(task);
                }
                (Item::Task(task), false) => self.unassign(&task.id),
                (Item::Secret(secret), true) => {
                    kept.insert(secret.id.clone());
                    self.secrets.insert(secret.id.clone(), secret);
                }
                (Item::Config(config), true) => {
                    kept.insert(config.id.clone());
                    self.configs.insert(config.id.clone(), config);
                }
                (Item::Secret(pb::Secret { id, .. }), false)
                | (Item::Config(pb::Config { id, .. }), false) => dropped.push(id),
                (Item::Volume(_), _) => {}
            }
        }
        if complete {
            let gone: Vec<String> =
                self.lives.keys().filter(|id| !kept.contains(*id)).cloned().collect();
            gone.iter().for_each(|id| self.unassign(id));
            let known = self.secrets.keys().chain(self.configs.keys());
            dropped.extend(known.filter(|id| !kept.contains(*id)).cloned());
        }
        if !dropped.is_empty() {
            dropped.iter().for_each(|id| {
                self.secrets.remove(id);
                self.configs.remove(id);
            });
            effects.push(Effect::DropSecrets(dropped));
        }
    }

    fn assign_task(&mut self, task: pb::Task) {
        if let Some(life) = self.lives.get_mut(&task.id) {
            life.assign(task);
            return;
        }
        let mut life = Life::new(task);
        life.attached = self.attached.get(&life.task.id).cloned();
        life.doubt();
        self.lives.insert(life.task.id.clone(), life);
    }

    fn unassign(&mut self, task: &str) {
        if let Some(life) = self.lives.get_mut(task) {
            life.unassigned = true;
            life.unsaved = true;
        }
        self.session.forget(task);
    }

    /// Every task takes the steps that are due.
    fn advance(&mut self, now: Instant, effects: &mut Vec<Effect>, work: &mut Vec<Effect>) {
        let mut gone = Vec::new();
        let news = self.news_time();
        let settling = self.is_settling(now);
        let Self { told, rows, shown, lives, .. } = self;
        for (id, life) in lives {
            let drain = if needs_drain(&life.task) { DRAIN_MIN } else { Duration::ZERO };
            let waits = life.needs_others();
            life.awaits = if waits { followed_at(told, rows, shown, life, news) } else { None };
            // A new task needs networks that may be changed; one that leaves is sent to from here
            // until they are, and who else sends to it is not known yet.
            if settling && (life.is_untouched() || (!drain.is_zero() && life.is_to_drain())) {
                continue;
            }
            let was_ready = life.is_ready();
            let mut over = false;
            while !over && let Some(wish) = life.advance(now, drain) {
                self.look_at = Some(now);
                over = wish == Wish::Gone;
                let task = id.clone();
                let found = || Box::new(work_of(&life.task, &self.secrets, &self.configs));
                match wish {
                    Wish::Prepare => work.push(Effect::Prepare(found())),
                    Wish::Attach => work.push(Effect::Attachment(found())),
                    Wish::Start => work.push(Effect::Start { task }),
                    Wish::Shutdown => work.push(Effect::Shutdown { task }),
                    Wish::Remove => work.push(Effect::Remove { task }),
                    Wish::Detach => work.push(Effect::AttachmentGone { task }),
                    Wish::Gone => gone.push(task),
                }
            }
            if let Some(taken) = &self.ports_taken {
                life.warn(warning(&life.task, taken));
            }
            if life.unsaved || was_ready != life.is_ready() {
                self.look_at = Some(now);
            }
            if std::mem::take(&mut life.unsaved) && !over {
                effects.push(Effect::Persist(Box::new(life.record())));
            }
        }
        for task in gone {
            self.lives.remove(&task);
            effects.push(Effect::Forget { task });
        }
    }

    /// Tells the manager what is new. That a task runs is said once every node reaches it, as what
    /// it replaces goes then.
    fn report(&mut self, now: Instant) {
        let news = self.news_time();
        let settling = self.is_settling(now);
        let Self { told, rows, shown, lives, .. } = self;
        for (id, life) in lives.iter_mut().filter(|(_, life)| life.unreported) {
            if life.needs_others() {
                if settling && needs_drain(&life.task) {
                    // Its turn is when the networks have settled, whatever is known by then.
                    life.awaits = None;
                    continue;
                }
                life.awaits = followed_at(told, rows, shown, life, news);
                if life.awaits.is_some_and(|at| at > now) {
                    continue;
                }
            }
            life.unreported = false;
            if !life.unassigned {
                self.session.report(id, &life.status);
            }
        }
    }

    /// How long the other nodes need to hear of a change: gossip goes out every fifth of a second
    /// to a few nodes, which pass it on.
    fn news_time(&self) -> Duration {
        let rounds = (self.rows.members() + 1).checked_ilog2().unwrap_or(0);
        Duration::from_millis(200) + Duration::from_millis(250) * rounds
    }
}

/// What `docker service ps` is to tell of a task that runs.
fn warning(task: &pb::Task, taken: &BTreeSet<(Proto, u16)>) -> String {
    let mut ports = network::ingress_targets(task);
    ports.retain(|port| taken.contains(&(port.proto, port.published)));
    let ports: Vec<String> =
        ports.iter().map(|port| format!("{}/{}", port.published, port.proto.name())).collect();
    match ports.as_slice() {
        [] => String::new(),
        [port] => format!(
            "port {port} is in use by another process on this node, which gets no connections there while the service has it published"
        ),
        _ => format!(
            "ports {} are in use by other processes on this node, which get no connections there while the service has them published",
            ports.join(", ")
        ),
    }
}

/// A task that nobody reaches over a network has nobody to wait for.
fn needs_drain(task: &pb::Task) -> bool {
    let mut networks = task.networks.iter().filter_map(|attachment| attachment.network.as_ref());
    !task.service_id.is_empty() && networks.any(network::is_overlay)
}

/// Until when others may not yet follow what was announced of a task.
fn followed_at(
    told: &Told,
    rows: &Rows,
    shown: &Picture,
    life: &Life,
    news: Duration,
) -> Option<Instant> {
    let task = &life.task;
    let networks = task.networks.iter().filter_map(|attachment| attachment.network.as_ref());
    let until = networks.filter_map(|network| {
        let id = NetworkId::new(&network.id);
        let key = network::endpoint_id(&task.id, &network.id);
        let key = (id, gossip::ENDPOINT_TABLE, key);
        let value = shown.rows.get(&key)?;
        told.until((&key.0, &key.2, value), rows, news, life.is_draining())
    });
    until.max()
}

fn work_of(
    task: &pb::Task,
    secrets: &BTreeMap<String, pb::Secret>,
    configs: &BTreeMap<String, pb::Config>,
) -> Work {
    let spec = task.spec.clone().unwrap_or_default();
    Work {
        endpoints: network::endpoints(task),
        ingress: network::ingress_targets(task),
        secrets: store::object::task_secrets(&spec)
            .filter_map(|id| secrets.get(id).cloned())
            .collect(),
        configs: store::object::task_configs(&spec)
            .filter_map(|id| configs.get(id).cloned())
            .collect(),
        task: task.clone(),
    }
}

//! The task that owns the agent core: sessions with managers, the executor, the overlays, the gossip.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use agent::{Agent, Effect, Event, Record, Work};
use model::NetworkId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use transport::Keys;
use transport::client::Manager;
use wire::swarmkit as pb;

use super::clock::Clock;
use super::executor::Executor;
use super::gossip_keys;
use super::gossiped::gossiped;
use super::names_told::{Names, Zones};
use super::overlays_applied::{answer_when_applied, apply_overlays};
use super::paths::Paths;
use super::saved::Folder;
use super::task_records::{read_records, write_record};
use transport::gossip;

const EVENTS_WAITING_MAX: usize = 4_096;
const ANSWERS_WAITING_MAX: usize = 4_096;

/// What reaches the loop.
pub enum Input {
    Event(Event),
    /// Something that belongs to one session; stale ones are dropped.
    Of(u64, Event),
    /// A waiting `docker run --network`: its work when the assignment arrives, and the generation of
    /// the overlays that has its network.
    Await {
        task: String,
        found: oneshot::Sender<(Work, u64)>,
    },
}

/// Two rounds of gossip: the second reaches whoever missed the first.
const GOODBYE_TIME: std::time::Duration = std::time::Duration::from_millis(450);

/// What the rest of the node sees of its agent.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    gossip: gossip::Handle,
    pub view: Arc<View>,
    /// Set with the first session: the node is a member that works.
    pub registered: watch::Receiver<bool>,
    /// This node's own object, as the manager sent it last.
    pub node: watch::Receiver<Option<Arc<pb::Node>>>,
    pub roots: watch::Receiver<Vec<u8>>,
    overlays_applied: watch::Receiver<u64>,
}

impl Handle {
    pub async fn tell(&self, event: Event) {
        let _ = self.inputs.send(Input::Event(event)).await;
    }

    /// Tells the others on the gossip that this node goes; they drop its rows at once.
    pub async fn say_goodbye(&self) {
        self.gossip.send(::gossip::Event::LeaveCluster).await;
        tokio::time::sleep(GOODBYE_TIME).await;
    }

    /// What the gossip saw and dropped, by a fixed name.
    pub async fn gossip_counters(&self) -> BTreeMap<&'static str, u64> {
        let mut counters = self.gossip.counters().await;
        counters.insert("row_unreadable", self.view.rows_dropped.load(Ordering::Relaxed));
        counters.insert("claim_refused", self.view.claims_refused.load(Ordering::Relaxed));
        counters
    }

    /// The nodes on a network: gossip name and address.
    pub fn peers(&self, network: &NetworkId) -> Vec<(String, String)> {
        self.gossip.peers(network).into_iter().map(|(name, ip)| (name, ip.to_string())).collect()
    }

    pub async fn attachment(&self, task: String) -> Option<Work> {
        let (found, work) = oneshot::channel();
        self.inputs.send(Input::Await { task, found }).await.ok()?;
        let (work, generation) = work.await.ok()?;
        // A network that stands may still be on its way out, with the container that had it before.
        self.overlays_applied.clone().wait_for(|applied| *applied >= generation).await.ok()?;
        Some(work)
    }
}

/// What others read while the loop goes on.
#[derive(Default)]
pub struct View {
    /// Managers to turn to: node id, `host:port`, weight.
    pub managers: Mutex<Vec<(String, String)>>,
    pub overlays: Mutex<agent::OverlayState>,
    /// What runs here, by task: networks with their objects come with it.
    pub works: Mutex<BTreeMap<String, Work>>,
    /// The networks' own objects, by id.
    pub networks: Mutex<BTreeMap<String, (pb::Network, i64)>>,
    /// Rows of the gossip that could not be read, and those that claimed what they may not.
    pub rows_dropped: AtomicU64,
    pub claims_refused: AtomicU64,
    /// Where the gossip is blocked.
    pub paths: Paths,
}

pub fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

pub struct Parts {
    pub clock: Clock,
    pub keys: Arc<Keys>,
    pub folder: Folder,
    pub engine: Arc<engine::Engine>,
    pub gossip: gossip::Handle,
    pub gossip_effects: mpsc::Receiver<::gossip::Effect>,
    pub resolver: resolver::Client,
    pub data_path: std::net::IpAddr,
    pub managers: Vec<(String, String)>,
}

struct Loop {
    clock: Clock,
    core: Agent,
    keys: Arc<Keys>,
    folder: Folder,
    gossip: gossip::Handle,
    view: Arc<View>,
    inputs: mpsc::WeakSender<Input>,
    executor: Executor,
    session: u64,
    session_manager: Option<Manager>,
    session_tasks: Vec<AbortHandle>,
    turn: usize,
    overlays: watch::Sender<(u64, agent::OverlayState, Zones)>,
    waiting: BTreeMap<String, Vec<oneshot::Sender<(Work, u64)>>>,
    attachments: BTreeMap<String, Work>,
    /// What other nodes hear once a generation of the overlays is in the kernel.
    answers: mpsc::Sender<(u64, ::gossip::Event)>,
    registered: watch::Sender<bool>,
    node: watch::Sender<Option<Arc<pb::Node>>>,
    roots: watch::Sender<Vec<u8>>,
}

/// Starts the loop; it ends when the last handle is dropped or the task is aborted.
///
/// # Errors
/// When the tasks that the disk keeps cannot be read.
pub fn start(
    config: agent::Config,
    parts: Parts,
) -> std::io::Result<(Handle, tokio::task::JoinHandle<()>)> {
    let records = read_records(&parts.folder)?;
    let (inputs, queue) = mpsc::channel(EVENTS_WAITING_MAX);
    let (registered, registered_seen) = watch::channel(false);
    let (node, node_seen) = watch::channel(None);
    let (roots, roots_seen) = watch::channel(Vec::new());
    let (overlays, overlays_wanted) =
        watch::channel((0, agent::OverlayState::default(), Zones::new()));
    let (applied, overlays_applied) = watch::channel(0);
    let (answers, answers_due) = mpsc::channel(ANSWERS_WAITING_MAX);
    let view = Arc::new(View::default());
    *locked(&view.managers) = parts.managers;
    let executor = Executor::new(
        parts.engine.clone(),
        inputs.downgrade(),
        overlays_applied.clone(),
        parts.folder.clone(),
        view.clone(),
    );
    let gossip = parts.gossip.clone();
    let answering = answer_when_applied(answers_due, overlays_applied.clone(), gossip.clone());
    let the_loop = Loop {
        clock: parts.clock,
        core: Agent::new(config, records.clone()),
        keys: parts.keys,
        folder: parts.folder,
        gossip: parts.gossip,
        view: view.clone(),
        inputs: inputs.downgrade(),
        executor,
        session: 0,
        session_manager: None,
        session_tasks: Vec::new(),
        turn: 0,
        overlays,
        waiting: BTreeMap::new(),
        attachments: BTreeMap::new(),
        answers,
        registered,
        node,
        roots,
    };
    let told = inputs.downgrade();
    let data_path = parts.data_path;
    let engine = parts.engine;
    let resolver = parts.resolver;
    let effects = parts.gossip_effects;
    let task = tokio::spawn(async move {
        // Everything this task starts ends with it.
        let mut helpers = JoinSet::new();
        helpers.spawn(super::ports_taken::tell(engine.network.ports_taken(), told));
        let names = Names::new(resolver);
        helpers.spawn(apply_overlays(engine, names, overlays_wanted, applied, data_path));
        helpers.spawn(answering);
        the_loop.run(queue, effects, records).await;
    });
    let handle = Handle {
        inputs,
        gossip,
        view,
        registered: registered_seen,
        node: node_seen,
        roots: roots_seen,
        overlays_applied,
    };
    Ok((handle, task))
}

impl Loop {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Input>,
        mut gossip: mpsc::Receiver<::gossip::Effect>,
        records: Vec<Record>,
    ) {
        self.executor.adopt(&records).await;
        self.gossip_as_before().await;
        let effects = self.core.step(self.clock.now(), Event::Deadline);
        self.carry_out(effects).await;
        loop {
            let deadline = self.core.deadline();
            let event = tokio::select! {
                input = queue.recv() => match input {
                    None => return,
                    Some(Input::Event(event)) => Some(event),
                    Some(Input::Of(session, event)) => (session == self.session).then_some(event),
                    Some(Input::Await { task, found }) => {
                        let generation = self.overlays.borrow().0;
                        match self.attachments.get(&task) {
                            Some(work) => drop(found.send((work.clone(), generation))),
                            None => self.waiting.entry(task).or_default().push(found),
                        }
                        None
                    }
                },
                effect = gossip.recv() => match effect {
                    None => return,
                    Some(::gossip::Effect::Path { to, state }) => {
                        self.view.paths.note(to, state);
                        None
                    }
                    Some(effect) => gossiped(effect),
                },
                () = self.clock.sleep_until(deadline) => Some(Event::Deadline),
            };
            let Some(event) = event else { continue };
            if let Event::Session(_) = &event {
                self.registered.send_replace(true);
            }
            let effects = self.core.step(self.clock.now(), event);
            self.view.rows_dropped.store(self.core.rows_dropped(), Ordering::Relaxed);
            self.view.claims_refused.store(self.core.claims_refused(), Ordering::Relaxed);
            self.carry_out(effects).await;
        }
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::OpenSession(request) => self.open_session(request),
                Effect::CloseSession => self.close_session(),
                Effect::OpenAssignments(request) => self.open_assignments(request),
                Effect::Heartbeat(request) => self.heartbeat(request),
                Effect::Report(request) => self.report(request),
                Effect::Managers(peers) => self.managers(peers).await,
                Effect::Keys(keys) => self.keys_changed(keys).await,
                Effect::RootCa(roots) => drop(self.roots.send_replace(roots)),
                Effect::Node(node) => {
                    for attachment in &node.attachments {
                        self.learn(attachment);
                    }
                    if let Err(error) = self.folder.save_node(&node) {
                        tracing::warn!(%error, "this node's object not kept");
                    }
                    self.node.send_replace(Some(Arc::new(*node)));
                }
                Effect::Persist(record) => self.persist(&record),
                Effect::Forget { task } => {
                    locked(&self.view.works).remove(&task);
                    if let Err(error) = disk::records::remove(&self.folder.tasks().join(&task)) {
                        tracing::warn!(%error, task, "record of a task not removed");
                    }
                }
                Effect::Prepare(work) => {
                    for attachment in &work.task.networks {
                        self.learn(attachment);
                    }
                    locked(&self.view.works).insert(work.task.id.clone(), (*work).clone());
                    self.executor.prepare(*work);
                }
                Effect::Start { task } => self.executor.start(task, self.overlays.borrow().0),
                Effect::Shutdown { task } => self.executor.shutdown(task),
                Effect::Remove { task } => self.executor.remove(task),
                Effect::DropSecrets(_) => {}
                Effect::Attachment(work) => self.attached(*work),
                Effect::AttachmentGone { task } => drop(self.attachments.remove(&task)),
                Effect::Overlays(state) => self.overlays_changed(state),
                Effect::Applied { to, rows } => {
                    let generation = self.overlays.borrow().0;
                    let answer = ::gossip::Event::Applied { to, rows };
                    // Where so many wait, the others' own bound ends their waiting.
                    let _ = self.answers.try_send((generation, answer));
                }
                Effect::Zones(zones) => self.zones_changed(zones),
                Effect::JoinNetwork(network) => {
                    self.gossip.send(::gossip::Event::JoinNetwork { network }).await
                }
                Effect::LeaveNetwork(network) => {
                    self.gossip.send(::gossip::Event::LeaveNetwork { network }).await
                }
                Effect::PutRow { network, table, key, value } => {
                    self.gossip
                        .send(::gossip::Event::PutRow { network, table: table.into(), key, value })
                        .await;
                }
                Effect::DeleteRow { network, table, key } => {
                    self.gossip
                        .send(::gossip::Event::DeleteRow { network, table: table.into(), key })
                        .await;
                }
            }
        }
    }

    // ---- the session

    fn open_session(&mut self, request: pb::SessionRequest) {
        self.close_session();
        self.session += 1;
        let Some(manager) = self.next_manager() else {
            return self.later(Event::SessionLost { reason: "no manager is known".into() });
        };
        self.session_manager = Some(manager.clone());
        let executor = self.executor.clone();
        self.work(move |post| async move {
            let mut stream = match manager.dispatcher().session(request).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return post.lost(&manager, &status).await,
            };
            // The log broker's own stream lives as long as the session.
            let mut logs = JoinSet::new();
            loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        if logs.is_empty() {
                            logs.spawn(super::log_publisher::listen(
                                manager.clone(),
                                executor.clone(),
                            ));
                        }
                        post.event(Event::Session(Box::new(message))).await;
                    }
                    Ok(None) => return post.ended("the manager closed the session").await,
                    Err(status) => return post.lost(&manager, &status).await,
                }
            }
        });
    }

    fn close_session(&mut self) {
        self.session += 1;
        self.session_manager = None;
        for task in self.session_tasks.drain(..) {
            task.abort();
        }
    }

    fn open_assignments(&mut self, request: pb::AssignmentsRequest) {
        let Some(manager) = self.session_manager.clone() else { return };
        self.work(move |post| async move {
            let mut stream = match manager.dispatcher().assignments(request).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return post.lost(&manager, &status).await,
            };
            loop {
                match stream.message().await {
                    Ok(Some(message)) => post.event(Event::Assignments(message)).await,
                    Ok(None) => return post.ended("the manager closed the assignments").await,
                    Err(status) => return post.lost(&manager, &status).await,
                }
            }
        });
    }

    fn heartbeat(&mut self, request: pb::HeartbeatRequest) {
        let Some(manager) = self.session_manager.clone() else { return };
        self.work(move |post| async move {
            let request = transport::join::within(request, std::time::Duration::from_secs(10));
            match manager.dispatcher().heartbeat(request).await {
                Ok(answer) => {
                    let period = answer.into_inner().period.unwrap_or_default();
                    let period_nanos =
                        period.seconds.max(0) as u64 * 1_000_000_000 + period.nanos.max(0) as u64;
                    post.event(Event::HeartbeatDone { period_nanos }).await;
                }
                Err(status) => post.lost(&manager, &status).await,
            }
        });
    }

    fn report(&mut self, request: pb::UpdateTaskStatusRequest) {
        let Some(manager) = self.session_manager.clone() else {
            return self.later(Event::Reported { ok: false });
        };
        self.work(move |post| async move {
            let request = transport::join::within(request, std::time::Duration::from_secs(10));
            let answered = manager.dispatcher().update_task_status(request).await;
            if let Err(status) = &answered {
                tracing::debug!(code = ?status.code(), message = status.message(), "task status not taken");
            }
            post.event(Event::Reported { ok: answered.is_ok() }).await;
        });
    }

    /// One after the other, so that a dead manager costs one attempt.
    fn next_manager(&mut self) -> Option<Manager> {
        let managers = locked(&self.view.managers).clone();
        let (_, address) = managers.get(self.turn % managers.len().max(1))?;
        self.turn += 1;
        Manager::new(address.clone(), self.keys.clone()).ok()
    }

    /// Runs for as long as the session does; what it posts counts only for this session.
    fn work<F: Future<Output = ()> + Send + 'static>(&mut self, make: impl FnOnce(Post) -> F) {
        let post = Post { session: self.session, inputs: self.inputs.clone() };
        self.session_tasks.retain(|task| !task.is_finished());
        self.session_tasks.push(tokio::spawn(make(post)).abort_handle());
    }

    fn later(&mut self, event: Event) {
        let post = Post { session: self.session, inputs: self.inputs.clone() };
        tokio::spawn(async move { post.event(event).await });
    }

    // ---- what the manager tells

    async fn managers(&mut self, peers: Vec<pb::WeightedPeer>) {
        let managers: Vec<(String, String)> = peers
            .into_iter()
            .filter_map(|peer| peer.peer)
            .map(|peer| (peer.node_id, peer.addr))
            .collect();
        if managers.is_empty() {
            return;
        }
        *locked(&self.view.managers) = managers.clone();
        match self.folder.load() {
            Ok(Some(mut saved)) if saved.managers != managers => {
                saved.managers = managers.clone();
                if let Err(error) = self.folder.save(&saved) {
                    tracing::warn!(%error, "addresses of the managers not kept");
                }
            }
            _ => {}
        }
        self.join(&managers).await;
    }

    /// Gossip runs on its own port at the managers' addresses.
    async fn join(&self, managers: &[(String, String)]) {
        let addresses = managers
            .iter()
            .filter_map(|(_, address)| address.parse::<SocketAddr>().ok())
            .map(|address| SocketAddr::new(address.ip(), super::GOSSIP_PORT))
            .collect();
        self.gossip.send(::gossip::Event::Join { addresses }).await;
    }

    /// With what an earlier daemon was told: perhaps nobody tells it to this one for long.
    async fn gossip_as_before(&self) {
        let keys = gossip_keys::load(&self.folder);
        if !keys.is_empty() {
            self.gossip.send(::gossip::Event::SetKeys(keys)).await;
            let managers = locked(&self.view.managers).clone();
            self.join(&managers).await;
        }
    }

    async fn keys_changed(&mut self, keys: Vec<agent::Key>) {
        tracing::info!(keys = keys.len(), "the gossip has a new key");
        let keys = gossip_keys::among(keys);
        gossip_keys::save(&self.folder, &keys);
        self.gossip.send(::gossip::Event::SetKeys(keys)).await;
    }

    /// The network's own object, for `docker network inspect` on this node.
    fn learn(&self, attachment: &pb::NetworkAttachment) {
        let Some(network) = &attachment.network else { return };
        let now = i64::try_from(self.clock.now().as_nanos()).unwrap_or(i64::MAX);
        let mut networks = locked(&self.view.networks);
        let since = networks.get(&network.id).map_or(now, |(_, since)| *since);
        networks.insert(network.id.clone(), (network.clone(), since));
    }

    fn persist(&self, record: &Record) {
        let bytes = write_record(record);
        let path = self.folder.tasks().join(&record.task.id);
        if let Err(error) =
            tokio::task::block_in_place(|| disk::records::replace(&path, &bytes, 0o600))
        {
            tracing::error!(%error, task = record.task.id, "record of a task not written");
        }
    }

    fn attached(&mut self, work: Work) {
        for attachment in &work.task.networks {
            self.learn(attachment);
        }
        let generation = self.overlays.borrow().0;
        for found in self.waiting.remove(&work.task.id).unwrap_or_default() {
            let _ = found.send((work.clone(), generation));
        }
        self.attachments.insert(work.task.id.clone(), work);
    }

    fn overlays_changed(&mut self, state: agent::OverlayState) {
        *locked(&self.view.overlays) = state.clone();
        self.overlays.send_modify(|(generation, wanted, _)| {
            *generation += 1;
            *wanted = state;
        });
    }

    fn zones_changed(&mut self, zones: Zones) {
        self.overlays.send_modify(|(generation, _, wanted)| {
            *generation += 1;
            *wanted = zones;
        });
    }
}

/// A way back into the loop from a session's helpers.
struct Post {
    session: u64,
    inputs: mpsc::WeakSender<Input>,
}

impl Post {
    async fn event(&self, event: Event) {
        if let Some(inputs) = self.inputs.upgrade() {
            let _ = inputs.send(Input::Of(self.session, event)).await;
        }
    }

    /// A node without a session runs nothing new; no object in the swarm can say why.
    async fn ended(&self, reason: &str) {
        tracing::warn!(reason, "the session with a manager ended");
        self.event(Event::SessionLost { reason: reason.to_owned() }).await;
    }

    async fn lost(&self, manager: &Manager, status: &transport::Status) {
        self.ended(&format!("manager {}: {}", manager.address, status.message())).await;
    }
}

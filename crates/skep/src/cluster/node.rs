//! A member of the swarm while it runs: its agent, perhaps its manager, and who looks after its certificate.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use manager::{Bootstrap, Caller, Manager};
use rand::SeedableRng;
use rand::TryRngCore;
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use transport::{Call as Remote, Gate, Identity, Keys, Status, gossip};
use wire::swarmkit as pb;

use super::agent_task::{self, locked};
use super::manager_task::{self, Ended};
use super::saved::Saved;
use super::{Cluster, GOSSIP_PORT, State, address, description, renewal};

/// Between attempts to renew a certificate that has to change.
const RENEW_PAUSE_MIN: Duration = Duration::from_millis(500);
const RENEW_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Between attempts to begin a manager whose disk or port was not there.
const MANAGER_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Raft messages that wait until this manager knows its place in the set.
const HELD_MAX: usize = 64;
/// Before a manager whose disk failed is begun again.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// One that cannot be connected to is known by then; one that can has the request.
const ANSWER_MAX: Duration = transport::client::CONNECT_TIME_MAX.saturating_mul(2);
const JOIN_TIME_MAX: Duration = Duration::from_secs(30);

pub struct Node {
    pub saved: Saved,
    pub keys: Arc<Keys>,
    pub agent: agent_task::Handle,
    manager: Mutex<Option<Managing>>,
    /// Why the manager could not begin when it was last tried.
    trouble: Mutex<Option<String>>,
    /// Held while the manager is ended and begun: one begins at a time, and none while another ends.
    manager_changing: tokio::sync::Mutex<()>,
    tasks: Mutex<Vec<Task>>,
}

struct Managing {
    handle: manager_task::Handle,
    tasks: Vec<Task>,
}

/// A task that goes on no longer than whoever holds this.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends tasks and waits until they are gone, with the sockets and files that they held.
async fn end(tasks: Vec<Task>) {
    for mut task in tasks {
        task.0.abort();
        let _ended = (&mut task.0).await;
    }
}

/// The right to begin or end this node's manager.
pub struct Changing<'a> {
    node: &'a Node,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

/// How a manager's life on this node begins.
pub enum Begin {
    Cluster(Box<Bootstrap>),
    /// As another member of the set that this manager belongs to.
    Join {
        address: String,
    },
    Restore,
    /// With everything it knows, but as the only member: `--force-new-cluster`.
    Alone,
}

pub fn dice() -> anyhow::Result<ChaCha8Rng> {
    Ok(ChaCha8Rng::from_seed(seed()?))
}

pub fn seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut seed)
        .context("no randomness from the operating system")?;
    Ok(seed)
}

impl Node {
    /// Starts gossip and agent; the manager, if any, is started by itself.
    pub async fn start(
        cluster: &Arc<Cluster>,
        identity: Identity,
        saved: Saved,
    ) -> anyhow::Result<Arc<Self>> {
        let keys = Keys::new(identity)?;
        let advertise: SocketAddr = saved.advertise_addr.parse().context("advertised address")?;
        let data_path: IpAddr = match saved.data_path_addr.as_str() {
            "" => advertise.ip(),
            text => text.parse().context("data path address")?,
        };
        let name = gossip_name(&cluster.engine.config().exec_root)?;
        let gossip_address = SocketAddr::new(advertise.ip(), GOSSIP_PORT);
        let config = ::gossip::Config::new(name.clone(), gossip_address, self::seed()?);
        let any: IpAddr = if advertise.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let (effects, gossip_effects) = mpsc::channel(4_096);
        let gossip = gossip::start(config, SocketAddr::new(any, GOSSIP_PORT), effects)
            .await
            .with_context(|| format!("gossip on port {GOSSIP_PORT}"))?;
        let left = cluster.engine.network.overlays();
        let config = agent::Config {
            node_id: keys.identity().subject.node_id,
            data_path,
            gossip_name: name,
            description: description::describe(&cluster.engine, &keys),
            node: cluster.folder.node(),
            mesh_open: cluster.engine.network.has_mesh(),
            had_peers: left.overlays.values().any(|overlay| !overlay.peers.is_empty()),
            seed: self::seed()?,
        };
        let parts = agent_task::Parts {
            clock: cluster.clock.clone(),
            keys: keys.clone(),
            folder: cluster.folder.clone(),
            engine: cluster.engine.clone(),
            gossip,
            gossip_effects,
            // Under this name it is found when a package has replaced it, too.
            resolver: resolver::Client::new(
                std::path::Path::new("/proc/self/exe"),
                &cluster.engine.config().exec_root,
            ),
            data_path,
            managers: saved.managers.clone(),
        };
        let (agent, task) =
            agent_task::start(config, parts).context("the records of this node's tasks")?;
        let node = Arc::new(Self {
            saved,
            keys,
            agent,
            manager: Mutex::default(),
            trouble: Mutex::default(),
            manager_changing: tokio::sync::Mutex::default(),
            tasks: Mutex::new(vec![Task(task)]),
        });
        let watcher = tokio::spawn(look_after(Arc::downgrade(cluster), Arc::downgrade(&node)));
        locked(&node.tasks).push(Task(watcher));
        Ok(node)
    }

    /// Ends everything that this member runs, but not its containers. Its ports are free then.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *locked(&self.tasks));
        end(tasks).await;
        self.change_manager().await.stop().await;
    }

    /// Waits until nobody else begins or ends this node's manager.
    pub async fn change_manager(&self) -> Changing<'_> {
        Changing { node: self, _turn: self.manager_changing.lock().await }
    }

    pub fn manager(&self) -> Option<manager_task::Handle> {
        locked(&self.manager).as_ref().map(|managing| managing.handle.clone())
    }

    /// Why there is no manager on this node although it should be one.
    pub fn manager_trouble(&self) -> Option<String> {
        let manager = self.keys.identity().subject.role == pb::NodeRole::Manager;
        locked(&self.trouble).clone().filter(|_| manager)
    }

    /// This node as a caller of its own manager.
    pub fn caller(&self) -> Caller {
        let subject = self.keys.identity().subject;
        Caller {
            node_id: subject.node_id,
            organization: subject.cluster_id,
            units: vec![transport::identity::unit_of(subject.role).to_owned()],
            address: None,
            forwarded_by: None,
        }
    }

    /// Asks one manager after another until one answers; those that are away, or have no leader at the
    /// moment, are passed over. One that has the request and does not answer is the last: it may yet
    /// do what it was asked to, and nobody else is to do it a second time.
    ///
    /// # Errors
    /// The answer of the first that refuses, else of the last; nothing when no manager is known.
    pub async fn ask_managers<T>(
        &self,
        ask: impl Fn(transport::client::Manager) -> BoxFuture<'static, Result<T, Status>>,
    ) -> Result<T, Option<Status>> {
        let managers = locked(&self.agent.view.managers).clone();
        let mut last = None;
        for (_, address) in managers {
            let far = match transport::client::Manager::new(address, self.keys.clone()) {
                Ok(far) => far,
                Err(status) => {
                    last = Some(status);
                    continue;
                }
            };
            match tokio::time::timeout(ANSWER_MAX, ask(far)).await {
                Ok(Err(status)) if status.code() == transport::Code::Unavailable => {
                    last = Some(status);
                }
                Ok(answer) => return answer.map_err(Some),
                Err(_) => {
                    return Err(Some(Status::deadline_exceeded("the manager did not answer")));
                }
            }
        }
        Err(last)
    }

    async fn begin(
        &self,
        cluster: &Cluster,
        begin: Begin,
        calls: &mut mpsc::Receiver<Remote>,
    ) -> anyhow::Result<(Manager, Vec<manager::Effect>, disk::RaftLog, Vec<Remote>)> {
        let subject = self.keys.identity().subject;
        let identity = manager::Identity {
            node_id: subject.node_id,
            cluster_id: subject.cluster_id,
            address: self.saved.advertise_addr.clone(),
        };
        let data_key = cluster.keys.data_key()?;
        let (log, recovered) = disk::RaftLog::open(&cluster.folder.raft(), data_key)?;
        let now = cluster.clock.now();
        let mut held = Vec::new();
        let (core, first) = match (begin, recovered) {
            (Begin::Cluster(bootstrap), _) => {
                Manager::bootstrap(now, dice()?, identity, *bootstrap)
            }
            (Begin::Alone, Some(recovered)) => {
                Manager::restore_alone(now, dice()?, identity, recovered)
            }
            (_, Some(recovered)) => Manager::restore(now, dice()?, identity, recovered),
            (Begin::Join { address }, None) => {
                let answer = self.join_set(&address, calls, &mut held).await?;
                Manager::join(cluster.clock.now(), dice()?, identity, answer)
            }
            (Begin::Alone, None) => {
                anyhow::bail!("the raft log is empty: there is no cluster to go on with")
            }
            (Begin::Restore, None) => {
                // Nothing was ever written: another manager has to let this one in again.
                let addresses = locked(&self.agent.view.managers).clone();
                let own = &self.saved.advertise_addr;
                let other = addresses
                    .into_iter()
                    .map(|(_, address)| address)
                    .find(|address| address != own);
                let address =
                    other.context("the raft log is empty and no other manager is known")?;
                let answer = self.join_set(&address, calls, &mut held).await?;
                Manager::join(cluster.clock.now(), dice()?, identity, answer)
            }
        };
        Ok((core, first, log, held))
    }

    /// Asks to become a member of the manager set. Meanwhile the others probe this node's health.
    async fn join_set(
        &self,
        address: &str,
        calls: &mut mpsc::Receiver<Remote>,
        held: &mut Vec<Remote>,
    ) -> anyhow::Result<pb::JoinResponse> {
        let far = transport::client::Manager::new(address, self.keys.clone())?;
        let request = pb::JoinRequest { addr: self.saved.advertise_addr.clone() };
        let mut client = far.raft_membership();
        let asked = tokio::time::timeout(JOIN_TIME_MAX, client.join(request));
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answer = &mut asked => {
                    return Ok(answer.context("no answer to the request to join the managers")??.into_inner());
                }
                call = calls.recv() => match call {
                    Some(Remote::Health { reply, .. }) => {
                        let serving = pb::health_check_response::ServingStatus::Serving;
                        let _ = reply.send(Ok(pb::HealthCheckResponse { status: serving as i32 }));
                    }
                    // The leader may send before it answers. A SwarmKit leader does not repeat a
                    // snapshot in pieces that was refused, so the first messages wait.
                    Some(message @ Remote::RaftMessage { .. }) if held.len() < HELD_MAX => {
                        held.push(message);
                    }
                    Some(Remote::RaftMessage { reply, .. }) => {
                        let _ = reply.send(Err(Status::unavailable("this manager is joining")));
                    }
                    Some(_) => {}
                    None => anyhow::bail!("the manager's port was closed"),
                },
            }
        }
    }
}

impl Changing<'_> {
    /// Opens the manager's port and begins its life.
    pub async fn start(&self, cluster: &Cluster, begin: Begin) -> anyhow::Result<()> {
        let begun = self.open(cluster, begin).await;
        let trouble = begun.as_ref().err();
        *locked(&self.node.trouble) =
            trouble.map(|error| format!("the manager of this node cannot begin: {error:#}"));
        begun
    }

    async fn open(&self, cluster: &Cluster, begin: Begin) -> anyhow::Result<()> {
        let node = self.node;
        let listen = &node.saved.listen_addr;
        let listener =
            address::listener(listen).await.with_context(|| format!("listen on {listen}"))?;
        let gate = Arc::new(Gate::counting(
            node.keys.identity().subject.cluster_id,
            node.saved.advertise_addr.clone(),
            cluster.counters.clone(),
        ));
        let (calls, mut call_queue) = mpsc::channel(transport::call::CALLS_WAITING_MAX);
        let server = Task(tokio::spawn(transport::server::serve(
            listener,
            node.keys.clone(),
            gate.clone(),
            calls,
            transport::server::Limits::default(),
        )));
        let begun = node.begin(cluster, begin, &mut call_queue).await;
        let (core, first, log, held) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                end(vec![server]).await;
                return Err(error);
            }
        };
        let parts = manager_task::Parts {
            clock: cluster.clock.clone(),
            log,
            keys: node.keys.clone(),
            gate,
            calls: call_queue,
            held,
            engine: cluster.engine.clone(),
        };
        let (handle, task) = manager_task::start(core, first, parts);
        *locked(&node.manager) = Some(Managing { handle, tasks: vec![server, Task(task)] });
        Ok(())
    }

    /// Ends the manager, if one runs; its port and its log are free then.
    pub async fn stop(&self) {
        let managing = locked(&self.node.manager).take();
        if let Some(managing) = managing {
            end(managing.tasks).await;
        }
    }
}

/// This node on the gossip: 12 hex digits that a restart of the daemon keeps, so that the others see
/// no row of it go; a restart of the host begins a new name.
fn gossip_name(exec_root: &std::path::Path) -> anyhow::Result<String> {
    let path = exec_root.join("gossip-name");
    if let Some(name) = disk::records::read(&path)?.and_then(|name| String::from_utf8(name).ok())
        && name.len() == 12
    {
        return Ok(name);
    }
    let name: String = seed()?.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    disk::records::replace(&path, name.as_bytes(), 0o644)?;
    Ok(name)
}

impl Node {
    /// Writes a new identity and uses it from now on.
    pub fn adopt(&self, cluster: &Cluster, identity: Identity) -> anyhow::Result<()> {
        cluster.keys.save_identity(&identity)?;
        self.keys.replace(identity)?;
        Ok(())
    }
}

/// Follows what the managers say about this node: role, roots, certificate; and renews in time.
async fn look_after(cluster: Weak<Cluster>, node: Weak<Node>) {
    let Some(strong) = node.upgrade() else { return };
    let (mut object, mut roots) = (strong.agent.node.clone(), strong.agent.roots.clone());
    drop(strong);
    let mut pause = RENEW_PAUSE_MIN;
    loop {
        let Some((cluster_now, node_now)) = cluster.upgrade().zip(node.upgrade()) else { return };
        let before = node_now.manager().map(|manager| seen(manager.cluster));
        let done = step(&cluster_now, &node_now, &object, &roots).await;
        let look_in = renewal::look_in(&node_now.keys.identity(), cluster_now.clock.now());
        let pause_max = match node_now.manager_trouble() {
            Some(_) => MANAGER_PAUSE_MAX,
            None => RENEW_PAUSE_MAX,
        };
        let manager = node_now.manager();
        let mut ended = manager.as_ref().map(|manager| manager.ended.clone());
        let now = manager.map(|manager| manager.cluster);
        let mut object_of_cluster = match (before, now) {
            (Some(before), Some(now)) if before.same_channel(&now) => Some(before),
            (_, now) => now,
        };
        drop((cluster_now, node_now));
        let wait = match done {
            Ok(true) => {
                pause = RENEW_PAUSE_MIN;
                look_in
            }
            Ok(false) => pause,
            Err(error) => {
                tracing::warn!("this node's role or certificate: {error:#}");
                pause
            }
        };
        tokio::select! {
            changed = object.changed() => if changed.is_err() { return },
            changed = roots.changed() => if changed.is_err() { return },
            () = manager_ended(&mut ended) => {}
            () = cluster_changed(&mut object_of_cluster) => {}
            () = tokio::time::sleep(wait) => pause = (pause * 2).min(pause_max),
        }
    }
}

/// A copy that waits for the next value: what is there now is looked at now. The handle's own never
/// looks, so that each copy of it begins with something that is new to it.
fn seen<T>(mut receiver: tokio::sync::watch::Receiver<T>) -> tokio::sync::watch::Receiver<T> {
    receiver.mark_unchanged();
    receiver
}

async fn manager_ended(ended: &mut Option<tokio::sync::watch::Receiver<Option<Ended>>>) {
    match ended {
        Some(ended) => {
            let _ = ended.wait_for(Option::is_some).await;
        }
        None => std::future::pending().await,
    }
}

async fn cluster_changed(
    cluster: &mut Option<tokio::sync::watch::Receiver<Option<Arc<pb::Cluster>>>>,
) {
    if let Some(cluster) = cluster
        && cluster.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// One look at everything; `false` when something has to be tried again soon.
async fn step(
    cluster: &Arc<Cluster>,
    node: &Arc<Node>,
    object: &tokio::sync::watch::Receiver<Option<Arc<pb::Node>>>,
    roots: &tokio::sync::watch::Receiver<Vec<u8>>,
) -> anyhow::Result<bool> {
    let new_roots = roots.borrow().clone();
    let identity = node.keys.identity();
    if !new_roots.is_empty() && new_roots != identity.root_pem {
        // While roots change the old certificate may only be good under the old ones: keep it if so.
        match Identity::from_pem(&identity.certificate_pem, &identity.key_pem, &new_roots) {
            Ok(identity) => {
                node.adopt(cluster, identity)?;
                // A rotation ends when every node has told that it trusts the new root.
                let description = description::describe(&cluster.engine, &node.keys);
                node.agent.tell(agent::Event::Described(description)).await;
            }
            Err(error) => tracing::info!(%error, "new roots wait for a new certificate"),
        }
    }
    let object = object.borrow().clone();
    let wanted =
        object.as_ref().map(|object| object.spec.clone().unwrap_or_default().desired_role());
    let rotate =
        object.as_ref().and_then(|object| object.certificate.as_ref()).is_some_and(|certificate| {
            certificate
                .status
                .as_ref()
                .is_some_and(|status| status.state() == pb::issuance_status::State::Rotate)
        });
    let due = renewal::is_due(&node.keys.identity(), cluster.clock.now());
    let role = node.keys.identity().subject.role;
    if rotate || due || wanted.is_some_and(|wanted| wanted != role) {
        let trusted = if new_roots.is_empty() { identity.root_pem.clone() } else { new_roots };
        renew(cluster, node, &trusted).await?;
    }
    let role = node.keys.identity().subject.role;
    // A manager that is to become a worker was taken out of the set already: it must not come back.
    let role = if wanted == Some(pb::NodeRole::Worker) && node.manager().is_none() {
        pb::NodeRole::Worker
    } else {
        role
    };
    settle_manager(cluster, node, role, wanted).await?;
    cluster.keys.settle(node)?;
    let role = node.keys.identity().subject.role;
    Ok(wanted.is_none_or(|wanted| wanted == role) && !rotate)
}

async fn renew(cluster: &Arc<Cluster>, node: &Arc<Node>, roots: &[u8]) -> anyhow::Result<()> {
    let managers = locked(&node.agent.view.managers).clone();
    let mut last = anyhow::anyhow!("no manager is known");
    for (_, address) in managers {
        match transport::join::renew(&address, node.keys.clone(), roots).await {
            Ok(identity) => {
                node.adopt(cluster, identity)?;
                let description = description::describe(&cluster.engine, &node.keys);
                node.agent.tell(agent::Event::Described(description)).await;
                return Ok(());
            }
            Err(error) => last = anyhow::anyhow!("certificate not renewed by {address}: {error}"),
        }
    }
    Err(last)
}

/// A manager runs exactly while the certificate says so.
async fn settle_manager(
    cluster: &Arc<Cluster>,
    node: &Arc<Node>,
    role: pb::NodeRole,
    wanted: Option<pb::NodeRole>,
) -> anyhow::Result<()> {
    let changing = node.change_manager().await;
    let running = node.manager();
    let ended = running.as_ref().and_then(|manager| manager.ended.borrow().clone());
    match (role, running, ended) {
        // While the managers want it to be one again its log still counts: a member that forgot
        // what it had acknowledged would break the set.
        (pb::NodeRole::Worker, Some(_), None) if wanted == Some(pb::NodeRole::Manager) => {}
        (pb::NodeRole::Worker, Some(_), _) => {
            changing.stop().await;
            disk::RaftLog::remove(&cluster.folder.raft())?;
        }
        (pb::NodeRole::Manager, Some(_), Some(Ended::Removed)) => {
            tracing::warn!("this manager was removed from the manager set");
            changing.stop().await;
            disk::RaftLog::remove(&cluster.folder.raft())?;
        }
        (pb::NodeRole::Manager, Some(_), Some(Ended::Disk(reason))) => {
            tracing::error!(reason, "the manager begins again from its disk");
            tokio::time::sleep(DISK_PAUSE).await;
            changing.stop().await;
            changing.start(cluster, Begin::Restore).await?;
        }
        (pb::NodeRole::Manager, None, _) if matches!(cluster.state(), State::Active(_)) => {
            let own = &node.saved.advertise_addr;
            let managers = locked(&node.agent.view.managers).clone();
            let other =
                managers.into_iter().map(|(_, address)| address).find(|address| address != own);
            // What the log holds goes before whatever the others would answer.
            let begin = other.map_or(Begin::Restore, |address| Begin::Join { address });
            changing.start(cluster, begin).await?;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_the_cluster_waits_for_the_next_change_of_it() {
        let (sender, handle) = tokio::sync::watch::channel(0);
        sender.send_replace(1);
        let looking = seen(handle.clone());
        assert!(!looking.has_changed().unwrap(), "it would look again at once, for ever");
        sender.send_replace(2);
        assert!(looking.has_changed().unwrap());
    }
}

//! The thread that owns the view and the kernel: changes come in, differences go out, a sweep
//! puts right what nobody had asked to change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use netlink::{Failure, Kernel};
use netplan::{Flows, LinkKind, Namespace, SandboxId, Step, World, desired, diff};
use tokio::sync::broadcast;

use super::api::*;
use super::handle::Shared;
use super::names::Names;
use super::ports::Ports;
use super::state::{Record, State};

/// Drift is repaired within five seconds: this, and the time a sweep takes.
const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// How often a change is tried again, each time after a look at what is there.
const TRIES_MAX: usize = 3;

const TRY_AGAIN_AFTER: Duration = Duration::from_millis(40);

/// Work for the thread; it answers through what it has captured.
pub type Job = Box<dyn FnOnce(&mut Controller) + Send>;

pub struct Controller {
    pub config: Arc<NetworkConfig>,
    pub state: State,
    pub ports: Ports,
    /// Ports of the routing mesh that are among `ports`.
    pub mesh_held: BTreeSet<(Proto, u16)>,
    pub kernel: Kernel,
    pub names: Names,
    pub counters: NetworkCounters,
    pub events: broadcast::Sender<NetworkEvent>,
    shared: Arc<Shared>,
    /// What the kernel holds, as far as we know: written by us or seen by the last look.
    known: World,
    /// By namespace, whose flows were to be ended and are not: no look finds that out.
    unsettled: BTreeMap<Namespace, Flows>,
}

impl Controller {
    pub fn open(
        config: Arc<NetworkConfig>,
        shared: Arc<Shared>,
        events: broadcast::Sender<NetworkEvent>,
        resolver: Arc<resolver::Client>,
    ) -> Result<Self, NetworkError> {
        let directory = config.exec_root.join("netns");
        let kernel = Kernel::open(&directory).map_err(|error| {
            internal(format!("network namespaces under {}: {error}", directory.display()))
        })?;
        let mut controller = Self {
            state: load(&networks_file(&config))?.unwrap_or_default(),
            ports: Ports::default(),
            mesh_held: BTreeSet::new(),
            kernel,
            names: Names::new(resolver),
            counters: NetworkCounters::default(),
            events,
            shared,
            known: World::new(),
            unsettled: BTreeMap::new(),
            config,
        };
        controller.adopt()?;
        // Until the swarm's agent speaks, overlays stay as the last one left them.
        controller.state.overlays = load(&overlays_file(&controller.config))?.unwrap_or_default();
        controller.add_predefined()?;
        controller.look_at_kernel();
        controller.look_at_host();
        controller.hold_mesh_ports();
        let wanted = desired(&controller.state.view(&controller.config));
        controller.kernel.prune(&wanted).map_err(|error| internal(error.to_string()))?;
        controller.known = controller.observe(&wanted);
        if let Err(error) = controller.reconcile(None) {
            tracing::warn!(%error, "the network is not as it should be yet");
        }
        controller.save_networks()?;
        controller.publish_state();
        Ok(controller)
    }

    /// Sandboxes of an earlier daemon whose namespace is still there.
    fn adopt(&mut self) -> Result<(), NetworkError> {
        let records: Vec<Record> = load(&sandboxes_file(&self.config))?.unwrap_or_default();
        for record in records {
            let kept = record.state.netns.as_deref().is_none_or(netlink::namespace::is_kept);
            if !kept {
                continue;
            }
            for port in &record.state.ports {
                self.ports.adopt(port.proto, port.host_ip, port.host_port);
            }
            self.state.sandboxes.insert(record.state.container.clone(), record);
        }
        Ok(())
    }

    pub fn run(mut self, jobs: &Receiver<Job>) {
        let mut next = Instant::now() + SWEEP_EVERY;
        loop {
            match jobs.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(job) => job(&mut self),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody holds a handle any more; what runs keeps its network.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next {
                self.sweep();
                next = Instant::now() + SWEEP_EVERY;
            }
        }
    }

    /// Applies the view. Errors are those that concern `sandbox`, or all without one.
    pub fn reconcile(&mut self, sandbox: Option<&SandboxId>) -> Result<(), NetworkError> {
        let wanted = desired(&self.state.view(&self.config));
        let mut failures = Vec::new();
        for attempt in 0..TRIES_MAX {
            if attempt > 0 {
                // What the kernel takes down by itself needs a moment.
                std::thread::sleep(TRY_AGAIN_AFTER);
            }
            let steps = diff(&self.known, &wanted);
            failures = self.apply(&steps);
            self.unsettled = unsettled(&self.known, failures.iter().map(|failure| &failure.step));
            if failures.is_empty() {
                self.known = wanted;
                self.state.failing.clear();
                return Ok(());
            }
            self.known = self.observe(&wanted);
        }
        for failure in &failures {
            tracing::warn!(%failure, "the network is not as it should be");
        }
        self.note_failing(&failures);
        let concerning = failures.into_iter().find(|failure| match sandbox {
            Some(id) => concerns(failure, id),
            None => true,
        });
        concerning.map_or(Ok(()), |failure| Err(internal(self.in_words(&failure))))
    }

    fn apply(&mut self, steps: &[Step]) -> Vec<Failure> {
        for step in steps {
            tracing::debug!(%step, "apply");
        }
        let failures = self.kernel.apply(steps);
        self.counters.steps_applied += (steps.len() - failures.len().min(steps.len())) as u64;
        self.counters.steps_failed += failures.len() as u64;
        self.counters.flows_reset = self.kernel.flows_ended;
        failures
    }

    /// What is really there, namespaces that are to go included.
    fn observe(&mut self, wanted: &World) -> World {
        let mut look = wanted.clone();
        for ns in self.known.keys() {
            look.entry(ns.clone()).or_default();
        }
        let mut world = self.kernel.observe(&look);
        for (ns, flows) in &self.unsettled {
            if let Some(objects) = world.get_mut(ns) {
                objects.flows.clone_from(flows);
            }
        }
        for (ns, error) in &self.kernel.unreadable {
            tracing::warn!(namespace = %ns, %error, "namespace cannot be read");
        }
        world
    }

    fn sweep(&mut self) {
        self.counters.sweeps += 1;
        self.look_at_host();
        self.look_for_shadows();
        self.look_for_obstacles();
        self.hold_mesh_ports();
        let wanted = desired(&self.state.view(&self.config));
        // Unfinished business is not a repair.
        if self.known != wanted {
            let _ = self.reconcile(None);
        }
        self.known = self.observe(&wanted);
        let steps = diff(&self.known, &wanted);
        if steps.is_empty() {
            self.state.failing.clear();
        } else {
            self.counters.repairs += steps.len() as u64;
            for step in &steps {
                tracing::warn!(%step, "repair");
            }
            let _ = self.reconcile(None);
        }
        if self.names.sweep(&mut self.state) {
            let _ = self.reconcile(None);
        }
        self.relay_or_warn();
        self.publish_state();
    }

    /// What does not change while the daemon runs, nor from one daemon to the next: open connections through
    /// published ports end where their zone is another one. So a trial that fails by itself says nothing.
    fn look_at_kernel(&mut self) {
        let zones = netlink::features::flow_zones();
        self.state.host.flow_zones = !matches!(zones, Ok(false));
        match zones {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "this kernel keeps no zones of tracked connections (CONFIG_NF_CONNTRACK_ZONES): a client that \
                 uses one port of its own towards a published port of two hosts at a time may hang"
            ),
            Err(error) => tracing::warn!(%error, "zones of tracked connections could not be tried"),
        }
    }

    /// Facts of the host that the plan depends on.
    pub(super) fn look_at_host(&mut self) {
        let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let switch = std::fs::read_to_string(path).ok();
        self.state.host.bridge_hooks = switch.is_some();
        self.state.host.bridge_netfilter = switch.is_some_and(|switch| switch.trim() == "1");
        self.state.host.ipv6 = has_ipv6();
        // Once told to listen all the same, a link is no longer found by this: it is kept.
        let advertised = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
        self.state.host.advertised.extend(advertised_links(&advertised));
        match self.kernel.host_networks() {
            Ok(networks) => self.state.host_networks = networks,
            Err(error) => tracing::warn!(%error, "routes of the host cannot be read"),
        }
        if self.state.overlays.data_path.is_none() {
            self.state.lost_address = None;
        }
        if let Some(address) = self.state.overlays.data_path {
            match self.kernel.uplink_mtu(address) {
                Ok(Some(mtu)) => {
                    // The loopback has one more than any other link can have.
                    self.state.host.uplink_mtu = mtu.min(u16::MAX.into());
                    self.state.lost_address = None;
                }
                Ok(None) => self.state.lost_address = Some(address),
                Err(error) => tracing::warn!(%address, %error, "uplink cannot be read"),
            }
        }
    }

    /// After a change of networks: kept on disk before anybody is told.
    pub fn save_networks(&self) -> Result<(), NetworkError> {
        save(&networks_file(&self.config), &self.state, true)
    }

    /// After a change of sandboxes; a reboot ends them all, so that no disk has to be waited for.
    pub fn save_sandboxes(&self) -> Result<(), NetworkError> {
        let records: Vec<&Record> = self.state.sandboxes.values().collect();
        save(&sandboxes_file(&self.config), &records, false)?;
        tracing::trace!(target: "step", "sandboxes written");
        Ok(())
    }

    pub fn save_overlays(&self) -> Result<(), NetworkError> {
        save(&overlays_file(&self.config), &self.state.overlays, false)
    }

    /// What readers see.
    pub fn publish_state(&self) {
        self.shared.publish(&self.state, self.counters);
    }
}

/// The kernel has IPv6, for links that come as well as for those that are there.
pub(super) fn has_ipv6() -> bool {
    ["all", "default"].iter().all(|of| {
        let path = format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6");
        std::fs::read_to_string(path).is_ok_and(|switch| switch.trim() == "0")
    })
}

/// Links with a default route that a router has advertised, from `/proc/net/ipv6_route`:
/// destination, its prefix, source, its prefix, next hop, metric, two counters, flags, link.
fn advertised_links(table: &str) -> impl Iterator<Item = String> {
    const ADVERTISED: u32 = 0x0004_0000;
    table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "00", _, _, _, _, _, _, flags, link] = words.as_slice() else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        (flags & ADVERTISED != 0).then(|| (*link).to_owned())
    })
}

/// The flows from before the steps that failed to end some: what they wanted is wanted again.
fn unsettled<'a>(
    before: &World,
    failed: impl Iterator<Item = &'a Step>,
) -> BTreeMap<Namespace, Flows> {
    let ends = |step: &&Step| matches!(step, Step::SettleFlows(..) | Step::ForgetFlows(..));
    let spaces = failed.filter(ends).map(Step::namespace);
    spaces.filter_map(|ns| Some((ns.clone(), before.get(ns)?.flows.clone()))).collect()
}

fn concerns(failure: &Failure, id: &SandboxId) -> bool {
    let own = Namespace::Sandbox(id.clone());
    match &failure.step {
        Step::AddLink(_, _, link, _) => {
            matches!(&link.kind, LinkKind::Veth { peer_namespace, .. } if *peer_namespace == own)
                || matches!(link.kind, LinkKind::Vxlan { .. } | LinkKind::Bridge)
        }
        Step::SetTable(Namespace::Host, _) => true,
        step => *step.namespace() == own,
    }
}

pub fn internal(message: impl Into<String>) -> NetworkError {
    NetworkError::new(NetworkErrorKind::Internal, message)
}

fn networks_file(config: &NetworkConfig) -> PathBuf {
    config.data_root.join("network").join("networks.json")
}

fn sandboxes_file(config: &NetworkConfig) -> PathBuf {
    config.exec_root.join("network").join("sandboxes.json")
}

fn overlays_file(config: &NetworkConfig) -> PathBuf {
    config.exec_root.join("network").join("overlays.json")
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, NetworkError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(internal(format!("{}: {error}", path.display()))),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| internal(format!("{} is damaged: {error}", path.display())))
}

/// Replaces the file as a whole; one that says so already stays, which a full disk does not hinder.
fn save(path: &Path, value: &impl serde::Serialize, durable: bool) -> Result<(), NetworkError> {
    let write = || -> std::io::Result<()> {
        let text = serde_json::to_vec(value)?;
        if std::fs::read(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let beside = path.with_extension("new");
        let mut file = std::fs::File::create(&beside)?;
        std::io::Write::write_all(&mut file, &text)?;
        if durable {
            file.sync_all()?;
        }
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| internal(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_whose_default_route_a_router_advertised_is_told_from_others() {
        let zero = "0".repeat(32);
        let line = |prefix: &str, flags: &str, link: &str| {
            format!("{zero} {prefix} {zero} 00 {zero} 00000400 00000001 00000000 {flags} {link}\n")
        };
        let table = line("00", "00450003", "eth0")
            + &line("00", "00000003", "eth1")
            + &line("40", "00040001", "eth2")
            + &line("00", "00200200", "lo");
        assert_eq!(advertised_links(&table).collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn flows_that_could_not_be_ended_are_tried_again() {
        let (one, two) = (Namespace::Host, Namespace::Sandbox(SandboxId("c".into())));
        let flows =
            Flows { containers: ["172.17.0.2".parse().unwrap()].into(), ..Default::default() };
        let objects = netplan::Objects { flows: flows.clone(), ..Default::default() };
        let before: World = [(one.clone(), objects.clone()), (two.clone(), objects)].into();
        let failed = [
            Step::ForgetFlows(one.clone(), vec!["172.17.0.2".parse().unwrap()]),
            Step::RemoveTable(two.clone()),
        ];
        let kept = unsettled(&before, failed.iter());
        assert_eq!(kept, [(one.clone(), flows.clone())].into());
        // What a look finds with them is put right by the same step.
        let found = netplan::Objects { flows, ..Default::default() };
        let steps =
            diff(&[(one.clone(), found)].into(), &[(one, netplan::Objects::default())].into());
        assert_eq!(steps, failed[..1]);
    }
}

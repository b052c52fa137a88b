//! What must never be, and what must be in the end.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use prost::Message as _;
use store::access;
use store::{Held, Store, Touched};
use wire::swarmkit as pb;

use crate::world::World;

/// Service, run, and what is to be done once in it: a slot, or for a global job a node's part.
pub(crate) type JobSlot = (String, u64, Part);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Slot(u64),
    Node(String),
}

/// A global job's tasks have their node from the start, those of other jobs when they run.
pub(crate) fn slot_of_job(task: &pb::Task, global: bool) -> JobSlot {
    let run = task.job_iteration.map_or(0, |version| version.index);
    let part = if global { Part::Node(task.node_id.clone()) } else { Part::Slot(task.slot) };
    (task.service_id.clone(), run, part)
}

/// Whether a task is of a global job, by the name that the user gives those.
pub(crate) fn is_of_global_job(task: &pb::Task) -> bool {
    let named = task.service_annotations.as_ref();
    named.is_some_and(|named| named.name.starts_with(crate::client::GLOBAL_JOB))
}

impl World {
    /// What one manager applied: states go forward, and one version of an object is the same
    /// everywhere, whoever led when it was made.
    pub(crate) fn check_applied(&mut self, touched: &[Touched]) -> Result<(), String> {
        for touched in touched {
            if let (Some(Held::Task(old)), Some(Held::Task(new))) = (&touched.old, &touched.new)
                && access::state(old) > access::state(new)
            {
                return Err(format!(
                    "task {} went from {:?} back to {:?}",
                    new.id,
                    access::state(old),
                    access::state(new)
                ));
            }
            let Some(new) = &touched.new else { continue };
            let version = new.version();
            if let Held::Task(task) = new {
                self.check_job(task, touched.old.is_none(), version)?;
            }
            let mut digest = DefaultHasher::new();
            pb::StoreAction { action: 0, target: Some(new.to_target()) }
                .encode_to_vec()
                .hash(&mut digest);
            let digest = digest.finish();
            let key = (touched.id.clone(), version);
            match self.applied.get(&key) {
                Some(known) if *known != digest => {
                    return Err(format!("{:?} {key:?} differs between managers", touched.kind));
                }
                Some(_) => {}
                None => drop(self.applied.insert(key, digest)),
            }
        }
        Ok(())
    }

    /// No task is made for a slot of a job that was known to be done.
    fn check_job(&mut self, task: &pb::Task, new: bool, version: u64) -> Result<(), String> {
        if task.job_iteration.is_none() {
            return Ok(());
        }
        let slot = slot_of_job(task, is_of_global_job(task));
        if access::state(task) == access::TaskState::Complete {
            let known = self.known_done.entry(slot).or_insert(version);
            *known = version.min(*known);
        } else if new
            // A manager that takes in a snapshot sees older tasks for the first time, too.
            && access::state(task) == access::TaskState::New
            && self.known_done.get(&slot).is_some_and(|known| *known < version)
        {
            return Err(format!("task {} is made for {slot:?}, which is done", task.id));
        }
        Ok(())
    }

    /// The work of a job's slot is done once, whatever happens to managers and agents.
    pub(crate) fn count_completion(&mut self, slot: JobSlot) -> Result<(), String> {
        match self.done.insert(slot.clone()) {
            true => Ok(()),
            false => Err(format!("the work of {slot:?} is done a second time")),
        }
    }

    /// A job completed exactly as often as asked, a global one once on each node, and nothing of it
    /// runs.
    fn check_job_is_done(&self, store: &Store, service: &pb::Service) -> Result<(), String> {
        let run = access::job_iteration(service).unwrap_or_default();
        let wanted = wanted(store, service);
        let of_run = |slot: &&JobSlot| slot.0 == service.id && slot.1 == run;
        let done = self.done.iter().filter(of_run).count();
        let tasks = store.tasks_of_service(&service.id);
        let complete = tasks.filter(|task| {
            access::is_of_iteration(task, run) && access::state(task) == access::TaskState::Complete
        });
        let (known, runs) = (complete.count(), self.containers_of(&service.id).len());
        if (done, known, runs) == (wanted, wanted, 0) {
            return Ok(());
        }
        let tasks = describe(store, &service.id);
        let id = &service.id;
        Err(format!("job {id}: {done} of {wanted} done, {known} known, {runs} run: {tasks}"))
    }

    /// In one term nobody but one manager ever leads, and so commits.
    pub(crate) fn check_leader(&mut self, host: usize) -> Result<(), String> {
        let Some(manager) = self.hosts[host].manager.as_ref().filter(|it| it.leads()) else {
            return Ok(());
        };
        let term = manager.term();
        match *self.led.entry(term).or_insert(host) {
            first if first == host => Ok(()),
            first => Err(format!("host {first} and host {host} both lead in term {term}")),
        }
    }

    /// No address has two holders: by the books of each manager, and among what really runs.
    pub(crate) fn check_addresses(&self) -> Result<(), String> {
        for host in &self.hosts {
            if let Some(manager) = &host.manager {
                addresses_are_unique(manager.store())?;
            }
        }
        let mut held: BTreeMap<(String, String), String> = BTreeMap::new();
        for host in &self.hosts {
            for (id, container) in host.containers.iter().filter(|(_, c)| c.running) {
                for attachment in &container.work.task.networks {
                    hold(&mut held, attachment, &format!("container of {id}"))?;
                }
            }
        }
        Ok(())
    }

    /// After healing: managers agree, promises are kept, and exactly what is wanted runs.
    pub(crate) fn check_in_the_end(&self) -> Result<(), String> {
        let leader = self.leader().ok_or("nobody leads")?;
        let leading = self.hosts[leader].manager.as_ref().ok_or("nobody leads")?;
        let store = leading.store();
        for host in &self.hosts {
            if let Some(manager) = &host.manager
                && manager.store().save() != store.save()
            {
                return Err(format!("{} does not agree with the leader", host.node_id));
            }
        }
        self.check_promises(store)?;
        for node in store.all::<pb::Node>() {
            if access::node_state(node) != pb::node_status::State::Ready {
                return Err(format!("node {} is {:?}", node.id, access::node_state(node)));
            }
        }
        for service in store.all::<pb::Service>() {
            if access::job_iteration(service).is_some() {
                self.check_job_is_done(store, service)?;
                continue;
            }
            let wanted = wanted(store, service);
            let runs = self.containers_of(&service.id);
            if runs.len() != wanted {
                let tasks = describe(store, &service.id);
                return Err(format!(
                    "{} of {wanted} of service {} run: {tasks}",
                    runs.len(),
                    service.id
                ));
            }
            let (_, image) = crate::client::stored(service);
            if let Some((task, other)) = runs.iter().find(|(_, runs)| **runs != image) {
                return Err(format!(
                    "task {task} runs {other}, not {image}: {:?} {}",
                    service.update_status,
                    describe(store, &service.id)
                ));
            }
        }
        let all: usize = store
            .all::<pb::Service>()
            .filter(|service| access::job_iteration(service).is_none())
            .map(|service| wanted(store, service))
            .sum();
        let running = self.hosts.iter().flat_map(|host| host.containers.values());
        let running = running.filter(|container| container.running).count();
        if running != all {
            return Err(format!("{running} containers run, {all} are wanted"));
        }
        Ok(())
    }

    fn containers_of(&self, service: &str) -> BTreeMap<String, String> {
        let containers = self.hosts.iter().flat_map(|host| &host.containers);
        containers
            .filter(|(_, container)| container.running && container.work.task.service_id == service)
            .map(|(id, container)| {
                let spec = container.work.task.spec.as_ref();
                let image = spec.and_then(store::object::container).map(|c| c.image.clone());
                (id.clone(), image.unwrap_or_default())
            })
            .collect()
    }
}

/// How many tasks shall run, or complete: of a global service one on each node.
fn wanted(store: &Store, service: &pb::Service) -> usize {
    match access::is_global(service) {
        true => store.count::<pb::Node>(),
        false => crate::client::wanted(service) as usize,
    }
}

fn describe(store: &Store, service: &str) -> String {
    let tasks = store.tasks_of_service(service).map(|task| {
        let err = task.status.as_ref().map_or("", |status| status.err.as_str());
        format!(
            "{}@{} {:?}->{:?} {err}",
            task.slot,
            task.node_id.get(..4).unwrap_or(""),
            access::state(task),
            task.desired_state()
        )
    });
    tasks.collect::<Vec<_>>().join(", ")
}

fn hold(
    held: &mut BTreeMap<(String, String), String>,
    attachment: &pb::NetworkAttachment,
    holder: &str,
) -> Result<(), String> {
    let network = attachment.network.as_ref().map_or("", |network| network.id.as_str());
    for address in &attachment.addresses {
        let key = (network.to_owned(), address.clone());
        if let Some(other) = held.insert(key, holder.to_owned()) {
            return Err(format!("{address} is held by {other} and by {holder}"));
        }
    }
    Ok(())
}

fn addresses_are_unique(store: &Store) -> Result<(), String> {
    let mut held = BTreeMap::new();
    for service in store.all::<pb::Service>() {
        for vip in service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips) {
            let key = (vip.network_id.clone(), vip.addr.clone());
            if let Some(other) = held.insert(key, service.id.clone()) {
                return Err(format!("{} is held by {other} and by {}", vip.addr, service.id));
            }
        }
    }
    for task in store.all::<pb::Task>().filter(|task| !access::has_ended(task)) {
        for attachment in &task.networks {
            hold(&mut held, attachment, &format!("task {}", task.id))?;
        }
    }
    for node in store.all::<pb::Node>() {
        for attachment in &node.attachments {
            hold(&mut held, attachment, &format!("node {}", node.id))?;
        }
    }
    Ok(())
}

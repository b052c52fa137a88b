//! Subnets, addresses, virtual addresses, VNIs and published ports.
//!
//! A leader makes one when it begins to lead and drops it when it no longer does: everything in
//! here follows from the stored objects. A plan is a wish over committed state; changes that are
//! not carried out are wished again by the next plan.

mod books;
mod network;
mod service;
pub mod subnet;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use model::Instant;
use rand_chacha::ChaCha8Rng;
use store::transaction::timestamp;
use store::{Change, Held, Kind, Store, Touched, access};
use wire::swarmkit as pb;

use books::{Books, GivenBack};
pub use books::{VNI_OPTION, vnis_of};
pub use service::wanted_networks;
use subnet::Subnet;
use task::Wait;

/// Changes in one plan; what is beyond waits for the next.
const PLAN_MAX: usize = store::ACTIONS_MAX;

pub struct Allocator {
    /// `None` until the store was read.
    books: Option<Books>,
    /// What may lack something: looked at by each plan until nothing is missing.
    dirty: BTreeSet<(Rank, String)>,
    /// What cannot be served: looked at again when something was given back.
    stuck: BTreeMap<(Rank, String), Stuck>,
    /// Networks that the manager's host reaches.
    avoided: Vec<Subnet>,
}

struct Stuck {
    /// Told on the tasks that want the network or the service.
    why: String,
    /// Only an address of these networks helps; `None` when anything may.
    networks: Option<BTreeSet<String>>,
}

/// The order in which things are allocated: services before tasks, so that a virtual address is
/// lower than the addresses behind it; ingress before all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Ingress,
    Network,
    Service,
    Task,
    Node,
}

impl Allocator {
    /// Nothing is left to chance here; the generator is taken so that all planners are made alike.
    pub fn new(_dice: ChaCha8Rng) -> Self {
        Self { books: None, dirty: BTreeSet::new(), stuck: BTreeMap::new(), avoided: Vec::new() }
    }

    /// A network that gets its subnet from the cluster's pools gets none of these, as long as
    /// there is another: its containers would no longer reach what the host reaches.
    pub fn avoid(&mut self, networks: Vec<Subnet>) {
        self.avoided = networks;
    }

    /// What should change now. `touched` is everything that was applied since the last call; the
    /// first call reads the whole store instead.
    #[must_use]
    pub fn plan(&mut self, now: Instant, store: &Store, touched: &[Touched]) -> Vec<Change> {
        let mut books = match self.books.take() {
            Some(books) => self.catch_up(books, store, touched),
            None => {
                self.look_at_everything(store);
                Books::read(store)
            }
        };
        books.avoided.clone_from(&self.avoided);
        let mut changes = Vec::new();
        for (rank, id) in self.dirty.clone() {
            if changes.len() >= PLAN_MAX {
                break;
            }
            let outcome = match rank {
                Rank::Ingress | Rank::Network => plan_network(&mut books, store, &id),
                Rank::Service => self.plan_service(&mut books, store, &id),
                Rank::Task => self.plan_task(&mut books, store, now, &id),
                Rank::Node => plan_node(&mut books, store, &id),
            };
            let key = (rank, id);
            self.stuck.remove(&key);
            match outcome {
                Outcome::Done => {
                    self.dirty.remove(&key);
                }
                Outcome::Wish(change) => changes.push(change),
                Outcome::Wait => {}
                Outcome::Stuck(stuck) => {
                    self.dirty.remove(&key);
                    self.stuck.insert(key, stuck);
                }
            }
        }
        self.books = Some(books);
        changes
    }

    /// When [`Self::plan`] has something to do although nothing was applied.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    fn catch_up(&mut self, mut books: Books, store: &Store, touched: &[Touched]) -> Books {
        books.settle();
        for touched in touched {
            books.apply(touched);
            for (kind, id) in books::affected(touched) {
                if kind == Kind::Node && touched.kind == Kind::Task && is_served(store, touched) {
                    continue;
                }
                self.look_at(store, kind, id);
            }
            match touched.kind {
                Kind::Network => self.look_at_users(store, &touched.id),
                Kind::Service if !self.stuck.is_empty() => self.look_at_tasks(store, &touched.id),
                _ => {}
            }
            if !self.stuck.is_empty() {
                self.look_at_stuck(&books::given_back(touched));
            }
        }
        books
    }

    fn look_at_stuck(&mut self, given: &GivenBack) {
        let helped = self.stuck.iter().filter(|(_, stuck)| match (given, &stuck.networks) {
            (GivenBack::Anything, _) => true,
            (GivenBack::In(networks), None) => !networks.is_empty(),
            (GivenBack::In(networks), Some(full)) => !networks.is_disjoint(full),
        });
        self.dirty.extend(helped.map(|(key, _)| key.clone()));
    }

    fn look_at(&mut self, store: &Store, kind: Kind, id: String) {
        let rank = match kind {
            Kind::Network => {
                let network = store.get::<pb::Network>(&id);
                let ingress = network.is_some_and(|n| store::tables::is_ingress(n));
                if ingress { Rank::Ingress } else { Rank::Network }
            }
            Kind::Service => Rank::Service,
            Kind::Task => Rank::Task,
            Kind::Node => Rank::Node,
            _ => return,
        };
        self.dirty.insert((rank, id));
    }

    /// What kept a service waiting kept its tasks waiting, too.
    fn look_at_tasks(&mut self, store: &Store, service: &str) {
        let keys = store.tasks_of_service(service).map(|task| (Rank::Task, task.id.clone()));
        self.dirty.extend(keys.filter(|key| self.stuck.contains_key(key)));
    }

    /// A network that came may be what others wait for; ingress is on every node.
    fn look_at_users(&mut self, store: &Store, network: &str) {
        let services = store.services_using_network(network).map(|service| service.id.clone());
        self.dirty.extend(services.map(|id| (Rank::Service, id)));
        let stored = store.get::<pb::Network>(network);
        if stored.is_some_and(|network| store::tables::is_ingress(network)) {
            let services = store.all::<pb::Service>().map(|service| service.id.clone());
            self.dirty.extend(services.map(|id| (Rank::Service, id)));
            let nodes = store.all::<pb::Node>().map(|node| node.id.clone());
            self.dirty.extend(nodes.map(|id| (Rank::Node, id)));
        }
    }

    fn look_at_everything(&mut self, store: &Store) {
        self.dirty.clear();
        for network in store.all::<pb::Network>() {
            self.look_at(store, Kind::Network, network.id.clone());
        }
        let services = store.all::<pb::Service>().map(|service| service.id.clone());
        self.dirty.extend(services.map(|id| (Rank::Service, id)));
        let tasks = store.all::<pb::Task>().filter(|task| needs_allocation(task));
        self.dirty.extend(tasks.map(|task| (Rank::Task, task.id.clone())));
        let nodes = store.all::<pb::Node>().map(|node| node.id.clone());
        self.dirty.extend(nodes.map(|id| (Rank::Node, id)));
    }
}

/// Whether a task came to a node that has addresses in all its networks already.
fn is_served(store: &Store, touched: &Touched) -> bool {
    let Some(Held::Task(task)) = &touched.new else { return false };
    let was_there = |old: &Held| matches!(old, Held::Task(old) if !old.node_id.is_empty());
    let Some(node) = store.get::<pb::Node>(&task.node_id) else { return false };
    let has = |id: &str| {
        let mut held = node.attachments.iter().filter(|held| !held.addresses.is_empty());
        held.any(|held| held.network.as_ref().is_some_and(|network| network.id == id))
    };
    let mut networks = task.networks.iter().filter_map(|wanted| wanted.network.as_ref());
    !touched.old.as_ref().is_some_and(was_there) && networks.all(|network| has(&network.id))
}

fn needs_allocation(task: &pb::Task) -> bool {
    access::state(task) < access::TaskState::Pending && access::is_wanted(task)
}

/// Why a task that is not stored yet could not have its addresses now; `None` when it could, or
/// when what it needs is still on its way. Reads the whole store.
pub fn refusal(store: &Store, task: &pb::Task) -> Option<String> {
    let now = prost_types::Timestamp::default();
    match task::allocate(&mut Books::read(store), store, &now, task) {
        Err(Wait::Because(why)) => Some(why),
        Ok(_) | Err(Wait::Soon) => None,
    }
}

/// What came of looking at one object.
enum Outcome {
    /// It has all it needs.
    Done,
    Wish(Change),
    /// Something else comes first.
    Wait,
    Stuck(Stuck),
}

fn stuck(why: String) -> Outcome {
    Outcome::Stuck(Stuck { why, networks: None })
}

impl Allocator {
    fn plan_service(&self, books: &mut Books, store: &Store, id: &str) -> Outcome {
        let Some(service) = store.get::<pb::Service>(id) else { return Outcome::Done };
        for wanted in service.spec.iter().flat_map(wanted_networks) {
            let network = service::resolve(store, &wanted.target);
            let key = network.map(|network| (Rank::Network, network.id.clone()));
            if let Some((network, held)) = network.zip(key.and_then(|key| self.stuck.get(&key))) {
                return stuck(service::in_network(network, &held.why));
            }
        }
        match service::endpoint(books, store, service) {
            Ok(endpoint) if endpoint == service.endpoint => Outcome::Done,
            Ok(endpoint) => {
                let service = pb::Service { endpoint, ..pb::Service::clone(service) };
                Outcome::Wish(Change::update(service))
            }
            Err(why) => stuck(why),
        }
    }

    /// A task is allocated when its service is; what keeps the service waiting is told on the task.
    fn plan_task(&self, books: &mut Books, store: &Store, now: Instant, id: &str) -> Outcome {
        let task = store.get::<pb::Task>(id).filter(|task| needs_allocation(task));
        let Some(task) = task else { return Outcome::Done };
        let service = (Rank::Service, task.service_id.clone());
        let outcome = match (self.stuck.get(&service), self.dirty.contains(&service)) {
            (Some(stuck), _) => Err(Wait::Because(stuck.why.clone())),
            (None, true) => Err(Wait::Soon),
            (None, false) => task::allocate(books, store, &timestamp(now), task),
        };
        match outcome {
            Ok(allocated) => Outcome::Wish(Change::update(allocated)),
            Err(Wait::Soon) => Outcome::Wait,
            Err(Wait::Because(why)) => {
                let mut told = pb::Task::clone(task);
                let status = told.status.get_or_insert_default();
                if status.err == why {
                    return stuck(why);
                }
                status.err = why;
                status.timestamp = Some(timestamp(now));
                Outcome::Wish(Change::update(told))
            }
        }
    }
}

fn plan_network(books: &mut Books, store: &Store, id: &str) -> Outcome {
    match store.get::<pb::Network>(id) {
        Some(network) if !network::is_allocated(network) => {
            match network::allocate(books, store, network) {
                Ok(allocated) => Outcome::Wish(Change::update(allocated)),
                Err(why) => stuck(why),
            }
        }
        _ => Outcome::Done,
    }
}

fn plan_node(books: &mut Books, store: &Store, id: &str) -> Outcome {
    let Some(node) = store.get::<pb::Node>(id) else { return Outcome::Done };
    match task::allocate_node(books, store, node) {
        (Some(node), _) => Outcome::Wish(Change::update(node)),
        (None, Ok(())) => Outcome::Done,
        (None, Err(stuck)) => Outcome::Stuck(stuck),
    }
}

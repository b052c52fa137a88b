//! The tables, their indexes and the finders over them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wire::swarmkit as pb;

use crate::object::{self, Held, Kind, Object, Target};

/// The cluster as one manager knows it. Cheap to clone: the objects are shared.
#[derive(Clone, Default)]
pub struct Store {
    pub(crate) nodes: Table<pb::Node>,
    pub(crate) services: Table<pb::Service>,
    pub(crate) tasks: Table<pb::Task>,
    pub(crate) networks: Table<pb::Network>,
    pub(crate) clusters: Table<pb::Cluster>,
    pub(crate) secrets: Table<pb::Secret>,
    pub(crate) resources: Table<pb::Resource>,
    pub(crate) extensions: Table<pb::Extension>,
    pub(crate) configs: Table<pb::Config>,
    pub(crate) volumes: Table<pb::Volume>,
    tasks_by_service: BTreeSet<(String, u64, String)>,
    tasks_by_node: BTreeSet<(String, String)>,
    reads: Reads,
}

/// How many objects were handed out: what grows faster than the work can be seen without a clock.
#[derive(Default)]
struct Reads(AtomicU64);

impl Reads {
    /// Lost counts between threads hurt nobody.
    fn count<T>(&self, object: T) -> T {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        object
    }
}

impl Clone for Reads {
    fn clone(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }
}

/// One table: objects by id, and ids by name in lower case.
#[derive(Clone)]
pub struct Table<T> {
    pub(crate) by_id: BTreeMap<String, Arc<T>>,
    pub(crate) by_name: BTreeSet<(String, String)>,
}

/// One object that an entry changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Touched {
    pub kind: Kind,
    pub id: String,
    /// What was stored before; `None` when it was created.
    pub old: Option<Held>,
    /// What is stored; `None` when it was removed.
    pub new: Option<Held>,
}

/// An object whose table a [`Store`] holds.
pub trait Stored: Object {
    fn table(store: &Store) -> &Table<Self>;
    fn table_mut(store: &mut Store) -> &mut Table<Self>;
}

macro_rules! stored {
    ($($kind:ident in $table:ident),* $(,)?) => { $(
        impl Stored for pb::$kind {
            fn table(store: &Store) -> &Table<Self> { &store.$table }
            fn table_mut(store: &mut Store) -> &mut Table<Self> { &mut store.$table }
        }
    )* };
}

stored! {
    Node in nodes, Service in services, Task in tasks, Network in networks, Cluster in clusters,
    Secret in secrets, Resource in resources, Extension in extensions, Config in configs,
    Volume in volumes,
}

impl Store {
    pub fn get<T: Stored>(&self, id: &str) -> Option<&Arc<T>> {
        T::table(self).by_id.get(self.reads.count(id))
    }

    /// All objects of a kind, in the order of their ids.
    pub fn all<T: Stored>(&self) -> impl Iterator<Item = &Arc<T>> {
        T::table(self).by_id.values().map(|object| self.reads.count(object))
    }

    /// How many objects were read so far.
    pub fn reads(&self) -> u64 {
        self.reads.0.load(Ordering::Relaxed)
    }

    pub fn count<T: Stored>(&self) -> usize {
        T::table(self).by_id.len()
    }

    /// The objects of this name; upper and lower case are one, as in SwarmKit.
    pub fn by_name<'a, T: Stored>(
        &'a self,
        name: &str,
    ) -> impl Iterator<Item = &'a Arc<T>> + use<'a, T> {
        let table = T::table(self);
        let name = name.to_lowercase();
        table
            .by_name
            .range((name.clone(), String::new())..)
            .take_while(move |(other, _)| *other == name)
            .filter_map(|(_, id)| table.by_id.get(self.reads.count(id)))
    }

    /// The cluster object, named `default`.
    pub fn cluster(&self) -> Option<&Arc<pb::Cluster>> {
        self.by_name::<pb::Cluster>("default").next()
    }

    /// The network with routing-mesh traffic.
    pub fn ingress_network(&self) -> Option<&Arc<pb::Network>> {
        self.all::<pb::Network>().find(|network| is_ingress(network))
    }

    /// In the order of slots.
    pub fn tasks_of_service<'a>(
        &'a self,
        service: &str,
    ) -> impl Iterator<Item = &'a Arc<pb::Task>> + use<'a> {
        let service = service.to_owned();
        self.tasks_by_service
            .range((service.clone(), 0, String::new())..)
            .take_while(move |(other, _, _)| *other == service)
            .filter_map(|(_, _, id)| self.tasks.by_id.get(self.reads.count(id)))
    }

    pub fn tasks_of_slot<'a>(
        &'a self,
        service: &str,
        slot: u64,
    ) -> impl Iterator<Item = &'a Arc<pb::Task>> + use<'a> {
        let service = service.to_owned();
        self.tasks_by_service
            .range((service.clone(), slot, String::new())..)
            .take_while(move |(other, number, _)| *other == service && *number == slot)
            .filter_map(|(_, _, id)| self.tasks.by_id.get(self.reads.count(id)))
    }

    pub fn tasks_of_node<'a>(
        &'a self,
        node: &str,
    ) -> impl Iterator<Item = &'a Arc<pb::Task>> + use<'a> {
        let node = node.to_owned();
        self.tasks_by_node
            .range((node.clone(), String::new())..)
            .take_while(move |(other, _)| *other == node)
            .filter_map(|(_, id)| self.tasks.by_id.get(self.reads.count(id)))
    }

    pub fn services_using_network<'a>(
        &'a self,
        network: &'a str,
    ) -> impl Iterator<Item = &'a Arc<pb::Service>> {
        self.services_where(move |spec| object::service_networks(spec).any(|id| id == network))
    }

    pub fn services_using_secret<'a>(
        &'a self,
        secret: &'a str,
    ) -> impl Iterator<Item = &'a Arc<pb::Service>> {
        self.services_where(move |spec| {
            spec.task.iter().flat_map(object::task_secrets).any(|id| id == secret)
        })
    }

    pub fn services_using_config<'a>(
        &'a self,
        config: &'a str,
    ) -> impl Iterator<Item = &'a Arc<pb::Service>> {
        self.services_where(move |spec| {
            spec.task.iter().flat_map(object::task_configs).any(|id| id == config)
        })
    }

    /// Tasks that hold, or ask for, an address in this network.
    pub fn tasks_using_network<'a>(
        &'a self,
        network: &'a str,
    ) -> impl Iterator<Item = &'a Arc<pb::Task>> {
        self.all::<pb::Task>().filter(move |task| {
            let asked = task.spec.iter().flat_map(|spec| &spec.networks);
            let held = task.networks.iter().filter_map(|held| held.network.as_ref());
            asked
                .map(|asked| &asked.target)
                .chain(held.map(|held| &held.id))
                .any(|id| id == network)
        })
    }

    fn services_where<'a>(
        &'a self,
        wanted: impl Fn(&pb::ServiceSpec) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Arc<pb::Service>> {
        self.all::<pb::Service>().filter(move |service| service.spec.as_ref().is_some_and(&wanted))
    }

    /// Carries out committed actions exactly as they are: they bear their versions already.
    /// An action without an object, or removing what is not there, touches nothing.
    pub fn apply(&mut self, actions: Vec<pb::StoreAction>) -> Vec<Touched> {
        actions.into_iter().filter_map(|action| self.apply_one(action)).collect()
    }

    fn apply_one(&mut self, action: pb::StoreAction) -> Option<Touched> {
        let kind = action.action();
        let target = action.target?;
        match kind {
            pb::StoreActionKind::Create | pb::StoreActionKind::Update => self.put_target(target),
            pb::StoreActionKind::Remove => {
                self.remove(object::kind_of(&target), object::id_of(&target))
            }
            pb::StoreActionKind::Unknown => None,
        }
    }

    pub(crate) fn put_target(&mut self, target: Target) -> Option<Touched> {
        match target {
            Target::Node(object) => self.put(object),
            Target::Service(object) => self.put(object),
            Target::Task(object) => self.put_task(object),
            Target::Network(object) => self.put(object),
            Target::Cluster(object) => self.put(object),
            Target::Secret(object) => self.put(object),
            Target::Resource(object) => self.put(object),
            Target::Extension(object) => self.put(object),
            Target::Config(object) => self.put(object),
            Target::Volume(object) => self.put(object),
        }
    }

    fn put_task(&mut self, task: pb::Task) -> Option<Touched> {
        if let Some(old) = self.tasks.by_id.get(&task.id).cloned() {
            self.unindex_task(&old);
        }
        self.tasks_by_service.insert((task.service_id.clone(), task.slot, task.id.clone()));
        if !task.node_id.is_empty() {
            self.tasks_by_node.insert((task.node_id.clone(), task.id.clone()));
        }
        self.put(task)
    }

    fn put<T: Stored>(&mut self, object: T) -> Option<Touched> {
        let id = object.id().to_owned();
        // A list that was read from bytes has room for more; a copy has not.
        let new = Arc::new(object.clone());
        let table = T::table_mut(self);
        let old = table.by_id.insert(id.clone(), new.clone());
        let name = old.as_ref().map_or("", |old| old.name());
        if name != new.name() {
            table.by_name.remove(&(name.to_lowercase(), id.clone()));
        }
        if !new.name().is_empty() && name != new.name() {
            table.by_name.insert((new.name().to_lowercase(), id.clone()));
        }
        Some(Touched {
            kind: T::KIND,
            id,
            old: old.map(T::into_held),
            new: Some(T::into_held(new)),
        })
    }

    fn remove(&mut self, kind: Kind, id: &str) -> Option<Touched> {
        match kind {
            Kind::Node => self.take::<pb::Node>(id),
            Kind::Service => self.take::<pb::Service>(id),
            Kind::Task => {
                let old = self.tasks.by_id.get(id).cloned();
                if let Some(old) = old {
                    self.unindex_task(&old);
                }
                self.take::<pb::Task>(id)
            }
            Kind::Network => self.take::<pb::Network>(id),
            Kind::Cluster => self.take::<pb::Cluster>(id),
            Kind::Secret => self.take::<pb::Secret>(id),
            Kind::Resource => self.take::<pb::Resource>(id),
            Kind::Extension => self.take::<pb::Extension>(id),
            Kind::Config => self.take::<pb::Config>(id),
            Kind::Volume => self.take::<pb::Volume>(id),
        }
    }

    fn take<T: Stored>(&mut self, id: &str) -> Option<Touched> {
        let table = T::table_mut(self);
        let old = table.by_id.remove(id)?;
        table.by_name.remove(&(old.name().to_lowercase(), id.to_owned()));
        Some(Touched { kind: T::KIND, id: id.to_owned(), old: Some(T::into_held(old)), new: None })
    }

    fn unindex_task(&mut self, old: &pb::Task) {
        self.tasks_by_service.remove(&(old.service_id.clone(), old.slot, old.id.clone()));
        self.tasks_by_node.remove(&(old.node_id.clone(), old.id.clone()));
    }

    /// The version of a stored object of any kind.
    pub fn version_of(&self, kind: Kind, id: &str) -> Option<u64> {
        fn version<T: Stored>(store: &Store, id: &str) -> Option<u64> {
            store.get::<T>(id).map(|object| object.version())
        }
        match kind {
            Kind::Node => version::<pb::Node>(self, id),
            Kind::Service => version::<pb::Service>(self, id),
            Kind::Task => version::<pb::Task>(self, id),
            Kind::Network => version::<pb::Network>(self, id),
            Kind::Cluster => version::<pb::Cluster>(self, id),
            Kind::Secret => version::<pb::Secret>(self, id),
            Kind::Resource => version::<pb::Resource>(self, id),
            Kind::Extension => version::<pb::Extension>(self, id),
            Kind::Config => version::<pb::Config>(self, id),
            Kind::Volume => version::<pb::Volume>(self, id),
        }
    }

    /// A stored object of any kind.
    pub fn target(&self, kind: Kind, id: &str) -> Option<Target> {
        fn target<T: Stored>(store: &Store, id: &str) -> Option<Target> {
            store.get::<T>(id).map(|object| T::clone(object).into_target())
        }
        match kind {
            Kind::Node => target::<pb::Node>(self, id),
            Kind::Service => target::<pb::Service>(self, id),
            Kind::Task => target::<pb::Task>(self, id),
            Kind::Network => target::<pb::Network>(self, id),
            Kind::Cluster => target::<pb::Cluster>(self, id),
            Kind::Secret => target::<pb::Secret>(self, id),
            Kind::Resource => target::<pb::Resource>(self, id),
            Kind::Extension => target::<pb::Extension>(self, id),
            Kind::Config => target::<pb::Config>(self, id),
            Kind::Volume => target::<pb::Volume>(self, id),
        }
    }

    /// The ids under which a kind has this name, whatever its case.
    pub(crate) fn ids_named(&self, kind: Kind, name: &str) -> Vec<String> {
        let names = match kind {
            Kind::Node => &self.nodes.by_name,
            Kind::Service => &self.services.by_name,
            Kind::Task => &self.tasks.by_name,
            Kind::Network => &self.networks.by_name,
            Kind::Cluster => &self.clusters.by_name,
            Kind::Secret => &self.secrets.by_name,
            Kind::Resource => &self.resources.by_name,
            Kind::Extension => &self.extensions.by_name,
            Kind::Config => &self.configs.by_name,
            Kind::Volume => &self.volumes.by_name,
        };
        let name = name.to_lowercase();
        names
            .range((name.clone(), String::new())..)
            .take_while(|(other, _)| *other == name)
            .map(|(_, id)| id.clone())
            .collect()
    }
}

/// Whether a network carries the routing mesh. Clusters made before Docker 17.05 only label it.
pub fn is_ingress(network: &pb::Network) -> bool {
    network.spec.as_ref().is_some_and(|spec| {
        let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
        spec.ingress
            || labels.is_some_and(|labels| {
                labels.contains_key("com.docker.swarm.internal")
                    && spec.annotations.as_ref().is_some_and(|named| named.name == "ingress")
            })
    })
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { by_id: BTreeMap::new(), by_name: BTreeSet::new() }
    }
}

//! The whole store as one message, and back.

use std::sync::Arc;

use prost::encoding::message;
use wire::swarmkit as pb;

use crate::object::{Held, Object, Target};
use crate::tables::{Store, Stored};

impl Store {
    /// Every object, each kind in the order of its ids.
    pub fn save(&self) -> pb::StoreSnapshot {
        fn objects<T: Stored>(store: &Store) -> Vec<T> {
            store.all::<T>().map(|object| T::clone(object)).collect()
        }
        pb::StoreSnapshot {
            nodes: objects(self),
            services: objects(self),
            networks: objects(self),
            tasks: objects(self),
            clusters: objects(self),
            secrets: objects(self),
            resources: objects(self),
            extensions: objects(self),
            configs: objects(self),
            volumes: objects(self),
        }
    }

    /// Every object as it is now. They are shared with the store, which goes on meanwhile.
    pub fn freeze(&self) -> Frozen {
        fn held<T: Stored>(store: &Store) -> impl Iterator<Item = Held> {
            store.all::<T>().cloned().map(T::into_held)
        }
        let objects = held::<pb::Node>(self)
            .chain(held::<pb::Service>(self))
            .chain(held::<pb::Network>(self))
            .chain(held::<pb::Task>(self))
            .chain(held::<pb::Cluster>(self))
            .chain(held::<pb::Secret>(self))
            .chain(held::<pb::Resource>(self))
            .chain(held::<pb::Extension>(self))
            .chain(held::<pb::Config>(self))
            .chain(held::<pb::Volume>(self));
        Frozen { objects: objects.collect() }
    }

    /// A store that holds exactly what the snapshot does.
    pub fn restore(snapshot: pb::StoreSnapshot) -> Self {
        let mut store = Store::default();
        fn targets<T: Object>(objects: Vec<T>) -> impl Iterator<Item = Target> {
            objects.into_iter().map(T::into_target)
        }
        let all = targets(snapshot.nodes)
            .chain(targets(snapshot.services))
            .chain(targets(snapshot.networks))
            .chain(targets(snapshot.tasks))
            .chain(targets(snapshot.clusters))
            .chain(targets(snapshot.secrets))
            .chain(targets(snapshot.resources))
            .chain(targets(snapshot.extensions))
            .chain(targets(snapshot.configs))
            .chain(targets(snapshot.volumes));
        for target in all {
            let _touched = store.put_target(target);
        }
        store
    }

    /// What differs between two stores, as if entries had changed the one into the other.
    pub fn changes_to(&self, new: &Store) -> Vec<crate::Touched> {
        fn compare<T: Stored>(old: &Store, new: &Store, into: &mut Vec<crate::Touched>) {
            let held = |object: &Arc<T>| T::into_held(object.clone());
            for object in old.all::<T>() {
                let kept = new.get::<T>(object.id());
                if kept.is_none_or(|kept| kept != object) {
                    let id = object.id().to_owned();
                    let (old, new) = (Some(held(object)), kept.map(held));
                    into.push(crate::Touched { kind: T::KIND, id, old, new });
                }
            }
            for object in new.all::<T>().filter(|object| old.get::<T>(object.id()).is_none()) {
                let id = object.id().to_owned();
                let new = Some(held(object));
                into.push(crate::Touched { kind: T::KIND, id, old: None, new });
            }
        }
        let mut touched = Vec::new();
        compare::<pb::Cluster>(self, new, &mut touched);
        compare::<pb::Node>(self, new, &mut touched);
        compare::<pb::Network>(self, new, &mut touched);
        compare::<pb::Secret>(self, new, &mut touched);
        compare::<pb::Config>(self, new, &mut touched);
        compare::<pb::Service>(self, new, &mut touched);
        compare::<pb::Task>(self, new, &mut touched);
        compare::<pb::Resource>(self, new, &mut touched);
        compare::<pb::Extension>(self, new, &mut touched);
        compare::<pb::Volume>(self, new, &mut touched);
        touched
    }
}

/// A store of one moment, to be encoded wherever that holds nobody up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frozen {
    objects: Vec<Held>,
}

impl Frozen {
    /// How many bytes [`Self::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        self.objects.iter().map(Held::encoded_len).sum()
    }

    /// Appends a `StoreSnapshot`: the bytes of what [`Store::save`] gave at that moment.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        self.objects.iter().for_each(|object| object.encode(bytes));
    }
}

macro_rules! fields_of_snapshot {
    ($($kind:ident = $field:literal),*) => {
        impl Held {
            fn encoded_len(&self) -> usize {
                match self {
                    $(Held::$kind(object) => message::encoded_len($field, object.as_ref())),*
                }
            }

            fn encode(&self, bytes: &mut Vec<u8>) {
                match self {
                    $(Held::$kind(object) => message::encode($field, object.as_ref(), bytes)),*
                }
            }
        }
    };
}

fields_of_snapshot! {
    Node = 1, Service = 2, Network = 3, Task = 4, Cluster = 5, Secret = 6, Resource = 7,
    Extension = 8, Config = 9, Volume = 10
}

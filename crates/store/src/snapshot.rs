//! The whole store as one message, and back.

use std::sync::Arc;

use wire::swarmkit as pb;

use crate::object::{Object, Target};
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

    /// The bytes of [`Self::save`], made without a copy of the objects: a big store must not be held
    /// twice, nor its leader be held up longer than encoding takes.
    pub fn encode(&self) -> Vec<u8> {
        fn put<T: Stored + prost::Message>(store: &Store, tag: u32, bytes: &mut Vec<u8>) {
            for object in store.all::<T>() {
                prost::encoding::message::encode(tag, object.as_ref(), bytes);
            }
        }
        let mut bytes = Vec::new();
        put::<pb::Node>(self, 1, &mut bytes);
        put::<pb::Service>(self, 2, &mut bytes);
        put::<pb::Network>(self, 3, &mut bytes);
        put::<pb::Task>(self, 4, &mut bytes);
        put::<pb::Cluster>(self, 5, &mut bytes);
        put::<pb::Secret>(self, 6, &mut bytes);
        put::<pb::Resource>(self, 7, &mut bytes);
        put::<pb::Extension>(self, 8, &mut bytes);
        put::<pb::Config>(self, 9, &mut bytes);
        put::<pb::Volume>(self, 10, &mut bytes);
        bytes
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
            let as_target = |object: &Arc<T>| T::clone(object).into_target();
            for object in old.all::<T>() {
                let kept = new.get::<T>(object.id());
                if kept.is_none_or(|kept| kept != object) {
                    let id = object.id().to_owned();
                    let (old, new) = (Some(as_target(object)), kept.map(as_target));
                    into.push(crate::Touched { kind: T::KIND, id, old, new });
                }
            }
            for object in new.all::<T>().filter(|object| old.get::<T>(object.id()).is_none()) {
                let id = object.id().to_owned();
                let new = Some(as_target(object));
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

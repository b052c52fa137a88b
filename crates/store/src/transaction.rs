//! Changes on their way: collected, checked against the store, stamped, and handed out as actions.

use std::collections::BTreeMap;

use model::Instant;
use wire::swarmkit as pb;

use crate::object::{self, Kind, Object, Target};
use crate::tables::{Store, Stored};

/// Actions in one raft entry, as SwarmKit batches them.
pub const ACTIONS_MAX: usize = 200;
/// What an action has around its object at most: tags, lengths, the stamp of version and times.
const AROUND_OBJECT_BYTES: usize = 128;

/// What a planner wants done. An update carries the version it was planned from.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Create(Target),
    Update(Target),
    Remove(Kind, String),
}

impl Change {
    pub fn create<T: Object>(object: T) -> Self {
        Change::Create(object.into_target())
    }

    pub fn update<T: Object>(object: T) -> Self {
        Change::Update(object.into_target())
    }

    pub fn remove<T: Object>(id: impl Into<String>) -> Self {
        Change::Remove(T::KIND, id.into())
    }
}

/// Why a change cannot be. The texts are SwarmKit's, users know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("object already exists")]
    Exists,
    #[error("object does not exist")]
    NotFound,
    #[error("name conflicts with an existing object")]
    NameConflict,
    #[error("update out of sequence")]
    SequenceConflict,
}

/// Changes over a store, visible in here and nowhere else until they are applied.
pub struct Transaction<'a> {
    store: &'a Store,
    actions: Vec<pb::StoreAction>,
    /// The action that last changed an object; `None` when it was removed.
    changed: BTreeMap<(Kind, String), Option<usize>>,
}

impl<'a> Transaction<'a> {
    pub fn new(store: &'a Store) -> Self {
        Self { store, actions: Vec::new(), changed: BTreeMap::new() }
    }

    /// What the store held when the transaction began.
    pub fn store(&self) -> &'a Store {
        self.store
    }

    /// The object as this transaction would leave it.
    pub fn get<T: Stored>(&self, id: &str) -> Option<T> {
        match self.changed.get(&(T::KIND, id.to_owned())) {
            Some(changed) => self.changed_to(*changed).cloned().and_then(T::from_target),
            None => self.store.get::<T>(id).map(|object| T::clone(object)),
        }
    }

    fn changed_to(&self, action: Option<usize>) -> Option<&Target> {
        self.actions.get(action?)?.target.as_ref()
    }

    pub fn len(&self) -> usize {
        self.actions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// How much of an entry this change takes, at most.
    pub fn bytes_of(&self, change: &Change) -> usize {
        let object = match change {
            Change::Create(target) | Change::Update(target) => target.encoded_len(),
            Change::Remove(kind, id) => {
                self.current(*kind, id).map_or(0, |target| target.encoded_len())
            }
        };
        object + AROUND_OBJECT_BYTES
    }

    /// Whether it changes the object of this change already.
    pub fn has(&self, change: &Change) -> bool {
        match change {
            Change::Create(target) | Change::Update(target) => {
                self.changed.contains_key(&key(target))
            }
            Change::Remove(kind, id) => self.changed.contains_key(&(*kind, id.clone())),
        }
    }

    pub fn create<T: Object>(&mut self, object: T) -> Result<(), Error> {
        self.apply(Change::Create(object.into_target()))
    }

    /// `object` must carry the version that is stored, or it was made from an older state.
    pub fn update<T: Object>(&mut self, object: T) -> Result<(), Error> {
        self.apply(Change::Update(object.into_target()))
    }

    pub fn remove<T: Object>(&mut self, id: &str) -> Result<(), Error> {
        self.apply(Change::Remove(T::KIND, id.to_owned()))
    }

    /// Takes one change in, or leaves the transaction as it was and says why not.
    pub fn apply(&mut self, change: Change) -> Result<(), Error> {
        match change {
            Change::Create(target) => {
                let (kind, id) = key(&target);
                if self.exists(kind, &id) {
                    return Err(Error::Exists);
                }
                self.check_name(kind, &id, &target)?;
                self.push(pb::StoreActionKind::Create, kind, id, target);
            }
            Change::Update(target) => {
                let (kind, id) = key(&target);
                let stored = self.current_version(kind, &id).ok_or(Error::NotFound)?;
                if stored != object::version_of_target(&target) {
                    return Err(Error::SequenceConflict);
                }
                self.check_name(kind, &id, &target)?;
                self.push(pb::StoreActionKind::Update, kind, id, target);
            }
            Change::Remove(kind, id) => {
                let target = self.current(kind, &id).ok_or(Error::NotFound)?;
                self.changed.insert((kind, id), None);
                self.actions.push(action(pb::StoreActionKind::Remove, target));
            }
        }
        Ok(())
    }

    /// The actions of the entry: objects bear `version` (the commit index that the leader knows when
    /// it proposes) and the time; a removed object goes as it was last.
    pub fn finish(self, now: Instant, version: u64) -> Vec<pb::StoreAction> {
        let mut actions = self.actions;
        for action in &mut actions {
            if action.action() != pb::StoreActionKind::Remove
                && let Some(target) = &mut action.target
            {
                stamp(object::meta_of_mut(target), now, version);
            }
        }
        actions
    }

    fn push(
        &mut self,
        kind_of_action: pb::StoreActionKind,
        kind: Kind,
        id: String,
        target: Target,
    ) {
        self.changed.insert((kind, id), Some(self.actions.len()));
        self.actions.push(action(kind_of_action, target));
    }

    fn exists(&self, kind: Kind, id: &str) -> bool {
        self.current_version(kind, id).is_some()
    }

    fn current_version(&self, kind: Kind, id: &str) -> Option<u64> {
        match self.changed.get(&(kind, id.to_owned())) {
            Some(changed) => self.changed_to(*changed).map(object::version_of_target),
            None => self.store.version_of(kind, id),
        }
    }

    fn current(&self, kind: Kind, id: &str) -> Option<Target> {
        match self.changed.get(&(kind, id.to_owned())) {
            Some(changed) => self.changed_to(*changed).cloned(),
            None => self.store.target(kind, id),
        }
    }

    fn check_name(&self, kind: Kind, id: &str, target: &Target) -> Result<(), Error> {
        let (name, unique) = object::name_of(target);
        if !unique || name.is_empty() {
            return Ok(());
        }
        let stored = self.store.ids_named(kind, name);
        let stored_elsewhere = stored
            .iter()
            .any(|other| other != id && !self.changed.contains_key(&(kind, other.clone())));
        let wanted = name.to_lowercase();
        let changed_elsewhere = self.changed.iter().any(|((other_kind, other), action)| {
            *other_kind == kind
                && other != id
                && self
                    .changed_to(*action)
                    .is_some_and(|target| object::name_of(target).0.to_lowercase() == wanted)
        });
        if stored_elsewhere || changed_elsewhere { Err(Error::NameConflict) } else { Ok(()) }
    }
}

fn key(target: &Target) -> (Kind, String) {
    (object::kind_of(target), object::id_of(target).to_owned())
}

fn action(kind: pb::StoreActionKind, target: Target) -> pb::StoreAction {
    pb::StoreAction { action: kind as i32, target: Some(target) }
}

fn stamp(meta: &mut Option<pb::Meta>, now: Instant, version: u64) {
    let meta = meta.get_or_insert_default();
    let time = timestamp(now);
    meta.version = Some(pb::Version { index: version });
    meta.created_at.get_or_insert(time);
    meta.updated_at = Some(time);
}

/// A point in time as protobuf writes it.
pub fn timestamp(now: Instant) -> prost_types::Timestamp {
    let (seconds, nanos) = now.unix();
    prost_types::Timestamp { seconds, nanos }
}

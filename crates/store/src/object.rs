//! What the tables hold: the wire's own objects, and what all of them have in common.

use std::sync::Arc;

use wire::swarmkit as pb;

/// Any object of the cluster, as an action of a raft entry carries it.
pub use wire::swarmkit::store_action::Target;

/// The table an object belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Service,
    Task,
    Network,
    Cluster,
    Secret,
    Resource,
    Extension,
    Config,
    Volume,
}

/// An object with an id, a version and perhaps a name.
pub trait Object: Clone + PartialEq + Sized + 'static {
    const KIND: Kind;
    /// Whether two objects of this kind may not share a name (upper and lower case are one).
    const NAME_IS_UNIQUE: bool;
    fn id(&self) -> &str;
    fn meta(&self) -> Option<&pb::Meta>;
    fn meta_mut(&mut self) -> &mut Option<pb::Meta>;
    fn annotations(&self) -> Option<&pb::Annotations>;
    fn into_target(self) -> Target;
    fn from_target(target: Target) -> Option<Self>;
    fn into_held(object: Arc<Self>) -> Held;

    fn name(&self) -> &str {
        self.annotations().map_or("", |annotations| annotations.name.as_str())
    }

    /// `meta.version.index`; 0 when it was never stored.
    fn version(&self) -> u64 {
        version_of(self.meta())
    }
}

pub(crate) fn version_of(meta: Option<&pb::Meta>) -> u64 {
    meta.and_then(|meta| meta.version.as_ref()).map_or(0, |version| version.index)
}

macro_rules! objects {
    ($($kind:ident, unique: $unique:literal, |$object:ident| $annotations:expr;)*) => {
        $(impl Object for pb::$kind {
            const KIND: Kind = Kind::$kind;
            const NAME_IS_UNIQUE: bool = $unique;
            fn id(&self) -> &str { &self.id }
            fn meta(&self) -> Option<&pb::Meta> { self.meta.as_ref() }
            fn meta_mut(&mut self) -> &mut Option<pb::Meta> { &mut self.meta }
            fn annotations(&self) -> Option<&pb::Annotations> { let $object = self; $annotations }
            fn into_target(self) -> Target { Target::$kind(self) }
            fn from_target(target: Target) -> Option<Self> {
                match target { Target::$kind(object) => Some(object), _ => None }
            }
            fn into_held(object: Arc<Self>) -> Held { Held::$kind(object) }
        })*

        /// Any object of the cluster, as a store holds it: to know of it costs no copy.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Held {
            $($kind(Arc<pb::$kind>)),*
        }

        impl Held {
            /// A copy of it, as an action carries it.
            pub fn to_target(&self) -> Target {
                match self { $(Held::$kind(object) => Target::$kind((**object).clone())),* }
            }

            pub fn version(&self) -> u64 {
                match self { $(Held::$kind(object) => object.version()),* }
            }
        }

        /// The table of an object of unknown type.
        pub fn kind_of(target: &Target) -> Kind {
            match target { $(Target::$kind(_) => Kind::$kind),* }
        }

        /// The id of an object of unknown type.
        pub fn id_of(target: &Target) -> &str {
            match target { $(Target::$kind(object) => &object.id),* }
        }

        /// The version of an object of unknown type.
        pub fn version_of_target(target: &Target) -> u64 {
            match target { $(Target::$kind(object) => object.version()),* }
        }

        pub(crate) fn meta_of_mut(target: &mut Target) -> &mut Option<pb::Meta> {
            match target { $(Target::$kind(object) => &mut object.meta),* }
        }

        /// The name of an object of unknown type, and whether its table wants it unique.
        pub fn name_of(target: &Target) -> (&str, bool) {
            match target { $(Target::$kind(object) => (object.name(), $unique)),* }
        }
    };
}

objects! {
    Node, unique: false, |o| o.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    Service, unique: true, |o| o.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    Task, unique: false, |o| o.annotations.as_ref();
    Network, unique: true, |o| o.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    Cluster, unique: true, |o| o.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    Secret, unique: true, |o| o.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    Resource, unique: false, |o| o.annotations.as_ref();
    Extension, unique: true, |o| o.annotations.as_ref();
    Config, unique: true, |o| o.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    Volume, unique: true, |o| o.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
}

/// Ids or names of the networks that a service asks for, in its own order.
pub fn service_networks(spec: &pb::ServiceSpec) -> impl Iterator<Item = &str> {
    let task = spec.task.iter().flat_map(|task| &task.networks);
    task.chain(&spec.networks).map(|network| network.target.as_str())
}

/// Ids of the secrets that a task mounts.
pub fn task_secrets(spec: &pb::TaskSpec) -> impl Iterator<Item = &str> {
    container(spec).into_iter().flat_map(|c| &c.secrets).map(|secret| secret.secret_id.as_str())
}

/// Ids of the configs that a task mounts or takes its credential specification from.
pub fn task_configs(spec: &pb::TaskSpec) -> impl Iterator<Item = &str> {
    let mounted = container(spec).into_iter().flat_map(|c| &c.configs);
    let credential = container(spec)
        .and_then(|c| c.privileges.as_ref())
        .and_then(|privileges| privileges.credential_spec.as_ref())
        .and_then(|credential| match credential.source.as_ref()? {
            pb::privileges::credential_spec::Source::Config(id) => Some(id.as_str()),
            _ => None,
        });
    mounted.map(|config| config.config_id.as_str()).chain(credential)
}

/// The container that a task runs, when it runs one.
pub fn container(spec: &pb::TaskSpec) -> Option<&pb::ContainerSpec> {
    match spec.runtime.as_ref()? {
        pb::task_spec::Runtime::Container(container) => Some(container),
        _ => None,
    }
}

//! The Control service: what users may read and ask for, refused in SwarmKit's codes and words.

mod cluster;
mod configs;
mod extensions;
mod filter;
mod networks;
mod nodes;
mod rotation;
mod secrets;
mod services;
mod tasks;
mod validate;

use model::Instant;
use rand_chacha::ChaCha8Rng;
use store::{Store, Transaction};
use wire::control::{Request, Response};
use wire::swarmkit as pb;

use crate::{Code, Failure};

pub(crate) use cluster::{MANAGER_SUBSYSTEM, unlock_key};
pub(crate) use networks::PREDEFINED_LABEL;
pub(crate) use rotation::finish_rotation;

/// Whatever a call may look at.
pub(crate) struct Desk<'a> {
    pub store: &'a Store,
    pub raft: &'a consensus::Raft,
    pub now: Instant,
    pub dice: &'a mut ChaCha8Rng,
}

/// What a call comes to.
pub(crate) enum Decision {
    Answer(Response),
    /// To be agreed on first; the answer is read from the store then.
    Write {
        actions: Vec<pb::StoreAction>,
        then: Then,
    },
}

pub(crate) type Then = Box<dyn FnOnce(&Store) -> Result<Response, Failure> + Send>;

type Decided = Result<Decision, Failure>;

/// Decides one call. Nothing is changed by it.
pub(crate) fn decide(desk: &mut Desk<'_>, request: Request) -> Decided {
    match request {
        Request::GetNode(r) => nodes::get(desk, r),
        Request::ListNodes(r) => nodes::list(desk, r),
        Request::UpdateNode(r) => nodes::update(desk, r),
        Request::RemoveNode(r) => nodes::remove(desk, r),
        Request::GetTask(r) => tasks::get(desk, r),
        Request::RemoveTask(r) => tasks::remove(desk, r),
        Request::ListTasks(r) => tasks::list(desk, r),
        Request::CreateService(r) => services::create(desk, r),
        Request::GetService(r) => services::get(desk, r),
        Request::UpdateService(r) => services::update(desk, r),
        Request::RemoveService(r) => services::remove(desk, r),
        Request::ListServices(r) => services::list(desk, r),
        Request::ListServiceStatuses(r) => services::statuses(desk, r),
        Request::CreateNetwork(r) => networks::create(desk, r),
        Request::GetNetwork(r) => networks::get(desk, r),
        Request::RemoveNetwork(r) => networks::remove(desk, r),
        Request::ListNetworks(r) => networks::list(desk, r),
        Request::GetCluster(r) => cluster::get(desk, r),
        Request::ListClusters(r) => cluster::list(desk, r),
        Request::UpdateCluster(r) => cluster::update(desk, r),
        Request::GetSecret(r) => secrets::get(desk, r),
        Request::UpdateSecret(r) => secrets::update(desk, r),
        Request::ListSecrets(r) => secrets::list(desk, r),
        Request::CreateSecret(r) => secrets::create(desk, r),
        Request::RemoveSecret(r) => secrets::remove(desk, r),
        Request::GetConfig(r) => configs::get(desk, r),
        Request::UpdateConfig(r) => configs::update(desk, r),
        Request::ListConfigs(r) => configs::list(desk, r),
        Request::CreateConfig(r) => configs::create(desk, r),
        Request::RemoveConfig(r) => configs::remove(desk, r),
        Request::CreateExtension(r) => extensions::create(desk, r),
        Request::RemoveExtension(r) => extensions::remove(desk, r),
        Request::GetExtension(r) => extensions::get(desk, r),
        Request::CreateResource(r) => extensions::create_resource(desk, r),
        Request::RemoveResource(r) => extensions::remove_resource(desk, r),
        Request::UpdateResource(r) => extensions::update_resource(desk, r),
        Request::GetResource(r) => extensions::get_resource(desk, r),
        Request::ListResources(r) => extensions::list_resources(desk, r),
        Request::CreateVolume(_) | Request::UpdateVolume(_) => {
            Err(unimplemented("not supported by skep yet: cluster volumes"))
        }
        Request::GetVolume(r) => Err(not_found("volume", &r.volume_id)),
        Request::RemoveVolume(r) => Err(not_found("volume", &r.volume_id)),
        Request::ListVolumes(_) => {
            answer(Response::ListVolumes(pb::ListVolumesResponse { volumes: Vec::new() }))
        }
    }
}

impl<'a> Desk<'a> {
    fn transaction(&self) -> Transaction<'a> {
        Transaction::new(self.store)
    }

    fn id(&mut self) -> String {
        model::swarm_id(self.dice)
    }

    fn write(&self, transaction: Transaction<'_>, then: Then) -> Decided {
        let actions = transaction.finish(self.now, self.raft.commit_index());
        Ok(Decision::Write { actions, then })
    }
}

fn answer(response: Response) -> Decided {
    Ok(Decision::Answer(response))
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidArgument, message)
}

/// SwarmKit's answer to a request that lacks what it cannot lack is the code's own name.
fn lacking() -> Failure {
    invalid("InvalidArgument")
}

fn precondition(message: impl Into<String>) -> Failure {
    Failure::new(Code::FailedPrecondition, message)
}

fn unimplemented(message: impl Into<String>) -> Failure {
    Failure::new(Code::Unimplemented, message)
}

fn not_found(kind: &str, id: &str) -> Failure {
    Failure::new(Code::NotFound, format!("{kind} {id} not found"))
}

/// What the store says against a change, as SwarmKit passes it on.
fn store_error(error: store::Error) -> Failure {
    let code = match error {
        store::Error::NotFound => Code::NotFound,
        store::Error::NameConflict | store::Error::Exists => Code::AlreadyExists,
        store::Error::SequenceConflict => Code::Unknown,
    };
    Failure::new(code, error.to_string())
}

/// A name that is taken, told with the name.
fn name_taken(kind: &'static str, name: &str) -> impl FnOnce(store::Error) -> Failure {
    let name = name.to_owned();
    move |error| match error {
        store::Error::NameConflict => {
            Failure::new(Code::AlreadyExists, format!("{error}: {kind} {name} already exists"))
        }
        other => store_error(other),
    }
}

/// The same of secrets and configs, in SwarmKit's fewer words.
fn object_taken(kind: &'static str, name: &str) -> impl FnOnce(store::Error) -> Failure {
    let name = name.to_owned();
    move |error| match error {
        store::Error::NameConflict => {
            Failure::new(Code::AlreadyExists, format!("{kind} {name} already exists"))
        }
        other => store_error(other),
    }
}

/// An object that was just written; it can only be missing when it was removed at once.
fn stored<T: store::tables::Stored>(store: &Store, id: &str) -> Result<T, Failure> {
    store.get::<T>(id).map(|object| T::clone(object)).ok_or_else(|| not_found("object", id))
}

/// Puts the version that the caller saw into the object, for the store to compare.
fn seen<T: store::Object>(object: &mut T, version: &pb::Version) {
    object.meta_mut().get_or_insert_default().version = Some(*version);
}

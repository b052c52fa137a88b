//! Containers of users on attachable networks: each is a task that only holds addresses.

use model::Instant;
use rand_chacha::ChaCha8Rng;
use store::{Store, Transaction};
use wire::swarmkit as pb;

use crate::{Caller, Code, Failure};

/// The transaction that makes the task, and the task's id.
pub(crate) fn attach<'a>(
    store: &'a Store,
    caller: &Caller,
    request: pb::AttachNetworkRequest,
    now: Instant,
    dice: &mut ChaCha8Rng,
) -> Result<(Transaction<'a>, String), Failure> {
    let config = request.config.unwrap_or_default();
    let target = config.target.as_str();
    let by_id = store.get::<pb::Network>(target);
    let network = by_id.or_else(|| store.by_name::<pb::Network>(target).next());
    let network = network
        .ok_or_else(|| Failure::new(Code::NotFound, format!("network {target} not found")))?;
    if !network.spec.as_ref().is_some_and(|spec| spec.attachable) {
        let reason = format!("network {target} not manually attachable");
        return Err(Failure::new(Code::PermissionDenied, reason));
    }
    let id = model::swarm_id(dice);
    let config = pb::NetworkAttachmentConfig { target: network.id.clone(), ..config };
    let runtime = pb::NetworkAttachmentSpec { container_id: request.container_id };
    let task = pb::Task {
        id: id.clone(),
        node_id: caller.node_id.clone(),
        spec: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Attachment(runtime)),
            networks: vec![config],
            ..Default::default()
        }),
        status: Some(pb::TaskStatus {
            state: pb::TaskState::New as i32,
            timestamp: Some(store::transaction::timestamp(now)),
            message: "created".into(),
            ..Default::default()
        }),
        desired_state: pb::TaskState::Running as i32,
        ..Default::default()
    };
    if let Some(why) = allocator::refusal(store, &task) {
        return Err(Failure::new(Code::FailedPrecondition, why));
    }
    let mut transaction = Transaction::new(store);
    transaction.create(task).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    Ok((transaction, id))
}

pub(crate) fn detach<'a>(
    store: &'a Store,
    caller: &Caller,
    request: &pb::DetachNetworkRequest,
) -> Result<Transaction<'a>, Failure> {
    let id = request.attachment_id.as_str();
    if id.is_empty() {
        return Err(Failure::new(Code::InvalidArgument, "invalid argument"));
    }
    let mut transaction = Transaction::new(store);
    let Some(task) = store.get::<pb::Task>(id) else {
        return Err(Failure::new(Code::NotFound, format!("attachment {id} not found")));
    };
    if task.node_id != caller.node_id {
        let reason = format!("attachment {id} belongs to different node");
        return Err(Failure::new(Code::PermissionDenied, reason));
    }
    transaction
        .remove::<pb::Task>(id)
        .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    Ok(transaction)
}

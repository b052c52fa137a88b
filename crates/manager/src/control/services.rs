//! Services: what a user wants running.

use std::collections::BTreeMap;

use prost_types::Duration;
use store::access::{self, TaskState};
use store::object;
use wire::control::Response;
use wire::swarmkit as pb;

use super::{
    Decided, Desk, answer, filter, invalid, lacking, name_taken, not_found, precondition, seen,
    store_error, stored, tasks, unimplemented, validate,
};
use crate::Failure;

type Checked = Result<(), Failure>;

pub fn create(desk: &mut Desk<'_>, request: pb::CreateServiceRequest) -> Decided {
    let spec = request.spec.ok_or_else(lacking)?;
    validate::service(&spec)?;
    check_networks(desk, &spec)?;
    check_references(desk, &spec)?;
    check_ports(desk, &spec, "")?;
    let name = validate::name(spec.annotations.as_ref()).to_owned();
    let id = desk.id();
    let service = pb::Service {
        id: id.clone(),
        job_status: access::is_job(&spec).then(|| job_run(desk, None)),
        spec: Some(spec),
        spec_version: Some(pb::Version::default()),
        ..Default::default()
    };
    let mut transaction = desk.transaction();
    transaction.create(service).map_err(name_taken("service", &name))?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let service = Some(stored(store, &id)?);
            Ok(Response::CreateService(pb::CreateServiceResponse { service }))
        }),
    )
}

pub fn update(desk: &Desk<'_>, request: pb::UpdateServiceRequest) -> Decided {
    let rollback = request.rollback() == pb::update_service_request::Rollback::Previous;
    let id = request.service_id;
    let version = request.service_version.filter(|_| !id.is_empty()).ok_or_else(lacking)?;
    let service = desk.store.get::<pb::Service>(&id).ok_or_else(|| not_found("service", &id))?;
    let mut service = pb::Service::clone(service);
    let spec = request.spec.ok_or_else(lacking)?;
    validate::service(&spec)?;
    check_networks(desk, &spec)?;
    check_references(desk, &spec)?;
    if spec.endpoint != service.spec.as_ref().and_then(|held| held.endpoint.clone()) {
        check_ports(desk, &spec, &id)?;
    }
    check_change(service.spec.as_ref(), &spec)?;
    // Each change of a job lets it run again.
    service.job_status = service.job_status.map(|status| job_run(desk, Some(&status)));
    if rollback {
        roll_back(desk, &mut service)?;
    } else {
        service.previous_spec = service.spec.take();
        service.previous_spec_version = service.spec_version.take();
        service.spec = Some(spec);
        // The version before this update: it tells specs apart, it is not the service's own.
        service.spec_version = service.meta.as_ref().and_then(|meta| meta.version);
        service.update_status = None;
    }
    seen(&mut service, &version);
    let mut transaction = desk.transaction();
    transaction.update(service).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let service = Some(stored(store, &id)?);
            Ok(Response::UpdateService(pb::UpdateServiceResponse { service }))
        }),
    )
}

/// The run of a job after another one, or its first.
fn job_run(desk: &Desk<'_>, before: Option<&pb::JobStatus>) -> pb::JobStatus {
    let index = before.map_or(0, |status| status.job_iteration.map_or(0, |run| run.index) + 1);
    pb::JobStatus {
        job_iteration: Some(pb::Version { index }),
        last_execution: Some(store::transaction::timestamp(desk.now)),
    }
}

fn roll_back(desk: &Desk<'_>, service: &mut pb::Service) -> Checked {
    let Some(previous) = service.previous_spec.take() else {
        return Err(precondition(format!("service {} does not have a previous spec", service.id)));
    };
    let now = store::transaction::timestamp(desk.now);
    service.previous_spec = service.spec.replace(previous);
    std::mem::swap(&mut service.spec_version, &mut service.previous_spec_version);
    service.update_status = Some(pb::UpdateStatus {
        state: pb::update_status::UpdateState::RollbackStarted as i32,
        message: "manually requested rollback".into(),
        started_at: Some(now),
        completed_at: None,
    });
    Ok(())
}

fn check_change(held: Option<&pb::ServiceSpec>, spec: &pb::ServiceSpec) -> Checked {
    let Some(held) = held else { return Ok(()) };
    if validate::name(held.annotations.as_ref()) != validate::name(spec.annotations.as_ref()) {
        return Err(unimplemented("renaming services is not supported"));
    }
    if held.mode.as_ref().map(std::mem::discriminant)
        != spec.mode.as_ref().map(std::mem::discriminant)
    {
        return Err(unimplemented("service mode change is not allowed"));
    }
    let in_task = spec.task.as_ref().is_some_and(|task| !task.networks.is_empty());
    if (!held.networks.is_empty() || !spec.networks.is_empty())
        && held.networks != spec.networks
        && !in_task
    {
        return Err(unimplemented("networks must be migrated to TaskSpec before being changed"));
    }
    Ok(())
}

fn check_networks(desk: &Desk<'_>, spec: &pb::ServiceSpec) -> Checked {
    for target in object::service_networks(spec) {
        let by_id = desk.store.get::<pb::Network>(target);
        let network = by_id.or_else(|| desk.store.by_name::<pb::Network>(target).next());
        if let Some(network) = network
            && store::tables::is_ingress(network)
        {
            let name = store::Object::name(network.as_ref());
            return Err(invalid(format!(
                "Service cannot be explicitly attached to the ingress network \"{name}\""
            )));
        }
    }
    Ok(())
}

/// Secrets and configs exist, and no two files share a target.
fn check_references(desk: &Desk<'_>, spec: &pb::ServiceSpec) -> Checked {
    let Some(container) = spec.task.as_ref().and_then(object::container) else { return Ok(()) };
    let mut targets = BTreeMap::new();
    let mut missing = Vec::new();
    for secret in &container.secrets {
        if secret.secret_id.is_empty() || secret.secret_name.is_empty() {
            return Err(invalid("malformed secret reference"));
        }
        let Some(pb::secret_reference::Target::File(file)) = &secret.target else {
            return Err(invalid("malformed secret reference, no target provided"));
        };
        if let Some(other) = targets.insert(file.name.clone(), secret.secret_name.clone()) {
            return Err(invalid(conflict("secret", &other, &secret.secret_name, &file.name)));
        }
        if desk.store.get::<pb::Secret>(&secret.secret_id).is_none() {
            missing.push(secret.secret_name.as_str());
        }
    }
    refuse_missing("secret", &missing)?;
    let mut targets = BTreeMap::new();
    let mut missing = Vec::new();
    for config in &container.configs {
        if config.config_id.is_empty() || config.config_name.is_empty() {
            return Err(invalid("malformed config reference"));
        }
        match &config.target {
            None => return Err(invalid("malformed config reference, no target provided")),
            Some(pb::config_reference::Target::Runtime(_)) => {}
            Some(pb::config_reference::Target::File(file)) => {
                if let Some(other) = targets.insert(file.name.clone(), config.config_name.clone()) {
                    return Err(invalid(conflict(
                        "config",
                        &other,
                        &config.config_name,
                        &file.name,
                    )));
                }
            }
        }
        if desk.store.get::<pb::Config>(&config.config_id).is_none() {
            missing.push(config.config_name.as_str());
        }
    }
    refuse_missing("config", &missing)
}

fn conflict(kind: &str, one: &str, other: &str, target: &str) -> String {
    format!("{kind} references '{one}' and '{other}' have a conflicting target: '{target}'")
}

fn refuse_missing(kind: &str, missing: &[&str]) -> Checked {
    match missing {
        [] => Ok(()),
        [one] => Err(invalid(format!("{kind} not found: {one}"))),
        more => Err(invalid(format!("{kind}s not found: {}", more.join(", ")))),
    }
}

/// A port of the routing mesh belongs to one service; a port of the hosts to none of the mesh.
fn check_ports(desk: &Desk<'_>, spec: &pb::ServiceSpec, own: &str) -> Checked {
    let wanted =
        spec.endpoint.as_ref().map(|endpoint| endpoint.ports.as_slice()).unwrap_or_default();
    for port in wanted.iter().filter(|port| port.published_port != 0) {
        for service in desk.store.all::<pb::Service>().filter(|service| service.id != own) {
            let asked = service.spec.as_ref().and_then(|spec| spec.endpoint.as_ref());
            let asked = asked.map(|endpoint| endpoint.ports.as_slice()).unwrap_or_default();
            let given = service.endpoint.as_ref().map(|endpoint| endpoint.ports.as_slice());
            let held = asked.iter().chain(given.unwrap_or_default());
            if let Some(held) = held.into_iter().find(|held| collide(port, held)) {
                let name = store::Object::name(service.as_ref());
                let mode = match held.publish_mode() {
                    pb::port_config::PublishMode::Ingress => "an ingress",
                    pb::port_config::PublishMode::Host => "a host-published",
                };
                return Err(invalid(format!(
                    "port '{}' is already in use by service '{name}' ({}) as {mode} port",
                    port.published_port, service.id
                )));
            }
        }
    }
    Ok(())
}

fn collide(one: &pb::PortConfig, other: &pb::PortConfig) -> bool {
    let host = pb::port_config::PublishMode::Host;
    // Two services may use one port of the hosts: the scheduler keeps their tasks apart.
    let both_host = one.publish_mode() == host && other.publish_mode() == host;
    !both_host && one.published_port == other.published_port && one.protocol == other.protocol
}

pub fn remove(desk: &Desk<'_>, request: pb::RemoveServiceRequest) -> Decided {
    let id = request.service_id;
    if id.is_empty() {
        return Err(lacking());
    }
    let mut transaction = desk.transaction();
    transaction.remove::<pb::Service>(&id).map_err(|_| not_found("service", &id))?;
    desk.write(transaction, Box::new(|_| Ok(Response::RemoveService(pb::RemoveServiceResponse {}))))
}

pub fn get(desk: &Desk<'_>, request: pb::GetServiceRequest) -> Decided {
    let id = request.service_id;
    if id.is_empty() {
        return Err(lacking());
    }
    let service = desk.store.get::<pb::Service>(&id).ok_or_else(|| not_found("service", &id))?;
    let mut service = pb::Service::clone(service);
    if request.insert_defaults {
        service.spec = service.spec.map(with_defaults);
    }
    answer(Response::GetService(pb::GetServiceResponse { service: Some(service) }))
}

pub fn list(desk: &Desk<'_>, request: pb::ListServicesRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let services = desk.store.all::<pb::Service>().filter(|service| {
        let task = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
        filter::common!(service.as_ref(), &filters)
            && (filters.runtimes.is_empty() || filter::any(tasks::runtime(task), &filters.runtimes))
    });
    let services = services.map(|service| pb::Service::clone(service)).collect();
    answer(Response::ListServices(pb::ListServicesResponse { services }))
}

pub fn statuses(desk: &Desk<'_>, request: pb::ListServiceStatusesRequest) -> Decided {
    let statuses = request.services.into_iter().map(|id| status(desk, id)).collect();
    answer(Response::ListServiceStatuses(pb::ListServiceStatusesResponse { statuses }))
}

fn status(desk: &Desk<'_>, id: String) -> pb::list_service_statuses_response::ServiceStatus {
    let service = desk.store.get::<pb::Service>(&id);
    let iteration = service.and_then(|service| access::job_iteration(service));
    let (mut wanted_tasks, mut running_tasks, mut completed_tasks) = (0, 0, 0);
    for task in desk.store.tasks_of_service(&id) {
        // Of a job only its present run counts.
        if iteration.is_some_and(|iteration| !access::is_of_iteration(task, iteration)) {
            continue;
        }
        let completed = iteration.is_some() && access::state(task) == TaskState::Complete;
        running_tasks += u64::from(access::state(task) == TaskState::Running);
        completed_tasks += u64::from(completed);
        wanted_tasks += u64::from(match task.desired_state() {
            TaskState::Running => true,
            TaskState::Complete => !completed,
            _ => false,
        });
    }
    let desired_tasks = match service.and_then(|service| service.spec.as_ref()?.mode.as_ref()) {
        Some(pb::service_spec::Mode::Replicated(replicated)) => replicated.replicas,
        Some(pb::service_spec::Mode::ReplicatedJob(job)) => job.max_concurrent,
        Some(_) => wanted_tasks,
        None => 0,
    };
    pb::list_service_statuses_response::ServiceStatus {
        service_id: id,
        desired_tasks,
        running_tasks,
        completed_tasks,
    }
}

/// What holds where the user said nothing; shown by `--pretty`, never stored.
fn with_defaults(mut spec: pb::ServiceSpec) -> pb::ServiceSpec {
    let seconds = |seconds| Some(Duration { seconds, nanos: 0 });
    let update = || pb::UpdateConfig {
        parallelism: 1,
        failure_action: pb::update_config::FailureAction::Pause as i32,
        monitor: seconds(5),
        order: pb::update_config::UpdateOrder::StopFirst as i32,
        ..Default::default()
    };
    spec.update.get_or_insert_with(update).monitor.get_or_insert(Duration { seconds: 5, nanos: 0 });
    spec.rollback
        .get_or_insert_with(update)
        .monitor
        .get_or_insert(Duration { seconds: 5, nanos: 0 });
    spec.endpoint.get_or_insert_default();
    let task = spec.task.get_or_insert_default();
    let restart = task.restart.get_or_insert_with(|| pb::RestartPolicy {
        condition: pb::restart_policy::RestartCondition::Any as i32,
        ..Default::default()
    });
    restart.delay.get_or_insert(Duration { seconds: 5, nanos: 0 });
    task.resources.get_or_insert_default();
    task.placement.get_or_insert_default();
    if let Some(pb::task_spec::Runtime::Container(container)) = &mut task.runtime {
        container.stop_grace_period.get_or_insert(Duration { seconds: 10, nanos: 0 });
        container.dns_config.get_or_insert_default();
    }
    spec
}

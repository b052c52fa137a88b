//! `/services` and `/tasks`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use wire::swarmkit as pb;
use wire::swarmkit::service_spec::Mode;
use wire::swarmkit::task_spec::Runtime;

use super::fault::Fault;
use super::find::{self, Cluster};
use super::json::Out;
use super::routes::{array, list, pairs, strict_flag, version_of};
use super::{object, spec};
use crate::{ApiResult, ApiState, Body, Filters, Parameters};

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/services", get(services))
        .route("/services/create", post(create))
        .route("/services/{id}", get(service).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/tasks", get(tasks))
        .route("/tasks/{id}", get(task))
}

async fn services(State(state): State<ApiState>, query: Parameters) -> ApiResult {
    let filters = query.filters()?;
    filters.only(&["name", "id", "label", "mode", "runtime"])?;
    let request = pb::ListServicesRequest {
        filters: Some(pb::list_services_request::Filters {
            name_prefixes: list(&filters, "name"),
            id_prefixes: list(&filters, "id"),
            labels: pairs(&filters, "label"),
            runtimes: list(&filters, "runtime"),
            ..Default::default()
        }),
    };
    let mut services = state.cluster.call(request).await?.services;
    services.retain(|service| filters.exact("mode", mode_name(service)));
    let statuses = match query.flag("status") {
        true => statuses(&state.cluster, &services).await?,
        false => BTreeMap::new(),
    };
    Ok(array(
        services.iter().map(|service| object::service(service, statuses.get(&service.id).cloned())),
    ))
}

fn mode_name(service: &pb::Service) -> &'static str {
    match service.spec.as_ref().and_then(|spec| spec.mode.as_ref()) {
        Some(Mode::Replicated(_)) => "replicated",
        Some(Mode::Global(_)) => "global",
        Some(Mode::ReplicatedJob(_)) => "replicated-job",
        Some(Mode::GlobalJob(_)) => "global-job",
        None => "",
    }
}

async fn statuses(
    cluster: &Cluster,
    services: &[pb::Service],
) -> Result<BTreeMap<String, Value>, Fault> {
    let services = services.iter().map(|service| service.id.clone()).collect();
    let answer = cluster.call(pb::ListServiceStatusesRequest { services }).await?;
    Ok(answer
        .statuses
        .into_iter()
        .map(|status| {
            let shown = json!({"RunningTasks": status.running_tasks, "DesiredTasks": status.desired_tasks,
                               "CompletedTasks": status.completed_tasks});
            (status.service_id, shown)
        })
        .collect())
}

async fn create(State(state): State<ApiState>, headers: HeaderMap, body: Body<Value>) -> ApiResult {
    let mut spec = spec::read(&body.required()?)?;
    let annotations = spec.annotations.get_or_insert_default();
    if annotations.name.is_empty() {
        annotations.name = engine::containers::generated_name();
    }
    resolve_networks(&state.cluster, &mut spec).await?;
    if let Some(container) = container_of(&mut spec) {
        keep_auth(container, registry_auth(&headers));
    }
    let answer = state.cluster.call(pb::CreateServiceRequest { spec: Some(spec) }).await?;
    let id = answer.service.map(|service| service.id).unwrap_or_default();
    Ok((StatusCode::CREATED, Json(json!({ "ID": id }))).into_response())
}

/// Networks are stored by id; users name them as they like.
async fn resolve_networks(cluster: &Cluster, spec: &mut pb::ServiceSpec) -> Result<(), Fault> {
    let of_task = spec.task.iter_mut().flat_map(|task| &mut task.networks);
    for network in of_task.chain(&mut spec.networks) {
        network.target = find::network(cluster, &network.target).await?.id;
    }
    Ok(())
}

fn container_of(spec: &mut pb::ServiceSpec) -> Option<&mut pb::ContainerSpec> {
    match spec.task.as_mut()?.runtime.as_mut()? {
        Runtime::Container(container) => Some(container),
        _ => None,
    }
}

fn registry_auth(headers: &HeaderMap) -> String {
    headers
        .get("X-Registry-Auth")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn keep_auth(container: &mut pb::ContainerSpec, registry_auth: String) {
    if !registry_auth.is_empty() {
        container.pull_options = Some(pb::container_spec::PullOptions { registry_auth });
    }
}

async fn service(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult {
    let insert_defaults = strict_flag(&query, "insertDefaults")?;
    let mut found = find::service(&state.cluster, &id).await?;
    if insert_defaults {
        let request = pb::GetServiceRequest { service_id: found.id.clone(), insert_defaults: true };
        if let Some(full) = state.cluster.call(request).await?.service {
            found = full;
        }
    }
    Ok(Json(object::service(&found, None)).into_response())
}

async fn remove(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    let found = find::service(&state.cluster, &id).await?;
    state.cluster.call(pb::RemoveServiceRequest { service_id: found.id }).await?;
    Ok(StatusCode::OK.into_response())
}

async fn update(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
    headers: HeaderMap,
    body: Body<Value>,
) -> ApiResult {
    let version = version_of(&query, "service")?;
    let mut spec = spec::read(&body.required()?)?;
    let rollback = match query.get("rollback").unwrap_or_default() {
        "" | "none" => pb::update_service_request::Rollback::None,
        "previous" => pb::update_service_request::Rollback::Previous,
        other => return Err(Fault::bad(format!("unrecognized rollback option {other}"))),
    };
    resolve_networks(&state.cluster, &mut spec).await?;
    let current = find::service(&state.cluster, &id).await?;
    if let Some(container) = container_of(&mut spec) {
        let given = registry_auth(&headers);
        let source = match query.get("registryAuthFrom").unwrap_or_default() {
            "" | "spec" => current.spec.clone(),
            "previous-spec" => current.previous_spec.clone(),
            other => {
                return Err(Fault::bad(format!("unsupported registryAuthFrom value {other}")));
            }
        };
        match given.is_empty() {
            false => keep_auth(container, given),
            // Credentials are not shown to the client, which therefore cannot send them back.
            true => {
                let mut source = source.unwrap_or_default();
                container.pull_options =
                    container_of(&mut source).and_then(|old| old.pull_options.clone());
            }
        }
    }
    let request = pb::UpdateServiceRequest {
        service_id: current.id,
        service_version: Some(pb::Version { index: version }),
        spec: Some(spec),
        rollback: rollback as i32,
    };
    state.cluster.call(request).await?;
    Ok(Json(Value::from(Out::new().put("Warnings", Value::Null))).into_response())
}

async fn tasks(State(state): State<ApiState>, query: Parameters) -> ApiResult {
    let filters = query.filters()?;
    filters.only(&[
        "name",
        "id",
        "label",
        "service",
        "node",
        "desired-state",
        "_up-to-date",
        "runtime",
    ])?;
    let request =
        pb::ListTasksRequest { filters: Some(task_filters(&state.cluster, &filters).await?) };
    let mut found = state.cluster.call(request).await?.tasks;
    if !filters.has("runtime") {
        found.retain(is_container);
    }
    Ok(array(found.iter().map(object::task)))
}

fn is_container(task: &pb::Task) -> bool {
    matches!(task.spec.as_ref().and_then(|spec| spec.runtime.as_ref()), Some(Runtime::Container(_)))
}

async fn task_filters(
    cluster: &Cluster,
    filters: &Filters,
) -> Result<pb::list_tasks_request::Filters, Fault> {
    let mut desired_states = Vec::new();
    for word in filters.values("desired-state") {
        let state =
            TASK_STATES.iter().find(|state| object::task_state(**state).eq_ignore_ascii_case(word));
        desired_states.push(match state {
            Some(state) => *state as i32,
            None => return Err(Fault::bad(format!("Invalid desired-state filter: '{word}'"))),
        });
    }
    let mut service_ids = Vec::new();
    for name in filters.values("service") {
        service_ids.push(find::service(cluster, name).await?.id);
    }
    let mut node_ids = Vec::new();
    for name in filters.values("node") {
        node_ids.push(find::node(cluster, name).await?.id);
    }
    Ok(pb::list_tasks_request::Filters {
        name_prefixes: list(filters, "name"),
        id_prefixes: list(filters, "id"),
        labels: pairs(filters, "label"),
        service_ids,
        node_ids,
        desired_states,
        up_to_date: filters.has("_up-to-date"),
        runtimes: list(filters, "runtime"),
        ..Default::default()
    })
}

const TASK_STATES: &[pb::TaskState] = &[
    pb::TaskState::New,
    pb::TaskState::Pending,
    pb::TaskState::Assigned,
    pb::TaskState::Accepted,
    pb::TaskState::Preparing,
    pb::TaskState::Ready,
    pb::TaskState::Starting,
    pb::TaskState::Running,
    pb::TaskState::Complete,
    pb::TaskState::Shutdown,
    pb::TaskState::Failed,
    pb::TaskState::Rejected,
    pb::TaskState::Remove,
    pb::TaskState::Orphaned,
];

async fn task(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    Ok(Json(object::task(&find::task(&state.cluster, &id).await?)).into_response())
}

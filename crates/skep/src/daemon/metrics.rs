//! `--metrics-addr`: what Prometheus reads, under dockerd's own names where it has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use docker_api::swarm::ClusterApi;
use engine::Engine;
use engine::containers::Phase;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use transport::gate::Counters;
use wire::swarmkit as pb;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labelled = Family<Vec<(&'static str, String)>, Gauge>;

#[derive(Clone)]
struct Source {
    engine: Arc<Engine>,
    cluster: Arc<dyn ClusterApi>,
    port: Arc<Counters>,
}

/// Serves `/metrics` until the process ends.
///
/// # Errors
/// When the address is none or cannot be bound.
pub async fn serve(
    address: &str,
    engine: Arc<Engine>,
    cluster: Arc<dyn ClusterApi>,
    port: Arc<Counters>,
) -> Result<()> {
    let address: SocketAddr = address.parse().context("not ADDRESS:PORT")?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    let source = Source { engine, cluster, port };
    let routes = Router::new().route("/metrics", get(page)).with_state(source);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "metrics are not served any more");
        }
    });
    Ok(())
}

/// Everything is counted when it is asked for: nothing is kept beside the state itself.
async fn page(State(source): State<Source>) -> Result<impl IntoResponse, String> {
    let mut registry = Registry::default();
    engine_figures(&mut registry, &source.engine);
    network_figures(&mut registry, &source.engine);
    // What the manager's port let in and refused.
    for (name, help, value) in source.port.all() {
        let counter = Counter::<u64, AtomicU64>::default();
        counter.inc_by(value);
        registry.register(format!("skep_manager_port_{name}"), help, counter);
    }
    let help = "What came over the gossip and was dropped, and what happened to nodes, by kind";
    let gossip = source.cluster.gossip_counters().await;
    by_event(&mut registry, "skep_gossip_events", help, gossip.into_iter());
    names_figures(&mut registry, &source.engine).await;
    swarm_figures(&mut registry, &*source.cluster).await;
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| error.to_string())?;
    Ok(([(CONTENT_TYPE, TYPE)], text))
}

fn engine_figures(registry: &mut Registry, engine: &Engine) {
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("engine_daemon_engine", "The engine that serves these figures", version);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    gauge(registry, "engine_daemon_engine_cpus_cpus", "CPUs of the host", cpus);
    let phases: Vec<Phase> =
        engine.containers.all().iter().map(|container| container.phase()).collect();
    let count = |phase| phases.iter().filter(|one| **one == phase).count();
    let (paused, running) = (count(Phase::Paused), count(Phase::Running));
    let states = Labelled::default();
    for (state, count) in
        [("paused", paused), ("running", running), ("stopped", phases.len() - running - paused)]
    {
        set(&states, vec![("state", state.to_owned())], count);
    }
    let help = "Containers in this state";
    registry.register("engine_daemon_container_states_containers", help, states);
    let health = Labelled::default();
    for container in engine.containers.all() {
        if let Some(found) = container.state().health.filter(|_| container.is_running()) {
            health.get_or_create(&vec![("status", found.status)]).inc();
        }
    }
    registry.register("engine_daemon_health", "Running containers with a health check", health);
    gauge(registry, "engine_images", "Images of this host", engine.images.store.list().len());
    let layers = engine.images.store.usage().layers_bytes;
    gauge(registry, "engine_image_layers_bytes", "Bytes of all layers of images", layers as usize);
    gauge(registry, "engine_volumes", "Volumes of this host", engine.volumes.list().len());
}

/// What the network's controller has done: repairs are what somebody else had altered.
fn network_figures(registry: &mut Registry, engine: &Engine) {
    let counters = engine.network.counters();
    for (name, help, value) in [
        ("skep_network_sweeps", "Looks at the kernel's network", counters.sweeps),
        (
            "skep_network_repairs",
            "Objects put right that nobody had asked to change",
            counters.repairs,
        ),
        (
            "skep_network_steps_applied",
            "Changes made to the kernel's network",
            counters.steps_applied,
        ),
        ("skep_network_steps_failed", "Changes that the kernel refused", counters.steps_failed),
        ("skep_network_flows_reset", "Connections ended with their backend", counters.flows_reset),
    ] {
        let counter = Counter::<u64, AtomicU64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    let networks = engine.network.networks().len();
    gauge(registry, "engine_networks", "Networks of this host alone", networks);
}

/// What the resolver process answered, forwarded and dropped; nothing where it has never run.
async fn names_figures(registry: &mut Registry, engine: &Engine) {
    let client = engine.network.resolver();
    let ask = move || client.has_run().then(|| client.counters().ok()).flatten();
    let counters = tokio::task::spawn_blocking(ask).await.ok().flatten().unwrap_or_default();
    let help = "Questions for names, by what became of them";
    by_event(registry, "skep_names_questions", help, counters.into_iter());
}

fn by_event<N: Into<String>>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    counters: impl Iterator<Item = (N, u64)>,
) {
    let family: Family<Vec<(&'static str, String)>, Counter> = Family::default();
    for (event, count) in counters {
        family.get_or_create(&vec![("event", event.into())]).inc_by(count);
    }
    registry.register(name, help, family);
}

async fn swarm_figures(registry: &mut Registry, cluster: &dyn ClusterApi) {
    let node = cluster.node_info().await;
    if node.node_id.is_empty() {
        return;
    }
    let swarm = node.cluster.as_ref().map(|cluster| cluster.id.clone()).unwrap_or_default();
    let info = Info::new(vec![("node_id", node.node_id), ("swarm_id", swarm)]);
    registry.register("swarm_node", "This node of the swarm", info);
    let manager = node.cluster.is_some();
    gauge(registry, "swarm_node_manager", "Whether this node is a manager", manager.into());
    if !manager {
        return;
    }
    let led = usize::from(node.control_available);
    gauge(registry, "swarm_manager_leader_known", "Whether there is a leader", led);
    gauge(registry, "swarm_manager_nodes_total", "Nodes of the swarm", node.nodes as usize);
    gauge(
        registry,
        "swarm_manager_managers_total",
        "Managers of the swarm",
        node.managers as usize,
    );
    // Without a leader the rest cannot be told, and is left out rather than told wrong.
    if !node.control_available {
        return;
    }
    if let Ok(answer) = cluster.call(pb::ListTasksRequest::default()).await {
        let states = answer.tasks.iter().map(|task| {
            let state = task.status.as_ref().map(pb::TaskStatus::state).unwrap_or_default();
            short(state.as_str_name())
        });
        by_state(registry, "swarm_manager_tasks", "Tasks in this state", states);
    }
    if let Ok(answer) = cluster.call(pb::ListNodesRequest::default()).await {
        let states = answer.nodes.iter().map(|node| {
            let state = node.status.as_ref().map(pb::NodeStatus::state).unwrap_or_default();
            short(state.as_str_name())
        });
        by_state(registry, "swarm_manager_nodes", "Nodes in this state", states);
    }
    if let Ok(answer) = cluster.call(pb::ListServicesRequest::default()).await {
        let count = answer.services.len();
        gauge(registry, "swarm_manager_services_total", "Services of the swarm", count);
    }
}

/// `TASK_STATE_RUNNING` is `running`, as dockerd has it.
fn short(name: &str) -> String {
    name.rsplit_once("STATE_").map_or(name, |(_, state)| state).to_ascii_lowercase()
}

fn by_state(registry: &mut Registry, name: &str, help: &str, states: impl Iterator<Item = String>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for state in states {
        *counts.entry(state).or_default() += 1;
    }
    let family = Labelled::default();
    for (state, count) in counts {
        set(&family, vec![("state", state)], count);
    }
    registry.register(name, help, family);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn set(family: &Labelled, labels: Vec<(&'static str, String)>, value: usize) {
    family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}

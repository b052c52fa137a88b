//! `--metrics-addr`: what Prometheus reads, under dockerd's own names where it has them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use engine::Engine;
use engine::containers::Phase;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use transport::gate::Counters;

/// Serves `/metrics` until the process ends.
pub async fn serve(address: &str, engine: Arc<Engine>, counters: Arc<Counters>) -> Result<()> {
    let address: SocketAddr = address.parse().context("not ADDRESS:PORT")?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Containers(engine.clone())));
    registry.register_collector(Box::new(Networks(engine)));
    registry.register_collector(Box::new(ManagerPort(counters)));
    let routes = Router::new().route("/metrics", get(page)).with_state(Arc::new(registry));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "metrics are not served any more");
        }
    });
    Ok(())
}

async fn page(State(registry): State<Arc<Registry>>) -> Result<String, String> {
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Containers by state, counted when asked.
struct Containers(Arc<Engine>);

impl std::fmt::Debug for Containers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Containers")
    }
}

impl Collector for Containers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        // Each container is looked at once, so that the three counts add up.
        let phases: Vec<Phase> =
            self.0.containers.all().iter().map(|container| container.phase()).collect();
        let count = |phase| phases.iter().filter(|one| **one == phase).count();
        let (paused, running) = (count(Phase::Paused), count(Phase::Running));
        let stopped = phases.len() - running - paused;
        for (state, count) in [("paused", paused), ("running", running), ("stopped", stopped)] {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            let name = format!("engine_daemon_container_states_containers_{state}");
            let metric = encoder.encode_descriptor(
                &name,
                "Containers in this state",
                None,
                gauge.metric_type(),
            )?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

/// What the manager's port let in and refused.
#[derive(Debug)]
struct ManagerPort(Arc<Counters>);

impl Collector for ManagerPort {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for (name, help, value) in self.0.all() {
            let counter = ConstCounter::new(value);
            let name = format!("skep_manager_port_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// What the network controller has counted since it started.
struct Networks(Arc<Engine>);

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Networks")
    }
}

impl Collector for Networks {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let counted = self.0.network.counters();
        let counters = [
            (
                "repairs",
                "Kernel objects put right that nobody had asked to change",
                counted.repairs,
            ),
            ("steps_applied", "Changes of the host's network", counted.steps_applied),
            ("steps_failed", "Changes that the kernel refused", counted.steps_failed),
            ("sweeps", "Looks at all that should be there", counted.sweeps),
            ("flows_reset", "Connections ended with their backend", counted.flows_reset),
        ];
        for (name, help, count) in counters {
            let counter = ConstCounter::new(count);
            let name = format!("skep_network_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

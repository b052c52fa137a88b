//! `/containers/{id}/stats` and `/top`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use engine::Engine;
use engine::containers::Container;
use engine::stats::LinkCounters;
use engine::stats::Stats;
use serde_json::{Value, json};

use crate::attach::slash_name;
use crate::logs::fixed_nanos;
use crate::{ApiResult, ApiState, Parameters};

/// As often as Docker reads.
const INTERVAL: Duration = Duration::from_secs(1);
const NEVER: &str = "0001-01-01T00:00:00Z";

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/{id}/stats", get(stats))
        .route("/containers/{id}/top", get(top))
}

async fn top(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult {
    let (titles, rows) = state.engine.top(&id, query.get("ps_args").unwrap_or_default()).await?;
    Ok(Json(json!({ "Titles": titles, "Processes": rows })).into_response())
}

struct Following {
    engine: Arc<Engine>,
    container: Arc<Container>,
    /// The reading before, as `cpu_stats` and its time.
    before: Option<(Value, String)>,
    life: tokio::sync::watch::Receiver<engine::containers::Life>,
}

async fn stats(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult {
    let engine = state.engine.clone();
    let container = engine.container(&id)?;
    let life = container.life();
    let mut following = Following { engine, container, before: None, life };
    if !query.flag_or("stream", true) {
        let mut document = following.reading().await?;
        if !query.flag("one-shot") && following.container.is_running() {
            // A rate needs two readings.
            tokio::time::sleep(INTERVAL).await;
            document = following.reading().await?;
        }
        return Ok(Json(document).into_response());
    }
    // A wrong container is told before the stream begins.
    let first = following.reading().await?;
    let stream = futures_util::stream::unfold(
        (Some(first), following),
        |(first, mut following)| async move {
            let document = match first {
                Some(document) => document,
                None => {
                    tokio::time::sleep(INTERVAL).await;
                    if following.life.borrow_and_update().removed {
                        return None;
                    }
                    following.reading().await.ok()?
                }
            };
            let mut line = document.to_string().into_bytes();
            line.push(b'\n');
            Some((Ok::<_, std::io::Error>(Bytes::from(line)), (None, following)))
        },
    );
    let response = Response::new(HttpBody::from_stream(stream));
    Ok(([(header::CONTENT_TYPE, "application/json")], response).into_response())
}

impl Following {
    async fn reading(&mut self) -> ApiResult<Value> {
        let read = self.engine.stats(&self.container).await?;
        let (previous, preread) = self.before.take().unwrap_or((no_cpu(), NEVER.to_owned()));
        let mut document = match read {
            Some((stats, links)) => {
                let document = running(&stats, &links);
                let time = document["read"].as_str().unwrap_or(NEVER).to_owned();
                self.before = Some((document["cpu_stats"].clone(), time));
                document
            }
            None => json!({
                "read": NEVER, "pids_stats": {}, "blkio_stats": no_blkio(), "num_procs": 0,
                "storage_stats": {}, "cpu_stats": no_cpu(), "memory_stats": {},
            }),
        };
        document["preread"] = json!(preread);
        document["precpu_stats"] = previous;
        document["name"] = json!(slash_name(&self.container));
        document["id"] = json!(self.container.id().as_str());
        Ok(document)
    }
}

fn no_cpu() -> Value {
    json!({
        "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 },
        "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
    })
}

fn no_blkio() -> Value {
    json!({
        "io_service_bytes_recursive": null, "io_serviced_recursive": null, "io_queue_recursive": null,
        "io_service_time_recursive": null, "io_wait_time_recursive": null, "io_merged_recursive": null,
        "io_time_recursive": null, "sectors_recursive": null,
    })
}

fn running(stats: &Stats, links: &BTreeMap<String, LinkCounters>) -> Value {
    let limit = |value: u64| if value == u64::MAX { json!(null) } else { json!(value) };
    let mut cpu = json!({
        "total_usage": stats.cpu_total_ns,
        "usage_in_kernelmode": stats.cpu_kernel_ns,
        "usage_in_usermode": stats.cpu_user_ns,
    });
    if !stats.cpu_per_ns.is_empty() {
        cpu["percpu_usage"] = json!(stats.cpu_per_ns);
    }
    let mut pids = json!({ "current": stats.pids_current });
    if stats.pids_limit != u64::MAX {
        pids["limit"] = limit(stats.pids_limit);
    }
    let mut memory = json!({
        "usage": stats.memory_usage,
        "stats": stats.memory_stats,
        "limit": stats.memory_limit,
    });
    if !stats.cgroup_v2 {
        memory["max_usage"] = json!(stats.memory_max_usage);
        if stats.memory_failcnt > 0 {
            memory["failcnt"] = json!(stats.memory_failcnt);
        }
    }
    let mut blkio = no_blkio();
    blkio["io_service_bytes_recursive"] = entries(&stats.blkio_bytes);
    blkio["io_serviced_recursive"] = entries(&stats.blkio_ops);
    let mut document = json!({
        "read": fixed_nanos(stats.read),
        "pids_stats": pids,
        "blkio_stats": blkio,
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": {
            "cpu_usage": cpu,
            "system_cpu_usage": stats.system_cpu_ns,
            "online_cpus": stats.online_cpus,
            "throttling_data": {
                "periods": stats.throttling_periods,
                "throttled_periods": stats.throttled_periods,
                "throttled_time": stats.throttled_ns,
            },
        },
        "memory_stats": memory,
    });
    if !links.is_empty() {
        let all: serde_json::Map<String, Value> =
            links.iter().map(|(name, c)| (name.clone(), link(c))).collect();
        document["networks"] = Value::Object(all);
    }
    document
}

fn link(c: &LinkCounters) -> Value {
    json!({
        "rx_bytes": c.rx_bytes, "rx_packets": c.rx_packets, "rx_errors": c.rx_errors, "rx_dropped": c.rx_dropped,
        "tx_bytes": c.tx_bytes, "tx_packets": c.tx_packets, "tx_errors": c.tx_errors, "tx_dropped": c.tx_dropped,
    })
}

fn entries(list: &[(u64, u64, String, u64)]) -> Value {
    let one = |(major, minor, op, value): &(u64, u64, String, u64)| json!({ "major": major, "minor": minor, "op": op, "value": value });
    Value::Array(list.iter().map(one).collect())
}

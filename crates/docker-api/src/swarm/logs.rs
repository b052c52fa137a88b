//! `/services/{id}/logs` and `/tasks/{id}/logs`: lines of many tasks in Docker's framing.

use axum::Router;
use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::StreamExt;
use wire::swarmkit as pb;
use wire::swarmkit::task_spec::Runtime;

use super::fault::Fault;
use super::find;
use super::json;
use crate::{ApiResult, ApiState, Parameters};

pub fn routes() -> Router<ApiState> {
    Router::new().route("/services/{id}/logs", get(service)).route("/tasks/{id}/logs", get(task))
}

async fn service(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult {
    let options = options(&query)?;
    let found = find::service(&state.cluster, &id).await?;
    let tty = is_tty(found.spec.as_ref().and_then(|spec| spec.task.as_ref()));
    let selector = pb::LogSelector { service_ids: vec![found.id], ..Default::default() };
    logs(&state, selector, options, Shape::read(tty, &query)).await
}

async fn task(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult {
    let options = options(&query)?;
    let found = find::task(&state.cluster, &id).await?;
    let tty = is_tty(found.spec.as_ref());
    let selector = pb::LogSelector { task_ids: vec![found.id], ..Default::default() };
    logs(&state, selector, options, Shape::read(tty, &query)).await
}

fn is_tty(spec: Option<&pb::TaskSpec>) -> bool {
    match spec.and_then(|spec| spec.runtime.as_ref()) {
        Some(Runtime::Container(container)) => container.tty,
        _ => false,
    }
}

fn options(query: &Parameters) -> Result<pb::LogSubscriptionOptions, Fault> {
    let mut streams = Vec::new();
    if query.flag("stdout") {
        streams.push(pb::LogStream::Stdout as i32);
    }
    if query.flag("stderr") {
        streams.push(pb::LogStream::Stderr as i32);
    }
    if streams.is_empty() {
        return Err(Fault::bad("Bad parameters: you must choose at least one stream"));
    }
    Ok(pb::LogSubscriptionOptions {
        streams,
        follow: query.flag("follow"),
        tail: tail(query.text("tail"))?,
        since: since(query.text("since"))?,
    })
}

async fn logs(
    state: &ApiState,
    selector: pb::LogSelector,
    options: pb::LogSubscriptionOptions,
    shape: Shape,
) -> ApiResult {
    let request = pb::SubscribeLogsRequest { selector: Some(selector), options: Some(options) };
    let messages = state.cluster.subscribe_logs(request).await?;
    let body = messages.map(move |message| match message {
        Ok(message) => Ok::<_, std::convert::Infallible>(shape.line(&message)),
        // The status is sent already: the reason goes where the CLI shows it.
        Err(error) => Ok(frame(3, format!("Error grabbing logs: {}\n", error.message).as_bytes())),
    });
    let kind = match shape.tty {
        true => "application/vnd.docker.raw-stream",
        false => "application/vnd.docker.multiplexed-stream",
    };
    let response: Response =
        ([(header::CONTENT_TYPE, kind)], HttpBody::from_stream(body)).into_response();
    Ok(response)
}

/// SwarmKit's own count: 0 is everything, -1 nothing old, -n-1 the last n lines.
fn tail(text: Option<&str>) -> Result<i64, Fault> {
    match text {
        None | Some("all") => Ok(0),
        Some(text) => match text.parse::<i64>() {
            Ok(lines) if lines >= 0 => Ok(-lines - 1),
            Ok(_) => Ok(0),
            Err(_) => Err(Fault::bad("tail value must be a positive integer or \"all\"")),
        },
    }
}

/// Seconds since 1970 with an optional fraction.
fn since(text: Option<&str>) -> Result<Option<prost_types::Timestamp>, Fault> {
    let Some(text) = text.filter(|text| *text != "0") else { return Ok(None) };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let bad = || {
        Fault::bad(format!(
            "could not parse since timestamp: strconv.ParseInt: parsing \"{text}\": invalid syntax"
        ))
    };
    let seconds = seconds.parse().map_err(|_| bad())?;
    let nanos = match fraction {
        "" => 0,
        digits if digits.len() <= 9 => format!("{digits:0<9}").parse().map_err(|_| bad())?,
        _ => return Err(bad()),
    };
    Ok(Some(prost_types::Timestamp { seconds, nanos }))
}

#[derive(Clone, Copy)]
struct Shape {
    tty: bool,
    timestamps: bool,
    details: bool,
}

impl Shape {
    fn read(tty: bool, query: &Parameters) -> Self {
        Self { tty, timestamps: query.flag("timestamps"), details: query.flag("details") }
    }

    fn line(&self, message: &pb::LogMessage) -> Bytes {
        let mut line = Vec::with_capacity(message.data.len() + 64);
        if self.timestamps {
            line.extend_from_slice(stamp(message.timestamp.as_ref()).as_bytes());
            line.push(b' ');
        }
        if self.details {
            line.extend_from_slice(attributes(message).as_bytes());
            line.push(b' ');
        }
        line.extend_from_slice(&message.data);
        if self.tty {
            return Bytes::from(line);
        }
        frame(if message.stream() == pb::LogStream::Stderr { 2 } else { 1 }, &line)
    }
}

/// RFC 3339 with all nine digits, as dockerd writes log times.
fn stamp(timestamp: Option<&prost_types::Timestamp>) -> String {
    let text = json::time(timestamp);
    let (whole, fraction) =
        text.trim_end_matches('Z').split_once('.').unwrap_or((text.trim_end_matches('Z'), ""));
    format!("{whole}.{fraction:0<9}Z")
}

fn attributes(message: &pb::LogMessage) -> String {
    let mut pairs: Vec<(String, String)> =
        message.attrs.iter().map(|attr| (attr.key.clone(), attr.value.clone())).collect();
    if let Some(context) = &message.context {
        pairs.push(("com.docker.swarm.node.id".into(), context.node_id.clone()));
        pairs.push(("com.docker.swarm.service.id".into(), context.service_id.clone()));
        pairs.push(("com.docker.swarm.task.id".into(), context.task_id.clone()));
    }
    pairs.sort();
    let pairs: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect();
    pairs.join(",")
}

/// Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char)
            }
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
        out
    })
}

/// stdcopy: stream, three zeros, length, bytes.
fn frame(stream: u8, line: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(line.len() + 8);
    framed.extend_from_slice(&[stream, 0, 0, 0]);
    framed.extend_from_slice(&(line.len() as u32).to_be_bytes());
    framed.extend_from_slice(line);
    Bytes::from(framed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_as_swarmkit_does() {
        assert_eq!(tail(None).unwrap(), 0);
        assert_eq!(tail(Some("all")).unwrap(), 0);
        assert_eq!(tail(Some("0")).unwrap(), -1);
        assert_eq!(tail(Some("10")).unwrap(), -11);
        assert!(tail(Some("x")).is_err());
    }

    #[test]
    fn a_line_carries_its_task_and_time() {
        let message = pb::LogMessage {
            context: Some(pb::LogContext {
                service_id: "s".into(),
                node_id: "n".into(),
                task_id: "t".into(),
            }),
            timestamp: Some(prost_types::Timestamp { seconds: 0, nanos: 5_000_000 }),
            stream: pb::LogStream::Stderr as i32,
            data: b"hello\n".to_vec(),
            attrs: Vec::new(),
        };
        let line = Shape { tty: false, timestamps: true, details: true }.line(&message);
        assert_eq!(line[..4], [2, 0, 0, 0]);
        assert_eq!(
            String::from_utf8_lossy(&line[8..]),
            "1970-01-01T00:00:00.005000000Z com.docker.swarm.node.id=n,com.docker.swarm.service.id=s,com.docker.swarm.task.id=t hello\n"
        );
    }
}

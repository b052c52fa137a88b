//! `docker events`: the kept ones since a moment, then the stream, through the filters.

use std::collections::HashMap;

use axum::body::Body;
use axum::http::header;
use axum::response::Response;
use bollard_stubs::models::EventMessage;
use bytes::Bytes;
use engine::events::Type;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::moment;
use crate::{ApiError, ApiResult, ApiState, Filters, Parameters};

/// Lines on their way to a slow client before the stream waits.
const LINES_QUEUED_MAX: usize = 64;

const FILTERS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// One event, wherever it comes from.
struct Event {
    kind: String,
    action: String,
    id: String,
    attributes: HashMap<String, String>,
    scope: String,
    nanos: i64,
}

pub(super) fn stream(state: &ApiState, query: &Parameters) -> ApiResult {
    let filters = query.filters()?;
    filters.only(&FILTERS)?;
    let since = query.text("since").map(moment).transpose()?;
    let until = query.text("until").map(moment).transpose()?;
    if since.zip(until).is_some_and(|(since, until)| since > until) {
        return Err(ApiError::bad_request("`since` time cannot be after `until` time"));
    }
    let (kept, mut local) = state.engine.events.subscribe();
    let (out, lines) = mpsc::channel::<Bytes>(LINES_QUEUED_MAX);
    tokio::spawn(async move {
        let past = kept.into_iter().map(from_local).filter(|event| {
            let at = i128::from(event.nanos);
            since.is_some_and(|since| at >= since) && until.is_none_or(|until| at <= until)
        });
        for event in past.filter(|event| wanted(event, &filters)) {
            if out.send(line(&event)).await.is_err() {
                return;
            }
        }
        let end = end(until);
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                () = &mut end => return,
                () = out.closed() => return,
                event = local.recv() => match event {
                    Ok(event) => from_local(event),
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                },
            };
            if wanted(&event, &filters) && out.send(line(&event)).await.is_err() {
                return;
            }
        }
    });
    let stream = futures_util::stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), lines))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from_stream(stream))
        .map_err(|cause| ApiError::internal(cause.to_string()))
}

/// Ends at the given moment, or never.
async fn end(until: Option<i128>) {
    let Some(until) = until else { return std::future::pending().await };
    let left = until - OffsetDateTime::now_utc().unix_timestamp_nanos();
    let left = std::time::Duration::from_nanos(u64::try_from(left.max(0)).unwrap_or(u64::MAX));
    tokio::time::sleep(left).await;
}

fn from_local(event: EventMessage) -> Event {
    let actor = event.actor.unwrap_or_default();
    Event {
        kind: event.typ.map(|kind: Type| kind.to_string()).unwrap_or_default(),
        action: event.action.unwrap_or_default(),
        id: actor.id.unwrap_or_default(),
        attributes: actor.attributes.unwrap_or_default(),
        scope: event.scope.map(|scope| scope.to_string()).unwrap_or_else(|| "local".into()),
        nanos: event.time_nano.unwrap_or_default(),
    }
}

/// With the three fields at the top that old clients read for containers and images.
fn line(event: &Event) -> Bytes {
    let mut object = json!({
        "Type": event.kind,
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": event.scope,
        "time": event.nanos / 1_000_000_000,
        "timeNano": event.nanos,
    });
    if matches!(event.kind.as_str(), "container" | "image") {
        object["status"] = json!(event.action);
        if !event.id.is_empty() {
            object["id"] = json!(event.id);
        }
        if let Some(image) = event.attributes.get("image") {
            object["from"] = Value::String(image.clone());
        }
    }
    Bytes::from(format!("{object}\n"))
}

fn wanted(event: &Event, filters: &Filters) -> bool {
    let name = event.attributes.get("name").map(String::as_str).unwrap_or_default();
    let of_kind = |kind: &str| -> bool {
        if !filters.has(kind) {
            return true;
        }
        // A network's events name its containers, too, and a container's the service that it is of.
        let attribute =
            |name: &str| event.attributes.get(name).map(String::as_str).unwrap_or_default();
        let other = attribute(kind);
        let of_service = |value: &str| {
            attribute("com.docker.swarm.service.name") == value
                || attribute("com.docker.swarm.service.id").starts_with(value)
        };
        filters.values(kind).any(|value| {
            let own = event.kind == kind
                && (event.id.starts_with(value) || name == value.trim_start_matches('/'));
            own || (kind == "service" && of_service(value))
                || (kind == "container" && !other.is_empty() && other.starts_with(value))
                || (kind == "image" && event.kind == "container" && same_image(event, value))
                || (kind == "image" && event.kind == "image" && repository(&event.id) == value)
        })
    };
    let action_matches = !filters.has("event")
        || filters.values("event").any(|value| {
            // `exec_create: sh` and `health_status: healthy` are found by their first word.
            event.action == value || event.action.split(':').next() == Some(value)
        });
    filters.exact("type", &event.kind)
        && filters.exact("scope", &event.scope)
        && action_matches
        && filters.labels("label", |key| event.attributes.get(key).map(String::as_str))
        && [
            "container",
            "image",
            "network",
            "volume",
            "daemon",
            "plugin",
            "service",
            "node",
            "secret",
            "config",
        ]
        .iter()
        .all(|kind| of_kind(kind))
}

fn same_image(event: &Event, value: &str) -> bool {
    let image = event.attributes.get("image").map(String::as_str).unwrap_or_default();
    image == value || repository(image) == value
}

/// The name without its tag.
fn repository(image: &str) -> &str {
    match image.rfind(':') {
        Some(at) if !image[at..].contains('/') => &image[..at],
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, action: &str, id: &str, attributes: &[(&str, &str)]) -> Event {
        Event {
            kind: kind.into(),
            action: action.into(),
            id: id.into(),
            attributes: attributes
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            scope: "local".into(),
            nanos: 1_500_000_000,
        }
    }

    fn check(event: &Event, filters: &str) -> bool {
        wanted(event, &Filters::parse(filters).expect("filters"))
    }

    #[test]
    fn filters_of_different_names_all_hold_and_values_are_alternatives() {
        let start = event("container", "start", "abc123", &[("name", "web"), ("image", "a/b:1")]);
        assert!(check(&start, "{}"));
        assert!(check(&start, r#"{"container":["web"]}"#));
        assert!(check(&start, r#"{"container":["abc"],"event":["die","start"]}"#));
        assert!(!check(&start, r#"{"container":["web"],"event":["die"]}"#));
        assert!(check(&start, r#"{"image":["a/b"]}"#));
        assert!(!check(&start, r#"{"type":["network"]}"#));
        let health = event("container", "health_status: healthy", "abc", &[]);
        assert!(check(&health, r#"{"event":["health_status"]}"#));
        let task = event("container", "die", "a", &[("com.docker.swarm.service.name", "web")]);
        assert!(check(&task, r#"{"service":["web"]}"#) && !check(&task, r#"{"service":["we"]}"#));
        let connect = event("network", "connect", "n1", &[("container", "abc123")]);
        assert!(check(&connect, r#"{"container":["abc"]}"#));
    }

    #[test]
    fn a_line_has_old_and_new_fields() {
        let start = event("container", "start", "abc", &[("image", "busybox")]);
        let text = String::from_utf8(line(&start).to_vec()).expect("text");
        for part in [r#""status":"start""#, r#""from":"busybox""#, r#""timeNano":1500000000"#] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.ends_with("}\n"));
    }
}

//! The daemon itself: ping, version, info, events, disk usage.

mod info;
mod events;
mod usage;

use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::request::RawBody;
use crate::swarm::api::LocalNodeState;
use crate::version::Version;
use crate::{ApiError, ApiResult, ApiState, Filters, Parameters};

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(information))
        .route("/events", get(stream_events))
        .route("/system/df", get(disk_usage))
}

/// HEAD answers with the same headers and no body.
async fn ping(State(state): State<ApiState>, method: Method, _body: RawBody) -> Response {
    let swarm = state.cluster.node_info().await;
    let local = match swarm.state {
        LocalNodeState::Active if swarm.control_available => "active/manager",
        LocalNodeState::Active => "active/worker",
        other => other.as_str(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [
        // The classic builder: none of the two builds here, and this one's refusal is plain.
        ("builder-version", "1"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        ("content-type", "text/plain; charset=utf-8"),
        ("swarm", local),
    ] {
        headers
            .insert(header::HeaderName::from_static(name), header::HeaderValue::from_static(value));
    }
    let body = if method == Method::HEAD { "" } else { "OK" };
    (headers, body).into_response()
}

async fn version(_body: RawBody) -> Response {
    Json(info::version()).into_response()
}

async fn information(
    State(state): State<ApiState>,
    Extension(version): Extension<Version>,
    _body: RawBody,
) -> ApiResult {
    let mut info = info::info(&state).await;
    if version < Version(1, 25) {
        info::as_before_1_25(&mut info);
    }
    Ok(Json(info).into_response())
}

async fn stream_events(
    State(state): State<ApiState>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    events::stream(&state, &query)
}

async fn disk_usage(
    State(state): State<ApiState>,
    Extension(version): Extension<Version>,
    query: Parameters,
    _body: RawBody,
) -> ApiResult {
    Ok(Json(usage::usage(&state, &query, version).await?).into_response())
}

/// A point in time as clients write it: Unix seconds, RFC 3339 (also without zone or time of
/// day), or a duration before now. In nanoseconds since 1970.
pub fn moment(text: &str) -> Result<i128, ApiError> {
    let invalid =
        || ApiError::bad_request(format!("failed to parse value as time or duration: \"{text}\""));
    if let Some((seconds, fraction)) = unix(text) {
        return Ok(i128::from(seconds) * 1_000_000_000 + i128::from(fraction));
    }
    if let Some(nanos) = duration(text) {
        return Ok(OffsetDateTime::now_utc().unix_timestamp_nanos() - nanos);
    }
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        13 => format!("{text}:00:00Z"),
        16 => format!("{text}:00Z"),
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&whole, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{whole}Z"), &Rfc3339))
        .map(OffsetDateTime::unix_timestamp_nanos)
        .map_err(|_| invalid())
}

/// `1136073845` or `1136073845.000000001`.
fn unix(text: &str) -> Option<(i64, i64)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = seconds.parse().ok()?;
    if fraction.is_empty() {
        return Some((seconds, 0));
    }
    if fraction.len() > 9 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some((seconds, format!("{fraction:0<9}").parse().ok()?))
}

/// Go's durations: `1h30m`, `10s`, `1.5h`; in nanoseconds.
pub fn duration(text: &str) -> Option<i128> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    let total = total as i128;
    Some(if negative { -total } else { total })
}

/// The `until` filter of the prunes, in Unix seconds.
pub fn until(filters: &Filters) -> Result<Option<i64>, ApiError> {
    let mut values = filters.values("until");
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(text), None) => {
            let nanos = moment(text)?;
            Ok(i64::try_from(nanos.div_euclid(1_000_000_000)).ok())
        }
        _ => Err(ApiError::bad_request("more than one until filter specified")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_in_all_forms() {
        assert_eq!(moment("10").expect("unix"), 10_000_000_000);
        assert_eq!(moment("10.5").expect("unix"), 10_500_000_000);
        assert_eq!(moment("1970-01-01T00:00:02Z").expect("rfc"), 2_000_000_000);
        assert_eq!(moment("1970-01-01T00:00:02").expect("no zone"), 2_000_000_000);
        assert_eq!(moment("1970-01-02").expect("day"), 86_400_000_000_000);
        assert!(moment("never").is_err());
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        assert!((now - moment("1h").expect("duration") - 3_600_000_000_000).abs() < 60_000_000_000);
    }

    #[test]
    fn durations_as_go_writes_them() {
        assert_eq!(duration("1h30m"), Some(5_400_000_000_000));
        assert_eq!(duration("1.5s"), Some(1_500_000_000));
        assert_eq!(duration("12"), None);
        assert_eq!(duration("x"), None);
    }
}

//! `/containers/{id}/logs`: a container's output from its log, in Docker's framing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use engine::logs::{LogEntry, LogOptions, LogReader};
use time::OffsetDateTime;

use crate::attach::{frame, media_type, number};
use crate::version::Version;
use crate::{ApiError, ApiResult, ApiState, Parameters};

pub fn routes() -> Router<ApiState> {
    Router::new().route("/containers/{id}/logs", get(logs))
}

struct Show {
    tty: bool,
    timestamps: bool,
    details: bool,
}

async fn logs(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
    Extension(version): Extension<Version>,
) -> ApiResult {
    let container = state.engine.container(&id)?;
    let options = LogOptions {
        follow: query.flag("follow"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        since: moment(&query, "since")?,
        until: moment(&query, "until")?,
        tail: match query.text("tail") {
            None | Some("all") => None,
            // As Docker: what is no number, or negative, means all.
            Some(text) => text.parse().ok(),
        },
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::bad_request("Bad parameters: you must choose at least one stream"));
    }
    let (_, reader) = state.engine.logs(&id, options)?;
    let show = Show {
        tty: container.tty(),
        timestamps: query.flag("timestamps"),
        details: query.flag("details"),
    };
    let media = media_type(show.tty, version);
    let stream = futures_util::stream::unfold((reader, show), next);
    let response = Response::new(HttpBody::from_stream(stream));
    Ok(([(header::CONTENT_TYPE, media)], response).into_response())
}

async fn next(
    (mut reader, show): (LogReader, Show),
) -> Option<(Result<Bytes, std::io::Error>, (LogReader, Show))> {
    match reader.next().await {
        Ok(Some(entry)) => {
            let line = line(entry, &show);
            Some((Ok(line.into()), (reader, show)))
        }
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(%error, "log not read to its end");
            None
        }
    }
}

fn line(entry: LogEntry, show: &Show) -> Vec<u8> {
    let mut text = Vec::new();
    if show.timestamps {
        text.extend_from_slice(fixed_nanos(entry.at).as_bytes());
        text.push(b' ');
    }
    if show.details {
        let details: Vec<String> =
            entry.attrs.iter().map(|(k, v)| format!("{}={}", escape(k), escape(v))).collect();
        text.extend_from_slice(details.join(",").as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(&entry.line);
    if show.tty { text } else { frame(number(entry.stream), &text) }
}

/// As Go's url.QueryEscape: the client takes the pairs apart again.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char)
            }
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// RFC 3339 with always nine digits, so that lines sort as text.
pub(crate) fn fixed_nanos(at: SystemTime) -> String {
    let t = OffsetDateTime::from(at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.nanosecond()
    )
}

/// Seconds since 1970 with a fraction; 0 means not given.
fn moment(query: &Parameters, name: &str) -> ApiResult<Option<SystemTime>> {
    let Some(text) = query.text(name) else { return Ok(None) };
    let bad = || ApiError::bad_request(format!("invalid value for {name}: {text}"));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| bad())?;
    let nanos: u32 = match fraction {
        "" => 0,
        digits if digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{digits:0<9}").parse().map_err(|_| bad())?
        }
        _ => return Err(bad()),
    };
    if seconds < 0 || (seconds == 0 && nanos == 0) {
        return Ok(None);
    }
    Ok(Some(UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_seconds_with_a_fraction() {
        let at = |text: &str| moment(&Parameters::parse(&format!("since={text}")), "since");
        assert_eq!(at("12.5").unwrap(), Some(UNIX_EPOCH + Duration::from_millis(12_500)));
        assert_eq!(at("0").unwrap(), None);
        assert!(at("yesterday").is_err());
    }

    #[test]
    fn timestamps_have_nine_digits() {
        assert_eq!(
            fixed_nanos(UNIX_EPOCH + Duration::from_millis(1_500)),
            "1970-01-01T00:00:01.500000000Z"
        );
    }
}

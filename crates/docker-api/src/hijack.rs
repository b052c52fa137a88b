//! A connection taken over for raw streams, as attach and exec need it.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;

use crate::error::ApiError;

/// Both directions of the client's connection after the answer's headers.
pub type Connection = TokioIo<hyper::upgrade::Upgraded>;

/// The media type of a stream with 8-byte frame headers.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// The media type of a TTY's stream.
pub const RAW: &str = "application/vnd.docker.raw-stream";

/// A request that may be taken over. Make it *after* the body was read: keep the parts, read the
/// body, and give the parts' request (without body) here.
pub struct Takeover {
    upgrade: hyper::upgrade::OnUpgrade,
    wanted: bool,
}

impl Takeover {
    /// From a whole request, before its body is consumed.
    pub fn prepare(request: &mut Request) -> Self {
        let wanted = asks_for_upgrade(request.headers());
        Self { upgrade: hyper::upgrade::on(request), wanted }
    }

    /// Answers with 101 (or, to an old client that did not ask for it, 200 and a raw stream is
    /// not possible: 400) and runs `serve` with the connection.
    pub fn serve<F, Fut>(self, media_type: &'static str, serve: F) -> Response
    where
        F: FnOnce(Connection) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if !self.wanted {
            return ApiError::bad_request(
                "this call takes the connection over: send `Connection: Upgrade` and `Upgrade: tcp`",
            )
            .into_response();
        }
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(connection) => serve(TokioIo::new(connection)).await,
                Err(error) => tracing::debug!(%error, "the client left before the takeover"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("tcp"));
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
        response
    }
}

fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONNECTION)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("upgrade"))
        && headers.contains_key(header::UPGRADE)
}

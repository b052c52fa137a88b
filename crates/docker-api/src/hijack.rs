//! A connection taken over for raw streams, as attach and exec need it.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;

use crate::error::{ApiError, ApiResult};

/// Both directions of the client's connection after the answer's headers.
pub type Connection = TokioIo<hyper::upgrade::Upgraded>;

/// The media type of a stream with 8-byte frame headers.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// The media type of a TTY's stream.
pub const RAW: &str = "application/vnd.docker.raw-stream";

/// A request that may ask to be taken over: made of the whole request, before its body is read.
pub struct Asked {
    upgrade: hyper::upgrade::OnUpgrade,
    wanted: bool,
}

impl Asked {
    pub fn of(request: &mut Request) -> Self {
        let wanted = asks_for_upgrade(request.headers());
        Self { upgrade: hyper::upgrade::on(request), wanted }
    }

    /// Refuses an old client's request that did not ask: its answer cannot become a raw stream.
    pub fn checked(self) -> ApiResult<Takeover> {
        match self.wanted {
            true => Ok(Takeover { upgrade: self.upgrade }),
            false => Err(ApiError::bad_request(
                "this call takes the connection over: send `Connection: Upgrade` and `Upgrade: tcp`",
            )),
        }
    }
}

/// A request that will be taken over.
pub struct Takeover {
    upgrade: hyper::upgrade::OnUpgrade,
}

impl Takeover {
    /// Answers with 101 and runs `serve` with the connection.
    pub fn serve<F, Fut>(self, media_type: &'static str, serve: F) -> Response
    where
        F: FnOnce(Connection) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
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

//! The API's version: taken off the path, checked, and named in every answer.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use tower::Service;

use crate::error::ApiError;

pub const API_VERSION: Version = Version(1, 51);
pub const API_VERSION_MIN: Version = Version(1, 24);

/// What the client speaks; handlers take it as `axum::Extension<Version>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A service that strips `/vX.Y` before the router sees the path.
#[derive(Clone)]
pub struct Negotiated {
    inner: Router,
}

impl Negotiated {
    pub fn around(inner: Router) -> Self {
        Self { inner }
    }
}

impl<B> Service<axum::http::Request<B>> for Negotiated
where
    B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Answers also when the client has left meanwhile: hyper drops what it serves then, and a container must not stay
    /// half-way between two states.
    fn call(&mut self, request: axum::http::Request<B>) -> Self::Future {
        let request: Request = request.map(axum::body::Body::new);
        // Begun here: of a client that has left already, what is returned is dropped before it is polled.
        let answer = tokio::spawn(answer(self.inner.clone(), request));
        Box::pin(async move {
            let mut response = ended(answer.await);
            name_the_server(&mut response);
            Ok(response)
        })
    }
}

/// For hyper itself: tower's adapter would make the call only when its future is polled.
impl hyper::service::Service<axum::http::Request<hyper::body::Incoming>> for Negotiated {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, request: axum::http::Request<hyper::body::Incoming>) -> Self::Future {
        Service::call(&mut self.clone(), request)
    }
}

async fn answer(mut inner: Router, mut request: Request) -> Result<Response, Infallible> {
    if let Some(clean) = cleaned(request.uri()) {
        return Ok(moved(&clean));
    }
    match strip(request.uri()) {
        Err(error) => Ok(error.into_response()),
        Ok((version, uri)) => {
            *request.uri_mut() = uri;
            request.extensions_mut().insert(version);
            inner.call(request).await
        }
    }
}

fn ended(answer: Result<Result<Response, Infallible>, tokio::task::JoinError>) -> Response {
    match answer {
        Ok(Ok(response)) => response,
        Err(error) => {
            tracing::error!(%error, "a request was not answered");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the daemon failed; its log says why")
                .into_response()
        }
    }
}

/// The path as Docker's router has it, when that is another one. An empty name between two slashes is sent away
/// here: looked for, it would be the beginning of every id.
fn cleaned(uri: &Uri) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in uri.path().split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = if uri.path().ends_with('/') && !parts.is_empty() { "/" } else { "" };
    let path = format!("/{}{end}", parts.join("/"));
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    (path != uri.path()).then(|| path + &query)
}

fn moved(to: &str) -> Response {
    let mut response = StatusCode::MOVED_PERMANENTLY.into_response();
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(axum::http::header::LOCATION, to);
    }
    response
}

/// The version in front of the path, if there is one, and the path without it.
fn strip(uri: &Uri) -> Result<(Version, Uri), ApiError> {
    let path = uri.path();
    let Some((version, rest)) = versioned(path) else {
        return Ok((API_VERSION, uri.clone()));
    };
    if version < API_VERSION_MIN {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too old. Minimum supported API version is {API_VERSION_MIN}, please upgrade your client to a newer version"
        )));
    }
    if version > API_VERSION {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    let path_and_query = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    path_and_query
        .parse()
        .map(|uri| (version, uri))
        .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "malformed request path"))
}

fn versioned(path: &str) -> Option<(Version, &str)> {
    let rest = path.strip_prefix("/v")?;
    let (version, rest) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (major, minor) = version.split_once('.')?;
    Some((Version(major.parse().ok()?, minor.parse().ok()?), rest))
}

fn name_the_server(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert("Api-Version", HeaderValue::from_static("1.51"));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert(
        "Server",
        HeaderValue::from_static(concat!("Docker/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: &str) {
        let got = match strip(&path.parse().expect("a path")) {
            Ok((version, uri)) => format!("{version} {uri}"),
            Err(error) => format!("{} {}", error.status.as_u16(), error.message),
        };
        assert_eq!(got, expected, "{path}");
    }

    #[test]
    fn the_version_leaves_the_path_and_keeps_the_query() {
        check("/v1.41/containers/json?all=1", "1.41 /containers/json?all=1");
        check("/containers/json", "1.51 /containers/json");
        check("/volumes", "1.51 /volumes");
        check("/v1.24/_ping", "1.24 /_ping");
    }

    #[test]
    fn a_path_with_an_empty_part_is_sent_where_docker_sends_it() {
        let to = |path: &str| cleaned(&path.parse().expect("a path"));
        let sent = |path: &str| to(path).unwrap_or_else(|| "as it is".into());
        assert_eq!(sent("/v1.41/nodes//update?version=1"), "/v1.41/nodes/update?version=1");
        assert_eq!(sent("/v1.41//nodes/"), "/v1.41/nodes/");
        assert_eq!(sent("/nodes/./a/../b"), "/nodes/b");
        for path in ["/", "/v1.41/nodes", "/nodes/", "/images/a%2F%2Fb/json?x=//"] {
            assert_eq!(to(path), None);
        }
    }

    #[tokio::test]
    async fn a_request_is_worked_off_when_its_client_has_left() {
        use std::sync::Arc;
        use tokio::sync::Notify;
        let [begun, go, done] = [(); 3].map(|()| Arc::new(Notify::new()));
        let told = [begun.clone(), go.clone(), done.clone()];
        let handler = move || async move {
            let [begun, go, done] = told;
            begun.notify_one();
            go.notified().await;
            done.notify_one();
        };
        let router = Router::new().route("/slow", axum::routing::post(handler));
        let request = axum::http::Request::post("/v1.41/slow").body(axum::body::Body::empty());
        let answer = Negotiated::around(router).call(request.expect("a request"));
        tokio::select! {
            _ = answer => panic!("answered before its work was done"),
            () = begun.notified() => {}
        }
        go.notify_one();
        let patience = std::time::Duration::from_secs(10);
        tokio::time::timeout(patience, done.notified()).await.expect("given up half-way");
    }

    /// Hyper finds the client gone in the same step in which it has read the request.
    #[tokio::test]
    async fn a_request_whose_client_had_left_before_it_was_read_is_worked_off() {
        use std::io::Write;
        let done = std::sync::Arc::new(tokio::sync::Notify::new());
        let told = done.clone();
        let handler = move || async move { told.notify_one() };
        let router = Router::new().route("/quick", axum::routing::post(handler));
        let (mut client, server) = std::os::unix::net::UnixStream::pair().expect("a pair");
        client.write_all(b"POST /quick HTTP/1.1\r\nHost: docker\r\n\r\n").expect("written");
        drop(client);
        server.set_nonblocking(true).expect("nonblocking");
        let server = tokio::net::UnixStream::from_std(server).expect("a stream");
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(hyper_util::rt::TokioIo::new(server), Negotiated::around(router))
            .await;
        let patience = std::time::Duration::from_secs(10);
        tokio::time::timeout(patience, done.notified()).await.expect("never begun");
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_an_answer() {
        async fn bad() {
            panic!("on purpose")
        }
        let router = Router::new().route("/bad", axum::routing::get(bad));
        let request = axum::http::Request::get("/bad").body(axum::body::Body::empty());
        let answer = Negotiated::around(router).call(request.expect("a request")).await;
        assert_eq!(answer.expect("infallible").status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn versions_outside_the_range_are_refused() {
        check(
            "/v1.12/info",
            "400 client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        );
        check(
            "/v1.99/info",
            "400 client version 1.99 is too new. Maximum supported API version is 1.51",
        );
    }
}

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

    fn call(&mut self, request: axum::http::Request<B>) -> Self::Future {
        let mut inner = self.inner.clone();
        let mut request: Request = request.map(axum::body::Body::new);
        Box::pin(async move {
            let mut response = match strip(request.uri()) {
                Err(error) => error.into_response(),
                Ok((version, uri)) => {
                    *request.uri_mut() = uri;
                    request.extensions_mut().insert(version);
                    inner.call(request).await?
                }
            };
            name_the_server(&mut response);
            Ok(response)
        })
    }
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

//! HTTP to registries: which addresses a name has, requests with a login, errors in Docker's words.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

use super::auth::{self, Challenge};
use super::{Credentials, Registries};
use crate::{Error, Reference, Result};

const CONNECT_SECONDS_MAX: u64 = 15;
const SILENCE_SECONDS_MAX: u64 = 60;
/// What is read of an error's body.
const ERROR_BYTES_MAX: usize = 64 << 10;
const DOCKER_HUB: &str = "https://registry-1.docker.io";

/// The connections of one store to all registries.
pub(crate) struct Client {
    /// Made at its first use: it needs the certificates of authorities, and a host may have none.
    secure: OnceLock<reqwest::Client>,
    /// Trusts nobody: for plain HTTP where `secure` cannot be made.
    plain: reqwest::Client,
    insecure: reqwest::Client,
    /// Loopback is never behind a proxy.
    loopback: reqwest::Client,
    registries: Registries,
}

/// One address of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub base: String,
    insecure: bool,
    loopback: bool,
    pub mirror: bool,
}

impl Client {
    pub fn new(registries: &Registries) -> Result<Self> {
        // Somebody else in the process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let failed = |cause| Error::System(format!("registry client: {}", chain(&cause)));
        let own = || proxied(builder(), &registries.proxies);
        Ok(Self {
            secure: OnceLock::new(),
            plain: own()?.tls_certs_only([]).build().map_err(failed)?,
            insecure: own()?.danger_accept_invalid_certs(true).build().map_err(failed)?,
            loopback: builder()
                .no_proxy()
                .danger_accept_invalid_certs(true)
                .build()
                .map_err(failed)?,
            registries: registries.clone(),
        })
    }

    fn secure(&self) -> Result<&reqwest::Client> {
        if let Some(client) = self.secure.get() {
            return Ok(client);
        }
        let client = proxied(builder(), &self.registries.proxies)?.build().map_err(|cause| {
            Error::System(format!(
                "{}: registries with https need them, install ca-certificates or set SSL_CERT_FILE",
                chain(&cause)
            ))
        })?;
        Ok(self.secure.get_or_init(|| client))
    }

    /// Where a repository can be, in the order to ask.
    pub fn endpoints(&self, reference: &Reference, for_push: bool) -> Vec<Endpoint> {
        let domain = reference.domain();
        if domain == "docker.io" {
            let mirrors = self.registries.mirrors.iter().filter(|_| !for_push).map(|url| {
                let base = url.trim_end_matches('/').to_owned();
                let host =
                    base.split_once("://").map_or(base.as_str(), |(_, host)| host).to_owned();
                Endpoint {
                    insecure: self.is_insecure(&host),
                    loopback: is_loopback(&host),
                    mirror: true,
                    base,
                }
            });
            let hub = Endpoint {
                base: DOCKER_HUB.into(),
                insecure: false,
                loopback: false,
                mirror: false,
            };
            return mirrors.chain([hub]).collect();
        }
        let (insecure, loopback) = (self.is_insecure(domain), is_loopback(domain));
        let with = |scheme: &str| Endpoint {
            base: format!("{scheme}://{domain}"),
            insecure,
            loopback,
            mirror: false,
        };
        if insecure { vec![with("https"), with("http")] } else { vec![with("https")] }
    }

    fn is_insecure(&self, host: &str) -> bool {
        if is_loopback(host) || self.registries.insecure.iter().any(|entry| entry == host) {
            return true;
        }
        let ranges: Vec<(IpAddr, u8)> =
            self.registries.insecure.iter().filter_map(|entry| range(entry)).collect();
        if ranges.is_empty() {
            return false;
        }
        let name = without_port(host);
        let addresses: Vec<IpAddr> = match name.parse() {
            Ok(address) => vec![address],
            Err(_) => (name, 443)
                .to_socket_addrs()
                .map(|found| found.map(|at| at.ip()).collect())
                .unwrap_or_default(),
        };
        addresses.iter().any(|address| ranges.iter().any(|range| contains(range, address)))
    }

    fn http(&self, endpoint: &Endpoint) -> Result<&reqwest::Client> {
        match (endpoint.loopback, endpoint.insecure) {
            (true, _) => Ok(&self.loopback),
            (false, true) => Ok(&self.insecure),
            (false, false) if endpoint.base.starts_with("http://") => {
                Ok(self.secure().unwrap_or(&self.plain))
            }
            (false, false) => self.secure(),
        }
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("skep/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .read_timeout(Duration::from_secs(SILENCE_SECONDS_MAX))
}

/// With the daemon's own proxies; without any, reqwest takes the environment's.
fn proxied(
    mut builder: reqwest::ClientBuilder,
    proxies: &super::Proxies,
) -> Result<reqwest::ClientBuilder> {
    type Kind = fn(&str) -> reqwest::Result<reqwest::Proxy>;
    let kinds: [(&Option<String>, Kind, &str); 2] = [
        (&proxies.http, |url| reqwest::Proxy::http(url), "--http-proxy"),
        (&proxies.https, |url| reqwest::Proxy::https(url), "--https-proxy"),
    ];
    for (url, proxy, flag) in kinds {
        let Some(url) = url.as_deref().filter(|url| !url.is_empty()) else { continue };
        // The URL is not repeated: it may hold a password.
        let proxy =
            proxy(url).map_err(|_| Error::Invalid(format!("{flag}: not the URL of a proxy")))?;
        let except = proxies.except.as_deref().and_then(reqwest::NoProxy::from_string);
        builder = builder.proxy(proxy.no_proxy(except));
    }
    Ok(builder)
}

/// Talks to one repository at one endpoint, with what it learned about logging in.
pub(crate) struct Session<'a> {
    client: &'a Client,
    pub endpoint: Endpoint,
    pub repository: String,
    credentials: Option<&'a Credentials>,
    scope: String,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A request that can be sent again after a login.
pub(crate) struct Ask<'a> {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Option<&'a [u8]>,
}

impl<'a> Session<'a> {
    pub fn new(
        client: &'a Client,
        endpoint: Endpoint,
        repository: &str,
        credentials: Option<&'a Credentials>,
        actions: &str,
    ) -> Self {
        let token = credentials
            .map(|credentials| credentials.registry_token.as_str())
            .filter(|token| !token.is_empty());
        let authorization = token.and_then(|token| secret(&format!("Bearer {token}")));
        Self {
            client,
            endpoint,
            repository: repository.to_owned(),
            credentials,
            scope: if repository.is_empty() {
                String::new()
            } else {
                format!("repository:{repository}:{actions}")
            },
            authorization: Mutex::new(authorization),
        }
    }

    pub fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.endpoint.base, self.repository)
    }

    pub fn get(&self, rest: &str, headers: HeaderMap) -> Ask<'static> {
        Ask { method: Method::GET, url: self.url(rest), headers, body: None }
    }

    /// Sends; a first 401 is answered with the login it asks for. Statuses of failure come back as they are.
    pub async fn send(&self, ask: &Ask<'_>) -> Result<Response> {
        let response = self.once(ask).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .collect();
        let Some(authorization) = self.login(&challenges).await? else { return Ok(response) };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        self.once(ask).await
    }

    async fn login(&self, challenges: &[Challenge]) -> Result<Option<HeaderValue>> {
        match challenges.first() {
            None => Ok(None),
            Some(Challenge::Basic) => {
                let Some(credentials) = self.credentials.filter(|login| !login.username.is_empty())
                else {
                    return Err(Error::System("no basic auth credentials".into()));
                };
                Ok(secret(&auth::basic(&credentials.username, &credentials.password)))
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let http = match is_loopback(host_of(realm)) {
                    true => &self.client.loopback,
                    false => self.client.http(&self.endpoint)?,
                };
                let scope = if self.scope.is_empty() {
                    scope.as_deref().unwrap_or("")
                } else {
                    &self.scope
                };
                let token = auth::token(http, realm, service, scope, self.credentials).await?;
                Ok(secret(&format!("Bearer {token}")))
            }
        }
    }

    async fn once(&self, ask: &Ask<'_>) -> Result<Response> {
        let mut request = self.client.http(&self.endpoint)?.request(ask.method.clone(), &ask.url);
        request = request.headers(ask.headers.clone());
        if let Some(value) = self.authorization() {
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(body) = ask.body {
            request = request.body(body.to_vec());
        }
        request.send().await.map_err(|cause| unreachable(&ask.method, &ask.url, &cause))
    }

    /// A streamed body can be sent only once: the login must be known by then.
    pub async fn stream(&self, method: Method, url: &str, body: reqwest::Body) -> Result<Response> {
        let mut request = self.client.http(&self.endpoint)?.request(method.clone(), url);
        if let Some(value) = self.authorization() {
            request = request.header(AUTHORIZATION, value);
        }
        request = request.header(reqwest::header::CONTENT_TYPE, "application/octet-stream");
        request.body(body).send().await.map_err(|cause| unreachable(&method, url, &cause))
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// No answer at all; the words are those of Go's http package, which scripts look for.
fn unreachable(method: &Method, url: &str, cause: &reqwest::Error) -> Error {
    let name = method.as_str();
    let name = format!("{}{}", &name[..1], name[1..].to_ascii_lowercase());
    Error::Unavailable(format!("{name} {url:?}: {}", chain(cause)))
}

/// What rustls says when the answer to its greeting is no TLS.
const NO_TLS: &str = "corrupt message of type InvalidContentType";

/// The innermost reason: the outer ones repeat the URL.
pub(crate) fn chain(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    let reason = inner.to_string();
    if error.is_timeout() {
        format!("{reason} (Client.Timeout exceeded)")
    } else if reason.contains(NO_TLS) {
        "http: server gave HTTP response to HTTPS client: a registry without TLS has to be named with --insecure-registry".to_owned()
    } else {
        reason
    }
}

/// What a registry says when it refuses.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    pub status: StatusCode,
    pub code: String,
    pub message: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
    #[serde(default)]
    details: Option<String>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// An answer's body, of `max` bytes at most; `what` belongs there.
pub(crate) async fn limited(mut response: Response, max: u64, what: &str) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    let broken = |cause: reqwest::Error| {
        Error::Unavailable(format!("read from the registry: {}", chain(&cause)))
    };
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        raw.extend_from_slice(&chunk);
        if raw.len() as u64 > max {
            return Err(Error::System(format!(
                "the registry sends more than {max} bytes where {what} belongs"
            )));
        }
    }
    Ok(raw)
}

impl Refusal {
    pub async fn read(mut response: Response) -> Self {
        let status = response.status();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > ERROR_BYTES_MAX {
                break;
            }
        }
        Self::parse(status, &body)
    }

    pub fn parse(status: StatusCode, body: &[u8]) -> Self {
        let parsed: Option<ErrorBody> = serde_json::from_slice(body).ok();
        let details = parsed.as_ref().and_then(|body| body.details.clone());
        match parsed.and_then(|body| body.errors.into_iter().next()) {
            Some(entry) => Self { status, code: entry.code, message: entry.message },
            None => {
                let (code, message) = match status {
                    StatusCode::UNAUTHORIZED => ("UNAUTHORIZED", "authentication required"),
                    StatusCode::FORBIDDEN => {
                        ("DENIED", "requested access to the resource is denied")
                    }
                    StatusCode::TOO_MANY_REQUESTS => ("TOOMANYREQUESTS", "too many requests"),
                    _ => ("", ""),
                };
                let message = details.unwrap_or_else(|| message.to_owned());
                Self { status, code: code.into(), message }
            }
        }
    }

    /// Worth another try later.
    pub fn may_pass(&self) -> bool {
        self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS
    }

    pub fn text(&self) -> String {
        match self.code.is_empty() {
            true => format!("received unexpected HTTP status: {}", self.status),
            false => {
                format!("{}: {}", self.code.to_ascii_lowercase().replace('_', " "), self.message)
            }
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(['/', ':']).next().unwrap_or(host),
    }
}

fn host_of(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default()
}

fn is_loopback(host: &str) -> bool {
    let name = without_port(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    Some((address.parse().ok()?, length.parse().ok()?))
}

fn contains((base, length): &(IpAddr, u8), address: &IpAddr) -> bool {
    let bits = |address: &IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(*address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(*address), 128),
    };
    let ((base, width), (address, other)) = (bits(base), bits(address));
    let shift = 128 - u32::from(*length);
    width == other && *length <= width && (shift == 128 || base >> shift == address >> shift)
}

/// Request headers of plain values.
pub(crate) fn headers(pairs: &[(reqwest::header::HeaderName, &str)]) -> HeaderMap {
    let pairs = pairs
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), HeaderValue::from_str(value).ok()?)));
    pairs.collect()
}

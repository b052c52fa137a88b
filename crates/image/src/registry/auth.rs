//! Logging in: what a 401 asks for, and the token it leads to. Nothing here is ever printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Credentials;
use super::client::{Refusal, chain, limited};
use crate::{Error, Result};

/// A token is some kilobytes.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, PartialEq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: Option<String> },
}

impl Challenge {
    /// `Bearer realm="https://…",service="…",scope="…"`
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let get = |name: &str| {
            parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        Some(Self::Bearer {
            realm: get("realm")?,
            service: get("service").unwrap_or_default(),
            scope: get("scope"),
        })
    }
}

/// `key="value"` with commas between; a quoted value may hold commas.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.push((key.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned()));
        rest = next;
    }
    found
}

pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// A token for `scope`, from the registry's token server.
pub(crate) async fn token(
    http: &reqwest::Client,
    realm: &str,
    service: &str,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<String> {
    let identity = credentials.map_or("", |credentials| credentials.identity_token.as_str());
    let request = if identity.is_empty() {
        let mut request = http.get(realm);
        let named = credentials.filter(|credentials| !credentials.username.is_empty());
        let account = named.map_or("", |credentials| credentials.username.as_str());
        let query = [("account", account), ("service", service), ("scope", scope)];
        let query: Vec<_> = query.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        if let Some(credentials) = named {
            request = request.basic_auth(&credentials.username, Some(&credentials.password));
        }
        request.query(&query)
    } else {
        let form = [
            ("grant_type", "refresh_token"),
            ("service", service),
            ("client_id", "skep"),
            ("scope", scope),
            ("refresh_token", identity),
        ];
        http.post(realm)
            .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.map(|(key, value)| format!("{key}={}", escaped(value))).join("&"))
    };
    // The realm is named without its query: that may tell who logs in.
    let failed =
        |cause: &reqwest::Error| Error::Unavailable(format!("Get {realm:?}: {}", chain(cause)));
    let response = request.send().await.map_err(|cause| failed(&cause))?;
    if !response.status().is_success() {
        let refusal = Refusal::read(response).await;
        let text = format!("Get {realm:?}: {}", refusal.text());
        return Err(match refusal.status.as_u16() {
            401 | 403 => Error::Unauthorized(text),
            _ => Error::Unavailable(text),
        });
    }
    let raw = limited(response, TOKEN_BYTES_MAX, "a token").await?;
    let token: Token = serde_json::from_slice(&raw)
        .map_err(|cause| Error::Unavailable(format!("Get {realm:?}: {cause}")))?;
    match (token.token.is_empty(), token.access_token.is_empty()) {
        (false, _) => Ok(token.token),
        (true, false) => Ok(token.access_token),
        _ => Err(Error::Unavailable(format!(
            "Get {realm:?}: authorization server did not include a token in the response"
        ))),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => out.push(byte as char),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

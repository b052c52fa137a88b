//! Registry logins: checked on request, and read from the header that pull and push carry. Never logged.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use engine::image::Credentials;
use serde::Deserialize;
use serde_json::json;

use crate::ApiState;
use crate::error::{ApiError, ApiResult};
use crate::request::Body;

pub fn routes() -> Router<ApiState> {
    Router::new().route("/auth", post(login))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    auth: String,
    serveraddress: String,
    identitytoken: String,
    registrytoken: String,
}

impl From<AuthConfig> for Credentials {
    fn from(config: AuthConfig) -> Self {
        Credentials {
            username: config.username,
            password: config.password,
            identity_token: config.identitytoken,
            registry_token: config.registrytoken,
            server_address: config.serveraddress,
        }
    }
}

async fn login(State(state): State<ApiState>, body: Body<AuthConfig>) -> ApiResult {
    let credentials = Credentials::from(body.required()?);
    let status =
        state.engine.images.store.login(&credentials).await.map_err(engine::Error::from)?;
    Ok(Json(json!({ "Status": status, "IdentityToken": "" })).into_response())
}

const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const STANDARD: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `X-Registry-Auth`: base64 of the login as JSON. An empty login is none.
pub(crate) fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, ApiError> {
    let Some(header) = headers.get("x-registry-auth") else { return Ok(None) };
    // What cannot be read is no login, as with dockerd: the registry then says what it needs.
    let raw = URL_SAFE.decode(header).or_else(|_| STANDARD.decode(header)).unwrap_or_default();
    let mut config: AuthConfig = serde_json::from_slice(&raw).unwrap_or_default();
    if let Some((name, password)) = basic(&config.auth).filter(|_| config.username.is_empty()) {
        (config.username, config.password) = (name, password);
    }
    let credentials = Credentials::from(config);
    Ok(Some(credentials).filter(|credentials| *credentials != Credentials::default()))
}

fn basic(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()))
}

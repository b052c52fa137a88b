//! Credentials that travel with a service's image (`--with-registry-auth`).

use image::Credentials;

/// The CLI's `X-Registry-Auth` as it travels in the service's spec.
pub fn credentials(header: &str) -> Result<Option<Credentials>, String> {
    use base64::Engine as _;
    if header.is_empty() {
        return Ok(None);
    }
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let text = header.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let bytes =
        engine.decode(text).map_err(|_| "the registry credentials are not base64".to_owned())?;
    let json: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|_| "the registry credentials are not JSON".to_owned())?;
    let field = |name: &str| {
        json.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    Ok(Some(Credentials {
        username: field("username"),
        password: field("password"),
        identity_token: field("identitytoken"),
        registry_token: field("registrytoken"),
        server_address: field("serveraddress"),
    }))
}

//! The body of `POST /containers/create`, with the liberties that Docker's clients take.

use bollard_stubs::models::{ContainerConfig, HostConfig, NetworkingConfig};
use engine::containers::CreateRequest;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::names;
use crate::version::Version;
use crate::{ApiError, Parameters};

pub(crate) fn request(
    query: &Parameters,
    mut body: Value,
    version: Version,
) -> Result<CreateRequest, ApiError> {
    let Some(object) = body.as_object_mut() else {
        return Err(ApiError::bad_request("config cannot be empty in order to create a container"));
    };
    names::in_any_case::<ContainerConfig>(object);
    names::rename(object, &["HostConfig", "NetworkingConfig"]);
    let mut host = object.remove("HostConfig").unwrap_or(Value::Null);
    if let Some(host) = host.as_object_mut() {
        names::in_any_case::<HostConfig>(host);
    }
    let networking = object.remove("NetworkingConfig").unwrap_or(Value::Null);
    let mac = object.remove("MacAddress").and_then(|mac| mac.as_str().map(str::to_owned));
    for key in ["Cmd", "Entrypoint", "Shell"] {
        one_word_is_a_list(object, key);
    }
    for key in ["ExposedPorts", "Volumes"] {
        null_members_are_empty(object, key);
    }
    // Old clients put the runtime beside the host configuration.
    if let Some(runtime) = object.remove("Runtime").filter(|runtime| runtime.is_string()) {
        if host.is_null() {
            host = json!({});
        }
        // What is no object is refused below, where it is read.
        if let Some(host) = host.as_object_mut()
            && host.get("Runtime").and_then(Value::as_str).unwrap_or_default().is_empty()
        {
            host.insert("Runtime".into(), runtime);
        }
    }
    check_policy(&host)?;
    check_words(&host)?;
    tidy_host(&mut host);
    let mut request = CreateRequest {
        name: query.text("name").map(str::to_owned),
        platform: query.text("platform").map(str::to_owned),
        config: read(body)?,
        host_config: read::<Option<_>>(host)?.unwrap_or_default(),
        networking: read::<Option<NetworkingConfig>>(networking)?.unwrap_or_default(),
        task: None,
    };
    if let Some(mac) = mac.filter(|mac| !mac.is_empty()) {
        container_mac(&mut request, mac);
    }
    one_network_before_1_44(&request, version)?;
    Ok(request)
}

/// A limit that API 1.42 has no more: what there is to say of it.
pub(crate) fn kernel_memory(body: &Value, version: Version) -> Result<Option<String>, ApiError> {
    let bytes = body.pointer("/HostConfig/KernelMemory").and_then(Value::as_i64);
    match bytes.filter(|_| version < Version(1, 42)) {
        Some(bytes) => Ok(engine::containers::kernel_memory(bytes)?),
        None => Ok(None),
    }
}

/// Old clients cannot mean more than one network at create: dockerd refused it until then.
fn one_network_before_1_44(request: &CreateRequest, version: Version) -> Result<(), ApiError> {
    let mut names: Vec<&str> = request
        .networking
        .endpoints_config
        .iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    if version >= Version(1, 44) || names.len() < 2 {
        return Ok(());
    }
    names.sort_unstable();
    Err(ApiError::bad_request(format!(
        "Container cannot be connected to network endpoints: {}",
        names.join(", ")
    )))
}

/// Before API 1.44 the address stands beside the networks: it means the first one.
fn container_mac(request: &mut CreateRequest, mac: String) {
    let mode = match request.host_config.network_mode.as_deref() {
        None | Some("" | "default") => "bridge".to_owned(),
        Some(mode) => mode.to_owned(),
    };
    let endpoints = request.networking.endpoints_config.get_or_insert_with(Default::default);
    let endpoint = endpoints.entry(mode).or_default();
    if endpoint.mac_address.as_deref().unwrap_or_default().is_empty() {
        endpoint.mac_address = Some(mac);
    }
}

pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value)
        .map_err(|cause| ApiError::bad_request(format!("invalid JSON: {cause}")))
}

fn one_word_is_a_list(object: &mut Map<String, Value>, key: &str) {
    if let Some(Value::String(word)) = object.get(key) {
        let list = json!([word]);
        object.insert(key.to_owned(), list);
    }
}

fn null_members_are_empty(object: &mut Map<String, Value>, key: &str) {
    if let Some(Value::Object(members)) = object.get_mut(key) {
        for value in members.values_mut() {
            *value = json!({});
        }
    }
}

/// Numbers and words that Go reads more generously.
fn tidy_host(host: &mut Value) {
    let Some(host) = host.as_object_mut() else { return };
    if let Some(Value::Object(bindings)) = host.get_mut("PortBindings") {
        for binding in bindings.values_mut().filter_map(Value::as_array_mut).flatten() {
            if let Some(port) = binding.get("HostPort").and_then(Value::as_i64) {
                binding["HostPort"] = json!(port.to_string());
            }
        }
    }
    if let Some(Value::Array(size)) = host.get("ConsoleSize")
        && size.iter().any(|number| number.as_u64().is_none())
    {
        host.remove("ConsoleSize");
    }
}

/// Words that the JSON reader would refuse without saying what they are of.
fn check_words(host: &Value) -> Result<(), ApiError> {
    let word = |value: Option<&Value>| {
        value.and_then(Value::as_str).filter(|word| !word.is_empty()).map(str::to_owned)
    };
    for mount in host.get("Mounts").and_then(Value::as_array).into_iter().flatten() {
        if let Some(kind) = word(mount.get("Type"))
            && !matches!(kind.as_str(), "bind" | "volume" | "tmpfs" | "npipe" | "cluster" | "image")
        {
            return Err(ApiError::bad_request(format!(
                "invalid mount config for type \"{kind}\": mount type unknown"
            )));
        }
        if let Some(mode) = word(mount.pointer("/BindOptions/Propagation"))
            && !matches!(mode.trim_start_matches('r'), "private" | "shared" | "slave")
        {
            return Err(ApiError::bad_request(format!(
                "invalid mount config for type \"bind\": invalid propagation mode: {mode}"
            )));
        }
    }
    if let Some(isolation) = word(host.get("Isolation")).filter(|word| word != "default") {
        return Err(ApiError::bad_request(format!(
            "Invalid isolation: \"{isolation}\" - linux only supports 'default'"
        )));
    }
    match word(host.get("CgroupnsMode")) {
        Some(mode) if !matches!(mode.as_str(), "host" | "private") => {
            Err(ApiError::bad_request(format!("invalid cgroup namespace mode: {mode}")))
        }
        _ => Ok(()),
    }
}

/// A policy nobody knows gets Docker's words, not the JSON reader's.
pub(super) fn check_policy(host: &Value) -> Result<(), ApiError> {
    let name = host.pointer("/RestartPolicy/Name").and_then(Value::as_str).unwrap_or_default();
    if matches!(name, "" | "no" | "always" | "on-failure" | "unless-stopped") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_config_that_is_no_object_is_refused() {
        for host in [json!("x"), json!([1]), json!(7)] {
            let body = json!({"Image": "i", "HostConfig": host, "Runtime": "runc"});
            let refused = request(&Parameters::default(), body, Version(1, 44)).err().unwrap();
            assert_eq!(refused.status.as_u16(), 400, "{host}");
        }
    }
}

//! A door for the fuzz target: every reader of a request, up to where an engine or a swarm would be needed.

use serde_json::{Value, json};

use crate::request::{Filters, Parameters, parse};
use crate::swarm::{cluster, object, spec};
use crate::version::API_VERSION;
use crate::{containers, exec, networks, volumes};

/// Reads `body` as the body of the call that `kind` stands for.
pub fn body(kind: u8, body: &[u8]) {
    let text = String::from_utf8_lossy(body);
    let query = Parameters::parse(&text);
    let _ = (query.filters(), query.number("t"), query.flag("all"));
    if let Ok(filters) = Filters::parse(&text) {
        let _ = (filters.only(&["label"]), filters.boolean("dangling", false));
    }
    let Ok(Some(value)) = parse::<Value>(body) else { return };
    match kind % 6 {
        0 => container(&query, value),
        1 => network(value),
        2 => service(&value),
        3 => drop(cluster::read_init(&value)),
        4 => drop(cluster::read_join(&value)),
        _ => exec_and_volume(value),
    }
}

fn container(query: &Parameters, value: Value) {
    let Ok(mut request) = containers::create::request(query, value, API_VERSION) else {
        return;
    };
    let config = engine::Config::below("/nowhere", "/nowhere");
    let _ = engine::containers::check_request(&mut request, &config);
}

fn network(value: Value) {
    if crate::swarm::networks::is_swarm_scoped(&value) {
        let _ = crate::swarm::networks::read(&value);
    } else if let Ok(request) = serde_json::from_value(value) {
        let _ = networks::spec(request);
    }
}

/// What is read is written and read again to the same: `docker service inspect` feeds `docker service update`.
fn service(value: &Value) {
    let Ok(read) = spec::read(value) else { return };
    let written = spec::write(&read);
    let again = spec::read(&written);
    assert!(
        again.as_ref().is_ok_and(|again| *again == read),
        "read {read:?}, written {written}, read again {again:?}"
    );
    let service = wire::swarmkit::Service { spec: Some(read), ..Default::default() };
    let _ = object::service(&service, Some(json!({})));
}

fn exec_and_volume(value: Value) {
    let _ = serde_json::from_value::<exec::ExecConfig>(value.clone());
    let _ = serde_json::from_value::<volumes::CreateRequest>(value);
}

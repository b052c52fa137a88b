//! What a spec must look like, whoever sends it.

use std::collections::BTreeSet;

use prost_types::Duration;
use wire::swarmkit as pb;

use super::{invalid, lacking, unimplemented};
use crate::Failure;

const NAME_CHARACTERS_MAX: usize = 63;
const OBJECT_NAME_CHARACTERS_MAX: usize = 64;
/// 0.001 CPUs.
const NANO_CPUS_MIN: i64 = 1_000_000;
const MEMORY_BYTES_MIN: i64 = 4 * 1024 * 1024;

type Checked = Result<(), Failure>;

pub fn name(annotations: Option<&pb::Annotations>) -> &str {
    annotations.map_or("", |annotations| &annotations.name)
}

/// A name that can be one part of a DNS name.
pub fn annotations(annotations: Option<&pb::Annotations>) -> Checked {
    let name = name(annotations);
    let letter = |c: char| c.is_ascii_alphanumeric();
    if name.is_empty() {
        return Err(invalid("meta: name must be provided"));
    }
    let inner = name.chars().all(|c| letter(c) || c == '-' || c == '_');
    if !inner || !name.starts_with(letter) || !name.ends_with(letter) {
        return Err(invalid("name must be valid as a DNS name component"));
    }
    if name.len() > NAME_CHARACTERS_MAX {
        return Err(invalid("name must be 63 characters or fewer"));
    }
    Ok(())
}

/// A secret's or a config's name.
pub fn object_name(annotations: Option<&pb::Annotations>) -> Checked {
    let name = name(annotations);
    if name.is_empty() {
        return Err(invalid("name must be provided"));
    }
    let letter = |c: char| c.is_ascii_alphanumeric();
    let inner = name.chars().all(|c| letter(c) || matches!(c, '-' | '_' | '.'));
    let good = inner && name.starts_with(letter) && name.ends_with(letter);
    if !good || name.len() > OBJECT_NAME_CHARACTERS_MAX {
        return Err(invalid(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        ));
    }
    Ok(())
}

/// Why a secret or a config cannot be removed.
pub fn in_use(kind: &str, name: &str, services: &[String]) -> Failure {
    let plural = if services.len() == 1 { "" } else { "s" };
    let services = services.join(", ");
    invalid(format!("{kind} '{name}' is in use by the following service{plural}: {services}"))
}

pub fn service(spec: &pb::ServiceSpec) -> Checked {
    annotations(spec.annotations.as_ref())?;
    task(spec.task.as_ref().ok_or_else(lacking)?)?;
    mode(spec)?;
    if spec.update.is_some() && store::access::is_job(spec) {
        return Err(invalid("Jobs may not have an update config"));
    }
    update_config(spec.update.as_ref())?;
    update_config(spec.rollback.as_ref())?;
    endpoint(spec.endpoint.as_ref())
}

fn mode(spec: &pb::ServiceSpec) -> Checked {
    match &spec.mode {
        Some(pb::service_spec::Mode::Replicated(replicated))
            if replicated.replicas > i64::MAX as u64 =>
        {
            Err(invalid("Number of replicas must be non-negative"))
        }
        Some(pb::service_spec::Mode::ReplicatedJob(job))
            if job.max_concurrent > i64::MAX as u64 =>
        {
            Err(invalid("Maximum concurrent jobs must not be negative"))
        }
        Some(pb::service_spec::Mode::ReplicatedJob(job))
            if job.total_completions > i64::MAX as u64 =>
        {
            Err(invalid("Total completed jobs must not be negative"))
        }
        Some(_) => Ok(()),
        None => Err(invalid("service mode must be provided")),
    }
}

fn task(spec: &pb::TaskSpec) -> Checked {
    if let Some(resources) = &spec.resources {
        amounts(resources.limits.as_ref())?;
        amounts(resources.reservations.as_ref())?;
    }
    if let Some(restart) = &spec.restart {
        if negative(restart.delay.as_ref()) {
            return Err(invalid("TaskSpec: restart-delay cannot be negative"));
        }
        if negative(restart.window.as_ref()) {
            return Err(invalid("TaskSpec: restart-window cannot be negative"));
        }
    }
    let constraints = spec.placement.iter().flat_map(|placement| &placement.constraints);
    constraints.map(String::as_str).try_for_each(constraint)?;
    match &spec.runtime {
        Some(pb::task_spec::Runtime::Container(spec)) => container(spec),
        Some(pb::task_spec::Runtime::Attachment(_)) => Err(unimplemented("RuntimeUnimplemented")),
        Some(pb::task_spec::Runtime::Generic(_)) => {
            Err(unimplemented("not supported by skep yet: services of plugins"))
        }
        None => Err(invalid("TaskSpec: missing runtime")),
    }
}

fn amounts(resources: Option<&pb::Resources>) -> Checked {
    let Some(resources) = resources else { return Ok(()) };
    if resources.nano_cpus != 0 && resources.nano_cpus < NANO_CPUS_MIN {
        let cpus = resources.nano_cpus as f64 / 1e9;
        return Err(invalid(format!("invalid cpu value {cpus}: Must be at least 0.001")));
    }
    if resources.memory_bytes != 0 && resources.memory_bytes < MEMORY_BYTES_MIN {
        let bytes = resources.memory_bytes;
        return Err(invalid(format!("invalid memory value {bytes}: Must be at least 4MiB")));
    }
    Ok(())
}

fn negative(duration: Option<&Duration>) -> bool {
    duration.is_some_and(|duration| duration.seconds < 0 || duration.nanos < 0)
}

fn constraint(text: &str) -> Checked {
    let operator = if text.contains("==") { "==" } else { "!=" };
    let Some((key, value)) = text.split_once(operator) else {
        return Err(invalid("constraint expected one operator from ==, !="));
    };
    let (key, value) = (key.trim(), value.trim());
    let key_letter = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let key_good = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.len() > 1
        && key.chars().all(key_letter);
    if !key_good {
        return Err(invalid(format!("key '{key}' is invalid")));
    }
    let value_letter = |c: char| c.is_ascii_alphanumeric() || ":-_./ *()?+[]\\^$|,@".contains(c);
    if value.is_empty() || !value.chars().all(value_letter) {
        return Err(invalid(format!("value '{value}' is invalid")));
    }
    Ok(())
}

fn container(spec: &pb::ContainerSpec) -> Checked {
    store::template::check(spec).map_err(invalid)?;
    if spec.image.is_empty() {
        return Err(invalid("ContainerSpec: image reference must be provided"));
    }
    if !is_reference(&spec.image) {
        return Err(invalid(format!(
            "ContainerSpec: \"{}\" is not a valid repository/tag",
            spec.image
        )));
    }
    let mut targets = BTreeSet::new();
    for mount in &spec.mounts {
        if !targets.insert(mount.target.trim_end_matches('/')) {
            return Err(invalid(format!("ContainerSpec: duplicate mount point: {}", mount.target)));
        }
    }
    health(spec.healthcheck.as_ref())
}

/// Repository, tag and digest as far as their characters tell: pulling tells the rest.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let digest_good = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    });
    let last = rest.rsplit('/').next().unwrap_or(rest);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    let tag_good = tag.is_none_or(|tag| {
        (1..=128).contains(&tag.len())
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
            && !tag.starts_with(['-', '.'])
    });
    let name = match tag {
        Some(tag) => &rest[..rest.len() - tag.len() - 1],
        None => rest,
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            (Some(host), path)
        }
        _ => (None, name),
    };
    let host_good = host
        .is_none_or(|host| host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c)));
    let part_good = |part: &str| {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(letter)
            && part.ends_with(letter)
            && part.chars().all(|c| letter(c) || "._-".contains(c))
    };
    digest_good && tag_good && host_good && path.split('/').all(part_good)
}

fn health(health: Option<&pb::HealthConfig>) -> Checked {
    let Some(health) = health else { return Ok(()) };
    let times = [
        ("Interval", &health.interval),
        ("Timeout", &health.timeout),
        ("StartPeriod", &health.start_period),
        ("StartInterval", &health.start_interval),
    ];
    for (what, time) in times {
        let Some(time) = time else { continue };
        let zero = time.seconds == 0 && time.nanos == 0;
        if negative(Some(time)) || (!zero && time.seconds == 0 && time.nanos < 1_000_000) {
            return Err(invalid(format!(
                "ContainerSpec: {what} in HealthConfig cannot be less than 1ms"
            )));
        }
    }
    if health.retries < 0 {
        return Err(invalid("ContainerSpec: Retries in HealthConfig cannot be negative"));
    }
    Ok(())
}

fn update_config(config: Option<&pb::UpdateConfig>) -> Checked {
    let Some(config) = config else { return Ok(()) };
    if negative(config.delay.as_ref()) {
        return Err(invalid("TaskSpec: update-delay cannot be negative"));
    }
    if negative(config.monitor.as_ref()) {
        return Err(invalid("TaskSpec: update-monitor cannot be negative"));
    }
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        let reason = "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1";
        return Err(invalid(reason));
    }
    Ok(())
}

fn endpoint(spec: Option<&pb::EndpointSpec>) -> Checked {
    let Some(spec) = spec else { return Ok(()) };
    let dnsrr = spec.mode() == pb::endpoint_spec::ResolutionMode::Dnsrr;
    let mut published = BTreeSet::new();
    for port in &spec.ports {
        let ingress = port.publish_mode() == pb::port_config::PublishMode::Ingress;
        if dnsrr && ingress {
            let reason =
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode";
            return Err(invalid(reason));
        }
        if port.target_port == 0 || port.target_port > 65_535 || port.published_port > 65_535 {
            return Err(invalid(format!(
                "EndpointSpec: port {}:{} is out of range",
                port.published_port, port.target_port
            )));
        }
        let key = (port.publish_mode, port.protocol, port.published_port);
        if port.published_port != 0 && !published.insert(key) {
            return Err(invalid("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_other_text() {
        for good in [
            "httpd",
            "httpd:2.4",
            "library/httpd",
            "localhost:5000/a/b:tag",
            "example.com/x_y/z-1",
            "a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "host:80/a:t@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "A", "a:", "a b", "a//b", "/a", "a@sha256:12", "-a", "a:-t"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn constraints_have_a_key_an_operator_and_a_value() {
        for good in ["node.role==manager", "node.labels.zone != eu-1", "engine.labels.os == linux"]
        {
            assert!(constraint(good).is_ok(), "{good}");
        }
        for bad in ["node.role", "==manager", "node.role=manager", "node role==x", "a.b=="] {
            assert!(constraint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_parts_of_dns_names() {
        let named = |name: &str| pb::Annotations { name: name.into(), ..Default::default() };
        for good in ["web", "a", "my-web_2", &"x".repeat(63)] {
            assert!(annotations(Some(&named(good))).is_ok(), "{good}");
        }
        for bad in ["", "-web", "web-", "we.b", "w b", &"x".repeat(64)] {
            assert!(annotations(Some(&named(bad))).is_err(), "{bad}");
        }
    }
}

//! `docker ps`: filters, order, and the one-line state of each container.

use std::sync::Arc;

use engine::Engine;
use engine::containers::{Container, Phase, Spec, State};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{inspect, ports};
use crate::{ApiError, ApiResult, ApiState, Filters, Parameters};

const FILTERS: [&str; 17] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "reference",
    "annotation",
];

pub(super) async fn list(state: &ApiState, query: &Parameters) -> ApiResult<Vec<Value>> {
    let engine = &state.engine;
    let filters = query.filters()?;
    filters.only(&FILTERS)?;
    let wanted = Wanted::new(engine, &filters, query.flag("all"))?;
    let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.filter(|limit| *limit > 0);
    let mut all = engine.containers.all();
    all.sort_by_key(|container| std::cmp::Reverse(container.spec().created));
    let mut rows = Vec::new();
    for container in all {
        let (spec, state) = (container.spec(), container.state());
        // `--last n` looks at every container, not only at running ones.
        if !wanted.takes(engine, &spec, &state, limit.is_some())? {
            continue;
        }
        let mut row = summary(engine, &spec, &state);
        if query.flag("size") {
            let (own, all) = sizes(engine, &container).await?;
            row["SizeRw"] = json!(own);
            row["SizeRootFs"] = json!(all);
        }
        rows.push(row);
        if limit.is_some_and(|limit| rows.len() == limit) {
            break;
        }
    }
    Ok(rows)
}

/// Bytes of the container's own layer, and of everything it sees.
pub(super) async fn sizes(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
) -> Result<(u64, u64), engine::Error> {
    let (store, id) = (engine.images.store.clone(), container.id().clone());
    engine::images::blocking(move || Ok(store.rootfs_size(&id)?)).await
}

/// For `system df`.
pub(crate) async fn summary_with_size(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
) -> Result<Value, engine::Error> {
    let mut row = summary(engine, &container.spec(), &container.state());
    // A container that is being removed at this moment has no files any more.
    let (own, all) = sizes(engine, container).await.unwrap_or_default();
    row["SizeRw"] = json!(own);
    row["SizeRootFs"] = json!(all);
    Ok(row)
}

pub(crate) fn summary(engine: &Engine, spec: &Spec, state: &State) -> Value {
    let sandbox = engine.network.sandbox(&spec.id);
    let words: Vec<&str> = spec
        .config
        .entrypoint
        .iter()
        .chain(&spec.config.cmd)
        .flatten()
        .map(String::as_str)
        .collect();
    let name = spec.config.image.clone().unwrap_or_default();
    let same =
        engine.images.store.resolve(&name).is_ok_and(|image| image.id.to_string() == spec.image);
    json!({
        "Id": spec.id.as_str(),
        "Names": [format!("/{}", spec.name)],
        "Image": if same { name } else { spec.image.clone() },
        "ImageID": spec.image,
        "Command": words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
        "Created": spec.created.unix_timestamp(),
        "Ports": ports::summary(spec, sandbox.as_ref()),
        "Labels": spec.config.labels.clone().unwrap_or_default(),
        "State": state.phase.as_str(),
        "Status": status(state, OffsetDateTime::now_utc()),
        "HostConfig": { "NetworkMode": spec.host_config.network_mode },
        "NetworkSettings": { "Networks": ports::networks(spec, sandbox.as_ref()) },
        "Mounts": inspect::mounts(spec),
    })
}

/// A word of a command with a space in it is shown in quotes, as dockerd does.
fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("'{word}'") } else { word.to_owned() }
}

/// `Up 3 minutes (healthy)`, `Exited (0) 2 hours ago`.
fn status(state: &State, now: OffsetDateTime) -> String {
    let since = |at: Option<OffsetDateTime>| at.map_or(0, |at| (now - at).whole_seconds());
    match state.phase {
        Phase::Created => "Created".into(),
        Phase::Removing => "Removal In Progress".into(),
        Phase::Dead => "Dead".into(),
        Phase::Restarting => {
            format!("Restarting ({}) {} ago", state.exit_code, human(since(state.finished_at)))
        }
        Phase::Exited => {
            format!("Exited ({}) {} ago", state.exit_code, human(since(state.finished_at)))
        }
        Phase::Paused => format!("Up {} (Paused)", human(since(state.started_at))),
        Phase::Running => {
            let up = format!("Up {}", human(since(state.started_at)));
            match state.health.as_ref().map(|health| health.status.as_str()) {
                None => up,
                Some("starting") => format!("{up} (health: starting)"),
                Some(health) => format!("{up} ({health})"),
            }
        }
    }
}

/// As docker/go-units `HumanDuration` rounds.
fn human(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds + 1_800) / 3_600;
    match seconds {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 730 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// A regular expression as Docker takes it; what is none is looked for as it stands
/// (moby api/types/filters `Match`).
struct NamePattern {
    text: String,
    pattern: Option<regex::Regex>,
}

impl NamePattern {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), pattern: regex::Regex::new(text).ok() }
    }

    fn fits(&self, name: &str) -> bool {
        name == self.text || self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(name))
    }
}

/// The filters, with what they name looked up once.
struct Wanted<'a> {
    filters: &'a Filters,
    running_only: bool,
    before: Option<OffsetDateTime>,
    since: Option<OffsetDateTime>,
    ancestors: Option<Vec<String>>,
    exited: Vec<i32>,
    task: Option<bool>,
    names: Vec<NamePattern>,
}

impl<'a> Wanted<'a> {
    fn new(engine: &Engine, filters: &'a Filters, all: bool) -> Result<Self, ApiError> {
        for status in filters.values("status") {
            let known =
                ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
            if !known.contains(&status) {
                return Err(ApiError::bad_request(format!(
                    "invalid value for status ({status}): must be one of created, dead, exited, paused, removing, restarting, running"
                )));
            }
        }
        for health in filters.values("health") {
            if !["none", "starting", "healthy", "unhealthy"].contains(&health) {
                return Err(ApiError::bad_request(format!(
                    "unrecognised filter value for health: {health}"
                )));
            }
        }
        let moment = |name: &str| -> Result<Option<OffsetDateTime>, ApiError> {
            match filters.values(name).next() {
                None => Ok(None),
                Some(container) => Ok(Some(engine.container(container)?.spec().created)),
            }
        };
        let exited = filters
            .values("exited")
            .map(|code| {
                code.parse()
                    .map_err(|_| ApiError::bad_request(format!("invalid filter 'exited=[{code}]'")))
            })
            .collect::<Result<Vec<i32>, _>>()?;
        let task = match filters.has("is-task") {
            true => Some(filters.boolean("is-task", false)?),
            false => None,
        };
        Ok(Self {
            running_only: !all
                && !filters.has("status")
                && !["before", "since", "exited"].iter().any(|name| filters.has(name)),
            before: moment("before")?,
            since: moment("since")?,
            ancestors: filters.has("ancestor").then(|| ancestors(engine, filters)),
            exited,
            task,
            names: filters.values("name").map(NamePattern::new).collect(),
            filters,
        })
    }

    fn takes(
        &self,
        engine: &Engine,
        spec: &Spec,
        state: &State,
        limited: bool,
    ) -> Result<bool, ApiError> {
        let running = matches!(state.phase, Phase::Running | Phase::Paused | Phase::Restarting);
        if self.running_only && !limited && !running {
            return Ok(false);
        }
        let labels = spec.config.labels.clone().unwrap_or_default();
        let health = state.health.as_ref().map_or("none", |health| health.status.as_str());
        let by_identity = self.filters.prefix("id", &spec.id)
            && self.named(spec)
            && self.filters.labels("label", |key| labels.get(key).map(String::as_str));
        let by_state = self.filters.exact("status", state.phase.as_str())
            && self.filters.exact("health", health)
            && (self.exited.is_empty()
                || (!running
                    && state.phase != Phase::Created
                    && self.exited.contains(&state.exit_code)))
            && self.task.is_none_or(|task| task == spec.task.is_some());
        let by_time = self.before.is_none_or(|before| spec.created < before)
            && self.since.is_none_or(|since| spec.created > since);
        let by_image = self.ancestors.as_ref().is_none_or(|images| images.contains(&spec.image));
        Ok(by_identity
            && by_state
            && by_time
            && by_image
            && self.has_volume(spec)
            && self.on_network(engine, spec)
            && self.has_port(engine, spec)?)
    }

    /// The name with or without its slash; the filter is one pattern of several.
    fn named(&self, spec: &Spec) -> bool {
        let with_slash = format!("/{}", spec.name);
        self.names.is_empty()
            || self.names.iter().any(|name| name.fits(&spec.name) || name.fits(&with_slash))
    }

    fn has_volume(&self, spec: &Spec) -> bool {
        !self.filters.has("volume")
            || self.filters.values("volume").any(|wanted| {
                spec.mounts.iter().any(|mount| {
                    mount.listed
                        && (mount.name == wanted
                            || mount.destination == wanted
                            || mount.source == wanted)
                })
            })
    }

    fn on_network(&self, engine: &Engine, spec: &Spec) -> bool {
        if !self.filters.has("network") {
            return true;
        }
        let sandbox = engine.network.sandbox(&spec.id);
        self.filters.values("network").any(|wanted| {
            let by_state =
                sandbox.iter().flat_map(|sandbox| sandbox.endpoints.values()).any(|endpoint| {
                    endpoint.network_name == wanted || endpoint.network_id.starts_with(wanted)
                });
            by_state
                || spec.networks.contains_key(wanted)
                || engine
                    .network
                    .find(wanted)
                    .is_ok_and(|network| spec.networks.contains_key(&network.name))
        })
    }

    fn has_port(&self, engine: &Engine, spec: &Spec) -> Result<bool, ApiError> {
        let sandbox = engine.network.sandbox(&spec.id);
        let published = |port: u16, proto: engine::network::Proto| {
            sandbox.iter().flat_map(|sandbox| &sandbox.ports).any(|bound| {
                (bound.port == port || bound.host_port == port) && bound.proto == proto
            })
        };
        let exposed = |port: u16, proto: engine::network::Proto| {
            spec.config.exposed_ports.iter().flatten().any(|text| {
                engine::containers::parse_port(text).is_ok_and(|found| found == (port, proto))
            })
        };
        for (name, holds) in [
            ("publish", &published as &dyn Fn(u16, engine::network::Proto) -> bool),
            ("expose", &exposed),
        ] {
            if !self.filters.has(name) {
                continue;
            }
            let mut any = false;
            for value in self.filters.values(name) {
                let (ports, proto) = value.split_once('/').unwrap_or((value, "tcp"));
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let parse = |port: &str| engine::containers::parse_port(&format!("{port}/{proto}"));
                let ((first, proto), (last, _)) = (parse(first)?, parse(last)?);
                any |= (first..=last).any(|port| holds(port, proto));
            }
            if !any {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Ids of the named images and of every image made on top of them.
fn ancestors(engine: &Engine, filters: &Filters) -> Vec<String> {
    let store = &engine.images.store;
    let roots: Vec<_> =
        filters.values("ancestor").filter_map(|name| store.resolve(name).ok()).collect();
    store
        .list()
        .into_iter()
        .chain(roots.iter().cloned())
        .filter(|image| {
            roots.iter().any(|root| {
                let (mine, base) = (&image.config.rootfs.diff_ids, &root.config.rootfs.diff_ids);
                image.id == root.id
                    || (!base.is_empty() && mine.len() > base.len() && mine.starts_with(base))
            })
        })
        .map(|image| image.id.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_people_write_them() {
        for (pattern, name, fits) in [
            ("web", "my-web-1", true),
            ("^/web$", "web", true),
            ("^web$", "web1", false),
            ("^/we", "web", true),
            ("a.*c", "abbc", true),
            ("a.*d$", "abbc", false),
            ("x|web", "web", true),
            ("(a|b)1", "b1", true),
            (r"w\d", "w7", true),
            ("[", "web", false),
        ] {
            let pattern = NamePattern::new(pattern);
            let with_slash = format!("/{name}");
            assert_eq!(
                pattern.fits(name) || pattern.fits(&with_slash),
                fits,
                "{} {name}",
                pattern.text
            );
        }
    }

    #[test]
    fn durations_round_as_docker_s() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3_599, "59 minutes"),
            (3_600, "About an hour"),
            (7_200, "2 hours"),
            (86_400 * 3, "3 days"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }
}

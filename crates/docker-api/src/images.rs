//! Images: pull, push, list, inspect, tag, remove, load, save, import.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use engine::image::{Deleted, Image, Import, Platform, Reference, Remove, RunConfig, User};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::ApiState;
use crate::auth::credentials;
use crate::error::{ApiError, ApiResult};
use crate::glob::Pattern;
use crate::request::{Filters, Parameters, RawBody};
use crate::stream::{self, BodyReader};
use crate::version::Version;

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/create", post(create))
        .route("/images/load", post(load))
        .route("/images/get", get(save_many))
        .route("/images/search", get(search))
        .route("/images/prune", post(prune))
        .route("/images/{*rest}", get(get_one).post(post_one).delete(remove))
}

/// Image names hold slashes: the last part of the path says what is asked.
async fn get_one(
    State(state): State<ApiState>,
    Path(rest): Path<String>,
    axum::Extension(version): axum::Extension<Version>,
) -> ApiResult {
    match rest.rsplit_once('/') {
        Some((name, "json")) => inspect(&state, name, version),
        Some((name, "history")) => history(&state, name),
        Some((name, "get")) => save(&state, vec![name.to_owned()]).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn post_one(
    State(state): State<ApiState>,
    Path(rest): Path<String>,
    parameters: Parameters,
    headers: HeaderMap,
    RawBody(_): RawBody,
) -> ApiResult {
    match rest.rsplit_once('/') {
        Some((name, "tag")) => tag(&state, name, &parameters).await,
        Some((name, "push")) => push(&state, name, &parameters, &headers).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn list(
    State(state): State<ApiState>,
    axum::Extension(version): axum::Extension<Version>,
    parameters: Parameters,
) -> ApiResult {
    let filters = parameters.filters()?;
    filters.only(&["dangling", "label", "before", "since", "reference", "until"])?;
    let all = parameters.flag("all");
    let patterns = filters.values("reference").map(Pattern::parse).collect::<Option<Vec<_>>>();
    let patterns = patterns.ok_or_else(|| ApiError::internal("syntax error in pattern"))?;
    let images = state.engine.images.store.list();
    let dangling =
        filters.has("dangling").then(|| filters.boolean("dangling", false)).transpose()?;
    let created = |image: &Image| image.config.created.as_deref().map(time_of);
    let bound = |name: &str| -> Result<Option<OffsetDateTime>, ApiError> {
        let Some(other) = filters.values(name).next() else { return Ok(None) };
        Ok(created(&*state.engine.images.resolve(other)?))
    };
    let (before, since) = (bound("before")?, bound("since")?);
    let until = until(&filters)?;
    let mut shown: Vec<(OffsetDateTime, Value)> = Vec::new();
    for image in &images {
        let at = created(image).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        if before.is_some_and(|before| at >= before)
            || since.is_some_and(|since| at <= since)
            || until.is_some_and(|until| at >= until)
            || !labels_match(&filters, image)
        {
            continue;
        }
        let (tags, digests) = named(&patterns, image);
        if !patterns.is_empty() && tags.is_empty() && digests.is_empty() {
            continue;
        }
        if dangling.is_some_and(|dangling| dangling != image.repo_tags.is_empty()) {
            continue;
        }
        let unnamed = image.repo_tags.is_empty() && image.repo_digests.is_empty();
        if unnamed && !all && !state.engine.images.store.children(&image.id).is_empty() {
            continue;
        }
        shown.push((at, summary(image, tags, digests, version)));
    }
    shown.sort_by(|(a, _), (b, _)| b.cmp(a));
    Ok(Json(shown.into_iter().map(|(_, value)| value).collect::<Vec<_>>()).into_response())
}

fn summary(image: &Image, tags: Vec<String>, digests: Vec<String>, version: Version) -> Value {
    let mut value = json!({
        "Containers": -1,
        "Created": image.config.created.as_deref().map_or(0, |text| time_of(text).unix_timestamp()),
        "Id": image.id,
        "Labels": image.config.run().labels,
        "ParentId": image.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        "RepoDigests": digests,
        "RepoTags": tags,
        "SharedSize": -1,
        "Size": image.size,
    });
    if version < Version(1, 43) && image.repo_tags.is_empty() && image.repo_digests.is_empty() {
        value["RepoTags"] = json!(["<none>:<none>"]);
        value["RepoDigests"] = json!(["<none>@<none>"]);
    }
    if version < Version(1, 44) {
        value["VirtualSize"] = json!(image.size);
    }
    value
}

/// The names that the `reference` filter lets through; all without one.
fn named(patterns: &[Pattern], image: &Image) -> (Vec<String>, Vec<String>) {
    let wanted = |name: &&String| {
        let bare = Reference::parse(name).map(|name| name.familiar_name()).unwrap_or_default();
        patterns.is_empty()
            || patterns.iter().any(|pattern| pattern.matches(name) || pattern.matches(&bare))
    };
    let keep = |names: &[String]| names.iter().filter(wanted).cloned().collect();
    (keep(&image.repo_tags), keep(&image.repo_digests))
}

fn labels_match(filters: &Filters, image: &Image) -> bool {
    let labels = image.config.run().labels.unwrap_or_default();
    let label = |key: &str| labels.get(key).map(String::as_str);
    filters.labels("label", label)
        && (!filters.has("label!")
            || filters.values("label!").all(|wanted| !holds(&labels, wanted)))
}

pub(crate) fn holds(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

/// `until` as a time, a number of seconds or a span back from now.
pub(crate) fn until(filters: &Filters) -> Result<Option<OffsetDateTime>, ApiError> {
    let mut values = filters.values("until");
    let (Some(text), None) = (values.next(), values.next()) else {
        return match filters.has("until") {
            true => Err(ApiError::bad_request("more than one until filter specified")),
            false => Ok(None),
        };
    };
    let wrong =
        || ApiError::bad_request(format!("failed to parse value as time or duration: {text:?}"));
    if let Ok(time) = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339) {
        return Ok(Some(time));
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let nanos = (seconds * 1e9) as i128;
        return OffsetDateTime::from_unix_timestamp_nanos(nanos).map(Some).map_err(|_| wrong());
    }
    let back = span(text).ok_or_else(wrong)?;
    OffsetDateTime::now_utc().checked_sub(back).map(Some).ok_or_else(wrong)
}

/// Go's durations: `24h`, `1h30m`.
fn span(text: &str) -> Option<time::Duration> {
    let mut total = 0f64;
    let mut number = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter.is_ascii_digit() || letter == '.' {
            number.push(letter);
            continue;
        }
        let mut unit = letter.to_string();
        while let Some(next) = letters.next_if(|next| next.is_ascii_alphabetic()) {
            unit.push(next);
        }
        let seconds = match unit.as_str() {
            "ns" => 1e-9,
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        number.clear();
    }
    let whole = number.is_empty() && !text.is_empty();
    whole.then(|| time::Duration::checked_seconds_f64(total)).flatten()
}

fn time_of(text: &str) -> OffsetDateTime {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn inspect(state: &ApiState, name: &str, version: Version) -> ApiResult {
    let image = state.engine.images.resolve(name)?;
    let config = &image.config;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut value = json!({
        "Id": image.id,
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": image.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        "Comment": text(&config.comment),
        "Created": config.created.clone().unwrap_or_else(|| "0001-01-01T00:00:00Z".into()),
        "DockerVersion": text(&config.docker_version),
        "Author": text(&config.author),
        "Config": config.config.as_ref().map(run_config),
        "Architecture": config.architecture,
        "Os": if config.os.is_empty() { "linux" } else { &config.os },
        "Size": image.size,
        "GraphDriver": { "Data": graph(state, &image), "Name": "overlay2" },
        "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
        "Metadata": { "LastTagTime": last_tagged(&image) },
    });
    if let Some(variant) = &config.variant {
        value["Variant"] = json!(variant);
    }
    // Newer versions leave these out of images that no commit made; clients that look for them still exist.
    if version < Version(1, 45) || config.container.is_some() {
        value["Container"] = json!(text(&config.container));
        value["ContainerConfig"] = config.container_config.as_ref().map(run_config).into();
    }
    if version < Version(1, 44) {
        value["VirtualSize"] = json!(image.size);
    }
    Ok(Json(value).into_response())
}

fn last_tagged(image: &Image) -> String {
    let time =
        image.last_tagged.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    engine::containers::rfc3339(time)
}

fn graph(state: &ApiState, image: &Image) -> Value {
    let lower = state.engine.images.store.layer_dirs(image);
    let shown = |paths: &[std::path::PathBuf]| {
        paths.iter().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>().join(":")
    };
    match lower.split_first() {
        Some((top, [])) => json!({ "UpperDir": top }),
        Some((top, rest)) => json!({ "UpperDir": top, "LowerDir": shown(rest) }),
        None => json!({}),
    }
}

/// The configuration with every field that Docker always shows.
fn run_config(run: &RunConfig) -> Value {
    let mut value = json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false,
        "AttachStderr": false, "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null,
        "Cmd": null, "Image": "", "Volumes": null, "WorkingDir": "", "Entrypoint": null,
        "OnBuild": null, "Labels": null,
    });
    if let (Some(all), Ok(Value::Object(own))) = (value.as_object_mut(), serde_json::to_value(run))
    {
        all.extend(own);
    }
    value
}

fn history(state: &ApiState, name: &str) -> ApiResult {
    let entries = state.engine.images.store.history(name).map_err(engine::Error::from)?;
    let shown: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            json!({
                "Comment": entry.comment,
                "Created": entry.created,
                "CreatedBy": entry.created_by,
                "Id": entry.id,
                "Size": entry.size,
                "Tags": if entry.tags.is_empty() { Value::Null } else { json!(entry.tags) },
            })
        })
        .collect();
    Ok(Json(shown).into_response())
}

async fn tag(state: &ApiState, name: &str, parameters: &Parameters) -> ApiResult {
    let reference =
        target(parameters)?.ok_or_else(|| ApiError::bad_request("invalid reference format"))?;
    state.engine.images.tag(name, reference.or_latest()).await?;
    Ok(StatusCode::CREATED.into_response())
}

/// `repo` and `tag`, as import, commit and tag take them.
pub(crate) fn target(parameters: &Parameters) -> Result<Option<Reference>, ApiError> {
    let Some(repository) = parameters.text("repo") else { return Ok(None) };
    let reference = parse(repository)?;
    if reference.digest().is_some() {
        return Err(ApiError::bad_request("refusing to create a tag with a digest reference"));
    }
    match parameters.text("tag") {
        Some(tag) => Ok(Some(reference.with_tag(tag).map_err(engine::Error::from)?)),
        None => Ok(Some(reference.or_latest())),
    }
}

pub(crate) fn parse(text: &str) -> Result<Reference, ApiError> {
    Ok(Reference::parse(text).map_err(engine::Error::from)?)
}

async fn remove(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    parameters: Parameters,
) -> ApiResult {
    if name.trim().is_empty() {
        return Err(ApiError::bad_request("image name cannot be blank"));
    }
    let remove =
        Remove { force: parameters.flag("force"), prune_children: !parameters.flag("noprune") };
    let records = state.engine.images.remove(&name, remove, users(&state)).await?;
    Ok(Json(records.iter().map(record).collect::<Vec<_>>()).into_response())
}

fn record(record: &Deleted) -> Value {
    match record {
        Deleted::Untagged(name) => json!({ "Untagged": name }),
        Deleted::Deleted(id) => json!({ "Deleted": id }),
    }
}

/// Every container, for who wants to remove images.
fn users(state: &ApiState) -> Vec<User> {
    let containers = state.engine.containers.all();
    containers
        .iter()
        .filter_map(|container| {
            let image = container.spec().image.parse().ok()?;
            Some(User {
                image,
                container: container.id().to_string(),
                running: container.is_running(),
            })
        })
        .collect()
}

async fn prune(
    State(state): State<ApiState>,
    parameters: Parameters,
    RawBody(_): RawBody,
) -> ApiResult {
    let filters = parameters.filters()?;
    filters.only(&["dangling", "label", "label!", "until"])?;
    let dangling = filters.boolean("dangling", true)?;
    let until = until(&filters)?;
    let all_ages = until.is_none() && !filters.has("label") && !filters.has("label!");
    let wanted = move |image: &Image| {
        let at = image.config.created.as_deref().map_or(OffsetDateTime::UNIX_EPOCH, time_of);
        until.is_none_or(|until| at <= until) && labels_match(&filters, image)
    };
    let mut pruned = state.engine.images.prune(dangling, wanted, users(&state)).await?;
    // What a pull that was given up has left is no image, and has neither labels nor an age.
    if all_ages {
        let parts = state.engine.images.run(|store| store.prune_downloads()).await?;
        // The client shows what was reclaimed only beside something that was deleted.
        pruned.deleted.extend(parts.deleted);
        pruned.bytes += parts.bytes;
    }
    let deleted: Vec<Value> = pruned.deleted.iter().map(record).collect();
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Json(json!({ "ImagesDeleted": deleted, "SpaceReclaimed": pruned.bytes })).into_response())
}

async fn create(
    State(state): State<ApiState>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let platform = parameters
        .text("platform")
        .map(Platform::parse)
        .transpose()
        .map_err(engine::Error::from)?;
    if let Some(name) = parameters.text("fromImage") {
        drop(BodyReader::new(body));
        let platform = platform.unwrap_or_else(Platform::host);
        return pull(&state, name, &parameters, &headers, platform).await;
    }
    match parameters.text("fromSrc") {
        Some("-") => {}
        Some(_) => {
            return Err(ApiError::unsupported(
                "import from a URL; download it and give it to docker import on standard input",
            ));
        }
        None => return Err(ApiError::bad_request("fromImage or fromSrc is required")),
    }
    let import = Import {
        changes: parameters.all("changes").map(str::to_owned).collect(),
        message: parameters.text("message").unwrap_or("Imported from -").to_owned(),
        reference: target(&parameters)?,
        platform: platform.unwrap_or_default(),
    };
    let engine = state.engine.clone();
    let tar = BodyReader::new(body);
    stream::progress(move |progress| async move {
        let named = import.reference.as_ref().map(Reference::familiar);
        let image = engine.images.run(move |store| store.import(tar, &import)).await?;
        let id = image.id.to_string();
        if let Some(named) = &named {
            engine.images.event("tag", &id, named);
        }
        engine.images.event("import", &id, named.as_deref().unwrap_or_default());
        progress.send(engine::image::Progress::status(image.id.to_string())).await;
        Ok(())
    })
    .await
}

async fn pull(
    state: &ApiState,
    name: &str,
    parameters: &Parameters,
    headers: &HeaderMap,
    platform: Platform,
) -> ApiResult {
    let mut reference = parse(name.strip_suffix(':').unwrap_or(name))?;
    if let Some(tag) = parameters.text("tag") {
        reference = match tag.parse() {
            Ok(digest) => reference.with_digest(digest),
            Err(_) => reference.with_tag(tag).map_err(engine::Error::from)?,
        };
    }
    let credentials = credentials(headers)?;
    let engine = state.engine.clone();
    stream::progress(move |progress| async move {
        engine.images.pull(&reference, &platform, credentials.as_ref(), &progress).await
    })
    .await
}

async fn push(
    state: &ApiState,
    name: &str,
    parameters: &Parameters,
    headers: &HeaderMap,
) -> ApiResult {
    let mut reference = parse(name)?;
    let tag = parameters.text("tag");
    if let Some(tag) = tag {
        reference = reference.with_tag(tag).map_err(engine::Error::from)?;
    }
    let credentials = credentials(headers)?;
    let engine = state.engine.clone();
    stream::progress(move |progress| async move {
        engine.images.push(&reference, credentials.as_ref(), &progress).await
    })
    .await
}

async fn load(State(state): State<ApiState>, parameters: Parameters, body: Body) -> ApiResult {
    let quiet = parameters.flag_or("quiet", true);
    let engine = state.engine.clone();
    let tar = BodyReader::new(body);
    let answer = stream::progress(move |progress| async move {
        let images = engine.images.run(move |store| store.load(tar, quiet, &progress)).await?;
        for image in images {
            engine.images.event("load", &image.id.to_string(), &image.id.to_string());
        }
        Ok(())
    })
    .await;
    // dockerd answers 200 here whatever happens: the stream says what went wrong.
    Ok(answer.unwrap_or_else(|error| stream::failed(&error.message)))
}

async fn save_many(State(state): State<ApiState>, parameters: Parameters) -> ApiResult {
    // The names come as one parameter each, or with commas in one.
    let names = parameters.all("names").flat_map(|names| names.split(','));
    save(&state, names.map(str::to_owned).collect()).await
}

async fn save(state: &ApiState, names: Vec<String>) -> ApiResult {
    let mut images: Vec<Arc<Image>> = Vec::new();
    for name in &names {
        images.push(state.engine.images.resolve(name)?);
    }
    let engine = state.engine.clone();
    stream::tar(Vec::new(), move |out| {
        engine.images.store.save(&names, out)?;
        for image in images {
            engine.images.event("save", &image.id.to_string(), &image.id.to_string());
        }
        Ok(())
    })
    .await
}

async fn search() -> ApiError {
    ApiError::unsupported(
        "search; look the image up on the registry's own pages and docker pull it by name",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_beyond_all_time_is_refused() {
        let until = |text: &str| {
            let filters = Filters::parse(&json!({ "until": [text] }).to_string()).unwrap();
            super::until(&filters).map(|until| until.is_some()).map_err(|error| error.status)
        };
        assert_eq!(until("1h30m"), Ok(true));
        for text in ["999999999h", "99999999999999999999999h", "-1h"] {
            assert_eq!(until(text).map_err(|status| status.as_u16()), Err(400), "{text}");
        }
    }
}

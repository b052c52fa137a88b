//! `docker system df`: what images, containers and volumes take on the disk.

use std::collections::BTreeMap;

use engine::containers::{MountType, Phase};
use serde_json::{Value, json};

use crate::containers::summary_with_size;
use crate::version::Version;
use crate::{ApiError, ApiResult, ApiState, Parameters};

pub(super) async fn usage(
    state: &ApiState,
    query: &Parameters,
    version: Version,
) -> ApiResult<Value> {
    let kinds: Vec<&str> = query.all("type").collect();
    for kind in &kinds {
        if !["container", "image", "volume", "build-cache"].contains(kind) {
            return Err(ApiError::bad_request(format!("unknown object type: {kind}")));
        }
    }
    let wants = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let mut answer = json!({
        "LayersSize": 0, "Images": [], "Containers": [], "Volumes": [], "BuildCache": [],
        "BuilderSize": 0,
    });
    if wants("image") {
        let (layers, mut images) = images(state).await?;
        // Gone since 1.44, like the same field of the image's own objects.
        if version < Version(1, 44) {
            for image in &mut images {
                image["VirtualSize"] = image["Size"].clone();
            }
        }
        answer["LayersSize"] = json!(layers);
        answer["Images"] = json!(images);
    }
    if wants("container") {
        let mut rows = Vec::new();
        for container in state.engine.containers.all() {
            rows.push(summary_with_size(&state.engine, &container).await?);
        }
        answer["Containers"] = json!(rows);
    }
    if wants("volume") {
        answer["Volumes"] = json!(volumes(state).await?);
    }
    Ok(answer)
}

async fn images(state: &ApiState) -> ApiResult<(u64, Vec<Value>)> {
    let store = state.engine.images.store.clone();
    let look = move || Ok((store.usage(), store.list(), store.downloads_size()?));
    let (usage, images, downloads) = engine::images::blocking(look).await?;
    let mut users: BTreeMap<String, u64> = BTreeMap::new();
    for container in state.engine.containers.all() {
        *users.entry(container.spec().image.clone()).or_default() += 1;
    }
    let rows = images
        .iter()
        .map(|image| {
            let id = image.id.to_string();
            let own = usage.images.get(&image.id).copied().unwrap_or_default();
            let created = image.config.created.as_deref().and_then(|text| super::moment(text).ok());
            json!({
                "Id": id,
                "ParentId": image.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
                "RepoTags": image.repo_tags,
                "RepoDigests": image.repo_digests,
                "Created": created.map_or(0, |nanos| nanos / 1_000_000_000) as i64,
                "Size": own.size,
                "SharedSize": own.shared,
                "Labels": image.config.run().labels,
                "Containers": users.get(&id).copied().unwrap_or_default(),
            })
        })
        .collect();
    // Parts of layers that no pull is at take room, too, and go with the next prune.
    Ok((usage.layers_bytes + downloads, rows))
}

/// Each volume with its size and how many containers have it.
async fn volumes(state: &ApiState) -> ApiResult<Vec<Value>> {
    let mut rows = Vec::new();
    for volume in state.engine.volumes.list() {
        let users = state
            .engine
            .containers
            .all()
            .iter()
            .filter(|container| container.phase() != Phase::Removing)
            .filter(|container| {
                container
                    .spec()
                    .mounts
                    .iter()
                    .any(|mount| mount.kind == MountType::Volume && mount.name == volume.name)
            })
            .count();
        let path = volume.mountpoint.clone();
        let size = engine::images::blocking(move || Ok(engine::volumes::size(&path))).await?;
        rows.push(json!({
            "Name": volume.name,
            "Driver": volume.driver,
            "Mountpoint": volume.mountpoint,
            "CreatedAt": volume.created_at,
            "Labels": volume.labels,
            "Options": volume.options,
            "Scope": "local",
            "UsageData": { "RefCount": users, "Size": size },
        }));
    }
    Ok(rows)
}

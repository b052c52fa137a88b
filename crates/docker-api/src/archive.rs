//! Files in and out of a container: archive, export, changes, commit.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::files::CommitRequest;
use engine::image::{ChangeKind, PathStat};
use serde_json::{Value, json};

use crate::ApiState;
use crate::error::{ApiError, ApiResult};
use crate::images::target;
use crate::request::{Body as JsonBody, Parameters};
use crate::stream::{self, BodyReader};

const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/{id}/archive", get(read).head(stat).put(write))
        .route("/containers/{id}/changes", get(changes))
        .route("/containers/{id}/export", get(export))
        .route("/commit", post(commit))
}

fn path(parameters: &Parameters) -> Result<String, ApiError> {
    let path = parameters.text("path").ok_or_else(|| ApiError::bad_request("missing path"))?;
    Ok(path.to_owned())
}

fn header(stat: &PathStat) -> String {
    STANDARD.encode(serde_json::to_vec(stat).unwrap_or_default())
}

async fn stat(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> ApiResult {
    let stat = state.engine.path_stat(&id, path(&parameters)?).await?;
    Ok((StatusCode::OK, [(PATH_STAT, header(&stat))]).into_response())
}

async fn read(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> ApiResult {
    let path = path(&parameters)?;
    let stat = state.engine.path_stat(&id, path.clone()).await?;
    let engine = state.engine.clone();
    stream::tar(vec![(PATH_STAT, header(&stat))], move |out| engine.read_path(&id, &path, out))
        .await
}

async fn write(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    parameters: Parameters,
    body: Body,
) -> ApiResult {
    let path = path(&parameters)?;
    let keep_kind = parameters.flag("noOverwriteDirNonDir");
    let own = parameters.flag("copyUIDGID");
    let tar = BodyReader::new(body);
    state.engine.write_path(&id, path, tar, keep_kind, own).await?;
    Ok(StatusCode::OK.into_response())
}

async fn changes(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    let changes = state.engine.changes(&id).await?;
    let shown: Vec<Value> = changes
        .iter()
        .map(|change| {
            let kind = match change.kind {
                ChangeKind::Modified => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            };
            json!({ "Path": change.path, "Kind": kind })
        })
        .collect();
    let shown = if shown.is_empty() { Value::Null } else { json!(shown) };
    Ok(Json(shown).into_response())
}

async fn export(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    state.engine.container(&id)?;
    let engine = state.engine.clone();
    stream::tar(Vec::new(), move |out| engine.export(&id, out)).await
}

async fn commit(
    State(state): State<ApiState>,
    parameters: Parameters,
    body: JsonBody<engine::image::RunConfig>,
) -> ApiResult {
    let text = |name: &str| parameters.text(name).unwrap_or_default().to_owned();
    let request = CommitRequest {
        container: text("container"),
        reference: target(&parameters)?,
        author: text("author"),
        message: text("comment"),
        changes: parameters.all("changes").map(str::to_owned).collect(),
        pause: parameters.flag_or("pause", true),
        config: body.0,
    };
    let image = state.engine.commit(request).await?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": image.id }))).into_response())
}

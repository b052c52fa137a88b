//! `/containers/{id}/exec` and `/exec/{id}`: commands in running containers.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use engine::exec::ExecSpec;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::attach::{self, DetachKeys};
use crate::hijack;
use crate::request::RawBody;
use crate::version::Version;
use crate::{ApiResult, ApiState, Body, Parameters};

pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/{id}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/json", get(inspect))
        .route("/exec/{id}/resize", post(resize))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ExecConfig {
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    // Go reads field names in any case, and docker-py writes this one so.
    #[serde(alias = "detachKeys")]
    detach_keys: Option<String>,
    tty: bool,
    console_size: Option<(u16, u16)>,
    env: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    privileged: bool,
    user: Option<String>,
    working_dir: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct StartConfig {
    detach: bool,
    tty: bool,
    console_size: Option<(u16, u16)>,
}

async fn create(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    body: Body<ExecConfig>,
) -> ApiResult {
    let config = body.required()?;
    let detach_keys = config.detach_keys.unwrap_or_default();
    DetachKeys::parse(&detach_keys)?;
    let spec = ExecSpec {
        args: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        cwd: config.working_dir.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        tty: config.tty,
        stdin: config.attach_stdin,
        stdout: config.attach_stdout,
        stderr: config.attach_stderr,
        privileged: config.privileged,
        console_size: config.console_size.unwrap_or_default(),
        ..Default::default()
    };
    let id = state.engine.exec_create(&id, spec, detach_keys)?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": id }))).into_response())
}

async fn start(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Extension(version): Extension<Version>,
    mut request: Request,
) -> ApiResult {
    let asked = hijack::Asked::of(&mut request);
    let body = <RawBody as axum::extract::FromRequest<()>>::from_request(request, &()).await?;
    let config: StartConfig = crate::request::parse(&body.0)?.unwrap_or_default();
    let engine = state.engine.clone();
    let size = config.console_size.unwrap_or_default();
    if config.detach {
        engine.exec_start(engine.exec_claim(&id)?, size).await?;
        return Ok(StatusCode::OK.into_response());
    }
    // What is refused must leave the exec to a better start.
    let keys = DetachKeys::parse(&engine.exec_find(&id)?.detach_keys)?;
    let takeover = asked.checked()?;
    let claim = engine.exec_claim(&id)?;
    let exec = claim.exec.clone();
    // Docker frames by what the start asks for, whatever the process has.
    let tty = config.tty;
    let pending = engine.exec_attach(&exec);
    Ok(takeover.serve(attach::media_type(tty, version), move |mut connection| async move {
        let started = match engine.exec_start(claim, size).await {
            Ok(()) => pending.ready().await.map_err(engine::Error::from),
            Err(error) => Err(error),
        };
        let ended = engine.exec_ended(&exec);
        let stream = match started {
            Ok(stream) => stream,
            Err(error) => {
                // The answer is under way already: the reason goes where the output would.
                let text = format!("{}\r\n", error.message);
                let bytes = if tty { text.into_bytes() } else { attach::frame(1, text.as_bytes()) };
                let _ = connection.write_all(&bytes).await;
                // Who asks for the code before there is one takes it for success.
                ended.await;
                let _ = connection.shutdown().await;
                return;
            }
        };
        let copying = attach::Copying {
            stdin: exec.spec.stdin,
            keys: exec.spec.tty.then_some(keys),
            half_closes: true,
            framing: attach::Framing::between(exec.spec.tty, tty),
            farewell: "exec attach failed: error on attach stdin: read escape sequence\r\n",
        };
        attach::copy(connection, stream, copying, ended).await;
    }))
}

async fn inspect(State(state): State<ApiState>, Path(id): Path<String>) -> ApiResult {
    let exec = state.engine.exec_find(&id)?;
    let (spec, now) = (&exec.spec, exec.state());
    let (entrypoint, arguments) = match spec.args.split_first() {
        Some((first, rest)) => (first.as_str(), rest),
        None => ("", &[][..]),
    };
    let mut process = json!({
        "tty": spec.tty,
        "entrypoint": entrypoint,
        "arguments": arguments,
        "privileged": spec.privileged,
    });
    if !spec.user.is_empty() {
        process["user"] = json!(spec.user);
    }
    Ok(Json(json!({
        "ID": spec.id,
        "Running": now.running,
        "ExitCode": now.exit_code,
        "ProcessConfig": process,
        "OpenStdin": spec.stdin,
        "OpenStderr": spec.stderr,
        "OpenStdout": spec.stdout,
        "CanRemove": now.exit_code.is_some(),
        "ContainerID": exec.container.id().as_str(),
        "DetachKeys": exec.detach_keys,
        "Pid": now.pid,
    }))
    .into_response())
}

async fn resize(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Parameters,
) -> ApiResult<Response> {
    let (height, width) = attach::window(&query)?;
    state.engine.exec_resize(&id, height, width).await?;
    Ok(StatusCode::OK.into_response())
}

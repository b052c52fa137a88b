//! Images from and to a real registry, and registries that refuse, break off or lie.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::registry::{Door, Turn};
use e2e::{answers, cases, hosts, refused};
use lab::command::{output, run};
use lab::{Engine, Host, Lab, registry};
use serde_json::{Value, json};

pub(super) const PLAIN: u16 = 5000;
const LOGIN: u16 = 5001;
const PASSWORD: &str = "geheimes-wort";
/// `PASSWORD` for `user`, as htpasswd -B has it (cost 4).
const HASHED: &str = "user:$2b$04$abcdefghijklmnopqrstuuqdzPPN7QQs3RVVE9luZ0UbRZIwbIhPy\n";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn images_and_registries() -> Result<()> {
    let lab = hosts(1)?;
    let host = lab.host(1);
    registry::start(host, PLAIN, &[])?;
    let passwords = host.folder.join("passwords");
    fs::write(&passwords, HASHED)?;
    registry::start(
        host,
        LOGIN,
        &[
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "test"),
            ("REGISTRY_AUTH_HTPASSWD_PATH", &passwords.display().to_string()),
        ],
    )?;
    // Everything that is said about logins is looked through at the end.
    host.stop()?;
    host.start_with(&["--debug"], &[])?;
    host.dk("tag httpd:latest 127.0.0.1:5000/team/app:1")?;
    host.dk("push 127.0.0.1:5000/team/app:1")?;
    cases(
        &lab,
        &[
            ("pushed and pulled by tag and digest", by_tag_and_digest),
            ("every tag of a repository", every_tag),
            ("layers are not sent twice", layers_are_not_sent_twice),
            ("an index is resolved by platform", an_index_by_platform),
            ("an image of OCI's media types", oci_media_types),
            ("names, ids and containers in the way of rmi", names_and_ids_at_rmi),
            ("saved, loaded and imported", saved_loaded_imported),
            ("history and prune", history_and_prune),
            ("a password is asked for", a_password_is_asked_for),
            ("a token is fetched", a_token_is_fetched),
            ("a cut connection goes on", a_cut_connection_goes_on),
            ("refusals of a registry", refusals_of_a_registry),
            ("content that is not what was promised", content_is_verified),
            ("hostile archives", hostile_archives),
            ("nothing secret is in the log", nothing_secret_is_in_the_log),
        ],
    )
}

pub(super) fn app(rest: &str) -> String {
    format!("127.0.0.1:{PLAIN}/team/app{rest}")
}

/// The digest that a registry knows a tag by.
fn digest_of(host: &Host, name: &str) -> Result<String> {
    let shown = host.docker(&["image", "inspect", "-f", "{{index .RepoDigests 0}}", name])?;
    Ok(shown.split_once('@').context("no digest")?.1.to_owned())
}

fn by_tag_and_digest(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let id = host.dk(&format!("image inspect -f {{{{.Id}}}} {}", app(":1")))?;
    let digest = digest_of(host, &app(":1"))?;
    host.dk(&format!("rmi {}", app(":1")))?;
    let said = host.dk(&format!("pull {}", app(":1")))?;
    for line in [
        "1: Pulling from team/app".to_owned(),
        format!("Digest: {digest}"),
        format!("Status: Downloaded newer image for {}", app(":1")),
    ] {
        ensure!(said.contains(&line), "{line} is missing in {said}");
    }
    answers(host, &format!("image inspect -f {{{{.Id}}}} {}", app(":1")), &id)?;
    let again = host.dk(&format!("pull {}", app(":1")))?;
    ensure!(again.contains("Status: Image is up to date for"), "{again}");
    host.dk(&format!("rmi {}", app(":1")))?;
    host.dk(&format!("pull -q {}", app(&format!("@{digest}"))))?;
    answers(
        host,
        &format!("images --digests --format {{{{.Tag}}}}/{{{{.Digest}}}} {}", app("")),
        &format!("<none>/{digest}"),
    )?;
    host.dk(&format!("rmi {}", app(&format!("@{digest}"))))?;
    host.dk(&format!("pull -q {}", app(":1"))).map(drop)
}

fn every_tag(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    for tag in ["2", "3"] {
        host.dk(&format!("tag httpd {}", app(&format!(":{tag}"))))?;
    }
    host.dk(&format!("push -q -a {}", app("")))?;
    host.dk(&format!("rmi {} {} {}", app(":1"), app(":2"), app(":3")))?;
    host.dk(&format!("pull -q -a {}", app("")))?;
    let tags = host.dk(&format!("images --format {{{{.Tag}}}} {}", app("")))?;
    let mut tags: Vec<&str> = tags.lines().collect();
    tags.sort_unstable();
    ensure!(tags == ["1", "2", "3"], "{tags:?}");
    refused(host, &format!("push {}", app(":9")), "tag does not exist: 127.0.0.1:5000/team/app:9")?;
    refused(host, "push 127.0.0.1:5000/no/app:9", "does not exist locally with the tag")
}

fn layers_are_not_sent_twice(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let said = host.dk(&format!("push {}", app(":2")))?;
    ensure!(said.contains("Layer already exists"), "{said}");
    host.dk("tag httpd 127.0.0.1:5000/other/app:1")?;
    let said = host.dk("push 127.0.0.1:5000/other/app:1")?;
    ensure!(said.contains("Mounted from team/app"), "{said}");
    host.dk("rmi 127.0.0.1:5000/other/app:1").map(drop)
}

/// Sends a manifest to the plain registry under a tag of `team/app`.
pub(super) fn put(host: &Host, tag: &str, kind: &str, manifest: &Value) -> Result<()> {
    let file = host.folder.join("manifest.json");
    fs::write(&file, manifest.to_string())?;
    let (data, kind) = (format!("@{}", file.display()), format!("Content-Type: {kind}"));
    let url = format!("http://127.0.0.1:{PLAIN}/v2/team/app/manifests/{tag}");
    host.exec(&["curl", "-sSf", "-X", "PUT", "-H", &kind, "--data-binary", &data, &url]).map(drop)
}

pub(super) fn manifest(host: &Host, tag: &str) -> Result<Value> {
    let url = format!("http://127.0.0.1:{PLAIN}/v2/team/app/manifests/{tag}");
    let accept = "Accept: application/vnd.docker.distribution.manifest.v2+json";
    Ok(serde_json::from_str(&host.exec(&["curl", "-sSf", "-H", accept, &url])?)?)
}

fn an_index_by_platform(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let tar = lab.httpd_tar.display().to_string();
    host.docker(&["import", "--platform", "linux/arm64", &tar, &app(":arm")])?;
    let arm = host.dk(&format!("image inspect -f {{{{.Id}}}} {}", app(":arm")))?;
    host.dk(&format!("push -q {}", app(":arm")))?;
    let size = |tag: &str| -> Result<usize> {
        let url = format!("http://127.0.0.1:{PLAIN}/v2/team/app/manifests/{tag}");
        let accept = "Accept: application/vnd.docker.distribution.manifest.v2+json";
        let file = host.folder.join("size").display().to_string();
        host.exec(&["curl", "-sSf", "-o", &file, "-H", accept, &url])?;
        Ok(fs::metadata(file)?.len() as usize)
    };
    let entry = |tag: &str, architecture: &str| -> Result<Value> {
        Ok(json!({
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "digest": digest_of(host, &app(&format!(":{tag}")))?, "size": size(tag)?,
            "platform": { "os": "linux", "architecture": architecture },
        }))
    };
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let there = if here == "amd64" { "arm64" } else { "amd64" };
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry("arm", there)?, entry("1", here)?],
    });
    put(host, "multi", OCI_INDEX, &index)?;
    host.dk(&format!("rmi {}", app(":arm")))?;
    let own = host.dk("image inspect -f {{.Id}} httpd")?;
    host.dk(&format!("pull -q {}", app(":multi")))?;
    answers(host, &format!("image inspect -f {{{{.Id}}}} {}", app(":multi")), &own)?;
    host.dk(&format!("pull -q --platform linux/{there} {}", app(":multi")))?;
    answers(host, &format!("image inspect -f {{{{.Id}}}} {}", app(":multi")), &arm)?;
    refused(
        host,
        &format!("pull --platform linux/s390x {}", app(":multi")),
        "no matching manifest for linux/s390x in the manifest list entries",
    )?;
    host.dk(&format!("rmi {}", app(":multi"))).map(drop)
}

fn oci_media_types(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let mut oci = manifest(host, "1")?;
    oci["mediaType"] = json!(OCI_MANIFEST);
    oci["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    oci["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
    put(host, "oci", OCI_MANIFEST, &oci)?;
    let own = host.dk("image inspect -f {{.Id}} httpd")?;
    host.dk(&format!("pull -q {}", app(":oci")))?;
    answers(host, &format!("image inspect -f {{{{.Id}}}} {}", app(":oci")), &own)?;
    host.dk(&format!("rmi {}", app(":oci"))).map(drop)
}

fn names_and_ids_at_rmi(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run --name maker httpd true")?;
    host.dk("commit maker mine:1")?;
    host.dk("rm maker")?;
    let id = host.dk("image inspect -f {{.Id}} mine:1")?;
    let short = &id["sha256:".len()..][..12];
    host.dk("tag mine:1 yours:1")?;
    refused(host, &format!("rmi {short}"), "image is referenced in multiple repositories")?;
    let said = host.dk("rmi yours:1")?;
    ensure!(said == "Untagged: yours:1", "{said}");
    host.dk("run -d --name user mine:1 sleep 1000")?;
    refused(host, "rmi mine:1", "is using its referenced image")?;
    refused(host, &format!("rmi -f {short}"), "image is being used by running container")?;
    host.dk("kill user")?;
    refused(host, &format!("rmi {short}"), "image is being used by stopped container")?;
    let said = host.dk("rmi -f mine:1")?;
    ensure!(said.contains("Untagged: mine:1"), "{said}");
    host.dk("rm user")?;
    host.dk("image prune -f")?;
    refused(host, "rmi mine:1", "No such image: mine:1")
}

fn saved_loaded_imported(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let file = host.folder.join("two.tar").display().to_string();
    host.dk("tag httpd keep:1")?;
    host.dk("tag httpd keep:2")?;
    host.docker(&["save", "-o", &file, "keep:1", "keep:2"])?;
    let names = run(std::process::Command::new("tar").args(["-tf", &file]))?;
    ensure!(names.contains("manifest.json") && names.contains("repositories"), "{names}");
    host.dk("rmi keep:1 keep:2")?;
    let said = host.docker(&["load", "-i", &file])?;
    ensure!(
        said.contains("Loaded image: keep:1") && said.contains("Loaded image: keep:2"),
        "{said}"
    );
    host.dk("rmi keep:1 keep:2")?;
    // Standard input, and compressed.
    run(std::process::Command::new("gzip").args(["-kf", &file]))?;
    let packed = fs::File::open(format!("{file}.gz"))?;
    let said = host.cli(&["load"]).stdin(Stdio::from(packed)).output()?;
    ensure!(String::from_utf8_lossy(&said.stdout).contains("keep:1"), "{said:?}");
    host.dk("rmi keep:1 keep:2")?;
    let tar = lab.httpd_tar.display().to_string();
    let id = host.docker(&["import", "-c", "ENV A=b", "-m", "made by hand", &tar, "made:1"])?;
    answers(
        host,
        "image inspect -f {{.Id}}/{{.Config.Env}}/{{.Comment}} made:1",
        &format!("{id}/[A=b]/made by hand"),
    )?;
    host.dk("rmi made:1").map(drop)
}

fn history_and_prune(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run --name maker httpd touch /made")?;
    host.docker(&["commit", "-m", "touched", "-c", "LABEL kind=made", "maker", "made:1"])?;
    host.dk("rm maker")?;
    let history = host.docker(&["history", "--format", "{{.Comment}}", "made:1"])?;
    ensure!(history.lines().next() == Some("touched"), "{history}");
    ensure!(host.dk("history -q made:1")?.lines().count() == 2, "two steps made it");
    host.dk("rmi --no-prune made:1")?;
    host.dk("run --name maker httpd touch /made")?;
    host.dk("commit maker")?;
    host.dk("rm maker")?;
    ensure!(!host.dk("images -q -f dangling=true")?.is_empty(), "the commit has no name");
    let said = host.dk("image prune -f --filter label=none=such")?;
    ensure!(said.ends_with("Total reclaimed space: 0B"), "{said}");
    let said = host.dk("image prune -f")?;
    ensure!(said.contains("Deleted Images:") && said.contains("deleted: sha256:"), "{said}");
    answers(host, "images -q -f dangling=true", "")
}

/// `docker login` with its words on standard input, into a configuration of its own.
fn login(
    host: &Host,
    folder: &Path,
    registry: &str,
    password: &str,
) -> Result<std::process::Output> {
    fs::create_dir_all(folder)?;
    let mut command = host.cli(&["login", "-u", "user", "--password-stdin", registry]);
    command.env("DOCKER_CONFIG", folder).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("stdin")?, password.as_bytes())?;
    Ok(child.wait_with_output()?)
}

fn a_password_is_asked_for(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let (registry, folder) = (format!("127.0.0.1:{LOGIN}"), host.folder.join("login"));
    let name = format!("{registry}/app:1");
    host.dk(&format!("tag httpd {name}"))?;
    refused(host, &format!("push {name}"), "no basic auth credentials")?;
    refused(host, &format!("pull {registry}/app:2"), "no basic auth credentials")?;
    let wrong = login(host, &folder, &registry, "falsches-wort")?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(!wrong.status.success() && said.contains("401 Unauthorized"), "{said}");
    let right = login(host, &folder, &registry, PASSWORD)?;
    ensure!(right.status.success(), "{}", String::from_utf8_lossy(&right.stderr));
    let with_login = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        run(host.cli(&words).env("DOCKER_CONFIG", &folder))
    };
    with_login(&format!("push -q {name}"))?;
    host.dk(&format!("rmi {name}"))?;
    with_login(&format!("pull -q {name}"))?;
    refused(host, &format!("pull {registry}/app:2"), "no basic auth credentials")?;
    with_login(&format!("logout {registry}"))?;
    host.dk(&format!("rmi {name}")).map(drop)
}

fn a_token_is_fetched(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let expected = format!("Basic {}", STANDARD.encode(format!("user:{PASSWORD}")));
    let token = "einmal-token-4711";
    let door = Door::open(host, 5002, PLAIN, move |asked| {
        let given = asked.headers.get("authorization").map(String::as_str);
        if asked.path.starts_with("/token") {
            return match given == Some(&expected) {
                true => Turn::json("200 OK", &format!(r#"{{"token":"{token}"}}"#)),
                false => Turn::json(
                    "401 Unauthorized",
                    r#"{"details":"incorrect username or password"}"#,
                ),
            };
        }
        if given == Some(&format!("Bearer {token}")) {
            return Turn::Forward;
        }
        let challenge = r#"Bearer realm="http://127.0.0.1:5002/token",service="test""#;
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Turn::Answer(
            "401 Unauthorized",
            vec![("WWW-Authenticate".into(), challenge.into())],
            body.as_bytes().to_vec(),
        )
    })?;
    let (registry, folder) = (door.address.clone(), host.folder.join("token"));
    let name = format!("{registry}/team/app:1");
    refused(host, &format!("pull {name}"), "unauthorized")?;
    let right = login(host, &folder, &registry, PASSWORD)?;
    ensure!(right.status.success(), "{}", String::from_utf8_lossy(&right.stderr));
    run(host.cli(&["pull", "-q", &name]).env("DOCKER_CONFIG", &folder))?;
    host.dk(&format!("tag {name} {registry}/team/pushed:1"))?;
    run(host
        .cli(&["push", "-q", &format!("{registry}/team/pushed:1")])
        .env("DOCKER_CONFIG", &folder))?;
    let scopes: Vec<String> = door.asked().into_iter().map(|asked| asked.path).collect();
    ensure!(
        scopes.iter().any(|path| path.contains("team%2Fpushed%3Apull%2Cpush")
            || path.contains("team%2Fpushed%3Apush%2Cpull")),
        "no token for pushing was asked for: {scopes:?}"
    );
    host.dk(&format!("rmi {name} {registry}/team/pushed:1")).map(drop)
}

fn a_cut_connection_goes_on(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let layer = manifest(host, "1")?["layers"][0]["digest"].as_str().context("a layer")?.to_owned();
    let cuts = AtomicUsize::new(0);
    let wanted = layer.clone();
    let door = Door::open(host, 5003, PLAIN, move |asked| {
        let first = asked.path.ends_with(&wanted) && cuts.fetch_add(1, Ordering::Relaxed) == 0;
        if first { Turn::Cut(300_000) } else { Turn::Forward }
    })?;
    // Nothing of it may be there, or no layer would be asked for.
    let images = host.dk("images -q --no-trunc")?;
    let mut ids: Vec<&str> = images.lines().collect();
    ids.sort_unstable();
    ids.dedup();
    host.docker(&[&["rmi", "-f"], ids.as_slice()].concat())?;
    let name = format!("{}/team/app:1", door.address);
    let done = host.dk(&format!("pull {name}"));
    host.docker(&[
        "import",
        "-c",
        lab::image::HTTPD_COMMAND,
        &lab.httpd_tar.display().to_string(),
        "httpd:latest",
    ])?;
    done?;
    let blobs: Vec<String> = door
        .asked()
        .into_iter()
        .filter(|asked| asked.path.ends_with(&layer))
        .map(|asked| asked.headers.get("range").cloned().unwrap_or_default())
        .collect();
    ensure!(blobs.len() >= 2 && blobs.iter().any(|range| range.starts_with("bytes=")), "{blobs:?}");
    answers(host, &format!("run --rm {name} echo whole"), "whole")?;
    host.dk(&format!("rmi {name}")).map(drop)
}

/// Status and message of `POST /images/create`.
fn pull_status(host: &Host, name: &str, tag: &str) -> Result<(u16, String)> {
    let socket = host.folder.join("docker.sock").display().to_string();
    let url = format!("http://d/images/create?fromImage={name}&tag={tag}");
    let answer = run(std::process::Command::new("curl").args([
        "-sS",
        "-XPOST",
        "--unix-socket",
        &socket,
        "-w",
        "\n%{http_code}",
        &url,
    ]))?;
    let (body, status) = answer.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

fn refusals_of_a_registry(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let door = Door::open(host, 5004, PLAIN, |asked| {
        if !asked.path.contains("/manifests/") {
            return Turn::Forward;
        }
        let error =
            |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"said so"}}]}}"#);
        match asked.path.rsplit('/').next().unwrap_or_default() {
            "s401" => Turn::json("401 Unauthorized", &error("UNAUTHORIZED")),
            "s403" => Turn::json("403 Forbidden", &error("DENIED")),
            "s404" => Turn::json("404 Not Found", &error("MANIFEST_UNKNOWN")),
            "s404name" => Turn::json("404 Not Found", &error("NAME_UNKNOWN")),
            "s429" => Turn::json("429 Too Many Requests", &error("TOOMANYREQUESTS")),
            "s500" => Turn::Answer("500 Internal Server Error", vec![], b"oops".to_vec()),
            "reset" => Turn::Reset,
            "large" => Turn::Answer(
                "200 OK",
                vec![("Content-Type".into(), OCI_MANIFEST.into())],
                vec![b' '; 6 << 20],
            ),
            "none" => Turn::json("200 OK", "{}"),
            _ => Turn::Forward,
        }
    })?;
    let before = host.dk("images -aq")?;
    let name = format!("{}/team/app", door.address);
    let mut wrong = Vec::new();
    for (tag, status, text) in [
        ("s401", 500, "unauthorized: said so"),
        ("s403", 404, "pull access denied for"),
        ("s404", 404, "manifest unknown"),
        ("s404name", 404, "said so"),
        ("s429", 500, "toomanyrequests: said so"),
        ("s500", 500, "500 Internal Server Error"),
        ("reset", 500, ""),
        ("large", 500, ""),
        ("none", 500, ""),
    ] {
        let (got, body) = pull_status(host, &name, tag)?;
        // A stream that has begun says 200 and then what went wrong.
        let told = got == status || got == 200 && body.contains("errorDetail");
        if !told || !body.contains(text) {
            wrong.push(format!("{tag}: {got} {body}"));
        }
    }
    let (status, body) = pull_status(host, "127.0.0.1:1/x", "1")?;
    if status != 500 || !body.contains("connection refused") && !body.contains("Connection refused")
    {
        wrong.push(format!("nobody there: {status} {body}"));
    }
    let (status, body) = pull_status(host, "127.0.0.1:5004/UPPER", "1")?;
    if status != 400 || !body.contains("must be lowercase") {
        wrong.push(format!("a bad name: {status} {body}"));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    answers(host, "images -aq", &before)
}

fn content_is_verified(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    // An image that is not here under another name, so that its parts are asked for.
    host.dk("run --name maker httpd touch /new")?;
    host.dk(&format!("commit maker {}", app(":fresh")))?;
    host.dk("rm maker")?;
    host.dk(&format!("push -q {}", app(":fresh")))?;
    host.dk(&format!("rmi {}", app(":fresh")))?;
    let fresh = manifest(host, "fresh")?;
    let part = |value: &Value| value["digest"].as_str().unwrap_or_default().to_owned();
    let (config, layer) = (part(&fresh["config"]), part(&fresh["layers"][1]));
    static LIE: Mutex<String> = Mutex::new(String::new());
    let door = Door::open(host, 5005, PLAIN, |asked| {
        let lie = LIE.lock().map(|lie| lie.clone()).unwrap_or_default();
        match !lie.is_empty() && asked.path.ends_with(&lie) {
            true => Turn::Answer("200 OK", vec![], vec![b'x'; 32]),
            false => Turn::Forward,
        }
    })?;
    let before = host.dk("images -aq")?;
    let name = format!("{}/team/app:fresh", door.address);
    for (lie, expected) in [(config, "verification failed"), (layer, "verification failed")] {
        LIE.lock().map(|mut place| *place = lie).unwrap_or_default();
        let answer = host.try_docker(&["pull", &name])?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(!answer.status.success() && said.contains(expected), "{said}");
        answers(host, "images -aq", &before)?;
    }
    LIE.lock().map(|mut place| place.clear()).unwrap_or_default();
    host.dk(&format!("pull -q {name}"))?;
    host.dk(&format!("rmi {name}")).map(drop)
}

/// A tar of one entry, written by hand: `tar` itself would refuse to.
fn entry(name: &str, kind: u8, link: &str, body: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", body.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(body);
    tar.resize(tar.len().div_ceil(512) * 512, 0);
    tar
}

fn hostile_archives(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let outside = host.folder.join("outside");
    fs::create_dir_all(&outside)?;
    fs::write(outside.join("precious"), "untouched")?;
    let away = outside.display().to_string();
    let precious = outside.join("precious").display().to_string();
    let up = format!("{}{}", "../".repeat(20), &precious[1..]);
    let before = host.dk("images -aq")?;
    let archives: [(&str, Vec<Vec<u8>>); 5] = [
        ("a path upwards", vec![entry(&up, b'0', "", b"broken")]),
        ("an absolute path", vec![entry(&precious, b'0', "", b"broken")]),
        (
            "through a link",
            vec![entry("d", b'2', &away, b""), entry("d/precious", b'0', "", b"broken")],
        ),
        (
            "a hard link to the outside",
            vec![entry("l", b'1', &up, b""), entry("l", b'0', "", b"broken")],
        ),
        (
            "a link replaced",
            vec![
                entry("d", b'5', "", b""),
                entry("d", b'2', &away, b""),
                entry("d/precious", b'0', "", b"broken"),
            ],
        ),
    ];
    for (what, entries) in archives {
        let mut tar = entries.concat();
        tar.extend_from_slice(&[0; 1024]);
        let file = host.folder.join("hostile.tar");
        fs::write(&file, tar)?;
        let file = file.display().to_string();
        // Docker takes some of these and keeps them inside; none may reach out.
        let answer = output(&mut host.cli(&["import", &file]))?;
        let text = fs::read_to_string(&precious)?;
        ensure!(text == "untouched", "{what}: a file outside was written");
        ensure!(fs::read_dir(&outside)?.count() == 1, "{what}: a file outside was made");
        if answer.status.success() {
            let id = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
            host.dk(&format!("rmi {id}"))?;
        }
        answers(host, "images -aq", &before)?;
        // The same as an image that somebody saved.
        let said = output(&mut host.cli(&["load", "-i", &file]))?;
        ensure!(!said.status.success(), "{what}: loaded as an image");
        answers(host, "images -aq", &before)?;
        ensure!(fs::read_to_string(&precious)? == "untouched", "{what}: written by load");
    }
    Ok(())
}

/// Logins went through the daemon in several forms; its debug log has none of them.
fn nothing_secret_is_in_the_log(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    if host.engine == Engine::Dockerd {
        // The Docker Engine's log is its own affair.
        return Ok(());
    }
    let log = fs::read_to_string(host.folder.join("log"))?;
    ensure!(log.contains("DEBUG"), "the log is not a debug log");
    let header = json!({ "username": "user", "password": PASSWORD }).to_string();
    for secret in [
        PASSWORD.to_owned(),
        "falsches-wort".to_owned(),
        "einmal-token-4711".to_owned(),
        STANDARD.encode(format!("user:{PASSWORD}")),
        STANDARD.encode(header)[..40].to_owned(),
    ] {
        ensure!(!log.contains(&secret), "{secret} is in the log");
    }
    Ok(())
}

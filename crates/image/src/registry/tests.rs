//! Against Debian's docker-registry on loopback, and against registries that misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::store::tests::tar;
use crate::tarball::Kind as EntryKind;
use crate::{
    Credentials, Digest, Import, Options, Platform, Progress, ProgressSender, Reference,
    Registries, Remove, Store,
};

/// A registry process of its own, ended with the test.
struct Registry {
    process: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Registry {
    fn start(settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yml");
        std::fs::write(&config, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: /nonexistent}}\nhttp: {addr: 127.0.0.1:0}\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("REGISTRY_HTTP_ADDR", &address)
            .env("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", directory.path().join("data"))
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let begun = std::time::Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(begun.elapsed().as_secs() < 30, "the registry does not listen");
            std::thread::yield_now();
        }
        Self { process, address, _directory: directory }
    }

    fn name(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.address)).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Host {
    _directory: tempfile::TempDir,
    store: Store,
}

fn host(registries: Registries) -> Host {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { registries, ..Options::default() };
    let store = Store::open(&directory.path().join("image"), options).unwrap();
    Host { _directory: directory, store }
}

impl Host {
    fn import(&self, text: &str, name: &Reference) -> Arc<crate::Image> {
        let tar = tar(&[("etc/", EntryKind::Directory, ""), ("etc/file", EntryKind::File, text)]);
        let import = Import { reference: Some(name.clone()), ..Import::default() };
        self.store.import(tar.as_slice(), &import).unwrap()
    }

    async fn pull(
        &self,
        name: &Reference,
        login: Option<&Credentials>,
    ) -> (crate::Result<Option<Arc<crate::Image>>>, Vec<String>) {
        let (sender, mut messages) = tokio::sync::mpsc::channel(1_000);
        let all = name.tag().is_none() && name.digest().is_none();
        let result = self
            .store
            .pull(name, all, &Platform::host(), login, &ProgressSender::new(sender))
            .await;
        let mut lines = Vec::new();
        while let Some(message) = messages.recv().await {
            lines.push(line(&message));
        }
        (result, lines)
    }

    async fn push(
        &self,
        name: &Reference,
        login: Option<&Credentials>,
    ) -> (crate::Result<()>, Vec<String>) {
        let (sender, mut messages) = tokio::sync::mpsc::channel(1_000);
        let all = name.tag().is_none();
        let result = self.store.push(name, all, login, &ProgressSender::new(sender)).await;
        let mut lines = Vec::new();
        while let Some(message) = messages.recv().await {
            lines.push(line(&message));
        }
        (result, lines)
    }
}

fn line(message: &Progress) -> String {
    let id = message.id.clone().map(|id| format!("{id}: ")).unwrap_or_default();
    format!("{id}{}", message.status.clone().unwrap_or_default())
}

fn login(name: &str, password: &str) -> Credentials {
    Credentials { username: name.into(), password: password.into(), ..Credentials::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_to_a_registry_and_comes_back_as_the_same() {
    let registry = Registry::start(&[]);
    let (one, two) = (host(Registries::default()), host(Registries::default()));
    let name = registry.name("team/app:1");
    let image = one.import("hello", &name);
    let (pushed, lines) = one.push(&name, None).await;
    pushed.unwrap();
    assert_eq!(lines[0], format!("The push refers to repository [{}/team/app]", registry.address));
    let (_, again) = one.push(&name, None).await;
    assert!(again.iter().any(|line| line.ends_with("Layer already exists")), "{again:?}");

    let (pulled, lines) = two.pull(&name, None).await;
    let pulled = pulled.unwrap().unwrap();
    assert_eq!(pulled.id, image.id);
    assert_eq!(lines[0], "1: Pulling from team/app");
    assert_eq!(lines.last().unwrap(), &format!("Status: Downloaded newer image for {name}"));
    assert!(lines.iter().any(|line| line.ends_with("Pull complete")), "{lines:?}");
    let (_, lines) = two.pull(&name, None).await;
    assert_eq!(lines.last().unwrap(), &format!("Status: Image is up to date for {name}"));

    let digest: Reference = Reference::parse(&pulled.repo_digests[0]).unwrap();
    two.store.remove(&name.to_string(), Remove::default(), &[]).unwrap();
    assert!(two.store.list().is_empty());
    two.pull(&digest, None).await.0.unwrap();
    assert_eq!(two.store.resolve(&digest.to_string()).unwrap().repo_tags, [] as [String; 0]);

    let other = registry.name("team/app:2");
    one.import("other", &other);
    one.push(&other, None).await.0.unwrap();
    two.pull(&name.without_suffix(), None).await.0.unwrap();
    assert_eq!(two.store.resolve(&other.to_string()).unwrap().repo_tags, [other.familiar()]);
    let found = two.store.distribution(&name, None).await.unwrap();
    assert_eq!(
        (found.digest, found.platforms),
        (digest.digest().unwrap().to_string(), vec![Platform::host()])
    );
    let copy = registry.name("elsewhere/app:1");
    one.store.tag(&image.id, &copy).unwrap();
    let (_, lines) = one.push(&copy, None).await;
    assert!(lines.iter().any(|line| line.ends_with("Mounted from team/app")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_forbidden_is_told_in_docker_s_words() {
    let directory = tempfile::tempdir().unwrap();
    let passwords = directory.path().join("passwords");
    std::fs::write(
        &passwords,
        "user:$2b$04$yCKXllJrxD37X989klzkveQdxG/L/GPyirDFhUfy4gfSNcg0l.HKG\n",
    )
    .unwrap();
    let registry = Registry::start(&[
        ("REGISTRY_AUTH", "htpasswd"),
        ("REGISTRY_AUTH_HTPASSWD_REALM", "test"),
        ("REGISTRY_AUTH_HTPASSWD_PATH", passwords.to_str().unwrap()),
    ]);
    let host = host(Registries::default());
    let name = registry.name("app:1");
    host.import("x", &name);
    let good = login("user", "secret");
    let text = |error: crate::Error| error.to_string();
    assert_eq!(text(host.push(&name, None).await.0.unwrap_err()), "no basic auth credentials");
    let wrong = host.push(&name, Some(&login("user", "wrong"))).await.0.unwrap_err();
    assert_eq!(text(wrong), "unauthorized: authentication required");
    host.push(&name, Some(&good)).await.0.unwrap();
    host.pull(&name, Some(&good)).await.0.unwrap();
    let missing = host.pull(&registry.name("app:9"), Some(&good)).await.0.unwrap_err();
    assert_eq!(missing.kind(), crate::Kind::NotFound);
    assert_eq!(
        text(missing),
        format!(
            "manifest for {}/app:9 not found: manifest unknown: manifest unknown",
            registry.address
        )
    );
    let server =
        |login: Credentials| Credentials { server_address: registry.address.clone(), ..login };
    assert_eq!(host.store.login(&server(good)).await.unwrap(), "Login Succeeded");
    let refused = host.store.login(&server(login("user", "wrong"))).await.unwrap_err();
    assert_eq!(refused.kind(), crate::Kind::Unauthorized);
    let gone = host.pull(&Reference::parse("127.0.0.1:1/x:1").unwrap(), None).await.0.unwrap_err();
    assert_eq!(gone.kind(), crate::Kind::System);
    assert!(text(gone).contains("onnection refused"));
}

/// What a scripted registry was asked: method, path, range.
type Asked = Arc<Mutex<Vec<String>>>;

struct Answer {
    status: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    cut: Option<usize>,
}

fn answer(status: &'static str, body: &[u8]) -> Answer {
    Answer { status, headers: Vec::new(), body: body.to_vec(), cut: None }
}

/// Serves answers from a function, one connection each, until the test's process ends.
fn scripted(
    script: impl Fn(&str, &BTreeMap<String, String>) -> Answer + Send + 'static,
) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked: Asked = Arc::default();
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut first = String::new();
            // A TLS greeting is no request: closing answers it.
            if reader.fill_buf().map_or(true, |bytes| bytes.first() == Some(&0x16)) {
                continue;
            }
            reader.read_line(&mut first).unwrap();
            let mut headers = BTreeMap::new();
            let mut text = String::new();
            while reader.read_line(&mut text).is_ok_and(|count| count > 2) {
                if let Some((name, value)) = text.trim().split_once(": ") {
                    headers.insert(name.to_ascii_lowercase(), value.to_owned());
                }
                text.clear();
            }
            let length: u64 =
                headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let _ = std::io::copy(&mut reader.take(length), &mut std::io::sink());
            let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
            let range = headers.get("range").cloned().unwrap_or_default();
            log.lock().unwrap().push(format!("{path} {range}").trim().to_owned());
            reply(stream, script(&path, &headers));
        }
    });
    (address, asked)
}

fn reply(mut stream: TcpStream, answer: Answer) {
    let mut head = format!(
        "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())]);
}

/// An image of one layer as a registry holds it.
struct Held {
    blob: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

fn held(zstd: bool) -> Held {
    let noise: String = (0..200_000u32)
        .map(|at| char::from(b'a' + (at.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
        .collect();
    let tar = tar(&[("f", EntryKind::File, &noise)]);
    let blob = match zstd {
        true => zstd::encode_all(tar.as_slice(), 1).unwrap(),
        false => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar).unwrap();
            gzip.finish().unwrap()
        }
    };
    let config = json!({
        "os": "linux", "architecture": Platform::host().architecture,
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar)] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": super::manifest::OCI_MANIFEST,
        "config": { "digest": Digest::of(&config), "size": config.len() },
        "layers": [{ "digest": Digest::of(&blob), "size": blob.len() }],
    });
    Held { blob, config, manifest: serde_json::to_vec(&manifest).unwrap() }
}

fn serve(held: &Held, path: &str) -> Answer {
    if path.ends_with(&Digest::of(&held.blob).to_string()) {
        answer("200 OK", &held.blob)
    } else if path.ends_with(&Digest::of(&held.config).to_string()) {
        answer("200 OK", &held.config)
    } else if path.contains("/manifests/") {
        answer("200 OK", &held.manifest)
    } else {
        answer("404 Not Found", b"")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_stopped() {
    let content = held(true);
    let size = content.blob.len();
    let blob = content.blob.clone();
    let (address, asked) = scripted(move |path, headers| {
        let mut answer = serve(&content, path);
        if answer.body == blob {
            match headers.get("range").and_then(|range| {
                range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
            }) {
                Some(from) => {
                    answer.body = blob[from..].to_vec();
                    answer.status = "206 Partial Content";
                }
                None => answer.cut = Some(size / 2),
            }
        }
        answer
    });
    let host = host(Registries::default());
    let name = Reference::parse(&format!("{address}/app:1")).unwrap();
    let (sender, mut messages) = tokio::sync::mpsc::channel(1_000);
    let (store, from) = (host.store.clone(), name.clone());
    let first = tokio::spawn(async move {
        store.pull(&from, false, &Platform::host(), None, &ProgressSender::new(sender)).await
    });
    // The client leaves while the daemon waits for its next try.
    while let Some(message) = messages.recv().await {
        if line(&message).contains("Retrying in") {
            break;
        }
    }
    // What a pull is at is nobody's to remove.
    assert_eq!(
        (host.store.downloads_size().unwrap(), host.store.prune_downloads().unwrap().bytes),
        (0, 0)
    );
    first.abort();
    let _ = first.await;
    assert_eq!(host.store.downloads_size().unwrap(), size as u64 / 2);
    host.pull(&name, None).await.0.unwrap();
    assert!(
        asked.lock().unwrap().iter().any(|line| line.ends_with(&format!("bytes={}-", size / 2))),
        "{asked:?}"
    );
    assert_eq!(host.store.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_abandoned_pull_leaves_can_be_pruned() {
    let content = held(true);
    let (size, blob) = (content.blob.len(), content.blob.clone());
    let (address, _) = scripted(move |path, _| {
        let mut answer = serve(&content, path);
        if answer.body == blob {
            answer.cut = Some(size / 2);
        }
        answer
    });
    let host = host(Registries::default());
    host.store.reconfigure(Options { attempts_max: 1, ..Options::default() }).unwrap();
    let name = Reference::parse(&format!("{address}/app:1")).unwrap();
    host.pull(&name, None).await.0.unwrap_err();
    let pruned = host.store.prune_downloads().unwrap();
    assert_eq!((pruned.bytes, pruned.deleted.len()), (size as u64 / 2, 1));
    let left = std::fs::read_dir(host.store.root().join("download")).unwrap().count();
    assert_eq!((left, host.store.downloads_size().unwrap()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_was_promised_is_refused_and_leaves_nothing() {
    for (part, expected) in [
        ("blob", "filesystem layer verification failed for digest"),
        ("config", "image config verification failed for digest"),
        ("manifest", "manifest verification failed for digest"),
    ] {
        let content = held(false);
        let digest = Digest::of(&content.manifest);
        let (blob, config) =
            (Digest::of(&content.blob).to_string(), Digest::of(&content.config).to_string());
        let (address, _) = scripted(move |path, _| {
            let mut answer = serve(&content, path);
            let wrong = match part {
                "blob" => path.ends_with(&blob),
                "config" => path.ends_with(&config),
                _ => path.contains("/manifests/"),
            };
            if wrong {
                let last = answer.body.len() - 2;
                answer.body[last] = b' ';
            }
            answer
        });
        let host = host(Registries::default());
        let name = Reference::parse(&format!("{address}/app@{digest}")).unwrap();
        let error = host.pull(&name, None).await.0.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{part}: {error}");
        assert!(host.store.list().is_empty());
        for left in ["layers", "images", "download"] {
            assert_eq!(
                std::fs::read_dir(host.store.root().join(left)).unwrap().count(),
                0,
                "{part}: {left}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_where_the_registry_says() {
    let content = held(false);
    let (tokens, _) = scripted(|path, headers| {
        let good =
            headers.get("authorization").map(String::as_str) == Some("Basic dXNlcjpzZWNyZXQ=");
        assert!(
            path.contains("scope=repository%3Aapp%3Apull") && path.contains("service=s"),
            "{path}"
        );
        if path.contains("account=endless") {
            return answer(
                "200 OK",
                format!("{{\"token\":\"{}\"}}", "t".repeat(2 << 20)).as_bytes(),
            );
        }
        match good {
            true => answer("200 OK", br#"{"token":"t0"}"#),
            false => answer("401 Unauthorized", br#"{"details":"incorrect username or password"}"#),
        }
    });
    let (address, _) = scripted(move |path, headers| {
        match headers.get("authorization").map(String::as_str) {
            Some("Bearer t0") => serve(&content, path),
            _ => {
                let mut refusal = answer("401 Unauthorized", b"");
                let challenge = format!(
                    "Bearer realm=\"http://{tokens}/token\",service=\"s\",scope=\"repository:app:pull\""
                );
                refusal.headers.push(("WWW-Authenticate".into(), challenge));
                refusal
            }
        }
    });
    let host = host(Registries::default());
    let name = Reference::parse(&format!("{address}/app:1")).unwrap();
    let error = host.pull(&name, Some(&login("user", "wrong"))).await.0.unwrap_err();
    // Not 401: the docker command would ask its user for another login.
    assert_eq!(error.kind(), crate::Kind::System);
    assert!(error.to_string().contains("unauthorized: "), "{error}");
    let error = host.pull(&name, Some(&login("endless", "secret"))).await.0.unwrap_err();
    assert!(error.to_string().contains("1048576 bytes where a token belongs"), "{error}");
    host.pull(&name, Some(&login("user", "secret"))).await.0.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_a_tag_is_pulled_as_latest_and_found_by_itself() {
    let content = held(false);
    let (mirror, asked) = scripted(move |path, _| serve(&content, path));
    let host =
        host(Registries { mirrors: vec![format!("http://{mirror}")], ..Registries::default() });
    let name = Reference::parse("busybox").unwrap();
    let nobody = ProgressSender::nobody();
    host.store.pull(&name, false, &Platform::host(), None, &nobody).await.unwrap();
    assert_eq!(asked.lock().unwrap()[0], "/v2/library/busybox/manifests/latest");
    assert_eq!(host.store.resolve("busybox").unwrap().repo_tags, ["busybox:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_statuses_are_told() {
    let content = held(false);
    let (mirror, asked) = scripted(move |path, _| serve(&content, path));
    let host =
        host(Registries { mirrors: vec![format!("http://{mirror}")], ..Registries::default() });
    host.pull(&Reference::parse("busybox:1").unwrap(), None).await.0.unwrap();
    assert_eq!(asked.lock().unwrap()[0], "/v2/library/busybox/manifests/1");
    assert_eq!(host.store.resolve("busybox:1").unwrap().repo_tags, ["busybox:1"]);

    for (status, body, kind, expected) in [
        (
            "500 Internal Server Error",
            "",
            crate::Kind::System,
            "received unexpected HTTP status: 500 Internal Server Error",
        ),
        (
            "403 Forbidden",
            r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
            crate::Kind::NotFound,
            "pull access denied for",
        ),
        (
            "404 Not Found",
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}"#,
            crate::Kind::NotFound,
            "repository ",
        ),
        ("200 OK", "{}", crate::Kind::System, "manifest: "),
        ("429 Too Many Requests", "", crate::Kind::System, "toomanyrequests: too many requests"),
        (
            "200 OK",
            r#"{"schemaVersion":1}"#,
            crate::Kind::NotSupported,
            "not supported by skep yet",
        ),
    ] {
        let (address, _) = scripted(move |_, _| answer(status, body.as_bytes()));
        let error = host
            .pull(&Reference::parse(&format!("{address}/app:1")).unwrap(), None)
            .await
            .0
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

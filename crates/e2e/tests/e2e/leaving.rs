//! A client that leaves in the middle of a request: what was asked for whole is done whole, what was not asked for to the
//! end changes nothing, and nothing is left behind that nobody knows.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use e2e::hosts_of_skep;
use lab::Host;
use lab::host::wait_until;

use crate::crash::{OPERATIONS, Operation, Rig, SETTLE_MAX, is};

/// What a client sends to have an operation of [`OPERATIONS`] done, or [`FURTHER`].
const REQUESTS: [(&str, &str, &str); 7] = [
    (
        "create",
        "POST /containers/create?name=victim",
        r#"{"Image":"httpd","Volumes":{"/www":{}},"HostConfig":{"Binds":["fast:/fast"],"PortBindings":{"80/tcp":[{"HostPort":"8081"}]}}}"#,
    ),
    ("start", "POST /containers/victim/start", ""),
    ("stop", "POST /containers/victim/stop?t=30", ""),
    ("remove", "DELETE /containers/victim?force=1&v=1", ""),
    ("pull", "POST /images/create?fromImage=127.0.0.1:5000/app&tag=1", ""),
    ("commit", "POST /commit?container=victim&repo=127.0.0.1:5000/app&tag=1", "{}"),
    ("connect", "POST /networks/aside/connect", r#"{"Container":"victim"}"#),
];

const FURTHER: Operation = Operation {
    name: "connect",
    before: |host| host.dk("run -d --name victim httpd").map(drop),
    command: "network connect aside victim",
    acknowledged: |host| {
        is(host, "network inspect -f {{range.Containers}}{{.Name}}{{end}} aside", "victim")?;
        host.dk("exec victim ip addr show eth1").map(drop)
    },
};

/// How much of a request is sent before the client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    Half,
    Whole,
    /// And the first bytes of the answer are read.
    WholeAndHeard,
}

#[test]
fn a_client_that_leaves_leaves_nothing_half_done() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    host.dk("network create aside")?;
    let rig = Rig::make(host)?;
    let mut failed = Vec::new();
    for (name, request, body) in REQUESTS {
        let mut all = [&FURTHER].into_iter().chain(&OPERATIONS);
        let operation = all.find(|operation| operation.name == name);
        let operation = operation.context(name)?;
        for sent in [Sent::Half, Sent::Whole, Sent::WholeAndHeard] {
            let done = leave(&rig, operation, request, body, sent);
            if let Err(error) = done.with_context(|| format!("{name}, {sent:?}")) {
                eprintln!("FAILED {error:#}");
                failed.push(format!("{error:#}"));
                rig.clear()?;
            }
        }
    }
    if let Err(error) = leave_an_exec(host) {
        failed.push(format!("exec: {error:#}"));
    }
    match failed.is_empty() {
        true => lab.down(),
        false => bail!("{}\n{}", failed.join("\n"), host.log_tail(30)),
    }
}

fn leave(rig: &Rig, operation: &Operation, request: &str, body: &str, sent: Sent) -> Result<()> {
    let host = rig.host;
    (operation.before)(host)?;
    let before = rig.seen()?;
    send(host, request, body, "", sent)?;
    match sent {
        // Nobody knows when nothing happens: the next request of the same daemon is answered, and then it has not.
        Sent::Half => {
            host.dk("version")?;
            ensure!((operation.acknowledged)(host).is_err(), "half a request was carried out");
            let after = rig.seen()?;
            ensure!(after == before, "half a request changed {before:?} to {after:?}");
        }
        // A pull is for the one who waits for it.
        _ if operation.name == "pull" => {}
        _ => wait_until(SETTLE_MAX, || Ok((operation.acknowledged)(host).is_ok()))
            .with_context(|| format!("not done: {:?}", (operation.acknowledged)(host)))?,
    }
    // The next pull goes on where this one was left.
    let kept = |thing: &String| operation.name == "pull" && thing.starts_with("downloads: ");
    wait_until(SETTLE_MAX, || Ok(rig.unexplained()?.iter().all(kept)))
        .with_context(|| format!("left behind: {:?}", rig.unexplained()))?;
    rig.survivor_is_well()?;
    // The user tries again.
    let again = host.try_docker(&rig.words(operation))?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    let fine = ["already in use by container", "No such container", "already exists in network"];
    ensure!(
        again.status.success() || fine.iter().any(|text| said.contains(text)),
        "the second try: {said}"
    );
    (operation.acknowledged)(host).context("after the second try")?;
    rig.clear()?;
    rig.compare()
}

fn send(host: &Host, request: &str, body: &str, headers: &str, sent: Sent) -> Result<()> {
    let mut client = UnixStream::connect(host.folder.join("docker.sock"))?;
    client.set_read_timeout(Some(SETTLE_MAX))?;
    let length = body.len();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: docker\r\n{headers}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let text = if sent == Sent::Half { &text[..text.len() - length / 2 - 2] } else { &text };
    client.write_all(text.as_bytes())?;
    if sent == Sent::WholeAndHeard {
        client.read_exact(&mut [0; 8])?;
    }
    Ok(())
}

/// An exec runs, or may be started still.
fn leave_an_exec(host: &Host) -> Result<()> {
    host.dk("run -d --name victim httpd")?;
    for (number, sent) in [Sent::Half, Sent::Whole, Sent::WholeAndHeard].into_iter().enumerate() {
        let config = format!(r#"{{"Cmd":["touch","/tmp/{number}"],"AttachStdout":true}}"#);
        let (status, answer) = host.api("POST", "/containers/victim/exec", &config)?;
        ensure!(status == 201, "{answer}");
        let id = answer.split('"').nth(3).context("an id")?.to_owned();
        let upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
        let start = format!("POST /exec/{id}/start");
        send(host, &start, r#"{"Detach":false}"#, upgrade, sent)?;
        let touched = || host.dk(&format!("exec victim ls /tmp/{number}")).is_ok();
        let settled = || -> Result<bool> {
            let (_, state) = host.api("GET", &format!("/exec/{id}/json"), "")?;
            if state.contains(r#""ExitCode":0"#) {
                return Ok(touched());
            }
            // Not begun: it is there for another start, which is refused while the first one may still come.
            send(host, &start, "{}", upgrade, Sent::WholeAndHeard)?;
            Ok(false)
        };
        if sent == Sent::Half {
            let (_, state) = host.api("GET", &format!("/exec/{id}/json"), "")?;
            ensure!(state.contains(r#""ExitCode":null"#), "half a request: {state}");
        }
        wait_until(SETTLE_MAX, settled).with_context(|| format!("{sent:?}"))?;
    }
    // What a client without `Upgrade` is refused, and a wrong body, use nothing up.
    let config = r#"{"Cmd":["echo","ran"],"AttachStdout":true}"#;
    let (_, answer) = host.api("POST", "/containers/victim/exec", config)?;
    let id = answer.split('"').nth(3).context("an id")?.to_owned();
    let start = format!("/exec/{id}/start");
    ensure!(host.api("POST", &start, r#"{"Tty":3}"#)?.0 == 400, "a wrong body");
    ensure!(host.api("POST", &start, "{}")?.0 == 400, "without an upgrade");
    let upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
    send(host, &format!("POST {start}"), "{}", upgrade, Sent::WholeAndHeard)?;
    wait_until(SETTLE_MAX, || {
        let (_, state) = host.api("GET", &format!("/exec/{id}/json"), "")?;
        Ok(state.contains(r#""ExitCode":0"#))
    })
    .context("a start that was refused uses the exec up")?;
    host.dk("rm -f victim").map(drop)
}

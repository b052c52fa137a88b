//! What the end-to-end tests share: one lab for each group of cases, and how an answer is judged.

pub mod dns;
pub mod load;
pub mod registry;
pub mod terminal;
pub mod transcript;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

/// `hosts` hosts with the document's image and no swarm. `E2E_ENGINE=dockerd` runs the same cases
/// against the Docker Engine, which is how a case shows that it asks for what Docker does.
pub fn hosts(count: usize) -> Result<Lab> {
    hosts_with(count, |_| ())
}

/// The same, planned otherwise.
pub fn hosts_with(count: usize, change: impl FnOnce(&mut Plan)) -> Result<Lab> {
    let mut plan = Plan::skep(count)?;
    if std::env::var("E2E_ENGINE").is_ok_and(|engine| engine == "dockerd") {
        plan.engines = vec![Engine::Dockerd; count];
    }
    change(&mut plan);
    hosts_of(&plan)
}

/// Like [`hosts`], for what only skep promises.
pub fn hosts_of_skep(count: usize) -> Result<Lab> {
    hosts_of(&Plan::skep(count)?)
}

/// Hosts as a plan has them, with the document's image and no swarm.
pub fn hosts_of(plan: &Plan) -> Result<Lab> {
    let lab = Lab::up(plan)?;
    lab.import_httpd("httpd:latest")?;
    Ok(lab)
}

/// Hosts with both families of addresses in one swarm, managed by the first, for what only skep
/// promises. Their counters are on port 9323 of the loopback.
pub fn swarm_of_skep(count: usize, change: impl FnOnce(&mut Plan)) -> Result<Lab> {
    let mut plan = Plan { ipv6: true, ..Plan::skep(count)? };
    plan.daemon_args = vec!["--metrics-addr".into(), "127.0.0.1:9323".into()];
    change(&mut plan);
    let lab = hosts_of(&plan)?;
    lab.swarm(1)?;
    Ok(lab)
}

/// Hosts of skep in a swarm that the first one manages, with an image `load` whose server on port 80
/// answers with its hostname, and on the first a container `caller` on the network `web`.
pub fn hosts_with_caller(count: usize) -> Result<Lab> {
    let lab = hosts_of_skep(count)?;
    lab.import_program("load", r#"CMD ["load","serve","80"]"#)?;
    lab.swarm(1)?;
    let host = lab.host(1);
    host.dk("network create -d overlay --attachable web")?;
    host.dk("run -d --name caller --network web httpd")?;
    Ok(lab)
}

/// Runs `docker <line>` and wants it to fail with a message that holds `expected`.
pub fn refused(host: &Host, line: &str, expected: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = host.try_docker(&words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        bail!("docker {line}: accepted, expected a refusal with: {expected}");
    }
    if !said.contains(expected) {
        bail!("docker {line}: expected {expected:?} in: {said}");
    }
    Ok(())
}

/// Runs `docker <line>` and wants exactly `expected`.
pub fn answers(host: &Host, line: &str, expected: &str) -> Result<()> {
    let answer = host.dk(line)?;
    if answer != expected {
        bail!("docker {line}: expected {expected:?}, got {answer:?}");
    }
    Ok(())
}

/// The page behind `http://<address>/`, asked for on the host; a server that was just started may need a moment.
pub fn page(host: &Host, address: &str) -> Result<()> {
    let mut answer = String::new();
    wait_until(Duration::from_secs(30), || {
        let asked = host.sh(&format!("curl -sS -g --max-time 5 http://{address}/"));
        answer = asked.unwrap_or_else(|error| error.to_string());
        Ok(answer == lab::image::IT_WORKS)
    })
    .with_context(|| format!("{address}: {answer}"))
}

/// Until a container reaches another by its name or address: what is said on the gossip comes in parts.
pub fn until_pinged(host: &Host, container: &str, words: &[&str]) -> Result<()> {
    let words = [&["exec", container, "ping", "-W", "1"], words].concat();
    let mut said = String::new();
    wait_until(Duration::from_secs(20), || {
        let ping = host.try_docker(&words)?;
        said = String::from_utf8_lossy(&[ping.stdout, ping.stderr].concat()).into_owned();
        Ok(said.contains(" 0% packet loss"))
    })
    .with_context(|| format!("docker {}: {said}", words.join(" ")))
}

/// Who the server sees when the client asks; a datagram that is lost is sent again.
pub fn heard(client: &UdpSocket, to: SocketAddr, server: &UdpSocket) -> Result<SocketAddr> {
    let question = format!("question from {} to {to}", client.local_addr()?);
    server.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut seen = None;
    wait_until(Duration::from_secs(20), || {
        client.send_to(question.as_bytes(), to)?;
        let mut buffer = [0; 128];
        // One of an earlier client may come late.
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            if buffer[..length] == *question.as_bytes() {
                seen = Some(from);
                break;
            }
        }
        Ok(seen.is_some())
    })?;
    seen.context("no question")
}

/// A running task of the service on this host.
pub fn task_on(host: &Host, service: &str) -> Result<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let tasks = host.docker(&["ps", "-q", "--filter", &filter])?;
    Ok(tasks.lines().next().with_context(|| format!("no task of {service} here"))?.to_owned())
}

/// Runs every case and reports all that failed, each by its name.
pub fn cases(lab: &Lab, cases: &[(&str, fn(&Lab) -> Result<()>)]) -> Result<()> {
    let mut failed = Vec::new();
    for (name, case) in cases {
        if let Err(error) = case(lab).with_context(|| (*name).to_owned()) {
            eprintln!("FAILED {error:#}");
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {} cases failed: {}\n{}",
        failed.len(),
        cases.len(),
        failed.join(", "),
        lab.host(1).log_tail(20)
    );
}

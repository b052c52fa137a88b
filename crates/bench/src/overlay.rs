//! What the overlay carries, beside the hosts' own network and beside the Docker Engine's overlay.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::command::run as run_command;
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};
use serde_json::Value;

use crate::figures::{Report, seconds};

mod endpoints;
mod growth;
mod starts;

const ROUNDS: usize = 5;
/// With eight streams on few cores one sample may be twice another.
const THROUGHPUT_ROUNDS: usize = 9;
const CONNECTING_ROUNDS: usize = 11;
const CONNECTING_SECONDS: f64 = 0.2;
/// One client keeps one core busy: what is its own part of the work would decide, rather than all of it.
const CONNECTING_CLIENTS: usize = 2;
const PORTS: &str = "net.ipv4.ip_local_port_range=1024 65535";
const NO_IPVS: &str = "its virtual addresses need IPVS, which this kernel lacks";

/// One pair of hosts with a container each on an attachable overlay.
struct Pair {
    lab: Lab,
    target: String,
}

/// What becomes of the figures with the number of endpoints, on hosts without an engine.
pub fn growth(_skep: &Path, report: &mut Report) -> Result<()> {
    endpoints::applied(report)?;
    growth::measured(report)
}

pub fn run(skep: &Path, report: &mut Report) -> Result<()> {
    let ours = pair(Engine::Skep, skep)?;
    let theirs = pair(Engine::Dockerd, skep)?;
    let pairs = [&ours, &theirs];
    for streams in [1, 8] {
        let mut samples = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..THROUGHPUT_ROUNDS {
            samples[0].push(throughput(&ours, streams)?);
            samples[1].push(throughput(&theirs, streams)?);
            samples[2].push(host_throughput(&ours.lab, streams)?);
        }
        let [a, b, direct] = samples;
        report.add(&format!("overlay TCP, {streams} streams"), "Gbit/s", a, Ok(b));
        report.add(
            &format!("host to host TCP, {streams} streams"),
            "Gbit/s",
            direct.clone(),
            Ok(direct),
        );
    }
    let mut rtt = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (pair, list) in pairs.iter().zip(&mut rtt) {
            list.push(round_trip(pair)?);
        }
    }
    let [a, b] = rtt;
    report.add("overlay round trip", "us", a, Ok(b));
    packets(&ours, &theirs, report)?;
    names(&ours, &theirs, report)?;
    balanced(&ours.lab, report)?;
    propagation(&ours, &theirs, report)?;
    starts::reached([&ours, &theirs], report)?;
    names_while_dead(&ours, report)
}

fn pair(engine: Engine, skep: &Path) -> Result<Pair> {
    let plan = Plan { engines: vec![engine; 2], skep: skep.to_path_buf(), ..Plan::skep(2)? };
    let lab = Lab::up(&plan)?;
    lab.import_httpd("httpd:latest")?;
    lab.swarm(1)?;
    lab.host(1).dk("network create -d overlay --attachable web")?;
    for host in &lab.hosts {
        let name = format!("c{}", host.number);
        host.dk(&format!("run -d --name {name} --network web httpd"))?;
    }
    let format = "{{(index .NetworkSettings.Networks \"web\").IPAddress}}";
    let target = lab.host(2).docker(&["inspect", "-f", format, "c2"])?;
    let pair = Pair { lab, target };
    wait_until(Duration::from_secs(20), || {
        let ping = ["exec", "c1", "ping", "-c1", "-W1", &pair.target];
        Ok(pair.lab.host(1).try_docker(&ping)?.status.success())
    })
    .context("the containers do not reach each other")?;
    Ok(pair)
}

/// iperf3 runs from the machine inside the containers' network namespaces.
fn throughput(pair: &Pair, streams: usize) -> Result<f64> {
    let server = inside_container(pair.lab.host(2), "c2")?;
    let client = inside_container(pair.lab.host(1), "c1")?;
    rate(&iperf(&server, &tcp(&client, &pair.target, streams))?)
}

fn host_throughput(lab: &Lab, streams: usize) -> Result<f64> {
    let enter = |host: &Host| format!("nsenter -t {} -n", host.init_pid());
    let client = tcp(&enter(lab.host(1)), &lab.host(2).address, streams);
    rate(&iperf(&enter(lab.host(2)), &client)?)
}

fn tcp(client: &str, target: &str, streams: usize) -> String {
    format!("{client} iperf3 -c {target} -t 2 -P {streams} -f g")
}

fn inside_container(host: &Host, name: &str) -> Result<String> {
    let pid = host.dk(&format!("inspect -f {{{{.State.Pid}}}} {name}"))?;
    Ok(format!("nsenter -t {} -p -m -- nsenter -t {pid} -n", host.init_pid()))
}

/// What the client says, once the server listens.
fn iperf(server: &str, client: &str) -> Result<String> {
    let mut server = lab::command::words(&format!("{server} iperf3 -s -1"));
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut said = String::new();
    wait_until(Duration::from_secs(10), || {
        let answer = run_command(&mut lab::command::words(client));
        said = answer.as_ref().cloned().unwrap_or_default();
        Ok(answer.is_ok())
    })?;
    server.wait()?;
    Ok(said)
}

fn rate(said: &str) -> Result<f64> {
    let line =
        said.lines().rfind(|line| line.contains("receiver")).context("iperf3 said nothing")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "Gbits/sec").context("no rate")?;
    words[at - 1].parse().context("no number")
}

fn round_trip(pair: &Pair) -> Result<f64> {
    average_rtt(&inside_container(pair.lab.host(1), "c1")?, &pair.target)
}

/// In microseconds.
fn average_rtt(place: &str, target: &str) -> Result<f64> {
    let ping = format!("{place} ping -q -i 0.002 -c 500 {target}");
    let said = run_command(&mut lab::command::words(&ping))?;
    let line = said.lines().find(|line| line.starts_with("rtt")).context("ping said nothing")?;
    let average = line.split('/').nth(4).context("no average")?;
    Ok(average.parse::<f64>()? * 1000.0)
}

/// Small datagrams that arrive, on the overlays and between the hosts.
fn packets(ours: &Pair, theirs: &Pair, report: &mut Report) -> Result<()> {
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (turn, pair) in [ours, theirs].into_iter().enumerate() {
            let server = inside_container(pair.lab.host(2), "c2")?;
            let client = inside_container(pair.lab.host(1), "c1")?;
            samples[turn].push(arriving(&server, &client, &pair.target)?);
        }
        let [one, two] = [1, 2].map(|number| ours.lab.host(number));
        let enter = |host: &Host| format!("nsenter -t {} -n", host.init_pid());
        samples[2].push(arriving(&enter(two), &enter(one), &two.address)?);
    }
    let [a, b, direct] = samples;
    report.add("overlay datagrams of 64 bytes", "1/s", a, Ok(b));
    report.add("host to host datagrams of 64 bytes", "1/s", direct.clone(), Ok(direct));
    Ok(())
}

/// Datagrams a second that one side's flood brings to the other.
fn arriving(server: &str, client: &str, target: &str) -> Result<f64> {
    let program = lab::plan::binaries()?.join("load").display().to_string();
    let mut flood = lab::command::words(&format!("{client} {program} datagrams 20 {target}:5201"));
    let mut flood = flood.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let counted =
        run_command(&mut lab::command::words(&format!("{server} {program} count 5201 2")));
    // The flood ends with its standard input.
    drop(flood.stdin.take());
    flood.wait()?;
    counted?.trim().parse().context("count gave no number")
}

/// The beginning of a command in the network of a container, or of the host.
fn place(host: &Host, container: Option<&str>) -> Result<String> {
    match container {
        Some(name) => inside_container(host, name),
        None => Ok(format!("nsenter -t {} -n", host.init_pid())),
    }
}

/// What a client of the `load` program counted: it runs on the host, or in a container's network.
fn load(host: &Host, container: Option<&str>, words: &str) -> Result<Value> {
    load_at(&place(host, container)?, words)
}

fn load_at(place: &str, words: &str) -> Result<Value> {
    let program = lab::plan::binaries()?.join("load").display().to_string();
    let mut command = lab::command::words(&format!("{place} {program} {words}"));
    // A client ends when its standard input does: this one is held open until it has ended.
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let input = client.stdin.take();
    let output = client.wait_with_output()?;
    drop(input);
    let said = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&said).with_context(|| format!("load {words}: {said:?}"))
}

fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("no {name} in {report}"))
}

/// Questions for containers' names to 127.0.0.11: from programs that wait for each answer, as
/// nearly all do, and 32 at a time from two that do not.
fn names(ours: &Pair, theirs: &Pair, report: &mut Report) -> Result<()> {
    let loads = [
        ("1 asker", "askers 1 2 c1 c2"),
        ("4 askers", "askers 4 2 c1 c2"),
        ("32 at a time", "names 2 0 c1 c2"),
    ];
    let what = [("rate", "answered", "1/s"), ("p50", "p50", "us"), ("p99", "p99", "us")];
    for (load_text, words) in loads {
        let mut samples = [[(); 2]; 3].map(|two| two.map(|()| Vec::new()));
        for _ in 0..ROUNDS {
            for (turn, pair) in [ours, theirs].into_iter().enumerate() {
                let said = load(pair.lab.host(1), Some("c1"), words)?;
                for ((name, _, _), lists) in what.iter().zip(&mut samples) {
                    lists[turn].push(number(&said, name)?);
                }
            }
        }
        for ((_, text, unit), [a, b]) in what.into_iter().zip(samples) {
            report.add(&format!("names, {load_text}: {text}"), unit, a, Ok(b));
        }
    }
    Ok(())
}

/// New connections through the virtual address and the mesh, beside the task's own address. All samples of
/// one client's address together are fewer connections than it has ports, the mesh's two ways taken as one:
/// the task's kernel remembers each port for a minute, and looks for another where it is asked from it again.
fn balanced(lab: &Lab, report: &mut Report) -> Result<()> {
    let host = lab.host(1);
    lab.import_program("load", r#"CMD ["load","serve","80"]"#)?;
    host.dk("run -d --name c3 --network web httpd")?;
    host.dk("service create -q --no-resolve-image --name http --network web --replicas 1 -p 8080:80 --constraint node.role==worker load")?;
    let task = format!("{}:80", looked_up(host, "tasks.http")?);
    let vip = format!("{}:80", looked_up(host, "http")?);
    let [here, there] = [1, 2].map(|number| format!("{}:8080", lab.host(number).address));
    let ways = [
        ("new connections to a task's own address", Some("c1"), task),
        ("new connections through the virtual address", Some("c3"), vip),
        ("new connections through the mesh, by the task's host", None, there),
        ("new connections through the mesh, by the other host", None, here),
    ];
    wait_until(Duration::from_secs(20), || {
        Ok(host.sh(&format!("curl -sf --max-time 2 http://{}", ways[3].2)).is_ok())
    })?;
    for (_, from, _) in &ways {
        let mut sysctl = lab::command::words(&place(host, *from)?);
        run_command(sysctl.args(["sysctl", "-qw", PORTS]))?;
    }
    let mut samples = ways.each_ref().map(|_| Vec::new());
    for _ in 0..CONNECTING_ROUNDS {
        for ((_, from, to), list) in ways.iter().zip(&mut samples) {
            list.push(connecting(&place(host, *from)?, to)?);
        }
    }
    for ((what, _, _), list) in ways.into_iter().zip(samples) {
        report.add(what, "1/s", list, Err(NO_IPVS.into()));
    }
    host.dk("service rm http").map(drop)
}

/// New connections a second of clients that begin together.
fn connecting(place: &str, to: &str) -> Result<f64> {
    let words = format!("requests close 0 {CONNECTING_SECONDS} {to}");
    let rate = || number(&load_at(place, &words)?, "rate");
    std::thread::scope(|scope| {
        let clients = [(); CONNECTING_CLIENTS].map(|()| scope.spawn(rate));
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).sum()
    })
}

/// The last address that a name gives, as the first container sees it.
fn looked_up(host: &Host, name: &str) -> Result<String> {
    let said = host.dk(&format!("exec c1 nslookup -type=a {name}"))?;
    let address = said.lines().rev().find_map(|line| line.strip_prefix("Address: "));
    address.map(str::to_owned).with_context(|| format!("{name} has no address"))
}

/// From `service scale +1` to an answered ping of the new task, from a container of the other host.
fn propagation(ours: &Pair, theirs: &Pair, report: &mut Report) -> Result<()> {
    let mut samples = [Vec::new(), Vec::new()];
    for pair in [ours, theirs] {
        pair.lab.host(1).dk("service create -q --no-resolve-image --name grow --network web --endpoint-mode dnsrr --replicas 1 --constraint node.role==worker httpd")?;
    }
    for round in 0..ROUNDS {
        for (pair, list) in [ours, theirs].into_iter().zip(&mut samples) {
            list.push(seconds(|| scaled_until_answered(pair, round + 2))?);
        }
    }
    for pair in [ours, theirs] {
        pair.lab.host(1).dk("service rm grow")?;
    }
    let [a, b] = samples;
    report.add("scale +1 until the new task answers from the other host", "s", a, Ok(b));
    Ok(())
}

fn scaled_until_answered(pair: &Pair, count: usize) -> Result<()> {
    let host = pair.lab.host(1);
    host.dk(&format!("service scale -d grow={count}"))?;
    let script = format!(
        "for i in $(seq 2000); do set -- $(nslookup -type=a tasks.grow | sed -n 's/^Address: //p'); [ $# -ge {count} ] && for a; do ping -qc1 -W1 $a >/dev/null || continue 2; done && exit 0; done; exit 1"
    );
    host.docker(&["exec", "c1", "sh", "-c", &script]).map(drop)
}

/// The part of the questions that is answered while the daemon is dead. The Docker Engine answers none.
fn names_while_dead(ours: &Pair, report: &mut Report) -> Result<()> {
    let host = ours.lab.host(1);
    // Asked before the daemon dies: where the container is.
    let place = inside_container(host, "c1")?;
    host.kill()?;
    let program = lab::plan::binaries()?.join("load").display().to_string();
    let mut client = lab::command::words(&format!("{place} {program} names 3 500 c1 c2"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let input = client.stdin.take();
    let said: Value = serde_json::from_slice(&client.wait_with_output()?.stdout)?;
    drop(input);
    host.start()?;
    let (answered, failed) = (number(&said, "answered")?, number(&said, "failed")?);
    let part = vec![100.0 * answered / (answered + failed)];
    report.add(
        "names answered while the daemon is dead",
        "%",
        part,
        Err("its resolver is the daemon".into()),
    );
    Ok(())
}

//! What the overlay carries, beside the hosts' own network and beside the Docker Engine's overlay.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::command::run as run_command;
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

use crate::figures::{Report, seconds};

const ROUNDS: usize = 5;
const NO_IPVS: &str = "its virtual addresses need IPVS, which this kernel lacks";

/// One pair of hosts with a container each on an attachable overlay.
struct Pair {
    lab: Lab,
    target: String,
}

pub fn run(skep: &Path, report: &mut Report) -> Result<()> {
    let ours = pair(Engine::Skep, skep)?;
    let theirs = pair(Engine::Dockerd, skep)?;
    let pairs = [&ours, &theirs];
    for streams in [1, 8] {
        let mut samples = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
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
    let (vip, direct) = connections(&ours.lab)?;
    report.add("100 requests through the virtual address", "s", vip, Err(NO_IPVS.into()));
    report.add(
        "100 requests to a task's own address",
        "s",
        direct,
        Err("measured beside it".into()),
    );
    Ok(())
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
    iperf(&server, &client, &pair.target, streams)
}

fn host_throughput(lab: &Lab, streams: usize) -> Result<f64> {
    let enter = |host: &Host| format!("nsenter -t {} -n", host.init_pid());
    iperf(&enter(lab.host(2)), &enter(lab.host(1)), &lab.host(2).address, streams)
}

fn inside_container(host: &Host, name: &str) -> Result<String> {
    let pid = host.dk(&format!("inspect -f {{{{.State.Pid}}}} {name}"))?;
    Ok(format!("nsenter -t {} -p -m -- nsenter -t {pid} -n", host.init_pid()))
}

fn iperf(server: &str, client: &str, target: &str, streams: usize) -> Result<f64> {
    let mut server = lab::command::words(&format!("{server} iperf3 -s -1"));
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let line = format!("{client} iperf3 -c {target} -t 2 -P {streams} -f g");
    let mut said = String::new();
    wait_until(Duration::from_secs(10), || {
        let answer = run_command(&mut lab::command::words(&line));
        said = answer.as_ref().cloned().unwrap_or_default();
        Ok(answer.is_ok())
    })?;
    server.wait()?;
    let line =
        said.lines().rfind(|line| line.contains("receiver")).context("iperf3 said nothing")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "Gbits/sec").context("no rate")?;
    words[at - 1].parse().context("no number")
}

fn round_trip(pair: &Pair) -> Result<f64> {
    let client = inside_container(pair.lab.host(1), "c1")?;
    let said = run_command(&mut lab::command::words(&format!(
        "{client} ping -q -i 0.002 -c 500 {}",
        pair.target
    )))?;
    let line = said.lines().find(|line| line.starts_with("rtt")).context("ping said nothing")?;
    let average = line.split('/').nth(4).context("no average")?;
    Ok(average.parse::<f64>()? * 1000.0)
}

fn connections(lab: &Lab) -> Result<(Vec<f64>, Vec<f64>)> {
    let host = lab.host(1);
    host.dk("service create -q --no-resolve-image --name http --network web --replicas 2 httpd")?;
    let task = host.dk("exec c1 nslookup -type=a tasks.http")?;
    let address = task
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("Address: "))
        .context("no task")?
        .to_owned();
    let ask = |name: &str| {
        let script = format!(
            "i=0; while [ $i -lt 100 ]; do wget -qO- http://{name}/ >/dev/null || exit 1; i=$((i+1)); done"
        );
        seconds(|| host.docker(&["exec", "c1", "sh", "-c", &script]))
    };
    let mut samples = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        samples.0.push(ask("http")?);
        samples.1.push(ask(&address)?);
    }
    Ok(samples)
}

//! What becomes of the overlay's figures when a network has ten endpoints, a hundred, a thousand.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::command::{run as run_command, words};
use lab::host::wait_until;
use serde_json::Value;

use super::{arriving, average_rtt, connecting, iperf, rate, tcp};
use crate::figures::Report;

const COUNTS: [u32; 3] = [10, 100, 1_000];
const NEIGHBOURS: u64 = 8_192;
const ALONE: &str = "measured without an engine";

/// Two hosts that the `endpoints` example holds, with a server on the second.
struct Held {
    children: Vec<Child>,
    said: Value,
}

impl Held {
    fn new(count: u32) -> Result<Self> {
        let binaries = lab::plan::binaries()?;
        let program = binaries.join("examples/endpoints").display().to_string();
        let mut hosts = words(&format!("{program} hold {count}"));
        let mut hosts = hosts.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let output = hosts.stdout.take().context("no standard output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        let said = serde_json::from_str(&line).with_context(|| format!("endpoints: {line:?}"))?;
        let mut held = Self { children: vec![hosts], said };
        let load = binaries.join("load").display().to_string();
        held.children.push(words(&format!("{} {load} serve 80", held.place("far"))).spawn()?);
        let url = format!("http://{}/", held.text("virtual"));
        let ask = format!("{} curl -sf --max-time 1 {url}", held.place("near"));
        wait_until(Duration::from_secs(10), || Ok(run_command(&mut words(&ask)).is_ok()))?;
        Ok(held)
    }

    fn text(&self, name: &str) -> &str {
        self.said[name].as_str().unwrap_or_default()
    }

    fn place(&self, side: &str) -> String {
        format!("nsenter --net={}", self.text(side))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The server is killed; the hosts go when their standard input ends.
        for child in self.children.iter_mut().rev() {
            if child.stdin.take().is_none() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

/// Room for the neighbours of the machine, which all namespaces share: the engine makes it on a host, but only the
/// machine's first namespace has the switches. Given back at the end.
struct Room(Vec<(String, String)>);

impl Room {
    fn make() -> Result<Self> {
        let mut room = Self(Vec::new());
        for number in [3, 2, 1] {
            let path = format!("/proc/sys/net/ipv4/neigh/default/gc_thresh{number}");
            let before = std::fs::read_to_string(&path)?;
            if before.trim().parse::<u64>()? < NEIGHBOURS {
                std::fs::write(&path, NEIGHBOURS.to_string())?;
                room.0.push((path, before));
            }
        }
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (path, before) in &self.0 {
            let _ = std::fs::write(path, before);
        }
    }
}

type Measure = fn(&Held) -> Result<f64>;

const MEASURES: [(&str, &str, Measure); 5] = [
    ("overlay TCP, 1 streams", "Gbit/s", |held| {
        let client = tcp(&held.place("near"), held.text("endpoint"), 1);
        rate(&iperf(&held.place("far"), &client)?)
    }),
    ("overlay round trip", "us", |held| average_rtt(&held.place("near"), held.text("endpoint"))),
    ("overlay datagrams of 64 bytes", "1/s", |held| {
        arriving(&held.place("far"), &held.place("near"), held.text("endpoint"))
    }),
    ("new connections to a task's own address", "1/s", |held| {
        connecting(&held.place("near"), &format!("{}:80", held.text("endpoint")))
    }),
    ("new connections through the virtual address", "1/s", |held| {
        connecting(&held.place("near"), &format!("{}:80", held.text("virtual")))
    }),
];

pub(super) fn measured(report: &mut Report) -> Result<()> {
    let _room = Room::make()?;
    let held = COUNTS.into_iter().map(Held::new).collect::<Result<Vec<_>>>()?;
    for (what, unit, measure) in MEASURES {
        let mut samples = COUNTS.map(|_| Vec::new());
        for _ in 0..super::ROUNDS {
            for (one, list) in held.iter().zip(&mut samples) {
                list.push(measure(one)?);
            }
        }
        add(report, what, unit, samples);
    }
    let [mut rates, mut delays] = [(); 2].map(|()| COUNTS.map(|_| Vec::new()));
    for _ in 0..super::ROUNDS {
        for (place, (one, count)) in held.iter().zip(COUNTS).enumerate() {
            let (rate, p50) = names(one, count)?;
            rates[place].push(rate);
            delays[place].push(p50);
        }
    }
    add(report, "names, 1 asker: answered", "1/s", rates);
    add(report, "names, 1 asker: p50", "us", delays);
    Ok(())
}

fn add(report: &mut Report, what: &str, unit: &'static str, samples: [Vec<f64>; COUNTS.len()]) {
    for (count, list) in COUNTS.iter().zip(samples) {
        report.add(&format!("{count} endpoints: {what}"), unit, list, Err(ALONE.into()));
    }
}

/// Questions a second for so many names in turn, and the median delay in microseconds.
fn names(held: &Held, count: u32) -> Result<(f64, f64)> {
    let examples = lab::plan::binaries()?.join("examples");
    let [load, process] = ["load", "process"].map(|name| examples.join(name));
    let line =
        format!("{} {} {} 1 1 1 {count}", load.display(), process.display(), held.text("near"));
    let said = run_command(words(&line).stdin(Stdio::null()))?;
    let mut numbers = said.split(' ').filter_map(|word| word.parse().ok());
    let mut next = || numbers.next().with_context(|| format!("no figures: {said:?}"));
    Ok((next()?, next()?))
}

//! A host's cable is out while services are scaled: once it is back, what every host's kernel and
//! resolver hold is what the managers say, within ten seconds: names, neighbours, forwarding entries,
//! and where virtual addresses and published ports lead.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::hosts_of_skep;
use e2e::load::until_running;
use lab::host::wait_until;
use lab::{Host, Lab};
use serde_json::Value;

const AGREED_MAX: Duration = Duration::from_secs(10);

/// Seconds of each cut. `CUTS=100` repeats 1, 10, 30 and 120 seconds so often; the suite has three short ones.
fn lengths() -> Result<Vec<u64>> {
    match std::env::var("CUTS") {
        Ok(rounds) => Ok([1, 10, 30, 120].repeat(rounds.parse().context("CUTS")?)),
        Err(_) => Ok(vec![1, 10, 3]),
    }
}

#[test]
fn a_cut_leaves_no_trace() -> Result<()> {
    let lab = hosts_of_skep(3)?;
    lab.swarm(1)?;
    let host = lab.host(1);
    host.dk("network create -d overlay --attachable web")?;
    for at in &lab.hosts {
        at.dk(&format!("run -d --name c{} --network web httpd", at.number))?;
    }
    host.dk("service create -q --no-resolve-image --name app --network web -p 8080:80 --replicas 3 --stop-grace-period 1s httpd")?;
    until_running(host, "app", 3)?;
    agreed(&lab).context("before any cut")?;
    for (round, length) in lengths()?.into_iter().enumerate() {
        let count = if round % 2 == 0 { 6 } else { 3 };
        lab.host(3).cut()?;
        host.dk(&format!("service scale -d app={count}"))?;
        std::thread::sleep(Duration::from_secs(length));
        lab.host(3).heal()?;
        // The truth is at rest when tasks of the node that was given up run elsewhere and have ended there.
        until_running(host, "app", count)?;
        at_rest(&lab, count).context("tasks that were replaced run on")?;
        agreed(&lab).with_context(|| format!("cut {round}, of {length} s"))?;
        eprintln!("cut {round}, of {length} s: all agree");
    }
    lab.down()
}

fn at_rest(lab: &Lab, count: usize) -> Result<()> {
    wait_until(Duration::from_secs(30), || {
        let mut running = 0;
        for host in &lab.hosts {
            let filter = "ps -q --filter label=com.docker.swarm.service.name=app";
            running += host.dk(filter)?.split_whitespace().count();
        }
        Ok(running == count)
    })
}

fn agreed(lab: &Lab) -> Result<()> {
    let mut last = Ok(());
    let within = wait_until(AGREED_MAX, || {
        last = lab.hosts.iter().try_for_each(|host| check(lab, host));
        Ok(last.is_ok())
    });
    within.and(Ok(())).or(last)
}

/// What every host has to agree with.
#[derive(Default)]
struct Truth {
    /// Addresses of the service's tasks on the network, and on the ingress network.
    tasks: BTreeSet<String>,
    entered: BTreeSet<String>,
    /// Where tasks and containers are: address and host.
    places: BTreeSet<(String, usize)>,
}

fn truth(lab: &Lab) -> Result<Truth> {
    let ids = lab.host(1).dk("service ps -q --no-trunc --filter desired-state=running app")?;
    let mut truth = Truth::default();
    for host in &lab.hosts {
        for id in host.dk("ps -q")?.split_whitespace() {
            let said: Value = serde_json::from_str(&host.dk(&format!("inspect {id}"))?)?;
            let on = |network: &str| {
                let address = &said[0]["NetworkSettings"]["Networks"][network]["IPAddress"];
                address.as_str().map(str::to_owned)
            };
            let address = on("web").context("a container without address")?;
            let task = said[0]["Config"]["Labels"]["com.docker.swarm.task.id"].as_str();
            if task.is_some_and(|task| ids.contains(task)) {
                truth.tasks.insert(address.clone());
                truth.entered.extend(on("ingress"));
            }
            if task.is_none_or(|task| ids.contains(task)) {
                truth.places.insert((address, host.number));
            }
        }
    }
    Ok(truth)
}

/// One host's names, neighbours, forwarding entries and translations, against the truth.
fn check(lab: &Lab, host: &Host) -> Result<()> {
    let Truth { tasks, entered, places } = truth(lab)?;
    translations(host, &tasks, &entered)?;
    let said =
        host.docker(&["exec", &format!("c{}", host.number), "nslookup", "-type=a", "tasks.app"])?;
    let names: BTreeSet<String> =
        said.lines().filter_map(|line| line.strip_prefix("Address: ")).map(str::to_owned).collect();
    ensure!(names == tasks, "{}: names {names:?}, tasks {tasks:?}", host.name);
    let id = host.dk("network inspect -f {{.Id}} web")?;
    let netns = format!("--net={}/exec/netns/1-{}", host.folder.display(), &id[..10]);
    let neighbours =
        host.exec(&["nsenter", &netns, "ip", "-4", "neigh", "show", "nud", "permanent"])?;
    let neighbours: BTreeSet<&str> =
        neighbours.lines().filter_map(|line| line.split(' ').next()).collect();
    let forwarding = host.exec(&["nsenter", &netns, "bridge", "fdb", "show", "dev", "vxlan0"])?;
    for (address, at) in places.iter().filter(|(_, at)| *at != host.number) {
        ensure!(neighbours.contains(address.as_str()), "{}: no neighbour {address}", host.name);
        let octets = address.split('.').map(|octet| octet.parse::<u8>());
        let octets = octets.collect::<Result<Vec<u8>, _>>()?;
        let mac = octets.iter().fold("02:42".to_owned(), |mac, octet| format!("{mac}:{octet:02x}"));
        let entry = format!("{mac} dst {} ", lab.host(*at).address);
        ensure!(forwarding.contains(&entry), "{}: no entry {entry}in {forwarding}", host.name);
    }
    let own =
        places.iter().filter(|(_, at)| *at == host.number).map(|(address, _)| address.as_str());
    let stale: Vec<&str> = own.filter(|address| neighbours.contains(address)).collect();
    ensure!(stale.is_empty(), "{}: neighbours that are here: {stale:?}", host.name);
    // Beside the endpoints only the other nodes' own addresses on the network are neighbours.
    let endpoints = places.iter().filter(|(_, at)| *at != host.number).count();
    ensure!(
        neighbours.len() < endpoints + lab.hosts.len(),
        "{}: neighbours {neighbours:?}, endpoints {places:?}",
        host.name
    );
    Ok(())
}

/// Where a caller's virtual address and the host's published port lead.
fn translations(host: &Host, tasks: &BTreeSet<String>, entered: &BTreeSet<String>) -> Result<()> {
    let caller = host.netns_of(&format!("c{}", host.number))?;
    let mesh = format!("{}/exec/netns/ingress_sbox", host.folder.display());
    for (netns, wanted) in [(caller, tasks), (mesh, entered)] {
        let netns = format!("--net={netns}");
        let table = host.exec(&["nsenter", &netns, "nft", "list", "table", "inet", "skep"])?;
        // The container's resolver is led to by the same kind of rule, within the loopback.
        let led = table.lines().filter_map(|line| line.split_once("dnat ip to "));
        let addresses = led.flat_map(|(_, to)| to.split([' ', ',', ':']));
        let found: BTreeSet<String> = addresses
            .filter_map(|word| word.parse::<Ipv4Addr>().ok())
            .filter(|address| !address.is_loopback())
            .map(|address| address.to_string())
            .collect();
        ensure!(found == *wanted, "{}: {netns} leads to {found:?}, not {wanted:?}", host.name);
    }
    Ok(())
}

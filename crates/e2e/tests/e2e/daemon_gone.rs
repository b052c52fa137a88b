//! A daemon dies in the middle of something, is stopped, restarted or replaced by another program,
//! while connections and pings go on through its host: none is lost that would not have been lost
//! anyway, no address changes, nothing of what was cut off stays behind.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::hosts_of;
use e2e::load::{Client, From, until_running, virtual_address};
use lab::command::sh;
use lab::host::wait_until;
use lab::{Host, Lab, Plan};

const SERVER: &str = r#"CMD ["load","serve","80"]"#;
/// Requests a second of each client.
const RATE: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(60);

/// What goes on, and the host whose daemon dies in it.
type Moment = (&'static str, usize, fn(&Lab, &dyn Fn() -> Result<()>) -> Result<()>);

const MOMENTS: &[Moment] = &[
    ("while a service scales", 2, scale),
    ("while an update runs", 2, update),
    ("while a peer leaves", 2, peer_leaves),
    ("while networks are made", 1, networks),
    ("while containers start", 2, containers),
    ("while a container changes networks", 2, connections),
];

#[test]
fn a_daemon_that_goes_is_not_missed() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("skep-gone-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let tried = lived_through(&folder.join("skep"));
    fs::remove_dir_all(&folder)?;
    tried
}

fn lived_through(program: &std::path::Path) -> Result<()> {
    let mut plan = Plan::skep(4)?;
    fs::copy(&plan.skep, program)?;
    let newer = std::mem::replace(&mut plan.skep, program.to_owned());
    let lab = hosts_of(&plan)?;
    lab.import_program("load", SERVER)?;
    lab.swarm(1)?;
    let host = lab.host(1);
    host.dk("network create -d overlay --attachable web")?;
    host.dk("network create -d overlay --attachable other")?;
    for at in &lab.hosts[..3] {
        at.dk(&format!("run -d --name c{} --network web httpd", at.number))?;
    }
    host.dk("service create -q --no-resolve-image --detach --name app --network web --constraint node.hostname!=sathish-vm4 --replicas 3 --replicas-max-per-node 2 -p 8080:80 load")?;
    until_running(host, "app", 3)?;
    reach_each_other(&lab)?;
    let second = lab.host(2);
    // One moment alone: MOMENT=update
    let only = std::env::var("MOMENT").ok();
    for (name, number, change) in MOMENTS {
        if only.as_ref().is_some_and(|word| !name.contains(word)) {
            continue;
        }
        let dying = lab.host(*number);
        through(&lab, name, |die| change(&lab, die), &|| {
            dying.kill().and_then(|()| dying.start())
        })?;
    }
    if only.is_some() {
        return lab.down();
    }
    let away = if std::env::var_os("E2E_LONG").is_some() { 60 } else { 3 };
    let stopped = || {
        second.stop()?;
        std::thread::sleep(Duration::from_secs(away));
        second.start()
    };
    through(&lab, "stopped for a while", |die| die(), &stopped)?;
    through(&lab, "restarted", |die| die(), &|| second.stop().and_then(|()| second.start()))?;
    let lost = under_load(&lab, || update_meanwhile(host, second))?;
    ensure!(lost == Lost::default(), "an update that begins while a daemon is away: {lost:?}");
    let upgraded = || {
        // As a package manager does: a new file takes the name, the old one lives on while it is used.
        let draft = program.with_extension("new");
        fs::copy(&newer, &draft)?;
        let mut file = fs::OpenOptions::new().append(true).open(&draft)?;
        std::io::Write::write_all(&mut file, b"newer")?;
        drop(file);
        fs::rename(&draft, program)?;
        second.stop().and_then(|()| second.start())
    };
    through(&lab, "upgraded", |die| die(), &upgraded)?;
    nothing_stays(&lab)?;
    lab.down()
}

/// What is lost from here on is lost by the daemon's end, not by containers that are new to the others.
fn reach_each_other(lab: &Lab) -> Result<()> {
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        let (at, asked) = (format!("c{from}"), format!("c{to}"));
        let words = ["exec", &at, "ping", "-c1", "-W1", &asked];
        wait_until(PATIENCE, || Ok(lab.host(from).try_docker(&words)?.status.success()))
            .with_context(|| format!("{at} does not reach {asked}"))?;
    }
    Ok(())
}

/// What was lost by those that went on meanwhile.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Lost {
    requests: u64,
    pings: u64,
}

type Die<'a> = &'a dyn Fn() -> Result<()>;

/// With the daemon's end in the middle of a change no more is lost than without it.
fn through(lab: &Lab, name: &str, change: impl Fn(Die) -> Result<()>, die: Die) -> Result<()> {
    let before = addresses(lab)?;
    let lost = under_load(lab, || change(die)).with_context(|| name.to_owned())?;
    let after = addresses(lab)?;
    for (container, was) in &before {
        let is = after.get(container).unwrap_or(was);
        ensure!(is == was, "{name}: {container} had {was}, and now {is}");
    }
    if lost > Lost::default() {
        let anyway = under_load(lab, || change(&|| Ok(())))?;
        let no_more = lost.requests <= anyway.requests && lost.pings <= anyway.pings;
        ensure!(no_more, "{name}: {lost:?}, without {anyway:?}");
    }
    eprintln!("{name}: {lost:?}");
    wait_until(PATIENCE, || Ok(lab.host(1).dk("node ls")?.matches("Ready").count() == 4))
        .with_context(|| lab.host(1).dk("node ls").unwrap_or_default())?;
    until_running(lab.host(1), "app", 3)
}

/// Running containers and their addresses.
fn addresses(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for host in &lab.hosts {
        let format = "{{.State.Running}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        for id in host.dk("ps -q --no-trunc")?.split_whitespace() {
            // One that has ended since it was listed has none, or is gone.
            let seen = host.try_docker(&["inspect", "-f", format, id])?.stdout;
            if let Some(addresses) = String::from_utf8_lossy(&seen).strip_prefix("true ") {
                ensure!(!addresses.trim().is_empty(), "{id} runs without an address");
                found.insert(id.to_owned(), addresses.trim().to_owned());
            }
        }
    }
    Ok(found)
}

fn under_load(lab: &Lab, change: impl FnOnce() -> Result<()>) -> Result<Lost> {
    let (host, second) = (lab.host(1), lab.host(2));
    let vip = format!("{}:80", virtual_address(host, "app", "web")?);
    let mesh = format!("{}:8080", second.address);
    let clients = [
        Client::requests(&From::Container(host, "c1"), "close", RATE, &vip)?,
        Client::requests(&From::Container(second, "c2"), "keep", RATE, &vip)?,
        Client::requests(&From::Host(lab.host(3)), "close", RATE, &mesh)?,
        Client::requests(&From::Host(lab.host(3)), "keep", RATE, &mesh)?,
    ];
    let pings = [
        Pings::start(host, "c1", second, "c2")?,
        Pings::start(second, "c2", lab.host(3), "c3")?,
        Pings::start(lab.host(3), "c3", host, "c1")?,
    ];
    change()?;
    std::thread::sleep(Duration::from_millis(500));
    let mut lost = Lost::default();
    for client in clients {
        let report = client.end()?;
        ensure!(report["answered"].as_u64() >= Some(10), "too few: {report}");
        lost.requests += report["failed"].as_u64().context("no count")?;
        if report["failed"] != 0 {
            eprintln!("{report}");
        }
    }
    for ping in pings {
        lost.pings += ping.lost()?;
    }
    Ok(lost)
}

/// A ping every 20 ms.
struct Pings(Child);

impl Pings {
    fn start(host: &Host, from: &str, far: &Host, to: &str) -> Result<Pings> {
        let to =
            far.dk(&format!("inspect -f {{{{.NetworkSettings.Networks.web.IPAddress}}}} {to}"))?;
        let mut ping = From::Container(host, from).command("ping")?;
        ping.args(["-q", "-i", "0.02", &to]);
        Ok(Pings(ping.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    fn lost(mut self) -> Result<u64> {
        let outer = self.0.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
        for child in children.split_whitespace() {
            sh(&format!("kill -INT {child}"))?;
        }
        let mut said = String::new();
        if let Some(out) = &mut self.0.stdout {
            std::io::Read::read_to_string(out, &mut said)?;
        }
        self.0.wait()?;
        let count = |word: &str| -> Result<u64> {
            let part = said.split([',', '\n']).find(|part| part.contains(word));
            let number = part.and_then(|part| part.split_whitespace().next());
            Ok(number.with_context(|| said.clone())?.parse()?)
        };
        let (sent, received) = (count("packets transmitted")?, count("received")?);
        ensure!(received > 10, "{said}");
        // The last one may be under way.
        Ok(sent.saturating_sub(received + 1))
    }
}

fn scale(lab: &Lab, die: Die) -> Result<()> {
    let host = lab.host(1);
    for count in [5, 3] {
        host.dk(&format!("service scale -d app={count}"))?;
        std::thread::sleep(Duration::from_millis(300));
        die()?;
        until_running(host, "app", count)?;
    }
    Ok(())
}

fn update(lab: &Lab, die: Die) -> Result<()> {
    let host = lab.host(1);
    host.dk("service update -q -d --no-resolve-image --update-order start-first --force app")?;
    std::thread::sleep(Duration::from_millis(700));
    die()?;
    wait_until(PATIENCE, || {
        Ok(host.dk("service inspect -f {{.UpdateStatus.State}} app")? == "completed")
    })?;
    until_running(host, "app", 3)
}

/// The others leave running what a host may still send to whose daemon is away.
fn update_meanwhile(host: &Host, away: &Host) -> Result<()> {
    away.stop()?;
    let state = ["node", "inspect", "-f", "{{.Status.State}}", &away.name];
    wait_until(PATIENCE, || Ok(host.docker(&state)? == "down"))?;
    until_running(host, "app", 3)?;
    host.dk("service update -q -d --no-resolve-image --update-order start-first --force app")?;
    // Time to stop what it may send to.
    std::thread::sleep(Duration::from_secs(4));
    away.start()?;
    wait_until(PATIENCE, || {
        Ok(host.dk("service inspect -f {{.UpdateStatus.State}} app")? == "completed")
    })?;
    until_running(host, "app", 3)
}

fn peer_leaves(lab: &Lab, die: Die) -> Result<()> {
    let (host, far) = (lab.host(1), lab.host(4));
    far.dk("run -d --name c4 --network web httpd")?;
    let leaving = std::thread::scope(|scope| -> Result<()> {
        let left = scope.spawn(|| far.dk("swarm leave"));
        std::thread::sleep(Duration::from_millis(100));
        die()?;
        left.join().unwrap_or_else(|_| anyhow::bail!("leave panicked")).map(drop)
    });
    leaving?;
    wait_until(PATIENCE, || Ok(host.dk("node ls")?.contains("Down")))?;
    host.dk(&format!("node rm -f {}", far.name))?;
    far.dk("rm -f c4")?;
    let token = host.dk("swarm join-token -q worker")?;
    far.dk(&format!("swarm join --token {token} {}:2377", host.address)).map(drop)
}

/// Commands one after another until they are told to end; what they say is no matter, as the daemon
/// may be gone.
fn meanwhile(die: Die, work: impl Fn(usize) + Sync) -> Result<()> {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..).take_while(|_| !over.load(std::sync::atomic::Ordering::Relaxed)) {
                work(number);
            }
        });
        std::thread::sleep(Duration::from_millis(700));
        let died = die();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        died
    })
}

fn attempt(host: &Host, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    drop(host.try_docker(&words));
}

fn networks(lab: &Lab, die: Die) -> Result<()> {
    let host = lab.host(1);
    meanwhile(die, |number| attempt(host, &format!("network create -d overlay many{number}")))?;
    for name in host.dk("network ls -q --filter name=many")?.split_whitespace() {
        host.dk(&format!("network rm {name}"))?;
    }
    Ok(())
}

fn containers(lab: &Lab, die: Die) -> Result<()> {
    let host = lab.host(2);
    meanwhile(die, |number| {
        attempt(
            host,
            &format!("run -d --name many{number} --network web -p {}:80 httpd", 9000 + number),
        );
    })?;
    for id in host.dk("ps -aq --filter name=many")?.split_whitespace() {
        host.dk(&format!("rm -f {id}"))?;
    }
    Ok(())
}

fn connections(lab: &Lab, die: Die) -> Result<()> {
    let host = lab.host(2);
    host.dk("run -d --name moving --network web httpd")?;
    meanwhile(die, |number| {
        let verb = if number % 2 == 0 { "connect" } else { "disconnect" };
        attempt(host, &format!("network {verb} other moving"));
    })?;
    // Whatever it is on now, it can be put on and taken off.
    let taken_off = host.try_docker(&["network", "disconnect", "other", "moving"])?;
    let said = String::from_utf8_lossy(&taken_off.stderr);
    let is_off = ["is not connected to network", "network other not found"];
    ensure!(taken_off.status.success() || is_off.iter().any(|text| said.contains(text)), "{said}");
    host.dk("network connect other moving")?;
    host.dk("network disconnect other moving")?;
    host.dk("rm -f moving").map(drop)
}

/// When all is removed, only the routing mesh's own is left on each host.
fn nothing_stays(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("service rm app")?;
    for at in &lab.hosts[..3] {
        at.dk(&format!("rm -f c{}", at.number))?;
    }
    let ingress = host.dk("network inspect -f {{.Id}} ingress")?;
    let wanted = format!("1-{}\ningress_sbox", &ingress[..10]);
    for at in &lab.hosts {
        let netns = at.folder.join("exec/netns").display().to_string();
        let seen = || -> Result<(String, String)> {
            let links = at.exec(&[
                "sh",
                "-c",
                "ip -o link show type veth | cut -d: -f2 | cut -d@ -f1 | sort | xargs",
            ])?;
            Ok((at.exec(&["ls", &netns])?, links))
        };
        let right = (wanted.clone(), "eth0 vethingr1 vethingr2".to_owned());
        wait_until(PATIENCE, || Ok(seen()? == right))
            .with_context(|| format!("{}: {:?}, not {right:?}", at.name, seen()))?;
    }
    host.dk("network rm web other").map(drop)
}

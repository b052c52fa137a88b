//! What nodes are trusted with: secrets where they are used alone, certificates and keys in their time.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::load::until_running;
use e2e::{hosts, hosts_of, task_on};
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_secret_is_known_only_to_nodes_that_run_a_task_with_it() -> Result<()> {
    let lab = hosts(3)?;
    lab.swarm(1)?;
    let manager = lab.host(1);
    let words = ["hush-nobody-else-Zz17", "conf-nobody-else-Zz17"];
    keep(manager, "secret", "hush", words[0])?;
    keep(manager, "config", "conf", words[1])?;
    let there = "--constraint node.hostname==sathish-vm2 --no-resolve-image";
    manager.dk(&format!(
        "service create -q -d --name user {there} --secret hush --config conf httpd"
    ))?;
    // What the other worker runs needs neither.
    let elsewhere = there.replace("vm2", "vm3");
    manager.dk(&format!("service create -q -d --name other {elsewhere} httpd"))?;
    until_running(manager, "user", 1)?;
    until_running(manager, "other", 1)?;
    let (user, other) = (lab.host(2), lab.host(3));
    let task = task_on(user, "user")?;
    let shown = user.dk(&format!("exec {task} cat /run/secrets/hush /conf"))?;
    ensure!(shown == words.concat(), "{shown}");
    for word in words {
        ensure!(in_memory(user, word)?, "the node of the task does not know {word}");
        ensure!(!in_memory(other, word)?, "the other node knows {word}");
        ensure!(!on_disk(other, word)?, "the other node has {word} on its disk");
    }
    ensure!(!on_disk(user, words[0])?, "a secret is on the disk");
    lab.down()
}

fn keep(host: &Host, kind: &str, name: &str, value: &str) -> Result<()> {
    let words = [kind, "create", name, "-"];
    let mut child = host.cli(&words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(value.as_bytes())?;
    ensure!(child.wait()?.success(), "no {kind} {name}");
    Ok(())
}

/// Whether the daemon's memory holds it.
fn in_memory(host: &Host, word: &str) -> Result<bool> {
    let inside = PathBuf::from(format!("/proc/{}/root/proc", host.init_pid()));
    let process = inside.join(host.daemon_pid()?);
    let mut memory = fs::File::open(process.join("mem"))?;
    for line in fs::read_to_string(process.join("maps"))?.lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        let Some((from, to)) = range.split_once('-') else { continue };
        if !rest.starts_with("rw") {
            continue;
        }
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut held = Vec::new();
        memory.seek(SeekFrom::Start(from))?;
        // A part that cannot be read is none that holds anything.
        let _ = (&memory).take(to - from).read_to_end(&mut held);
        if held.windows(word.len()).any(|part| part == word.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file of the host's data holds it.
fn on_disk(host: &Host, word: &str) -> Result<bool> {
    let data = host.folder.join("data");
    let found = lab::command::output(
        std::process::Command::new("sh")
            .args([
                "-c",
                "grep -rlF --devices=skip -- \"$1\" \"$2\" 2>/dev/null || true",
                "sh",
                word,
            ])
            .arg(&data),
    )?;
    Ok(!found.stdout.is_empty())
}

/// The host's wall clock shows so many minutes more from now on; its timers notice nothing.
fn set_clock(folder: &Path, minutes: u64) -> Result<()> {
    let file = folder.join("clock");
    let new = folder.join("clock.new");
    fs::write(&new, format!("+{minutes}m\n"))?;
    Ok(fs::rename(new, file)?)
}

/// Starts the host's daemon anew with a clock that can be set.
fn with_own_clock(host: &Host) -> Result<()> {
    let folders = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    let library = folders.map(|folder| folder.join("faketime/libfaketime.so.1"));
    let library = library.into_iter().find(|file| file.exists());
    let library = library.context("libfaketime is needed: apt-get install libfaketime")?;
    set_clock(&host.folder, 0)?;
    host.stop()?;
    host.start_with(
        &[],
        &[
            ("LD_PRELOAD", &library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", &host.folder.join("clock").display().to_string()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    )
}

fn certificate(host: &Host) -> Result<String> {
    Ok(fs::read_to_string(host.folder.join("data/swarm/certificates/swarm-node.crt"))?)
}

fn init(lab: &Lab, options: &str) -> Result<()> {
    let manager = lab.host(1);
    manager.dk(&format!("swarm init --advertise-addr {} {options}", manager.address))?;
    let token = manager.dk("swarm join-token -q worker")?;
    for host in &lab.hosts[1..] {
        host.dk(&format!("swarm join --token {token} {}:2377", manager.address))?;
    }
    Ok(())
}

/// One container of `name` on each host, and each can reach every other by its name.
fn pair(lab: &Lab, name: &str) -> Result<()> {
    let manager = lab.host(1);
    manager.dk(&format!("network create -d overlay {name}-net"))?;
    manager.dk(&format!(
        "service create -q -d --no-resolve-image --name {name} --mode global \
         --network {name}-net httpd"
    ))?;
    until_running(manager, name, lab.hosts.len())?;
    all_reach(lab, name)
}

fn all_reach(lab: &Lab, name: &str) -> Result<()> {
    for host in &lab.hosts {
        let task = task_on(host, name)?;
        wait_until(MINUTE, || {
            let ask = format!("exec {task} nslookup tasks.{name} 127.0.0.11");
            let found = host.dk(&ask).unwrap_or_default();
            let mine = |line: &&str| line.starts_with("Address") && line.contains("10.0.");
            let addresses: Vec<_> = found.lines().filter(mine).collect();
            Ok(addresses.len() == lab.hosts.len()
                && addresses.iter().all(|line| {
                    let address = line.split_whitespace().find(|word| word.starts_with("10.0."));
                    let ping = format!("exec {task} ping -c 1 -W 2 {}", address.unwrap_or(""));
                    host.dk(&ping).is_ok()
                }))
        })
        .with_context(|| format!("{} of {name} reaches every other", host.name))?;
    }
    Ok(())
}

#[test]
fn certificates_are_renewed_in_their_time_also_when_the_clock_was_set() -> Result<()> {
    let lab = hosts_of(&Plan::skep(2)?)?;
    lab.hosts.iter().try_for_each(with_own_clock)?;
    init(&lab, "--cert-expiry 1h")?;
    pair(&lab, "pair")?;
    // One lives from an hour before its signing to an hour after it: at 36 minutes it is due.
    for minutes in [40, 80, 120] {
        let before = lab.hosts.iter().map(certificate).collect::<Result<Vec<_>>>()?;
        lab.hosts.iter().try_for_each(|host| set_clock(&host.folder, minutes))?;
        wait_until(MINUTE * 2, || {
            let now = lab.hosts.iter().map(certificate).collect::<Result<Vec<_>>>()?;
            Ok(now.iter().zip(&before).all(|(now, before)| now != before))
        })
        .with_context(|| format!("every certificate is another one at {minutes} minutes"))?;
    }
    // The first ones have expired an hour ago.
    let manager = lab.host(1);
    wait_until(MINUTE, || {
        let nodes = manager.dk("node ls --format {{.Status}}")?;
        Ok(nodes.lines().filter(|state| *state == "Ready").count() == 2)
    })
    .context("both nodes are ready")?;
    for host in &lab.hosts {
        ensure!(
            host.dk("ps -q --filter label=com.docker.swarm.service.name=pair")?.lines().count()
                == 1
        );
    }
    all_reach(&lab, "pair")?;
    pair(&lab, "later")?;
    lab.down()
}

#[test]
fn gossip_keys_change_twice_a_day_and_every_node_follows() -> Result<()> {
    let engines = vec![Engine::Skep, Engine::Skep, Engine::Dockerd];
    let lab = hosts_of(&Plan { engines, ..Plan::skep(3)? })?;
    with_own_clock(lab.host(1))?;
    init(&lab, "")?;
    pair(&lab, "pair")?;
    // Of the first three keys none is left after three changes.
    for (number, hours) in [13, 26, 39].into_iter().enumerate() {
        set_clock(&lab.host(1).folder, hours * 60)?;
        wait_until(MINUTE, || Ok(key_sets(lab.host(1))? > number + 1))
            .with_context(|| format!("the keys change after {hours} hours"))?;
        all_reach(&lab, "pair")?;
    }
    pair(&lab, "later")?;
    lab.down()
}

/// How many sets of keys the host's gossip has had.
fn key_sets(host: &Host) -> Result<usize> {
    let log = fs::read_to_string(host.folder.join("log"))?;
    Ok(log.lines().filter(|line| line.contains("the gossip has a new key")).count())
}

/// How often a Docker Engine manager's keys change here; it has no option for its twelve hours.
const ROTATION_HERE: Duration = Duration::from_secs(15);
/// More of them than there are keys at a time: none of the first is left.
const ROTATIONS: usize = 4;

#[test]
fn gossip_keys_that_a_docker_engine_manager_changes_reach_every_node() -> Result<()> {
    let engines = vec![Engine::Dockerd, Engine::Skep, Engine::Dockerd, Engine::Skep];
    let mut plan = Plan { engines, ..Plan::skep(4)? };
    plan.daemon_args = vec!["--metrics-addr".into(), "127.0.0.1:9323".into()];
    let lab = hosts_of(&plan)?;
    with_hasty_keys(lab.host(1))?;
    init(&lab, "")?;
    lab.host(1).dk("network create -d overlay --attachable keyed")?;
    for host in &lab.hosts {
        host.dk(&format!("run -d --name on{} --network keyed httpd", host.number))?;
    }
    all_reach_by_name(&lab, &["on1", "on2", "on3", "on4"])?;
    let skeps = || lab.hosts.iter().filter(|host| host.engine == Engine::Skep);
    for rotation in 1..=ROTATIONS {
        for host in skeps() {
            wait_until(MINUTE, || Ok(key_sets(host)? > rotation))
                .with_context(|| format!("change {rotation} of the keys on {}", host.name))?;
        }
        // What is made now is told under the keys of now, by each host once.
        let (host, new) = (lab.host(rotation), format!("new{rotation}"));
        host.dk(&format!("run -d --name {new} --network keyed httpd"))?;
        all_reach_by_name(&lab, &["on1", "on2", "on3", "on4", &new])
            .with_context(|| format!("after change {rotation} of the keys"))?;
    }
    for host in skeps() {
        let dropped = gossip_counter(host, "packet_not_opened")?;
        ensure!(dropped == 0, "{} could not open {dropped} packets", host.name);
        let broken = gossip_counter(host, "stream_broken")?;
        ensure!(broken == 0, "{} could not open {broken} streams", host.name);
    }
    lab.down()
}

/// From the first container of each host, each name is one that answers.
fn all_reach_by_name(lab: &Lab, names: &[&str]) -> Result<()> {
    for host in &lab.hosts {
        for name in names {
            let ping = format!("exec on{} ping -c 1 -W 2 {name}", host.number);
            wait_until(MINUTE, || Ok(host.dk(&ping).is_ok()))
                .with_context(|| format!("{name} from {}", host.name))?;
        }
    }
    Ok(())
}

/// Starts a Docker Engine host's daemon anew from a copy of the program that has another time between
/// two changes of the keys.
fn with_hasty_keys(host: &Host) -> Result<()> {
    let program = host.exec(&["sh", "-c", "readlink -f $(command -v dockerd)"])?;
    let mut bytes = fs::read(&program).with_context(|| program.clone())?;
    let at = key_rotation(&bytes).with_context(|| program.clone())?;
    let nanos = u64::try_from(ROTATION_HERE.as_nanos())?;
    bytes[at..at + 8].copy_from_slice(&nanos.to_le_bytes());
    let copy = host.folder.join("dockerd");
    fs::write(&copy, bytes)?;
    fs::set_permissions(&copy, fs::metadata(&program)?.permissions())?;
    host.stop()?;
    // Only this host's mounts have it.
    host.exec(&["mount", "--bind", &copy.display().to_string(), &program])?;
    host.start()
}

/// Where the time between two changes of the keys is in the Docker Engine's program. Its key manager
/// alone has twelve hours (`DefaultConfig` in swarmkit/manager/keymanager), so that there is one place.
fn key_rotation(program: &[u8]) -> Result<usize> {
    const TWELVE_HOURS: Duration = Duration::from_secs(12 * 3600);
    let nanos = u64::try_from(TWELVE_HOURS.as_nanos())?.to_le_bytes();
    let found = program.windows(8).enumerate().filter(|(_, bytes)| *bytes == nanos);
    let places: Vec<usize> = found.map(|(at, _)| at).collect();
    let [place] = places[..] else {
        bail!("twelve hours are in the program {} times, not once: {places:x?}", places.len());
    };
    Ok(place)
}

/// What a host of skep counted of what its gossip dropped.
fn gossip_counter(host: &Host, event: &str) -> Result<u64> {
    let page = host.sh("curl -sS --max-time 5 http://127.0.0.1:9323/metrics")?;
    let name = format!("skep_gossip_events_total{{event=\"{event}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.map_or(Ok(0), str::parse)?)
}

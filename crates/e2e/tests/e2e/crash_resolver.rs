//! `kill -9` of the resolver process at every one of its steps: names and relayed ports are answered again, those that
//! are gone are not, and no network namespace is held that no container has.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::hosts_of_skep;
use lab::Host;
use lab::host::wait_until;

use crate::repair::{processes, shell};

/// The daemon looks after the process every few seconds, here on a busy machine.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// Something that makes the process go through steps, each of which is its last once.
struct Occasion {
    name: &'static str,
    /// Is `victim` there before?
    before: bool,
    happens: fn(&Host, &str) -> Result<()>,
    after: bool,
    steps: &'static [&'static str],
}

const OCCASIONS: [Occasion; 4] = [
    Occasion {
        name: "its own start",
        before: false,
        happens: |host, _| kill_resolver(host),
        after: false,
        steps: &["alone", "listens", "sandbox served again", "recovered", "hello done"],
    },
    Occasion {
        name: "a new daemon",
        before: true,
        happens: |host, steps| {
            host.kill()?;
            host.start_with(&[], &[("SKEP_STEPS", steps)])
        },
        after: true,
        steps: &[
            "hello done",
            "sandboxes done",
            "set sandbox done",
            "set zone done",
            "set relays done",
        ],
    },
    Occasion {
        name: "a sandbox more",
        before: false,
        happens: |host, _| run_victim(host),
        after: true,
        steps: &[
            "sockets opened",
            "set sandbox done",
            "set zone done",
            "set relays done",
            "state prepared",
            "state written",
        ],
    },
    Occasion {
        name: "a sandbox less",
        before: true,
        happens: |host, _| host.dk("rm -f victim").map(drop),
        after: false,
        steps: &[
            "sandbox forgotten",
            "remove sandbox done",
            "set zone done",
            "set relays done",
            "state prepared",
            "state written",
        ],
    },
];

fn run_victim(host: &Host) -> Result<()> {
    host.dk("run -d --name victim --network pair -p 8082:80 httpd").map(drop)
}

fn kill_resolver(host: &Host) -> Result<()> {
    for pid in processes(host, "resolver --exec-root")? {
        host.sh(&format!("kill -9 {pid}"))?;
    }
    Ok(())
}

#[test]
fn a_resolver_that_is_killed_anywhere_answers_again_and_holds_nothing() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    let folder = host.folder.join("steps");
    fs::create_dir_all(&folder)?;
    let steps = folder.display().to_string();
    arm(&steps, "")?;
    host.stop()?;
    host.start_with(&[], &[("SKEP_STEPS", &steps)])?;
    host.dk("network create pair")?;
    host.dk("run -d --name asker --network pair httpd")?;
    host.dk("run -d --name other --network pair -p 8081:80 httpd")?;
    well(host, false).context("before anything")?;
    let mut failed = Vec::new();
    for occasion in &OCCASIONS {
        for step in occasion.steps {
            if let Err(error) = crash(host, &steps, occasion, step) {
                let error = error.context(format!("{} at {step}", occasion.name));
                eprintln!("FAILED {error:#}");
                failed.push(format!("{error:#}"));
                arm(&steps, "")?;
            }
            host.try_docker(&["rm", "-f", "victim"])?;
        }
    }
    host.dk("rm -f asker other")?;
    wait_until(SETTLE_MAX, || Ok(held(host)?.is_empty())).context("held without containers")?;
    match failed.is_empty() {
        true => lab.down(),
        false => bail!("{}\n{}", failed.join("\n"), host.log_tail(30)),
    }
}

fn arm(steps: &str, crash: &str) -> Result<()> {
    fs::write(format!("{steps}/crash"), crash)?;
    Ok(fs::write(format!("{steps}/passed"), "")?)
}

fn crash(host: &Host, steps: &str, occasion: &Occasion, step: &str) -> Result<()> {
    if occasion.before {
        run_victim(host)?;
    }
    well(host, occasion.before).context("before")?;
    arm(steps, &format!("resolver: {step}#1"))?;
    (occasion.happens)(host, steps)?;
    let line = format!("resolver: {step}");
    let passed = || Ok(fs::read_to_string(format!("{steps}/passed"))?.lines().any(|it| it == line));
    wait_until(SETTLE_MAX, passed).context("it did not come to this step")?;
    well(host, occasion.after)?;
    arm(steps, "")
}

/// Everything that should be answered is, and nothing else is there.
fn well(host: &Host, victim: bool) -> Result<()> {
    let name = |name: &str| {
        host.try_docker(&["exec", "asker", "timeout", "5", "nslookup", name])
            .map(|answer| answer.status.success())
    };
    let page = |port: u16| {
        let found = host.sh(&format!("curl -sS -g --max-time 5 http://[::1]:{port}/"));
        found.is_ok_and(|page| page == lab::image::IT_WORKS)
    };
    let count = if victim { 3 } else { 2 };
    let mut state = String::new();
    wait_until(SETTLE_MAX, || {
        let names = [name("other")?, name("victim")? == victim];
        let pages = [page(8081), page(8082) == victim];
        let processes = processes(host, "resolver --exec-root")?.len();
        let held = held(host)?;
        state = format!("names {names:?}, pages {pages:?}, {processes} processes, holds {held:?}");
        Ok(names == [true; 2] && pages == [true; 2] && processes == 1 && held == sandboxes(host)?)
    })
    .with_context(|| state.clone())?;
    let running = host.dk("ps -q")?.lines().count();
    ensure!(running == count, "{running} containers run");
    Ok(())
}

/// The network namespaces that the process holds, but for its own.
fn held(host: &Host) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pid in processes(host, "resolver --exec-root")? {
        let line = format!("stat -L -c '%d:%i' /proc/self/ns/net /proc/{pid}/fd/* || true");
        let all = shell(host, &line)?;
        let mut files = all.lines();
        let own = files.next().context("a namespace of its own")?;
        let device = own.split(':').next().unwrap_or_default();
        let namespaces = files.filter(|file| file.split(':').next() == Some(device));
        found.extend(namespaces.filter(|file| *file != own).map(str::to_owned));
    }
    Ok(found)
}

/// Those of the containers that ask it.
fn sandboxes(host: &Host) -> Result<BTreeSet<String>> {
    let ids = host.dk("ps -q")?.replace('\n', " ");
    let pids = host.dk(&format!("inspect -f {{{{.State.Pid}}}} {ids}"))?;
    let files: Vec<String> = pids.lines().map(|pid| format!("/proc/{pid}/ns/net")).collect();
    let found = shell(host, &format!("stat -L -c '%d:%i' {}", files.join(" ")))?;
    Ok(found.lines().map(str::to_owned).collect())
}

//! One host: how long a container takes to run, and what an idle one costs.

use std::fs;
use std::path::Path;

use anyhow::Result;
use lab::{Engine, Host, Lab, Plan};

use crate::figures::{Report, seconds};

const RUNS: usize = 15;
const IDLE_CONTAINERS: usize = 10;

pub fn run(skep: &Path, report: &mut Report) -> Result<()> {
    let plan = |engine| -> Result<Plan> {
        Ok(Plan { engines: vec![engine], skep: skep.to_path_buf(), ..Plan::skep(1)? })
    };
    let ours = Lab::up(&plan(Engine::Skep)?)?;
    let theirs = Lab::up(&plan(Engine::Dockerd)?)?;
    let hosts = [ours.host(1), theirs.host(1)];
    import(&ours, &theirs, report)?;
    // The first container of a daemon pays for what all later ones share.
    for host in hosts {
        host.dk("run --rm httpd true")?;
    }
    for (what, line) in [
        ("docker run --rm, bridge", "run --rm httpd true"),
        ("docker run --rm, no network", "run --rm --network none httpd true"),
    ] {
        let [a, b] = in_turns(hosts, RUNS, |host| seconds(|| host.dk(line)).map(|s| s * 1000.0))?;
        report.add(what, "ms", a, Ok(b));
    }
    for host in hosts {
        host.dk("create --name started httpd")?;
    }
    let [a, b] = in_turns(hosts, RUNS, |host| {
        let taken = seconds(|| host.dk("start started"))?;
        host.dk("kill started")?;
        host.dk("wait started")?;
        Ok(taken * 1000.0)
    })?;
    report.add("docker start", "ms", a, Ok(b));
    memory(hosts, report)
}

fn import(ours: &Lab, theirs: &Lab, report: &mut Report) -> Result<()> {
    let archive = ours.folder.join("large.tar");
    let file = ours.folder.join("large");
    lab::command::sh(&format!(
        "dd if=/dev/urandom of={} bs=1M count=100 status=none",
        file.display()
    ))?;
    lab::command::sh(&format!("tar -C {} -cf {} large", ours.folder.display(), archive.display()))?;
    ours.import_httpd("httpd:latest")?;
    theirs.import_httpd("httpd:latest")?;
    let path = archive.display().to_string();
    let [a, b] = in_turns([ours.host(1), theirs.host(1)], 3, |host| {
        let taken = seconds(|| host.docker(&["import", &path, "large:latest"]))?;
        host.dk("rmi large:latest")?;
        Ok(100.0 / taken)
    })?;
    report.add("docker import of 100 MiB", "MiB/s", a, Ok(b));
    unpack(ours, theirs, report)
}

/// 8,000 files in a compressed archive: what a pull does once the bytes are there.
fn unpack(ours: &Lab, theirs: &Lab, report: &mut Report) -> Result<()> {
    const FILES: f64 = 8_000.0;
    let (folder, saved) = (ours.folder.join("small"), ours.folder.join("small-image.tar"));
    shell(&format!(
        "mkdir -p {0} && dd if=/dev/urandom bs=4k count={FILES} status=none | split -b 4k -a 4 - {0}/f && tar -C {0} -cf {0}.tar . && rm -r {0}",
        folder.display()
    ))?;
    let (tar, archive) = (format!("{}.tar", folder.display()), saved.display().to_string());
    ours.host(1).docker(&["import", &tar, "small:latest"])?;
    ours.host(1).docker(&["save", "-o", &archive, "small:latest"])?;
    ours.host(1).dk("rmi small:latest")?;
    shell(&format!("gzip -1 {archive}"))?;
    let archive = format!("{archive}.gz");
    let [a, b] = in_turns([ours.host(1), theirs.host(1)], 3, |host| {
        let taken = seconds(|| host.docker(&["load", "-q", "-i", &archive]))?;
        host.dk("rmi small:latest")?;
        Ok(FILES / taken)
    })?;
    report.add("docker load of 8,000 files, gzip", "files/s", a, Ok(b));
    Ok(())
}

fn shell(line: &str) -> Result<()> {
    lab::command::run(std::process::Command::new("sh").args(["-c", line])).map(drop)
}

fn memory(hosts: [&Host; 2], report: &mut Report) -> Result<()> {
    let mut idle = Vec::new();
    let mut each = Vec::new();
    for host in hosts {
        let before = idle_pss(host)?;
        for number in 0..IDLE_CONTAINERS {
            host.dk(&format!("run -d --name idle{number} httpd"))?;
        }
        let after = idle_pss(host)?;
        idle.push(before);
        each.push((after - before) / IDLE_CONTAINERS as f64);
    }
    report.add("idle engine, proportional memory", "MiB", vec![idle[0]], Ok(vec![idle[1]]));
    report.add(
        "each idle container beyond its own processes",
        "MiB",
        vec![each[0]],
        Ok(vec![each[1]]),
    );
    Ok(())
}

/// [`engine_pss`] of an engine that is left alone: when it has not changed by a hundredth for three seconds.
fn idle_pss(host: &Host) -> Result<f64> {
    const STILL: std::time::Duration = std::time::Duration::from_secs(3);
    let mut last = engine_pss(host)?;
    for _ in 0..10 {
        std::thread::sleep(STILL);
        let now = engine_pss(host)?;
        if (now - last).abs() < last / 100.0 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// Proportional set size of the engine's own processes on a host, in MiB: those whose command line
/// names the host's folder, the host's init and the CLI left out.
pub fn engine_pss(host: &Host) -> Result<f64> {
    let folder = host.folder.display().to_string();
    let mut kib = 0.0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if !line.contains(&folder) || line.contains("host-init") || line.starts_with("docker ") {
            continue;
        }
        let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let pss = rollup.lines().find_map(|row| row.strip_prefix("Pss:"));
        kib += pss
            .and_then(|row| row.trim().trim_end_matches(" kB").parse::<f64>().ok())
            .unwrap_or(0.0);
    }
    Ok(kib / 1024.0)
}

/// Samples taken first on one host, then on the other, and so on.
pub fn in_turns(
    hosts: [&Host; 2],
    rounds: usize,
    sample: impl Fn(&Host) -> Result<f64>,
) -> Result<[Vec<f64>; 2]> {
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (host, list) in hosts.iter().zip(&mut samples) {
            list.push(sample(host)?);
        }
    }
    Ok(samples)
}

//! A full disk: what cannot be done says so and changes nothing, and what was done is not lost.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{answers, hosts_of_skep, refused};
use lab::Host;
use lab::host::wait_until;

const FULL: &str = "No space left on device";
const END_MAX: Duration = Duration::from_secs(30);

#[test]
fn a_full_disk_loses_nothing() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    let small = host.folder.join("small").display().to_string();
    let roots = [format!("--data-root={small}/data"), format!("--exec-root={small}/exec")];
    let start = || host.start_with(&[&roots[0], &roots[1]], &[]);
    host.stop()?;
    fs::create_dir_all(&small)?;
    host.exec(&["mount", "-t", "tmpfs", "-o", "size=24m", "small", &small])?;
    start()?;
    lab.import_httpd("httpd:latest")?;
    let signs = host.folder.join("signs");
    fs::create_dir_all(&signs)?;
    host.dk("run -d --name server -p 8080:80 httpd")?;
    for name in ["watched", "unwatched"] {
        let script = format!("until [ -e /signs/{name} ]; do sleep 0.1; done; exit 9");
        let bind = format!("{}:/signs", signs.display());
        host.docker(&["run", "-d", "--name", name, "-v", &bind, "httpd", "sh", "-c", &script])?;
    }
    fill(host, &small)?;
    nothing_new_is_half_made(host, &lab.httpd_tar.display().to_string())?;

    // One ends under the daemon's eyes, which then is killed: its exit was told and stays told.
    fs::write(signs.join("watched"), "")?;
    ended(host, "watched")?;
    host.kill()?;
    // The other ends while nobody looks.
    let pid_gone = || Ok(!host.exec(&["ps", "-eo", "args"])?.contains("/signs/unwatched"));
    fs::write(signs.join("unwatched"), "")?;
    wait_until(END_MAX, pid_gone).context("the unwatched container does not end")?;
    start().context("a daemon on a full disk")?;
    ended(host, "watched")?;
    ended(host, "unwatched")?;
    let page = host.sh(&format!("curl -sS --max-time 5 http://{}:8080/", host.address))?;
    ensure!(page == lab::image::IT_WORKS, "the server's port: {page}");

    // Removing makes room, and needs none.
    host.dk("rm watched unwatched")?;
    host.dk("stop -t 1 server")?;
    fs::remove_file(format!("/proc/{}/root{small}/filler", host.init_pid()))?;
    host.dk("start server")?;
    answers(host, "run --rm httpd echo room", "room")?;
    host.dk("rm -f server")?;
    host.stop()?;
    host.exec(&["umount", "-l", &small])?;
    lab.down()
}

fn ended(host: &Host, name: &str) -> Result<()> {
    let line = format!("inspect -f {{{{.State.Status}}}}/{{{{.State.ExitCode}}}} {name}");
    wait_until(END_MAX, || Ok(host.dk(&line)? == "exited/9"))
        .with_context(|| format!("{name}: {:?}", host.dk(&line)))
}

/// Until not one more block is to be had.
fn fill(host: &Host, small: &str) -> Result<()> {
    let line = format!(
        "dd if=/dev/zero of={small}/filler bs=4k oflag=append conv=notrunc 2>/dev/null; df -k {small} | tail -1"
    );
    let mut left = String::new();
    wait_until(END_MAX, || {
        // The daemon may have given a block back meanwhile.
        left = host.exec(&["sh", "-c", &line])?;
        Ok(left.split_whitespace().nth(3) == Some("0"))
    })
    .with_context(|| format!("there is room: {left}"))
}

fn nothing_new_is_half_made(host: &Host, tar: &str) -> Result<()> {
    let seen = || -> Result<[String; 4]> {
        Ok([
            host.dk("ps -aq")?,
            host.dk("images -aq")?,
            host.dk("volume ls -q")?,
            host.dk("network ls -q")?,
        ])
    };
    let before = seen()?;
    refused(host, "create --name new -v /anonymous httpd", FULL)?;
    refused(host, &format!("import {tar}"), FULL)?;
    refused(host, "volume create new", FULL)?;
    refused(host, "network create new", FULL)?;
    refused(host, "tag httpd new:1", FULL)?;
    ensure!(seen()? == before, "something was made: {before:?}, {:?}", seen()?);
    answers(host, "exec server echo alive", "alive")
}

/// The disk of the only manager is full: every change is refused with the reason, nothing that was
/// acknowledged is lost, what runs runs on, and the manager goes on by itself when there is room.
#[test]
fn a_manager_with_a_full_disk_says_so_and_goes_on() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    let small = host.folder.join("small").display().to_string();
    let roots = [format!("--data-root={small}/data"), format!("--exec-root={small}/exec")];
    host.stop()?;
    fs::create_dir_all(&small)?;
    host.exec(&["mount", "-t", "tmpfs", "-o", "size=24m", "small", &small])?;
    host.start_with(&[&roots[0], &roots[1]], &[])?;
    lab.import_httpd("httpd:latest")?;
    lab.swarm(1)?;
    host.dk("service create -q --detach=false --no-resolve-image --name web -p 8080:80 httpd")?;
    let serves = || -> Result<()> {
        let page = host.sh(&format!("curl -sS --max-time 5 http://{}:8080/", host.address))?;
        ensure!(page == lab::image::IT_WORKS, "{page}");
        Ok(())
    };
    let mut acknowledged = 0;
    let create = |number| host.dk(&format!("config create c{number} /etc/hostname"));
    while acknowledged < 3 {
        create(acknowledged)?;
        acknowledged += 1;
    }
    fill(host, &small)?;
    // The log's last block may still have room for a few.
    let refusal = loop {
        match create(acknowledged) {
            Ok(_) => acknowledged += 1,
            Err(refusal) => break format!("{refusal:#}"),
        }
        ensure!(acknowledged < 100, "the disk is not full");
    };
    ensure!(refusal.contains(FULL) && refusal.contains("raft log"), "{refusal}");
    wait_until(END_MAX, || Ok(host.dk("info -f {{.Swarm.Error}}")?.contains(FULL)))
        .context("docker info does not tell")?;
    refused(host, "service scale -d web=2", FULL)?;
    // It begins again and again meanwhile, which is no other reason.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        let body = r#"{"Name":"more","Data":"YQ=="}"#;
        let (status, said) = host.api("POST", "/configs/create", body)?;
        ensure!(status == 503 && said.contains(FULL), "{status}: {said}");
    }
    serves()?;
    fs::remove_file(format!("/proc/{}/root{small}/filler", host.init_pid()))?;
    wait_until(END_MAX, || Ok(create(1_000).is_ok())).context("it does not go on")?;
    let configs = host.dk("config ls --format {{.Name}}")?;
    for number in (0..acknowledged).chain([1_000]) {
        ensure!(configs.lines().any(|name| name == format!("c{number}")), "c{number}: {configs}");
    }
    ensure!(host.dk("service ls --format {{.Replicas}}")? == "1/1", "the refused change was done");
    serves()?;
    host.dk("service rm web")?;
    host.stop()?;
    host.exec(&["umount", "-l", &small])?;
    lab.down()
}

//! What others do to a host's network, and what becomes of containers when a helper process of theirs is killed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{answers, cases, hosts_of_skep};
use lab::host::wait_until;
use lab::{Host, Lab};

/// Processes and tables of skep's own: nothing to ask the Docker Engine.
#[test]
fn repair() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    cases(
        &lab,
        &[
            ("nobody else's rules are touched", nobody_elses_rules_are_touched),
            ("drift is put right", drift_is_put_right),
            ("a killed resolver answers again", a_killed_resolver_answers_again),
            ("a killed shim is told as an exit", a_killed_shim_is_told_as_an_exit),
            ("a full disk of logs stops no container", a_full_disk_of_logs_stops_no_container),
        ],
    )
}

/// A line of shell on the host.
pub(crate) fn shell(host: &Host, line: &str) -> Result<String> {
    host.exec(&["sh", "-c", line])
}

/// Ids in the host's own process namespace of the processes whose command line has these words.
pub(crate) fn processes(host: &Host, words: &str) -> Result<Vec<String>> {
    let found = shell(host, &format!("pgrep -f '{words}' || true"))?;
    let own = host.folder.display().to_string();
    let mut pids = Vec::new();
    for pid in found.lines() {
        let line = shell(host, &format!("tr '\\0' ' ' < /proc/{pid}/cmdline || true"))?;
        if line.contains(&own) && !line.contains("pgrep") && !line.starts_with("sh ") {
            pids.push(pid.to_owned());
        }
    }
    Ok(pids)
}

fn foreign_rules(host: &Host) -> Result<String> {
    shell(host, "nft list table inet foreign; nft list table ip filter")
}

fn nobody_elses_rules_are_touched(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    shell(
        host,
        "nft -f - <<'END'\ntable inet foreign {\n chain forward {\n  type filter hook forward priority 5; policy accept;\n  ip saddr 198.51.100.0/24 drop\n }\n}\ntable ip filter {\n chain FORWARD {\n  type filter hook forward priority 0; policy accept;\n }\n}\nEND",
    )?;
    let before = foreign_rules(host)?;
    host.dk("network create mine")?;
    host.dk("run -d --name mine --network mine -p 8080:80 httpd")?;
    let tables = host.sh("nft list tables")?;
    let own: Vec<&str> = tables
        .lines()
        .filter(|table| !table.ends_with(" foreign") && *table != "table ip filter")
        .collect();
    ensure!(own.len() == 1, "tables besides those of others: {own:?}");
    host.kill()?;
    host.start()?;
    host.dk("rm -f mine")?;
    host.dk("network rm mine")?;
    ensure!(foreign_rules(host)? == before, "rules of others have changed");
    shell(host, "nft delete table inet foreign; nft delete table ip filter").map(drop)
}

fn drift_is_put_right(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name kept -p 8080:80 httpd")?;
    let works =
        || Ok(host.sh(&format!("curl -sS --max-time 2 http://{}:8080/", host.address)).is_ok());
    wait_until(Duration::from_secs(30), works).context("the port does not answer")?;
    let table = host.sh("nft list tables")?;
    for damage in [format!("nft delete {}", table.trim()), "ip link set docker0 down".to_owned()] {
        // What is put right before it is looked for did damage, too: then once more.
        wait_until(Duration::from_secs(30), || {
            host.sh(&damage)?;
            Ok(!works()?)
        })
        .with_context(|| format!("{damage}: did no damage"))?;
        wait_until(Duration::from_secs(30), works).with_context(|| damage.clone())?;
    }
    host.dk("rm -f kept").map(drop)
}

fn a_killed_resolver_answers_again(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create pair")?;
    host.dk("run -d --name asker --network pair httpd")?;
    host.dk("run -d --name other --network pair -p 8081:80 httpd")?;
    let name = || Ok(host.dk("exec asker timeout 5 wget -qO- http://other/").is_ok());
    let relayed = || Ok(host.sh("curl -sS -g --max-time 2 http://[::1]:8081/").is_ok());
    wait_until(Duration::from_secs(30), || Ok(name()? && relayed()?))?;
    let resolver = processes(host, "resolver --exec-root")?;
    ensure!(resolver.len() == 1, "one resolver, not {resolver:?}");
    host.sh(&format!("kill -9 {}", resolver[0]))?;
    wait_until(Duration::from_secs(30), name).context("names")?;
    wait_until(Duration::from_secs(30), relayed).context("a relayed port")?;
    host.dk("rm -f asker other")?;
    host.dk("network rm pair").map(drop)
}

fn a_killed_shim_is_told_as_an_exit(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let id = host.dk("run -d --name orphan -p 8082:80 httpd")?;
    let again = host.dk("run -d --name again --restart always httpd")?;
    for container in [&id, &again] {
        let shim = processes(host, &format!("shim .*{container}"))?;
        ensure!(shim.len() == 1, "one shim, not {shim:?}");
        host.sh(&format!("kill -9 {}", shim[0]))?;
    }
    answers(host, "wait orphan", "137")?;
    wait_until(Duration::from_secs(20), || {
        Ok(host.dk("inspect -f {{.State.Running}}/{{.RestartCount}} again")? == "true/1")
    })
    .context("a restart policy holds for a container whose shim was killed")?;
    // Nothing of the first run is left: not its process, not its port, not its mount.
    ensure!(processes(host, &format!("shim .*{id}"))?.is_empty());
    host.dk("start orphan")?;
    wait_until(Duration::from_secs(30), || {
        Ok(host.sh("curl -sS --max-time 5 http://127.0.0.1:8082/").is_ok())
    })
    .context("the port of a container whose shim was killed")?;
    host.dk("rm -f orphan again").map(drop)
}

fn a_full_disk_of_logs_stops_no_container(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let script =
        "i=0; while true; do i=$((i+1)); echo line $i; echo $i > /tmp/count; usleep 20000; done";
    let id = host.docker(&["create", "--name", "writer", "httpd", "sh", "-c", script])?;
    // A disk of its own for this container's folder, with room for a few hundred lines.
    let folder = host.folder.join("data/containers").join(&id).display().to_string();
    shell(
        host,
        &format!(
            "cp -a {folder} {folder}.copy && mount -t tmpfs -o size=48k tmpfs {folder} && cp -a {folder}.copy/. {folder} && rm -r {folder}.copy"
        ),
    )?;
    host.dk("start writer")?;
    let count =
        || -> Result<u64> { Ok(host.dk("exec writer cat /tmp/count")?.parse().unwrap_or(0)) };
    let logged = || -> Result<u64> {
        let last = host.docker(&["logs", "--tail", "1", "writer"])?;
        Ok(last.strip_prefix("line ").and_then(|number| number.parse().ok()).unwrap_or(0))
    };
    wait_until(Duration::from_secs(120), || Ok(count()? > logged()? + 100))
        .context("the container stands still, or its disk does not fill")?;
    let first = host.docker(&["logs", "writer"])?;
    ensure!(first.starts_with("line 1\nline 2\n"), "what was logged is lost");
    host.sh(&format!("mount -o remount,size=4m {folder}"))?;
    let now = count()?;
    wait_until(Duration::from_secs(60), || Ok(logged()? > now))
        .context("the log does not go on when there is room again")?;
    host.sh(&format!("umount -l {folder}"))?;
    host.dk("rm -f writer").map(drop)
}

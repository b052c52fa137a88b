//! No manager answers: what runs goes on, also on hosts whose daemon begins again meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::hosts_of_skep;
use e2e::load::{until_running, virtual_address};
use lab::Lab;
use lab::host::wait_until;

/// Longer than a daemon that begins waits for what others announce.
const WITHOUT_MANAGERS: Duration = Duration::from_secs(15);

#[test]
fn a_worker_that_begins_again_without_managers_is_as_before() -> Result<()> {
    let lab = hosts_of_skep(3)?;
    lab.import_program("load", r#"CMD ["load","serve","80"]"#)?;
    lab.swarm(1)?;
    let (manager, second, third) = (lab.host(1), lab.host(2), lab.host(3));
    manager.dk("network create -d overlay --attachable web")?;
    for at in [second, third] {
        at.dk(&format!("run -d --name c{} --network web httpd", at.number))?;
    }
    manager.dk("service create -q -d --no-resolve-image --name app --network web --constraint node.role==worker --replicas 2 --replicas-max-per-node 1 -p 8080:80 load")?;
    until_running(manager, "app", 2)?;
    let vip = virtual_address(manager, "app", "web")?;
    let mut last = Ok(());
    let whole = || -> Result<()> { reaches_all(&lab, &vip) };
    wait_until(Duration::from_secs(30), || {
        last = whole();
        Ok(last.is_ok())
    })
    .or(last)
    .context("before")?;
    manager.kill()?;
    second.kill()?;
    second.start()?;
    std::thread::sleep(WITHOUT_MANAGERS);
    whole().context("without a manager")?;
    // What changes meanwhile reaches the others, too.
    let task = e2e::task_on(third, "app")?;
    third.docker(&["rm", "-f", &task])?;
    wait_until(Duration::from_secs(10), || {
        let names = second.docker(&["exec", "c2", "nslookup", "-type=a", "tasks.app"])?;
        Ok(names.lines().filter(|line| line.starts_with("Address: ")).count() == 1)
    })
    .context("a task that ended has its name no longer")?;
    manager.start()?;
    wait_until(Duration::from_secs(60), || {
        Ok(manager.dk("node ls --format {{.Status}}")? == "Ready\nReady\nReady")
    })?;
    until_running(manager, "app", 2)?;
    lab.down()
}

/// Containers reach each other by name, and both tasks answer through the virtual address and the mesh.
fn reaches_all(lab: &Lab, vip: &str) -> Result<()> {
    let (second, third) = (lab.host(2), lab.host(3));
    for (at, from, to) in [(second, "c2", "c3"), (third, "c3", "c2")] {
        at.docker(&["exec", from, "ping", "-c", "1", "-W", "2", to])?;
    }
    for (at, from) in [(second, "c2"), (third, "c3")] {
        let (mut through_vip, mut through_mesh) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..4 {
            let url = format!("http://{vip}/");
            through_vip.insert(at.docker(&["exec", from, "timeout", "3", "wget", "-qO-", &url])?);
            let url = format!("http://{}:8080/", at.address);
            through_mesh.insert(at.sh(&format!("curl -sSf --max-time 3 {url}"))?);
        }
        ensure!(through_vip.len() == 2, "{}: {through_vip:?}", at.name);
        ensure!(through_mesh.len() == 2, "{}: {through_mesh:?}", at.name);
    }
    Ok(())
}

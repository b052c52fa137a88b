//! Containers that no service made, on attachable overlay networks.

use anyhow::{Context, Result, ensure};
use e2e::{refused, task_on, until_pinged};
use lab::Lab;
use lab::host::wait_until;

use crate::overlay::{SOON, until_known};

pub fn come_and_go(lab: &Lab) -> Result<()> {
    let (first, second) = (lab.host(1), lab.host(2));
    let task = task_on(first, "web")?;
    let id = second.dk("run -d --name guest --network web --network-alias visitor --ip 10.0.1.77 --mac-address 02:00:00:00:00:77 httpd")?;
    let found = until_known(first, &task, "visitor", 2)?;
    ensure!(found.contains("10.0.1.77"), "{found:?}");
    ensure!(until_known(first, &task, "guest", 2)? == found);
    ensure!(until_known(first, &task, &id[..12], 2)? == found);
    // Its link is the one that the user has chosen, and frames find it.
    let link = second.dk("exec guest cat /sys/class/net/eth0/address")?;
    ensure!(link == "02:00:00:00:00:77", "{link}");
    for family in ["-4", "-6"] {
        until_pinged(first, &task, &[family, "-c", "1", "guest"])?;
    }
    second.dk("rename guest visited")?;
    ensure!(until_known(first, &task, "visited", 2)? == found);
    until_known(first, &task, "guest", 0)?;
    second.dk("rename visited guest")?;
    until_known(first, &task, "guest", 2)?;
    let inspected = second.docker(&[
        "inspect",
        "-f",
        "{{with index .NetworkSettings.Networks \"web\"}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}",
        "guest",
    ])?;
    ensure!(inspected.split(' ').all(|one| found.contains(one)), "{inspected} {found:?}");
    refused(first, "run --rm --network web --ip 10.0.1.77 httpd true", "10.0.1.77 is in use")?;
    refused(first, "run --rm --network web --ip 10.7.7.7 httpd true", "none of the network's")?;
    refused(first, "run --rm --network web --ip 10.0.1.255 httpd true", "no host's address")?;
    refused(first, "network rm web", "in use")?;
    // One that runs is connected, and gives its place back.
    first.dk("run -d --name plain httpd")?;
    first.dk("network connect --alias pal web plain")?;
    refused(first, "network connect web plain", "already exists in network web")?;
    first.dk("run -d --name late httpd")?;
    refused(first, "network connect --ip 10.0.1.77 web late", "10.0.1.77 is in use")?;
    refused(first, "network connect --ip 10.0.1.1 web late", "10.0.1.1")?;
    first.dk("rm -f late")?;
    until_known(second, &task_on(second, "web")?, "pal", 2)?;
    until_pinged(second, "guest", &["-c", "1", "pal"])?;
    until_pinged(first, "plain", &["-c", "1", "guest"])
        .context("its own names are answered now")?;
    first.dk("network disconnect web plain")?;
    until_known(first, &task, "pal", 0)?;
    let links = first.dk("exec plain ip -o addr")?;
    ensure!(!links.contains("10.0.1."), "{links}");
    refused(first, "network disconnect web plain", "is not connected to network web")?;
    first.dk("rm -f plain")?;
    second.dk("rm -f guest")?;
    until_known(first, &task, "visitor", 0).map(drop)
}

/// A task's own networks are its service's; others it may join and leave.
pub fn join_as_tasks(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let task = task_on(host, "web")?;
    host.dk("network create -d overlay --attachable aside")?;
    host.dk("run -d --name neighbour --network aside httpd")?;
    host.dk(&format!("network connect --alias helper aside {task}"))?;
    until_pinged(host, "neighbour", &["-c", "1", "helper"])?;
    refused(host, &format!("network disconnect web {task}"), "service update --network-rm web")?;
    host.dk(&format!("network disconnect aside {task}"))?;
    until_known(host, "neighbour", "helper", 0)?;
    host.dk("rm -f neighbour")?;
    wait_until(SOON, || Ok(host.try_docker(&["network", "rm", "aside"])?.status.success()))
}

/// As long as one of its networks has one, and no longer.
pub fn keep_a_way_out(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create -d overlay --internal --attachable inside")?;
    host.dk("run -d --name mover httpd")?;
    let reaches_out = || -> Result<bool> {
        let ping = ["exec", "mover", "ping", "-c", "1", "-W", "3", "192.168.68.1"];
        Ok(host.try_docker(&ping)?.status.success())
    };
    host.dk("network connect web mover")?;
    host.dk("network disconnect bridge mover")?;
    ensure!(reaches_out()?, "on an overlay alone");
    host.dk("network connect inside mover")?;
    ensure!(reaches_out()?, "on an internal network, too");
    host.dk("network disconnect web mover")?;
    ensure!(!reaches_out()?, "on an internal network alone");
    host.dk("network connect bridge mover")?;
    ensure!(reaches_out()?, "on a bridge again");
    host.dk("rm -f mover")?;
    wait_until(SOON, || Ok(host.try_docker(&["network", "rm", "inside"])?.status.success()))
}

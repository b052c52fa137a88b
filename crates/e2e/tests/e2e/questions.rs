//! Names in a live swarm, asked in every form that a resolver library may use.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::dns::{A, AAAA, ANY, By, PTR, Reply, ask, reversed};
use e2e::task_on;
use lab::host::wait_until;
use lab::{Host, Lab};

const SOON: Duration = Duration::from_secs(20);
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
/// As long a name as a service may have: its question leaves little room in 512 bytes.
const LONG: &str = "a-service-whose-name-is-as-long-as-the-name-of-a-service-may-be";

fn set(reply: &Reply) -> BTreeSet<IpAddr> {
    reply.addresses.iter().copied().collect()
}

/// `web` has four tasks, an alias `site`, and addresses of both families; see `overlay`.
pub fn in_every_form(lab: &Lab) -> Result<()> {
    for host in &lab.hosts {
        let netns = host.netns_of(&task_on(host, "web")?)?;
        for by in [By::Udp, By::Edns(1_232), By::Tcp] {
            for (name, each) in [("tasks.web", 4), ("web", 1), ("site", 1), ("Site.WEB", 1)] {
                let four = ask(host, &netns, name, A, by)?;
                let six = ask(host, &netns, name, AAAA, by)?;
                let both = ask(host, &netns, name, ANY, by)?;
                ensure!(four.addresses.iter().all(IpAddr::is_ipv4), "{name} {by:?}: {four:?}");
                ensure!(six.addresses.iter().all(IpAddr::is_ipv6), "{name} {by:?}: {six:?}");
                let counts = [&four, &six, &both].map(|reply| set(reply).len());
                ensure!(counts == [each, each, 2 * each], "{name} {by:?}: {counts:?}");
                for reply in [&four, &six, &both] {
                    // "A few seconds": what moved is found soon, and not every packet asks anew.
                    ensure!(reply.ttls.iter().all(|ttl| (1..=5).contains(ttl)), "{reply:?}");
                    ensure!(reply.edns == matches!(by, By::Edns(_)), "{by:?}: {reply:?}");
                    ensure!(!reply.truncated && reply.code == 0, "{reply:?}");
                }
            }
            pointers(host, &netns, by)?;
            let nobody = ask(host, &netns, "nobody.example", A, By::Udp)?;
            ensure!(nobody.code == NO_SUCH_NAME, "the server's own answer: {nobody:?}");
        }
    }
    order_changes(lab)
}

/// Every task's address of either family has the name `<task>.<network>`.
fn pointers(host: &Host, netns: &str, by: By) -> Result<()> {
    let tasks = ask(host, netns, "tasks.web", ANY, by)?;
    let mut names = BTreeSet::new();
    for address in &tasks.addresses {
        let reply = ask(host, netns, &reversed(*address), PTR, by)?;
        let [name] = reply.names.as_slice() else { anyhow::bail!("{address}: {reply:?}") };
        let short = name.strip_suffix(".web").with_context(|| name.clone())?;
        ensure!(short.starts_with("web."), "{name} is no task of web");
        let back = ask(host, netns, short, ANY, by)?;
        ensure!(back.addresses.contains(address), "{short} is not {address}: {back:?}");
        names.insert(name.clone());
    }
    ensure!(names.len() == 4, "four tasks with two addresses each: {names:?}");
    Ok(())
}

/// A client that takes the first address meets every task.
fn order_changes(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let netns = host.netns_of(&task_on(host, "web")?)?;
    let mut first = BTreeSet::new();
    for _ in 0..100 {
        first.extend(ask(host, &netns, "tasks.web", A, By::Udp)?.addresses.first().copied());
    }
    ensure!(first.len() == 4, "{first:?}");
    Ok(())
}

/// What is too much for a packet is cut and said; TCP and EDNS have room.
pub fn too_long_for_a_packet(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk(&format!(
        "service create -q --no-resolve-image --detach --name {LONG} --endpoint-mode dnsrr --replicas 10 --network web httpd"
    ))?;
    let netns = host.netns_of(&task_on(host, "web")?)?;
    let name = format!("tasks.{LONG}");
    let mut all = BTreeSet::new();
    wait_until(Duration::from_secs(60), || {
        all = set(&ask(host, &netns, &name, ANY, By::Tcp)?);
        Ok(all.len() == 20)
    })
    .with_context(|| format!("{all:?}"))?;
    for (name, by, cut) in [
        (name.as_str(), By::Udp, true),
        (LONG, By::Udp, true),
        (name.as_str(), By::Edns(512), true),
        (name.as_str(), By::Edns(1_232), false),
        (name.as_str(), By::Tcp, false),
    ] {
        let reply = ask(host, &netns, name, ANY, by)?;
        ensure!(reply.truncated == cut, "{by:?}: {reply:?}");
        ensure!(set(&reply).is_subset(&all) && !reply.addresses.is_empty(), "{by:?}: {reply:?}");
        ensure!((reply.bytes <= 512) == cut, "{by:?}: {reply:?}");
        ensure!((set(&reply) != all) == cut, "{by:?}: {reply:?}");
    }
    host.dk(&format!("service rm {LONG}"))?;
    wait_until(SOON, || Ok(ask(host, &netns, LONG, A, By::Udp)?.code == NO_SUCH_NAME))
}

/// On an internal network nobody is asked, over no carrier.
pub fn of_an_internal_network(host: &Host, container: &str) -> Result<()> {
    let netns = host.netns_of(container)?;
    for by in [By::Udp, By::Edns(1_232), By::Tcp] {
        let reply = ask(host, &netns, "example.org", A, by)?;
        ensure!(reply.code == SERVER_FAILURE, "{by:?}: {reply:?}");
        let own = ask(host, &netns, container, A, by)?;
        ensure!(own.addresses.len() == 1, "{by:?}: {own:?}");
    }
    Ok(())
}

/// Everything is answered as before, by a process that is not the daemon.
pub fn while_the_daemon_is_stopped(lab: &Lab) -> Result<()> {
    let host = lab.host(2);
    let netns = host.netns_of(&task_on(host, "web")?)?;
    host.stop()?;
    let asked = [By::Udp, By::Edns(1_232), By::Tcp].into_iter().try_for_each(|by| {
        let counts = [("tasks.web", A, 4), ("web", A, 1), ("tasks.web", AAAA, 4)];
        for (name, kind, count) in counts {
            let reply = ask(host, &netns, name, kind, by)?;
            ensure!(set(&reply).len() == count, "{name} {by:?}: {reply:?}");
        }
        let nobody = ask(host, &netns, "nobody.example", A, By::Udp)?;
        ensure!(nobody.code == NO_SUCH_NAME, "what is forwarded: {nobody:?}");
        pointers(host, &netns, by)
    });
    host.start()?;
    asked.context("the daemon is stopped")
}

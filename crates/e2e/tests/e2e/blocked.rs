//! A firewall that swallows one of the gossip's two protocols between two hosts: everything goes on
//! by the other one, and `docker info` at the ends says what to open, also towards a Docker Engine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::hosts_of;
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

/// A path by TCP alone is at rest until its node is drawn by lot, one every ten seconds.
const NAMED_MAX: Duration = Duration::from_secs(180);

#[test]
fn a_path_without_one_protocol_of_the_gossip_is_named() -> Result<()> {
    let mut plan = Plan::skep(3)?;
    plan.engines[2] = Engine::Dockerd;
    plan.daemon_args = vec!["--metrics-addr".into(), "127.0.0.1:9323".into()];
    let lab = hosts_of(&plan)?;
    lab.swarm(1)?;
    settled(&lab)?;
    for (second, third) in [("udp", "tcp"), ("tcp", "udp")] {
        block(lab.host(2), lab.host(1), second)?;
        block(lab.host(3), lab.host(1), third)?;
        named(&lab, second, third)?;
        for host in &lab.hosts[1..] {
            host.sh("nft delete table inet blocked")?;
        }
        wait_until(NAMED_MAX, || is_quiet(&lab)).context("open again")?;
    }
    counted_and_logged(&lab)?;
    lab.down()
}

fn settled(lab: &Lab) -> Result<()> {
    wait_until(NAMED_MAX, || {
        let nodes = lab.host(1).dk("node ls --format {{.Status}}")?;
        Ok(nodes.lines().filter(|status| *status == "Ready").count() == 3)
    })?;
    ensure!(is_quiet(lab)?, "{:?}", warnings(lab)?);
    Ok(())
}

fn is_quiet(lab: &Lab) -> Result<bool> {
    Ok(warnings(lab)?.iter().all(Vec::is_empty))
}

/// What comes from a host is swallowed.
fn block(host: &Host, from: &Host, protocol: &str) -> Result<()> {
    host.sh("nft add table inet blocked")?;
    host.sh(
        "nft add chain inet blocked input { type filter hook input priority -300 ; policy accept ; }",
    )?;
    let from = &from.address;
    host.sh(&format!("nft add rule inet blocked input ip saddr {from} {protocol} dport 7946 drop"))
        .map(drop)
}

/// What the skep hosts warn of about the gossip.
fn warnings(lab: &Lab) -> Result<[Vec<String>; 2]> {
    let of = |host: &Host| -> Result<Vec<String>> {
        let said = host.docker(&["info", "-f", "{{json .Warnings}}"])?;
        let warnings: Option<Vec<String>> = serde_json::from_str(&said)?;
        Ok(warnings.into_iter().flatten().filter(|line| line.contains("7946")).collect())
    };
    Ok([of(lab.host(1))?, of(lab.host(2))?])
}

fn named(lab: &Lab, second: &str, third: &str) -> Result<()> {
    let end = |number: usize| format!("{} ({})", lab.host(number).name, lab.host(number).address);
    let begins = |protocol: &str, to: usize| {
        let way = if protocol == "udp" { "between" } else { "from" };
        let link = if protocol == "udp" { "and" } else { "to" };
        let ends = format!("{way} {} {link} {},", end(1), end(to));
        format!("WARNING: 7946/{protocol} does not get through {ends}")
    };
    let expected = [begins(second, 2), begins(third, 3)];
    // The worker does not hear by UDP either, and connects to the manager as ever; it knows no names.
    let back = format!(
        "WARNING: 7946/udp does not get through between {} and {},",
        end(2),
        lab.host(1).address
    );
    let mut last = Default::default();
    wait_until(NAMED_MAX, || {
        last = warnings(lab)?;
        let [first, other] = &last;
        let all = first.len() == 2
            && expected.iter().all(|words| first.iter().any(|line| line.starts_with(words)));
        let far = match second {
            "udp" => other.len() == 1 && other[0].starts_with(&back),
            _ => other.is_empty(),
        };
        Ok(all && far)
    })
    .with_context(|| format!("{expected:?} and {back}: {last:?}"))?;
    // Nobody is taken for down because of it.
    let nodes = lab.host(1).dk("node ls --format {{.Status}}")?;
    ensure!(nodes == "Ready\nReady\nReady", "{nodes}");
    Ok(())
}

fn counted_and_logged(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let page = host.sh("curl -sS http://127.0.0.1:9323/metrics")?;
    for (event, times) in [("path_blocked_udp", 2), ("path_blocked_tcp", 2), ("path_open_again", 4)]
    {
        let line = format!("skep_gossip_events_total{{event=\"{event}\"}} {times}");
        ensure!(page.lines().any(|it| it == line), "{line}: {page}");
    }
    let log = host.log_tail(usize::MAX);
    for words in
        ["the gossip does not pass to it by these protocols", "passes by UDP and TCP again"]
    {
        let said = log.lines().filter(|line| line.contains(words)).count();
        ensure!(said == 4, "{said} times: {words}");
    }
    Ok(())
}

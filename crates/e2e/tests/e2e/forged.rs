//! Hosts that lie on the gossip: one of the swarm, with its keys (the Docker Engine's diagnostic
//! server puts any row there), and a stranger who says again what he has heard.

use std::net::UdpSocket;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::{cases, swarm_of_skep};
use lab::command::sh;
use lab::host::{wait_until, within};
use lab::{Engine, Host, Lab};

use crate::overlay::SOON;

#[test]
fn lies_on_the_gossip() -> Result<()> {
    let lab = swarm_of_skep(3, |plan| plan.engines[2] = Engine::Dockerd)?;
    lab.host(1).dk("network create -d overlay --attachable --subnet 10.77.0.0/24 web")?;
    for host in &lab.hosts {
        let number = host.number;
        // The nodes' own addresses come after these.
        let last = 40 + 10 * number;
        let line = format!("run -d --name c{number} --network web --ip 10.77.0.{last} httpd");
        host.dk(&line).with_context(|| {
            let tails = lab.hosts.iter().map(|at| format!("{}:\n{}\n", at.name, at.log_tail(30)));
            tails.collect::<String>()
        })?;
    }
    let liar = lab.host(3);
    std::fs::write(liar.folder.join("daemon.json"), r#"{"network-diagnostic-port": 2000}"#)?;
    liar.sh(&format!("kill -HUP {}", liar.daemon_pid()?))?;
    wait_until(SOON, || {
        Ok(reaches(&lab) && liar.sh("curl -sS http://127.0.0.1:2000/ready").is_ok())
    })?;
    cases(
        &lab,
        &[
            ("what another has is not taken", what_another_has_is_not_taken),
            ("what cannot be read is dropped", what_cannot_be_read_is_dropped),
            ("rows of others are not changed", rows_of_others_are_not_changed),
            ("what is said again changes nothing", what_is_said_again_changes_nothing),
        ],
    )?;
    lab.down()
}

/// The containers of the honest hosts still have each other, by address and by name.
fn reaches(lab: &Lab) -> bool {
    let asks = |words: &[&str]| lab.host(2).docker(words).unwrap_or_default();
    let named = asks(&["exec", "c2", "nslookup", "c1"]);
    let addresses: Vec<&str> = named.lines().filter(|line| line.contains("10.77.0.")).collect();
    addresses.len() == 1
        && addresses[0].ends_with("10.77.0.50")
        && asks(&["exec", "c2", "ping", "-c", "2", "-W", "1", "10.77.0.50"])
            .contains(" 0% packet loss")
}

fn counted(host: &Host, event: &str) -> Result<u64> {
    let page = host.sh("curl -sS http://127.0.0.1:9323/metrics")?;
    let name = format!("skep_gossip_events_total{{event=\"{event}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.map_or(Ok(0), str::parse)?)
}

/// A message of strings, each with its number (protobuf).
fn record(fields: &[(u8, &str)]) -> Vec<u8> {
    let field = |(number, text): &(u8, &str)| {
        [&[number << 3 | 2, text.len() as u8], text.as_bytes()].concat()
    };
    fields.iter().flat_map(field).collect()
}

/// Has the third host do something with a row.
fn says(lab: &Lab, verb: &str, table: &str, key: &str, value: &[u8]) -> Result<String> {
    let network = lab.host(1).dk("network inspect -f {{.Id}} web")?;
    let value = STANDARD.encode(value);
    let value = value.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    lab.host(3).sh(&format!(
        "curl -sS http://127.0.0.1:2000/{verb}?nid={network}&tname={table}&key={key}&value={value}"
    ))
}

/// Until both honest hosts have counted it, and it has done no harm.
fn until_counted(lab: &Lab, event: &str, lie: impl Fn() -> Result<()>) -> Result<()> {
    let before = [counted(lab.host(1), event)?, counted(lab.host(2), event)?];
    wait_until(SOON, || {
        // Said again and again: a host that hears the owner's own word first has nothing to refuse.
        lie()?;
        Ok(counted(lab.host(1), event)? > before[0] && counted(lab.host(2), event)? > before[1])
    })
    .with_context(|| format!("{event} is not counted"))?;
    ensure!(reaches(lab), "c2 does not reach c1");
    Ok(())
}

fn peer(address: &str) -> Vec<u8> {
    record(&[(1, address), (2, "02:42:0a:4d:00:99"), (3, "192.168.68.111")])
}

const PEERS: &str = "overlay_peer_table";
const ENDPOINTS: &str = "endpoint_table";

fn what_another_has_is_not_taken(lab: &Lab) -> Result<()> {
    for address in ["10.77.0.50/24", "10.77.0.1/24", "192.168.68.109/24"] {
        let key = format!("forged-{}", address.replace('/', "-"));
        until_counted(lab, "claim_refused", || {
            says(lab, "createentry", PEERS, &key, &peer(address)).map(drop)
        })
        .with_context(|| address.to_owned())?;
    }
    // An address that is free, with the link of c1: frames for that are led here.
    let link = record(&[(1, "10.77.0.90/24"), (2, "02:42:0a:4d:00:32"), (3, "192.168.68.111")]);
    until_counted(lab, "claim_refused", || {
        says(lab, "createentry", PEERS, "forged-link", &link).map(drop)
    })
    .context("the link of another")?;
    let named = record(&[(1, "c1"), (5, "10.77.0.60")]);
    until_counted(lab, "claim_refused", || {
        says(lab, "createentry", ENDPOINTS, "forged", &named).map(drop)
    })
}

fn what_cannot_be_read_is_dropped(lab: &Lab) -> Result<()> {
    until_counted(lab, "row_unreadable", || {
        says(lab, "createentry", PEERS, "unreadable", &[0xff; 9])?;
        says(lab, "createentry", ENDPOINTS, "unreadable", &[0xff; 9]).map(drop)
    })
}

/// The keys of rows that another node has announced.
fn keys_of_others(lab: &Lab, table: &str) -> Result<Vec<String>> {
    let listed = says(lab, "gettable", table, "", b"")?;
    let rows = listed.lines().filter(|line| line.contains("owner:"));
    let keys = rows.filter_map(|line| line.split('`').nth(1)).filter(|key| key.len() == 64);
    Ok(keys.map(str::to_owned).collect())
}

fn rows_of_others_are_not_changed(lab: &Lab) -> Result<()> {
    for table in [PEERS, ENDPOINTS] {
        let keys = keys_of_others(lab, table)?;
        ensure!(keys.len() >= 3, "{table}: {keys:?}");
        for verb in ["updateentry", "deleteentry"] {
            until_counted(lab, "row_of_another", || {
                keys.iter().try_for_each(|key| {
                    says(lab, verb, table, key, &peer("10.77.0.50/24")).map(drop)
                })
            })
            .with_context(|| format!("{verb} {table}"))?;
        }
    }
    Ok(())
}

/// What the second host said while a container came and went, from another address.
fn what_is_said_again_changes_nothing(lab: &Lab) -> Result<()> {
    let (host, far) = (lab.host(1), lab.host(2));
    let file = host.folder.join("gossip.pcap");
    let path = file.display().to_string();
    let words = ["tcpdump", "--immediate-mode", "-Z", "root", "-U", "-i", "eth0", "-w", &path];
    let filter = ["udp", "dst", "port", "7946", "and", "src", &far.address];
    let mut capture = host.inside(&[&words[..], &filter[..]].concat());
    let mut capture = capture.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_until(SOON, || Ok(file.exists()))?;
    let knows = || -> Result<bool> {
        let seen = host.try_docker(&["exec", "c1", "nslookup", "gone"])?.stdout;
        Ok(String::from_utf8_lossy(&seen).contains("10.77.0.80"))
    };
    // What is said of one container may come to the host by way of the others.
    wait_until(SOON, || {
        far.dk("run -d --name gone --network web --ip 10.77.0.80 httpd")?;
        wait_until(SOON, knows)?;
        far.dk("rm -f gone")?;
        wait_until(SOON, || Ok(!knows()?))?;
        Ok(payloads(&std::fs::read(&file)?).len() > 5)
    })?;
    let outer = capture.id();
    for child in sh(&format!("cat /proc/{outer}/task/{outer}/children"))?.split_whitespace() {
        sh(&format!("kill -INT {child}"))?;
    }
    capture.wait()?;
    let heard = payloads(&std::fs::read(&file)?);
    within(&format!("/run/netns/{}", lab.router), || {
        let stranger = UdpSocket::bind("0.0.0.0:0")?;
        for packet in &heard {
            stranger.send_to(packet, (host.address.as_str(), 7946))?;
        }
        Ok(())
    })?;
    // A packet of his own that comes after them has been read, so were they.
    let before = counted(host, "packet_not_opened")?;
    within(&format!("/run/netns/{}", lab.router), || {
        let stranger = UdpSocket::bind("0.0.0.0:0")?;
        Ok(stranger.send_to(&[9; 99], (host.address.as_str(), 7946)).map(drop)?)
    })?;
    wait_until(SOON, || Ok(counted(host, "packet_not_opened")? > before))?;
    ensure!(!knows()?, "a container that is gone came back");
    ensure!(reaches(lab), "c2 does not reach c1");
    Ok(())
}

/// What the UDP packets of a capture carry (pcap, little-endian, Ethernet, IPv4 without options).
fn payloads(file: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut at = 24;
    while let Some(length) = file.get(at + 8..at + 12).and_then(|four| four.try_into().ok()) {
        let (start, end) = (at + 16, at + 16 + u32::from_le_bytes(length) as usize);
        found.extend(file.get(start + 14 + 20 + 8..end).map(<[u8]>::to_vec));
        at = end;
    }
    found
}

//! Published ports in all their forms, reached from everywhere, and what happens to them when networks change.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{cases, hosts, hosts_with, page, refused};
use lab::command::run;
use lab::host::{wait_until, within};
use lab::{Host, Lab};

use crate::overlay::{SOON, seen_from_outside};

#[test]
fn published_ports() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("ports are given in all forms", ports_are_given_in_all_forms),
            ("both loopback addresses lead in", both_loopback_addresses_lead_in),
            ("an address of its own is no other", an_address_of_its_own_is_no_other),
            ("a container reaches the host's ports", a_container_reaches_the_hosts_ports),
            ("ports follow the way out", ports_follow_the_way_out),
            ("a container with IPv6 is reached by it", a_container_with_ipv6_is_reached_by_it),
            ("ports that cannot be are refused", ports_that_cannot_be_are_refused),
        ],
    )
}

/// From another namespace, by addresses of both families: a client and a container may have different ones.
#[test]
fn published_ports_from_outside() -> Result<()> {
    let lab = hosts_with(1, |plan| plan.ipv6 = true)?;
    let host = lab.host(1);
    host.dk("network create --ipv6 --subnet fd00:77::/64 six")?;
    host.dk("run -d --name four -p 8080:80 httpd")?;
    host.dk("run -d --name both --network six -p 8081:80 httpd")?;
    let (v4, v6) = (lab.plan.address(1), lab.plan.address6(1));
    host.dk(&format!("run -d --name one --network six -p [{v6}]:8082:80 httpd"))?;
    let outside = |address: &str| {
        let url = format!("http://{address}/");
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net=/run/netns/{}", lab.router));
        run(curl.args(["curl", "-sS", "-g", "--max-time", "5", &url]))
    };
    for address in [
        format!("{v4}:8080"),
        format!("[{v6}]:8080"),
        format!("{v4}:8081"),
        format!("[{v6}]:8081"),
        format!("[{v6}]:8082"),
    ] {
        let mut answer = String::new();
        wait_until(Duration::from_secs(30), || {
            answer = outside(&address).unwrap_or_else(|error| error.to_string());
            Ok(answer == lab::image::IT_WORKS)
        })
        .with_context(|| format!("{address}: {answer}"))?;
    }
    ensure!(outside(&format!("{v4}:8082")).is_err(), "published on one address alone");
    host.dk("rm -f four both one")?;
    ensure!(outside(&format!("[{v6}]:8081")).is_err(), "nothing is published any more");
    lab.down()
}

fn closed(host: &Host, address: &str) -> Result<()> {
    let open = host.sh(&format!("curl -sS -g --max-time 2 http://{address}/")).is_ok();
    ensure!(!open, "{address} answers");
    Ok(())
}

fn ports_are_given_in_all_forms(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name many -p 127.0.0.1:8082:80 -p 8083:83/udp -p 8090-8092:90-92 -p 8095-8099:99 -p 81 httpd")?;
    let ports = host.dk("port many")?;
    for line in [
        "80/tcp -> 127.0.0.1:8082",
        "83/udp -> 0.0.0.0:8083",
        "83/udp -> [::]:8083",
        "90/tcp -> 0.0.0.0:8090",
        "92/tcp -> [::]:8092",
        "99/tcp -> 0.0.0.0:8095",
        "99/tcp -> [::]:8095",
    ] {
        ensure!(ports.lines().any(|port| port == line), "{line} is missing:\n{ports}");
    }
    let random = host.docker(&["port", "many", "81"])?;
    let random: Vec<&str> = random.lines().filter_map(|line| line.rsplit(':').next()).collect();
    ensure!(random.len() == 2 && random[0] == random[1], "{random:?}");
    host.dk("run -d --name next -p 8095-8099:99 httpd")?;
    let ports = host.dk("port next 99")?;
    ensure!(ports.contains("0.0.0.0:8096"), "the next of the range: {ports}");
    host.dk("run -d --name all -P --expose 81/udp --expose 82 httpd")?;
    let ports = host.dk("port all")?;
    ensure!(ports.contains("81/udp -> ") && ports.contains("82/tcp -> "), "{ports}");
    host.dk("rm -f many next all").map(drop)
}

fn both_loopback_addresses_lead_in(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name loop -p 8080:80 -p [::1]:8081:80 httpd")?;
    for address in ["127.0.0.1:8080", "[::1]:8080", "[::1]:8081", &format!("{}:8080", host.address)]
    {
        page(host, address)?;
    }
    closed(host, "127.0.0.1:8081")?;
    host.dk("restart -t 1 loop")?;
    page(host, "[::1]:8080")?;
    host.dk("rm -f loop")?;
    closed(host, "[::1]:8080")
}

fn an_address_of_its_own_is_no_other(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name inner -p 127.0.0.1:8082:80 httpd")?;
    page(host, "127.0.0.1:8082")?;
    closed(host, &format!("{}:8082", host.address))?;
    // Another address of the same port is free.
    host.dk(&format!("run -d --name outer -p {}:8082:80 httpd", host.address))?;
    page(host, &format!("{}:8082", host.address))?;
    host.dk("rm -f inner outer").map(drop)
}

/// Through the host's address and back onto the same bridge.
fn a_container_reaches_the_hosts_ports(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create hairpin")?;
    host.dk("run -d --name server --network hairpin -p 8085:80 httpd")?;
    host.dk("run -d --name apart httpd")?;
    for asker in ["server", "apart"] {
        let url = format!("http://{}:8085/", host.address);
        page(host, &format!("{}:8085", host.address))?;
        let answer = host.docker(&["exec", asker, "wget", "-qO-", &url])?;
        ensure!(answer == lab::image::IT_WORKS, "{asker}: {answer}");
    }
    host.dk("rm -f server apart")?;
    host.dk("network rm hairpin").map(drop)
}

fn ports_follow_the_way_out(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create one")?;
    host.dk("network create two")?;
    host.dk("run -d --name moves --network one -p 8086:80 httpd")?;
    page(host, "127.0.0.1:8086")?;
    host.dk("network connect two moves")?;
    host.dk("network disconnect one moves")?;
    page(host, "127.0.0.1:8086")?;
    page(host, "[::1]:8086")?;
    host.dk("network disconnect two moves")?;
    closed(host, "127.0.0.1:8086")?;
    host.dk("network connect one moves")?;
    page(host, "127.0.0.1:8086")?;
    host.dk("rm -f moves")?;
    host.dk("network rm one two").map(drop)
}

fn a_container_with_ipv6_is_reached_by_it(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --ipv6 --subnet fd00:77::/64 six")?;
    host.dk("run -d --name six --network six -p 8087:80 httpd")?;
    let inside = host.docker(&[
        "inspect",
        "-f",
        "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}",
        "six",
    ])?;
    for address in [format!("[{inside}]"), "127.0.0.1:8087".into(), "[::1]:8087".into()] {
        // A new IPv6 address is tried for two seconds before it is used.
        page(host, &address)?;
    }
    host.dk("rm -f six")?;
    host.dk("network rm six").map(drop)
}

fn ports_that_cannot_be_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name first -p 8088:80 httpd")?;
    let taken = "Bind for 0.0.0.0:8088 failed: port is already allocated";
    refused(host, "run -d --name second -p 8088:80 httpd", taken)?;
    let state = host.dk("inspect -f {{.State.Status}}/{{.State.ExitCode}} second")?;
    ensure!(state == "created/128", "{state}");
    // One of several: none of them is kept.
    refused(host, "run -d --name third -p 8089:81 -p 8088:80 httpd", "port is already allocated")?;
    host.dk("run -d --name fourth -p 8089:81 httpd")?;
    refused(
        host,
        "run --rm -p 203.0.113.9:8100:80 httpd true",
        "bind: cannot assign requested address",
    )?;
    refused(
        host,
        "run --rm --network container:first -p 80:80 httpd true",
        "conflicting options: port publishing and the container type network mode",
    )?;
    host.dk("rm -f first second third fourth").map(drop)
}

/// On networks of the host alone: translated where the container has IPv6, relayed where it has not.
pub fn a_containers_port_answers_by_ipv6(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --ipv6 --subnet fd00:77::/64 six")?;
    host.dk("network create four")?;
    let outside = format!("/run/netns/{}", lab.router);
    for (network, port, client) in [("six", 8004, Some("[fd00:68::1]")), ("four", 8005, None)] {
        let publish = format!("-p {port}:80 -p {port}:53/udp");
        host.dk(&format!("run -d --name {network} --network {network} {publish} httpd"))?;
        let mut seen = Err(anyhow::anyhow!("not asked"));
        wait_until(SOON, || {
            seen = seen_from_outside(lab, "[fd00:68::109]", port);
            Ok(seen.is_ok())
        })
        .with_context(|| format!("{network}: {seen:?}"))?;
        let seen = seen?;
        ensure!(client.is_none_or(|client| seen == client), "{network} saw {seen}");
        let netns = host.netns_of(network)?;
        let server = host.within(&netns, || Ok(UdpSocket::bind("[::]:53")?))?;
        let client = within(&outside, || Ok(UdpSocket::bind("[fd00:68::1]:0")?))?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(SOON))?;
        }
        let mut buffer = [0; 8];
        client.connect(("fd00:68::109", port))?;
        client.send(b"question")?;
        let (length, from) = server.recv_from(&mut buffer).with_context(|| network.to_owned())?;
        server.send_to(&buffer[..length], from)?;
        client.recv(&mut buffer).with_context(|| format!("{network}: the answer"))?;
    }
    host.dk("rm -f six four")?;
    host.dk("network rm six four").map(drop)
}

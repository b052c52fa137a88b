//! Bridge networks, names and published ports on one host.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{answers, cases, hosts, page, refused};
use lab::Lab;
use lab::host::wait_until;

#[test]
fn local_networks() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("containers find each other by name", containers_find_each_other_by_name),
            ("a published port answers", a_published_port_answers),
            ("a network has the addresses it was given", a_network_has_the_addresses_it_was_given),
            ("a running container joins and leaves", a_running_container_joins_and_leaves),
            ("a network is named by its id", a_network_is_named_by_its_id),
            ("a container that runs has its address", a_container_that_runs_has_its_address),
            ("an internal network has no way out", an_internal_network_has_no_way_out),
            (
                "networks of the host, of none and of another",
                networks_of_the_host_of_none_and_of_another,
            ),
            ("wrong networks are refused", wrong_networks_are_refused),
        ],
    )
}

fn containers_find_each_other_by_name(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create pair")?;
    host.dk("run -d --name one --network pair httpd")?;
    host.dk("run -d --name two --network pair --network-alias other httpd")?;
    for name in ["two", "other"] {
        let ask = format!("exec one wget -qO- http://{name}/");
        // The server may not listen yet.
        let answers = || Ok(host.dk(&ask).is_ok_and(|page| page == lab::image::IT_WORKS));
        wait_until(Duration::from_secs(20), answers)
            .with_context(|| format!("{name}: {:?}", host.dk(&ask)))?;
    }
    let conf = host.dk("exec one cat /etc/resolv.conf")?;
    ensure!(conf.contains("127.0.0.11"), "{conf}");
    refused(host, "network rm pair", "has active endpoints")?;
    host.dk("rm -f one two")?;
    host.dk("network rm pair").map(drop)
}

fn a_published_port_answers(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name web -p 8080:80 httpd")?;
    answers(host, "port web", "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080")
        .or_else(|_| answers(host, "port web", "80/tcp -> 0.0.0.0:8080"))?;
    for address in ["127.0.0.1", &host.address] {
        page(host, &format!("{address}:8080"))?;
    }
    refused(host, "run -d --name web2 -p 8080:80 httpd", "port is already allocated")?;
    host.dk("rm -f web web2").map(drop)
}

fn a_network_has_the_addresses_it_was_given(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --subnet 172.30.0.0/16 --gateway 172.30.0.254 --ip-range 172.30.5.0/24 given")?;
    answers(host, "run --rm --network given --ip 172.30.9.9 httpd hostname -i", "172.30.9.9")?;
    let inspected =
        host.docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "given"])?;
    ensure!(inspected == "172.30.0.254", "{inspected}");
    let address = host.dk("run --rm --network given httpd hostname -i")?;
    ensure!(address.starts_with("172.30.5."), "{address}");
    host.dk("network rm given").map(drop)
}

fn a_running_container_joins_and_leaves(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create second")?;
    host.dk("run -d --name mover httpd")?;
    host.dk("network connect second mover")?;
    let links = host.dk("exec mover ip -o -4 addr")?;
    ensure!(links.contains("eth0") && links.contains("eth1"), "{links}");
    host.dk("network disconnect second mover")?;
    let links = host.dk("exec mover ip -o -4 addr")?;
    ensure!(!links.contains("eth1"), "{links}");
    host.dk("rm -f mover")?;
    host.dk("network rm second").map(drop)
}

/// A network that was named by its id is known by its name, by which the container leaves it for good.
fn a_network_is_named_by_its_id(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let id = host.dk("network create third")?;
    host.dk(&format!("run -d --name by-id --network {id} httpd"))?;
    let on = || {
        let format = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
        host.docker(&["inspect", "-f", format, "by-id"])
    };
    ensure!(on()?.trim() == "third", "{}", on()?);
    host.dk("network connect bridge by-id")?;
    host.dk("network disconnect third by-id")?;
    ensure!(on()?.trim() == "bridge", "{}", on()?);
    host.dk("restart -t 0 by-id")?;
    ensure!(on()?.trim() == "bridge", "after its next start: {}", on()?);
    host.dk("stop -t 0 by-id")?;
    host.dk(&format!("network connect {} by-id", &id[..12]))?;
    ensure!(on()?.trim() == "bridge third", "at rest: {}", on()?);
    host.dk("network disconnect third by-id")?;
    ensure!(on()?.trim() == "bridge", "at rest: {}", on()?);
    host.dk("rm -f by-id")?;
    host.dk("network rm third").map(drop)
}

/// One that has ended is on its network until it is told as ended.
fn a_container_that_runs_has_its_address(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    for _ in 0..5 {
        host.dk("run -d --name ending -v /www httpd")?;
        std::thread::scope(|scope| {
            let killed = scope.spawn(|| host.dk("kill ending"));
            loop {
                let (_, text) = host.api("GET", "/containers/ending/json", "")?;
                let seen: serde_json::Value = serde_json::from_str(&text)?;
                if seen["State"]["Running"] == false {
                    break;
                }
                let address = &seen["NetworkSettings"]["Networks"]["bridge"]["IPAddress"];
                ensure!(
                    address.as_str().is_some_and(|it| !it.is_empty()),
                    "runs without an address"
                );
            }
            killed.join().unwrap_or_else(|_| anyhow::bail!("kill panicked")).map(drop)
        })?;
        host.dk("rm -v ending")?;
    }
    Ok(())
}

fn an_internal_network_has_no_way_out(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --internal inside")?;
    let out = host.try_docker(&[
        "run",
        "--rm",
        "--network",
        "inside",
        "httpd",
        "ping",
        "-c1",
        "-W1",
        "192.168.68.1",
    ])?;
    ensure!(!out.status.success(), "an internal network reached the outside");
    host.dk("run -d --name open -p 8123:80 httpd")?;
    host.dk("run -d --name shut --network inside httpd")?;
    host.dk("run -d --name other httpd")?;
    let gateway = "{{range .IPAM.Config}}{{.Gateway}}{{end}}";
    let gateway = host.docker(&["network", "inspect", "-f", gateway, "inside"])?;
    let reaches = |container: &str, address: &str| -> Result<bool> {
        let port = (address.parse::<std::net::IpAddr>()?, 8123).into();
        let connect = || Ok(TcpStream::connect_timeout(&port, Duration::from_secs(2)).is_ok());
        host.within(&host.netns_of(container)?, connect)
    };
    for address in [&gateway, &host.address] {
        ensure!(!reaches("shut", address)?, "from inside a port was reached by {address}");
    }
    ensure!(reaches("other", &host.address)?, "from another network it is reached");
    host.dk("rm -f open shut other")?;
    host.dk("network rm inside")?;
    host.dk("run --rm httpd ping -c1 -W2 192.168.68.1").map(drop)
}

fn networks_of_the_host_of_none_and_of_another(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let links = host.dk("run --rm --network host httpd ip -o -4 addr")?;
    ensure!(links.contains(&host.address), "{links}");
    let links = host.dk("run --rm --network none httpd ip -o link")?;
    ensure!(!links.contains("eth0"), "{links}");
    host.dk("run -d --name first httpd")?;
    let answer = host.dk("run --rm --network container:first httpd wget -qO- http://127.0.0.1/")?;
    ensure!(answer == lab::image::IT_WORKS, "{answer}");
    host.dk("rm -f first").map(drop)
}

fn wrong_networks_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --subnet 172.31.0.0/24 taken")?;
    refused(host, "network create --subnet 172.31.0.0/25 over", "overlaps")?;
    refused(host, "network create taken", "already exists")?;
    refused(host, "network create --driver nothing new", "nothing")?;
    refused(host, "network rm bridge", "pre-defined")?;
    host.dk("network rm taken").map(drop)
}

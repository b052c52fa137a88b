//! Names inside containers, IPv6, addresses and options of networks, as the docker command asks for them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{answers, cases, hosts, refused};
use lab::host::wait_until;
use lab::{Engine, Host, Lab};

use crate::repair::processes;

#[test]
fn names_and_addresses() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("the resolver knows names, aliases and addresses", the_resolver_knows),
            ("what is asked often needs no process", what_is_asked_often_needs_no_process),
            ("DNS options reach the container", dns_options_reach_the_container),
            ("links have a name of their own", links_have_a_name_of_their_own),
            ("both families have names", both_families_have_names),
            ("an address is given as asked for or refused", an_address_is_given_or_refused),
            ("a network's options take effect", a_networks_options_take_effect),
            ("networks are listed, filtered and pruned", networks_are_listed_and_pruned),
            ("wrong options of networks are refused", wrong_options_are_refused),
            ("a container at rest joins and leaves", a_container_at_rest_joins_and_leaves),
            ("what a shared network cannot have is refused", a_shared_network),
        ],
    )
}

fn inside(host: &Host, container: &str, command: &str) -> Result<String> {
    host.docker(&["exec", container, "sh", "-c", command])
}

fn the_resolver_knows(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create names")?;
    host.dk("run -d --name first --network names --network-alias both httpd")?;
    host.dk("run -d --name second --network names --network-alias both --network-alias own httpd")?;
    let of = |name: &str| {
        host.docker(&["inspect", "-f", "{{.NetworkSettings.Networks.names.IPAddress}}", name])
    };
    let (first, second) = (of("first")?, of("second")?);
    for (name, address) in [("second", &second), ("SECOND.names", &second), ("own", &second)] {
        let answer = inside(host, "first", &format!("nslookup -type=a {name}"))?;
        ensure!(
            answer.contains(&format!("Address: {address}\n")) || answer.ends_with(&**address),
            "{name}: {answer}"
        );
    }
    let both = inside(host, "first", "nslookup -type=a both")?;
    ensure!(both.contains(&first) && both.contains(&second), "{both}");
    let pointer = inside(host, "first", &format!("nslookup {second}"))?;
    ensure!(pointer.contains("name = second.names"), "{pointer}");
    // A name of nobody is asked of the host's resolver, which knows none.
    let nobody = inside(host, "first", "nslookup -type=a nobody.example 2>&1 || true")?;
    ensure!(nobody.contains("NXDOMAIN"), "{nobody}");
    host.dk("rename second renamed")?;
    let answer = inside(host, "first", "nslookup -type=a renamed")?;
    ensure!(answer.contains(&second), "{answer}");
    host.dk("stop -t 1 renamed")?;
    let gone = inside(host, "first", "nslookup -type=a renamed 2>&1 || true")?;
    ensure!(!gone.contains(&second), "a stopped container keeps its name: {gone}");
    host.dk("rm -f first renamed")?;
    host.dk("network rm names").map(drop)
}

/// With the resolver stopped, the kernel answers what it was asked often enough; and a name that has
/// changed since is another.
fn what_is_asked_often_needs_no_process(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    if host.engine == Engine::Dockerd {
        return Ok(());
    }
    host.dk("network create often")?;
    host.dk("run -d --name first --network often httpd")?;
    host.dk("run -d --name second --network often --network-alias asked httpd")?;
    let ask = "timeout 5 nslookup -type=a asked";
    let resolvers = processes(host, "resolver --exec-root")?;
    let signal = |signal: &str| {
        resolvers.iter().try_for_each(|pid| host.sh(&format!("kill -{signal} {pid}")).map(drop))
    };
    wait_until(Duration::from_secs(60), || {
        inside(host, "first", &format!("for i in $(seq 200); do {ask} >/dev/null; done"))?;
        signal("STOP")?;
        let answer = inside(host, "first", ask);
        signal("CONT")?;
        Ok(answer.is_ok())
    })
    .context("no answer while the resolver is stopped")?;
    host.dk("rm -f second")?;
    let gone = inside(host, "first", &format!("{ask} 2>&1 || true"))?;
    ensure!(gone.contains("NXDOMAIN"), "a removed container keeps its name: {gone}");
    host.dk("run -d --name third --network often --network-alias asked httpd")?;
    let third = "{{.NetworkSettings.Networks.often.IPAddress}}";
    let third = host.docker(&["inspect", "-f", third, "third"])?;
    let answer = inside(host, "first", ask)?;
    ensure!(answer.contains(&third), "{answer}");
    host.dk("rm -f first third")?;
    host.dk("network rm often").map(drop)
}

fn dns_options_reach_the_container(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let conf = host.dk("run --rm --dns 192.0.2.53 --dns-search a.example --dns-search b.example --dns-opt timeout:1 httpd cat /etc/resolv.conf")?;
    for line in ["search a.example b.example", "nameserver 192.0.2.53", "options timeout:1"] {
        ensure!(conf.lines().any(|found| found == line), "{line}: {conf}");
    }
    let conf = host.dk("run --rm --dns 192.0.2.53 --dns-search . httpd cat /etc/resolv.conf")?;
    ensure!(conf == "nameserver 192.0.2.53", "{conf}");
    host.dk("network create dns")?;
    let conf = host.dk("run --rm --network dns --dns 192.0.2.53 --dns-search a.example --dns-opt timeout:1 httpd cat /etc/resolv.conf")?;
    for line in ["search a.example", "nameserver 127.0.0.11", "options timeout:1 ndots:0"] {
        ensure!(conf.lines().any(|found| found == line), "{line}: {conf}");
    }
    let hosts = host.dk("run --rm --add-host other:192.0.2.9 httpd cat /etc/hosts")?;
    ensure!(hosts.lines().any(|line| line == "192.0.2.9\tother"), "{hosts}");
    refused(host, "create --add-host nonsense:x httpd", "nvalid")?;
    host.dk("network rm dns").map(drop)
}

fn links_have_a_name_of_their_own(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name linked httpd")?;
    let hosts = host.dk("run --rm --link linked:web httpd cat /etc/hosts")?;
    let address = host.dk("inspect -f {{.NetworkSettings.Networks.bridge.IPAddress}} linked")?;
    let line = hosts.lines().find(|line| line.starts_with(&address)).unwrap_or_default();
    ensure!(line.contains("\tweb ") && line.ends_with(" linked"), "{hosts}");
    let env = host.dk("run --rm --link linked:web httpd env")?;
    ensure!(env.lines().any(|line| line.starts_with("WEB_NAME=/")), "{env}");
    host.dk("network create links")?;
    host.dk("network connect links linked")?;
    let answer =
        host.dk("run --rm --network links --link linked:alias httpd nslookup -type=a alias")?;
    ensure!(answer.contains("alias"), "{answer}");
    refused(host, "create --link nobody:x httpd", "could not get container for nobody")?;
    host.dk("rm -f linked")?;
    host.dk("network rm links").map(drop)
}

fn both_families_have_names(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --ipv6 --subnet fd00:66::/64 --subnet 10.66.0.0/24 both")?;
    host.dk("run -d --name there --network both --ip6 fd00:66::99 httpd")?;
    let links = host.dk("run --rm --network both httpd ip -o -6 addr show eth0")?;
    ensure!(links.contains("fd00:66::"), "{links}");
    let answer = host.dk("run --rm --network both httpd nslookup -type=aaaa there")?;
    ensure!(answer.contains("fd00:66::99"), "{answer}");
    host.dk("run --rm --network both httpd ping -6 -c1 -W10 there")?;
    host.dk("run --rm --network both httpd ping -4 -c1 -W10 there")?;
    let shown = host.docker(&[
        "network",
        "inspect",
        "-f",
        "{{.EnableIPv6}} {{range .Containers}}{{.IPv6Address}}{{end}}",
        "both",
    ])?;
    ensure!(shown == "true fd00:66::99/64", "{shown}");
    refused(
        host,
        "run --rm --network both --ip6 fd00:67::1 httpd true",
        "elong to any of this network's subnets",
    )?;
    refused(host, "network create --ipv6 --subnet fd00:66::/80 over", "overlaps")?;
    host.dk("rm -f there")?;
    host.dk("network rm both").map(drop)
}

fn an_address_is_given_or_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --subnet 10.65.0.0/24 --gateway 10.65.0.9 --ip-range 10.65.0.128/25 --aux-address router=10.65.0.200 fixed")?;
    answers(host, "run --rm --network fixed httpd hostname -i", "10.65.0.128")?;
    answers(host, "run --rm --network fixed --ip 10.65.0.7 httpd hostname -i", "10.65.0.7")?;
    let route = host.dk("run --rm --network fixed httpd ip route")?;
    ensure!(route.contains("default via 10.65.0.9 dev eth0"), "{route}");
    for taken in ["10.65.0.9", "10.65.0.200", "10.65.0.0", "10.65.0.255"] {
        let line = format!("run --rm --network fixed --ip {taken} httpd true");
        refused(host, &line, "Address already in use")?;
    }
    host.dk("run -d --name holder --network fixed --ip 10.65.0.50 httpd")?;
    refused(host, "run --rm --network fixed --ip 10.65.0.50 httpd true", "Address already in use")?;
    refused(
        host,
        "run --rm --network fixed --ip 10.64.0.1 httpd true",
        "elong to any of this network's subnets",
    )?;
    refused(
        host,
        "run --rm --ip 172.17.0.9 httpd true",
        "user specified IP address is supported on user defined networks only",
    )?;
    host.dk("network create chosen")?;
    refused(
        host,
        "run --rm --network chosen --ip 172.18.0.9 httpd true",
        "user specified IP address is supported only when connecting to networks with user configured subnets",
    )?;
    host.dk("rm -f holder")?;
    host.dk("network rm fixed chosen").map(drop)
}

fn a_networks_options_take_effect(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --opt com.docker.network.driver.mtu=1400 --opt com.docker.network.bridge.enable_icc=false --opt com.docker.network.bridge.name=br-apart apart")?;
    answers(host, "run --rm --network apart httpd cat /sys/class/net/eth0/mtu", "1400")?;
    host.sh("ip link show br-apart")?;
    host.dk("run -d --name silent --network apart httpd")?;
    let address = host.dk("inspect -f {{.NetworkSettings.Networks.apart.IPAddress}} silent")?;
    let line = ["run", "--rm", "--network", "apart", "httpd", "ping", "-c1", "-W1", &address];
    ensure!(!host.try_docker(&line)?.status.success(), "containers reach each other without icc");
    // The command can name an address of the network only to daemons of API 1.44 and later.
    if host.engine == Engine::Skep {
        let link = host.dk("run --rm --network apart --mac-address 02:00:00:00:00:77 httpd cat /sys/class/net/eth0/address")?;
        ensure!(link == "02:00:00:00:00:77", "{link}");
    }
    host.dk("rm -f silent")?;
    host.dk("network rm apart")?;
    ensure!(host.sh("ip link show br-apart").is_err(), "the bridge of a removed network stays");
    Ok(())
}

fn networks_are_listed_and_pruned(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --label tier=front used")?;
    host.dk("network create --label tier=back unused")?;
    host.dk("run -d --name user --network used httpd")?;
    let list = |filters: &str| host.dk(&format!("network ls --format {{{{.Name}}}} {filters}"));
    ensure!(list("--filter label=tier=front")? == "used");
    ensure!(list("--filter type=custom --filter name=us")? == "unused\nused");
    ensure!(list("--filter driver=host")? == "host");
    let dangling = list("--filter dangling=true")?;
    ensure!(dangling.contains("unused"), "{dangling}");
    // The Docker Engine of the tests shows those in use as well.
    ensure!(host.engine != Engine::Skep || dangling == "unused", "{dangling}");
    refused(host, "network ls --filter type=strange", "'type")?;
    refused(host, "network ls --filter nosuch=1", "nvalid filter 'nosuch'")?;
    refused(host, "network rm used", "has active endpoints")?;
    let pruned = host.dk("network prune -f")?;
    ensure!(pruned.contains("unused") && !pruned.lines().any(|line| line == "used"), "{pruned}");
    host.dk("rm -f user")?;
    host.dk("network rm used").map(drop)
}

fn wrong_options_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create --subnet 10.64.0.0/24 known")?;
    for (line, expected) in [
        ("network create --subnet 10.64.0.0/25 over", "overlaps"),
        ("network create --subnet 10.63.0.0/33 wrong", "invalid CIDR address"),
        (
            "network create --subnet 10.63.0.0/24 --gateway 10.62.0.1 wrong",
            "no matching subnet for gateway",
        ),
        ("network create bridge", "operation is not permitted on predefined bridge network"),
        ("network create known", "network with name known already exists"),
        ("network create -d host wrong", "only one instance of \"host\" network is allowed"),
        (
            "network create --opt com.docker.network.driver.mtu=abc wrong",
            "failed to parse com.docker.network.driver.mtu value",
        ),
        (
            "network create --opt com.docker.network.bridge.enable_icc=maybe wrong",
            "failed to parse com.docker.network.bridge.enable_icc value",
        ),
        ("network create --ipam-driver nosuch wrong", "plugin \"nosuch\" not found"),
        (
            "network create --ipv6 wrong",
            "could not find an available, non-overlapping IPv6 address pool",
        ),
        ("network connect known nobody", "No such container: nobody"),
        ("run --rm --network nosuch httpd true", "network nosuch not found"),
    ] {
        refused(host, line, expected)?;
    }
    ensure!(host.dk("network ls -q --filter name=wrong")?.is_empty(), "a refused network is there");
    host.dk("network rm known").map(drop)
}

fn a_container_at_rest_joins_and_leaves(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create later")?;
    host.dk("create --name rest httpd")?;
    host.dk("network connect --alias asleep later rest")?;
    host.dk("start rest")?;
    let answer = host.dk("run --rm --network later httpd wget -qO- http://asleep/")?;
    ensure!(answer == lab::image::IT_WORKS, "{answer}");
    refused(host, "network connect later rest", "already exists in network later")?;
    host.dk("stop -t 1 rest")?;
    host.dk("network disconnect later rest")?;
    refused(host, "network disconnect later rest", "is not connected to")?;
    refused(
        host,
        "network connect host rest",
        "cannot be disconnected from host network or connected to host network",
    )?;
    host.dk("start rest")?;
    let links = host.dk("exec rest ip -o -4 addr")?;
    ensure!(links.contains("eth0") && !links.contains("eth1"), "{links}");
    host.dk("rm -f rest")?;
    host.dk("network rm later").map(drop)
}

fn a_shared_network(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    for (options, expected) in [
        ("-h own", "conflicting options: hostname and the network mode"),
        ("--dns 192.0.2.1", "conflicting options: dns and the network mode"),
        (
            "--add-host a:192.0.2.1",
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        ("--link a:b", "conflicting options: container type network can't be used with links"),
        ("", "No such container: nobody"),
    ] {
        refused(
            host,
            &format!("run --rm --network container:nobody {options} httpd true"),
            expected,
        )?;
    }
    host.dk("run -d --name owner -h shared-name httpd")?;
    answers(host, "run --rm --network container:owner httpd hostname", "shared-name")?;
    host.dk("rm -f owner").map(drop)
}

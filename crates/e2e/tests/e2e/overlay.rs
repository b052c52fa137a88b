//! Overlay networks on two hosts with both families of addresses: names, addresses, the mesh, what
//! is listed, what is refused.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{cases, heard, refused, swarm_of_skep, task_on, until_pinged};
use lab::host::{wait_until, within};
use lab::{Host, Lab};

#[test]
fn overlay_networks() -> Result<()> {
    let lab = swarm_of_skep(2, |_| {})?;
    let first = lab.host(1);
    first.dk("network create -d overlay --ipv6 --attachable web")?;
    first.dk(&format!(
        "{CREATE} --name web --replicas 4 --network name=web,alias=site -p 80:80 httpd"
    ))?;
    cases(
        &lab,
        &[
            ("names have addresses of both families", names_have_addresses_of_both_families),
            ("names are answered in every form", crate::questions::in_every_form),
            ("what is too long for a packet", crate::questions::too_long_for_a_packet),
            ("tasks reach each other over IPv6", tasks_reach_each_other_over_ipv6),
            ("a published port answers everywhere", a_published_port_answers_everywhere),
            ("a container's port answers by IPv6", crate::ports::a_containers_port_answers_by_ipv6),
            (
                "what the managers' host reaches is avoided",
                what_the_managers_host_reaches_is_avoided,
            ),
            ("udp, dynamic and host ports", udp_dynamic_and_host_ports),
            ("a port that something else has is named", a_port_that_something_else_has_is_named),
            ("containers come and go on an overlay", crate::guests::come_and_go),
            ("containers keep a way out", crate::guests::keep_a_way_out),
            ("tasks join other networks", crate::guests::join_as_tasks),
            ("every node lists the same", crate::listed::every_node_lists_the_same),
            (
                "a manager without a part lists all",
                crate::listed::a_manager_without_a_part_lists_all,
            ),
            ("wrong networks are refused", wrong_networks_are_refused),
            ("options are kept and used", options_are_kept_and_used),
            ("a full subnet is named and frees itself", a_full_subnet_is_named_and_frees_itself),
            ("an internal overlay has no way out", an_internal_overlay_has_no_way_out),
            ("without a virtual address", without_a_virtual_address),
            ("the ingress network is replaced", the_ingress_network_is_replaced),
            ("names while the daemon is stopped", crate::questions::while_the_daemon_is_stopped),
            ("what the gossip drops is counted", what_the_gossip_drops_is_counted),
        ],
    )
}

pub const CREATE: &str = "service create -q --no-resolve-image --detach=false";
pub const SOON: Duration = Duration::from_secs(20);

/// What nslookup found, the server's own address left out.
fn looked_up(host: &Host, container: &str, name: &str) -> Result<BTreeSet<String>> {
    let output = host.try_docker(&["exec", container, "nslookup", name])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.split("Name:").skip(1).flat_map(str::lines);
    let found = found.filter_map(|line| line.strip_prefix("Address")?.split_once(": "));
    Ok(found.map(|(_, address)| address.trim().to_owned()).collect())
}

pub fn until_known(
    host: &Host,
    container: &str,
    name: &str,
    count: usize,
) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    wait_until(SOON, || {
        found = looked_up(host, container, name)?;
        Ok(found.len() == count)
    })
    .with_context(|| format!("{name}: {found:?}, wanted {count}"))?;
    Ok(found)
}

fn six(addresses: &BTreeSet<String>) -> Result<&String> {
    addresses.iter().find(|text| text.contains(':')).context("no IPv6 address")
}

fn names_have_addresses_of_both_families(lab: &Lab) -> Result<()> {
    for host in [lab.host(1), lab.host(2)] {
        let task = task_on(host, "web")?;
        let all = until_known(host, &task, "tasks.web", 8)?;
        ensure!(all.iter().filter(|text| text.contains(':')).count() == 4, "{all:?}");
        let vips = until_known(host, &task, "web", 2)?;
        ensure!(vips.is_disjoint(&all), "virtual addresses are no task's: {vips:?} {all:?}");
        ensure!(until_known(host, &task, "site", 2)? == vips, "an alias is the service");
        ensure!(until_known(host, &task, "WEB.web", 2)? == vips, "with its network's name");
        ensure!(until_known(host, &task, "tasks.site", 8)? == all);
        let short = until_known(host, &task, &task, 2)?;
        ensure!(short.is_subset(&all), "a container's short id is its own name: {short:?}");
        for address in &short {
            let name = host.docker(&["inspect", "-f", "{{.Name}}", &task])?;
            let pointer = host.docker(&["exec", &task, "nslookup", address])?;
            let wanted = format!("name = {}.web", name.trim_start_matches('/'));
            ensure!(pointer.contains(&wanted), "{address}: {pointer}, wanted {wanted}");
        }
        ensure!(looked_up(host, &task, "nobody.web")?.is_empty());
    }
    Ok(())
}

fn tasks_reach_each_other_over_ipv6(lab: &Lab) -> Result<()> {
    let (here, there) = (lab.host(1), lab.host(2));
    let (task, far) = (task_on(here, "web")?, task_on(there, "web")?);
    let addresses = until_known(there, &far, &far, 2)?;
    let address = six(&addresses)?;
    let ping = here.docker(&["exec", &task, "ping", "-6", "-c", "3", address])?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    let vips = until_known(here, &task, "web", 2)?;
    let own = until_known(here, &task, &task, 2)?;
    let mut seen = BTreeSet::new();
    for _ in 0..8 {
        let url = format!("http://[{}]/cgi-bin/addr", six(&vips)?);
        let answer = here.docker(&["exec", &task, "wget", "-qO-", &url])?;
        let (caller, callee) = answer.split_once(' ').with_context(|| answer.clone())?;
        ensure!(caller == format!("[{}]", six(&own)?), "the callee sees its caller: {answer}");
        seen.insert(callee.to_owned());
    }
    ensure!(seen.len() == 4, "all tasks are met through the IPv6 address: {seen:?}");
    let vip = here.docker(&["exec", &task, "ping", "-6", "-c", "1", "web"])?;
    ensure!(vip.contains("1 packets received"), "{vip}");
    // The way out, by the host's own bridge.
    let out = here.docker(&["exec", &task, "ping", "-6", "-c", "1", "fd00:68::1"])?;
    ensure!(out.contains("1 packets received"), "{out}");
    Ok(())
}

/// Who a task saw, asked from the router, which is no host of the swarm.
pub fn seen_from_outside(lab: &Lab, address: &str, port: u16) -> Result<String> {
    let mut curl = std::process::Command::new("nsenter");
    curl.arg(format!("--net=/run/netns/{}", lab.router));
    curl.args(["curl", "-sS", "--max-time", "5"]);
    let answer = lab::command::run(curl.arg(format!("http://{address}:{port}/cgi-bin/addr")))?;
    Ok(answer.split(' ').next().unwrap_or_default().to_owned())
}

fn a_published_port_answers_everywhere(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    for (address, client) in [
        ("192.168.68.109", "[::ffff:192.168.68.1]"),
        ("192.168.68.110", "[::ffff:192.168.68.1]"),
        ("[fd00:68::109]", "[fd00:68::1]"),
        ("[fd00:68::110]", "[fd00:68::1]"),
    ] {
        for _ in 0..4 {
            let seen = seen_from_outside(lab, address, 80)?;
            ensure!(seen == client, "{address}: the task saw {seen}, not {client}");
        }
    }
    let task = task_on(host, "web")?;
    for address in ["127.0.0.1", "[::1]", "192.168.68.109", "[fd00:68::109]", "[fd00:68::110]"] {
        for _ in 0..4 {
            let answer = host.sh(&format!("curl -sS --max-time 5 http://{address}/"))?;
            ensure!(answer == lab::image::IT_WORKS, "from the node itself, {address}: {answer}");
        }
        if !address.contains("127") && !address.contains("::1]") {
            let answer =
                host.docker(&["exec", &task, "wget", "-qO-", &format!("http://{address}/")])?;
            ensure!(answer == lab::image::IT_WORKS, "from a task, {address}: {answer}");
        }
    }
    for address in ["192.168.68.109", "192.168.68.110"] {
        let answer = host.dk(&format!("run --rm httpd wget -qO- http://{address}/"))?;
        ensure!(answer == lab::image::IT_WORKS, "from a container, {address}: {answer}");
    }
    // A host without a task answers as well.
    host.dk(&format!(
        "{CREATE} --name lone --constraint node.hostname==sathish-vm1 -p 8001:80 httpd"
    ))?;
    for (address, client) in
        [("192.168.68.110", "[::ffff:192.168.68.1]"), ("[fd00:68::110]", "[fd00:68::1]")]
    {
        wait_until(SOON, || Ok(seen_from_outside(lab, address, 8001).is_ok_and(|s| s == client)))
            .with_context(|| format!("{address}:8001"))?;
    }
    host.dk("service rm lone").map(drop)
}

fn udp_dynamic_and_host_ports(lab: &Lab) -> Result<()> {
    let (host, far) = (lab.host(1), lab.host(2));
    host.dk(&format!(
        "{CREATE} --name ports --constraint node.hostname==sathish-vm2 -p 5300:5353/udp -p 80 \
         -p published=8002,target=80,mode=host -p 7000-7002:80-82 httpd"
    ))?;
    let format = "{{range .Endpoint.Ports}}{{.TargetPort}}>{{.PublishedPort}} {{end}}";
    let ports = host.docker(&["service", "inspect", "-f", format, "ports"])?;
    let dynamic = ports.split(' ').filter_map(|pair| pair.strip_prefix("80>"));
    let dynamic = dynamic.filter_map(|port| port.parse::<u16>().ok()).find(|port| *port >= 30_000);
    let dynamic = dynamic.with_context(|| format!("no dynamic port in {ports}"))?;
    let every = ["192.168.68.109", "192.168.68.110", "[fd00:68::109]", "[fd00:68::110]"];
    for (port, address) in [dynamic, 7000].into_iter().flat_map(|port| every.map(|at| (port, at))) {
        wait_until(SOON, || Ok(seen_from_outside(lab, address, port).is_ok()))
            .with_context(|| format!("{address}:{port}"))?;
    }
    // In host mode the task's own host answers, and no other.
    for (address, client) in
        [("192.168.68.110", "[::ffff:192.168.68.1]"), ("[fd00:68::110]", "[fd00:68::1]")]
    {
        let mut seen = Err(anyhow::anyhow!("not asked"));
        wait_until(SOON, || {
            seen = seen_from_outside(lab, address, 8002);
            Ok(seen.is_ok())
        })
        .with_context(|| format!("{address}: {seen:?}"))?;
        let seen = seen?;
        ensure!(seen == client, "{address}: {seen}");
    }
    for address in ["192.168.68.109", "[fd00:68::109]"] {
        ensure!(seen_from_outside(lab, address, 8002).is_err(), "host mode is one host's");
    }
    let netns = far.netns_of(&task_on(far, "ports")?)?;
    the_rest_of_a_range(lab, &netns)?;
    let server = far.within(&netns, || Ok(UdpSocket::bind("[::]:5353")?))?;
    let outside = format!("/run/netns/{}", lab.router);
    let itself = format!("/proc/{}/ns/net", host.init_pid());
    let asker = host.netns_of(&task_on(host, "web")?)?;
    let inside = format!("/proc/{}/root{asker}", host.init_pid());
    for (from, address) in [
        (&outside, "192.168.68.109:5300"),
        (&outside, "192.168.68.110:5300"),
        (&outside, "[fd00:68::109]:5300"),
        (&outside, "[fd00:68::110]:5300"),
        (&itself, "127.0.0.1:5300"),
        (&itself, "[::1]:5300"),
        (&itself, "192.168.68.110:5300"),
        (&inside, "192.168.68.109:5300"),
        (&inside, "192.168.68.110:5300"),
    ] {
        let to: SocketAddr = address.parse()?;
        let client = within(from, || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            Ok(UdpSocket::bind(any)?)
        })?;
        client.set_read_timeout(Some(SOON))?;
        let seen = heard(&client, to, &server).context(address)?;
        let mut buffer = [0; 64];
        let source = seen.ip().to_canonical().to_string();
        let known = ["192.168.68.1", "fd00:68::1"].contains(&source.as_str());
        ensure!(known || *from != outside, "{address}: {seen}");
        server.send_to(b"answer", seen)?;
        let (length, from) = client.recv_from(&mut buffer).context(address)?;
        ensure!(from == to && &buffer[..length] == b"answer", "{address}: from {from}");
    }
    host.dk("service rm ports").map(drop)
}

/// 7001 leads to 81 and 7002 to 82, by either family.
fn the_rest_of_a_range(lab: &Lab, netns: &str) -> Result<()> {
    let far = lab.host(2);
    for (published, target) in [(7001, 81), (7002, 82)] {
        let listener = far.within(netns, || Ok(TcpListener::bind(("::", target))?))?;
        for address in ["192.168.68.109", "fd00:68::109"] {
            let to = SocketAddr::new(address.parse()?, published);
            let outside = format!("/run/netns/{}", lab.router);
            let client = within(&outside, || Ok(TcpStream::connect_timeout(&to, SOON)?))
                .with_context(|| format!("{to}"))?;
            let (_, seen) = listener.accept()?;
            ensure!(seen.port() == client.local_addr()?.port(), "{to}: {seen}");
        }
    }
    Ok(())
}

/// A network that names no subnet gets none that its containers' host would no longer reach for them.
fn what_the_managers_host_reaches_is_avoided(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let given = || -> Result<String> {
        host.dk("network create -d overlay anywhere")?;
        let format = "{{range .IPAM.Config}}{{.Subnet}}{{end}}";
        let mut subnet = String::new();
        wait_until(SOON, || {
            subnet = host.docker(&["network", "inspect", "-f", format, "anywhere"])?;
            Ok(!subnet.is_empty())
        })?;
        host.dk("network rm anywhere")?;
        Ok(subnet)
    };
    let first = given()?;
    host.sh(&format!("ip route add {first} via 192.168.68.1"))?;
    let mut second = first.clone();
    wait_until(SOON, || {
        second = given()?;
        Ok(second != first)
    })
    .with_context(|| format!("{first} although the host has a route to it"))?;
    host.sh(&format!("ip route del {first}"))?;
    wait_until(SOON, || Ok(given()? == first)).context("the route is gone")
}

/// The mesh serves the port all the same, and the host that cannot hold it says so.
fn a_port_that_something_else_has_is_named(lab: &Lab) -> Result<()> {
    let (host, far) = (lab.host(1), lab.host(2));
    let path = format!("/proc/{}/ns/net", far.init_pid());
    let holder = within(&path, || Ok(TcpListener::bind("0.0.0.0:8003")?))?;
    host.dk(&format!("{CREATE} --name taken --mode global -p 8003:80 httpd"))?;
    wait_until(SOON, || Ok(seen_from_outside(lab, "192.168.68.110", 8003).is_ok()))?;
    wait_until(SOON, || Ok(warnings(far)?.contains("8003/tcp")))
        .with_context(|| warnings(far).unwrap_or_default())?;
    ensure!(!warnings(host)?.contains("8003"), "the other host holds it");
    let listed = || {
        let format = "{{.Node}} {{.CurrentState}} {{.Error}}";
        host.docker(&["service", "ps", "--no-trunc", "--format", format, "taken"])
    };
    let named = |list: &str, at: &Host| {
        let mut lines =
            list.lines().filter(|line| line.starts_with(&format!("{} Running", at.name)));
        lines.any(|line| line.contains("port 8003/tcp is in use by another process on this node"))
    };
    wait_until(SOON, || Ok(named(&listed()?, far)))
        .with_context(|| listed().unwrap_or_default())?;
    ensure!(!named(&listed()?, host), "the other host's task has nothing to tell");
    drop(holder);
    wait_until(SOON, || Ok(!warnings(far)?.contains("8003")))?;
    wait_until(SOON, || Ok(!listed()?.contains("8003")))
        .with_context(|| listed().unwrap_or_default())?;
    host.dk("service rm taken").map(drop)
}

fn warnings(host: &Host) -> Result<String> {
    host.docker(&["info", "-f", "{{json .Warnings}}"])
}

fn wrong_networks_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let before = host.dk("network ls -q")?;
    let pool = |pool: &str| format!("\"IPAM\":{{\"Config\":[{pool}]}}");
    let option = |name: &str, value: &str| format!("\"Options\":{{\"{name}\":\"{value}\"}}");
    let vni = "com.docker.network.driver.overlay.vxlanid_list";
    let mtu = "com.docker.network.driver.mtu";
    for (rest, status, part) in [
        (pool("{\"Subnet\":\"10.0.1.128/25\"}"), 403, "10.0.1.0/24 of network web"),
        (pool("{\"Subnet\":\"10.77.0.0/24\"},{\"Subnet\":\"10.77.0.0/25\"}"), 403, "Pool overlaps"),
        (pool("{\"Subnet\":\"10.77.0.0/24\",\"Gateway\":\"10.78.0.1\"}"), 400, "10.78.0.1"),
        (pool("{\"Subnet\":\"10.77.0.0/24\",\"Gateway\":\"10.77.0.0\"}"), 400, "no host's address"),
        (pool("{\"Subnet\":\"10.77.0.0/24\",\"IPRange\":\"10.78.0.0/25\"}"), 400, "range"),
        (pool("{\"Subnet\":\"10.77.0.0/33\"}"), 400, "Invalid subnet"),
        (pool("{\"Gateway\":\"10.77.0.1\"}"), 400, "needs a subnet"),
        (pool("{\"IPRange\":\"10.77.0.0/25\"}"), 400, "needs a subnet"),
        (pool("{\"Subnet\":\"fd77::/64\"}"), 400, "with --ipv6"),
        (
            pool("{\"Subnet\":\"10.77.0.0/24\",\"AuxiliaryAddresses\":{\"a\":\"10.9.9.9\"}}"),
            400,
            "a=10.9.9.9",
        ),
        (option(vni, "4097"), 403, "4097 is in use by network web"),
        (option(vni, "99999999"), 400, "invalid VXLAN id"),
        (option(mtu, "9"), 400, "invalid MTU"),
        (option("encrypted", ""), 501, "encrypted"),
        ("\"Ingress\":true".to_owned(), 409, "ingress"),
        ("\"Ingress\":true,\"Attachable\":true".to_owned(), 400, "attachable"),
        ("\"Scope\":\"local\"".to_owned(), 403, "downgrade network scope"),
    ] {
        let body = format!("{{\"Name\":\"wrong\",\"Driver\":\"overlay\",{rest}}}");
        let (got, said) = host.api("POST", "/networks/create", &body)?;
        ensure!(
            got == status && said.contains(part),
            "{body}: {got} {said}, wanted {status} {part}"
        );
    }
    let both = pool("{\"Subnet\":\"10.77.0.0/24\"},{\"Subnet\":\"fd77::/64\"}");
    let body = format!("{{\"Name\":\"partly\",\"Driver\":\"overlay\",{both}}}");
    let (status, said) = host.api("POST", "/networks/create", &body)?;
    ensure!(status == 201 && said.contains("fd77::/64 is not used"), "{status} {said}");
    host.dk("network rm partly")?;
    refused(host, "network create -d overlay web", "already exists")?;
    refused(lab.host(2), "network create -d overlay far", "from a worker node")?;
    refused(host, "network rm ingress", "depends on it").or_else(|_| {
        // The CLI asks before it removes the ingress network.
        let (status, said) = host.api("DELETE", "/networks/ingress", "")?;
        ensure!(status == 400 && said.contains("depends on it"), "{status} {said}");
        Ok(())
    })?;
    ensure!(host.dk("network ls -q")? == before, "nothing was made");
    Ok(())
}

fn options_are_kept_and_used(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.docker(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--attachable",
        "--label",
        "of=test",
        "--subnet",
        "10.20.0.0/16",
        "--gateway",
        "10.20.0.254",
        "--ip-range",
        "10.20.5.0/24",
        "--aux-address",
        "router=10.20.5.1",
        "--subnet",
        "10.21.0.0/24",
        "-o",
        "com.docker.network.driver.mtu=1300",
        "-o",
        "com.docker.network.driver.overlay.vxlanid_list=6001,6002",
        "wide",
    ])?;
    let shown = crate::listed::inspected(host, "wide")?;
    // In any order: the docker command sends several subnets as they come out of a hash table.
    let configs = shown["IPAM"]["Config"].as_array().context("no addresses")?;
    let of = |subnet: &str| configs.iter().find(|config| config["Subnet"] == subnet);
    ensure!(of("10.20.0.0/16").is_some_and(|it| it["Gateway"] == "10.20.0.254"), "{shown}");
    ensure!(of("10.21.0.0/24").is_some(), "{shown}");
    ensure!(shown["Labels"]["of"] == "test", "{shown}");
    for (n, host) in lab.hosts.iter().enumerate() {
        host.dk(&format!("run -d --name wide{n} --network wide httpd"))?;
    }
    let link = host.dk("exec wide0 ip -o addr show eth0")?;
    // Of the subnet that came first.
    let of_range = link.contains(" 10.20.5.") || link.contains(" 10.21.0.");
    ensure!(of_range, "from the range: {link}");
    ensure!(!link.contains(" 10.20.5.1/"), "not the auxiliary address: {link}");
    let link = host.dk("exec wide0 ip link show eth0")?;
    ensure!(link.contains("mtu 1300"), "{link}");
    until_pinged(host, "wide0", &["-c", "2", "-s", "1272", "wide1"])?;
    // In another subnet of the network, through its gateway.
    lab.host(2).dk("run -d --name wide2 --network wide --ip 10.21.0.9 httpd")?;
    wait_until(SOON, || {
        Ok(host
            .try_docker(&["exec", "wide0", "ping", "-c", "1", "-W", "1", "10.21.0.9"])?
            .status
            .success())
    })
    .context("from subnet to subnet")?;
    host.dk("rm -f wide0")?;
    lab.host(2).dk("rm -f wide1 wide2")?;
    wait_until(SOON, || {
        host.dk("network prune -f --filter label=of=test")?;
        Ok(!host.docker(&["network", "ls", "--format", "{{.Name}}"])?.contains("wide"))
    })
    .context("prune")
}

fn a_full_subnet_is_named_and_frees_itself(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("network create -d overlay --subnet 10.30.0.0/29 small")?;
    host.dk("service create -q --no-resolve-image --detach --name many --network small --replicas 6 httpd")?;
    let told = |wanted: &str| -> Result<bool> {
        let errors =
            host.docker(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "many"])?;
        Ok(errors.contains(wanted))
    };
    wait_until(SOON, || told("10.30.0.0/29: 5 of 5 in use by")).context("named")?;
    let running = |count: usize| -> Result<bool> {
        let states = host.docker(&["service", "ps", "--format", "{{.CurrentState}}", "many"])?;
        Ok(states.lines().filter(|line| line.starts_with("Running")).count() == count)
    };
    host.dk("service scale -d many=1")?;
    wait_until(SOON, || running(1)).context("scaled down")?;
    // Addresses of the tasks that ended are free again: a second service fits in.
    host.dk(&format!("{CREATE} --name other --network small httpd"))?;
    let mut addresses = BTreeSet::new();
    for service in ["many", "other"] {
        let tasks =
            host.docker(&["service", "ps", "-q", "-f", "desired-state=running", service])?;
        for task in tasks.lines() {
            let format = "{{range .NetworksAttachments}}{{.Addresses}}{{end}}";
            let address = host.docker(&["inspect", "--type", "task", "-f", format, task])?;
            ensure!(addresses.insert(address.clone()), "{address} is held twice");
        }
    }
    host.dk("service rm many other")?;
    wait_until(SOON, || Ok(host.try_docker(&["network", "rm", "small"])?.status.success()))
}

fn an_internal_overlay_has_no_way_out(lab: &Lab) -> Result<()> {
    let (host, far) = (lab.host(1), lab.host(2));
    host.dk("network create -d overlay --internal --attachable inner")?;
    // A port that is published opens no way either.
    host.dk("run -d --name in1 --network inner -p 8095:80 httpd")?;
    far.dk("run -d --name in2 --network inner httpd")?;
    until_known(host, "in1", "in2", 1)?;
    until_pinged(host, "in1", &["-c", "1", "in2"])?;
    let out = host.try_docker(&["exec", "in1", "ping", "-c", "1", "-W", "1", "192.168.68.1"])?;
    ensure!(!out.status.success(), "an internal network reached the outside");
    crate::questions::of_an_internal_network(host, "in1")?;
    host.dk("rm -f in1")?;
    far.dk("rm -f in2")?;
    wait_until(SOON, || Ok(host.try_docker(&["network", "rm", "inner"])?.status.success()))
}

fn without_a_virtual_address(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk(&format!(
        "{CREATE} --name robin --endpoint-mode dnsrr --replicas 2 --network web httpd"
    ))?;
    let task = task_on(host, "web")?;
    let all = until_known(host, &task, "robin", 4)?;
    ensure!(until_known(host, &task, "tasks.robin", 4)? == all);
    let answer = host.docker(&["exec", &task, "wget", "-qO-", "http://robin/"])?;
    ensure!(answer == lab::image::IT_WORKS, "{answer}");
    host.dk("service rm robin")?;
    until_known(host, &task, "robin", 0).map(drop)
}

fn the_ingress_network_is_replaced(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("service update -q --detach=false --publish-rm 80 web")?;
    let (status, said) = host.api("DELETE", "/networks/ingress", "")?;
    ensure!(status == 204, "{status} {said}");
    host.docker(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--ingress",
        "--subnet",
        "10.11.0.0/16",
        "entry",
    ])?;
    host.dk(&format!("{CREATE} --name entered --replicas 2 -p 8004:80 httpd"))?;
    for address in ["192.168.68.109", "192.168.68.110", "[fd00:68::109]", "[fd00:68::110]"] {
        wait_until(SOON, || Ok(seen_from_outside(lab, address, 8004).is_ok()))
            .with_context(|| format!("{address}:8004"))?;
    }
    let mut shown = crate::listed::inspected(lab.host(2), "entry")?;
    ensure!(shown["Ingress"] == true, "{shown}");
    wait_until(SOON, || {
        shown = crate::listed::inspected(lab.host(2), "entry")?;
        Ok(shown["Peers"].as_array().is_some_and(|peers| peers.len() == 2))
    })
    .with_context(|| shown.to_string())?;
    host.dk("service rm entered").map(drop)
}

/// Garbage from outside the swarm, as packets and as streams, and how the nodes say so.
fn what_the_gossip_drops_is_counted(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let counted = |event: &str| -> Result<u64> {
        let page = host.sh("curl -sS http://127.0.0.1:9323/metrics")?;
        let name = format!("skep_gossip_events_total{{event=\"{event}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        Ok(line.map_or(Ok(0), str::parse)?)
    };
    let before = (counted("packet_not_opened")?, counted("stream_broken")?);
    within(&format!("/run/netns/{}", lab.router), || {
        let to = format!("{}:7946", host.address);
        let packets = UdpSocket::bind("0.0.0.0:0")?;
        for size in [0, 1, 100, 1_400, 30_000] {
            packets.send_to(&vec![0x0c; size], &to)?;
        }
        let mut stream = std::net::TcpStream::connect(&to)?;
        Ok(std::io::Write::write_all(&mut stream, &[10, 0xff, 0xff, 0xff, 0xff, 1])?)
    })?;
    wait_until(SOON, || Ok(counted("packet_not_opened")? >= before.0 + 5))
        .with_context(|| host.sh("curl -sS http://127.0.0.1:9323/metrics").unwrap_or_default())?;
    wait_until(SOON, || Ok(counted("stream_broken")? > before.1)).context("a broken stream")?;
    let names = host.sh("curl -sS http://127.0.0.1:9323/metrics")?;
    ensure!(names.contains("skep_names_questions_total{event=\"answered\"}"), "{names}");
    Ok(())
}

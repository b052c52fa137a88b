//! What overlay packets look like on cables of several sizes, routed or not, over IPv6, by another
//! address or port: full-size packets pass, none is bigger, streams arrive whole.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::load::{From, until_running, virtual_address};
use e2e::{hosts_of, task_on};
use lab::capture::Capture;
use lab::command::sh;
use lab::host::{wait_until, within};
use lab::{Host, Lab, Plan};

const SOON: Duration = Duration::from_secs(20);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// IP and ICMP headers before the data of a ping.
const PING_HEADERS: u32 = 28;
const PING6_HEADERS: u32 = 48;
/// An MTU given with the network.
const NARROW: u32 = 1000;
/// The least of IPv6 (RFC 8200 section 5).
const MTU_MIN6: u32 = 1280;

/// Where VXLAN leaves a host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DataPath {
    /// By the advertised address.
    Advertised,
    /// By the IPv6 address of the same link.
    Six,
    /// By a link of its own: host 1 names the link, host 2 the address.
    Apart,
}

/// A way from host to host.
struct Case {
    data_path: DataPath,
    routed: bool,
    /// MTU of the cable that VXLAN takes.
    uplink: u32,
    port: u16,
}

impl Case {
    /// Outer headers: Ethernet inside 14, VXLAN 8, UDP 8, IPv4 20 or IPv6 40 (RFC 7348 section 5).
    fn overhead(&self) -> u32 {
        if self.data_path == DataPath::Six { 70 } else { 50 }
    }

    fn link(&self) -> &'static str {
        if self.data_path == DataPath::Apart { "data0" } else { "eth0" }
    }

    /// The address at which a host's overlay packets start and end.
    fn vtep(&self, lab: &Lab, number: usize) -> String {
        match self.data_path {
            DataPath::Advertised => lab.host(number).address.clone(),
            DataPath::Six => lab.plan.address6(number),
            DataPath::Apart => format!("192.168.70.{}", 108 + number),
        }
    }

    /// `--data-path-addr` as the user of a host gives it.
    fn given(&self, lab: &Lab, number: usize) -> String {
        match (self.data_path, number) {
            (DataPath::Apart, 1) => "data0".to_owned(),
            _ => self.vtep(lab, number),
        }
    }

    fn up(&self) -> Result<Lab> {
        let mut plan = Plan { routed: self.routed, ..Plan::skep(2)? };
        plan.ipv6 = self.data_path == DataPath::Six;
        if self.data_path != DataPath::Apart {
            plan.uplink_mtu = self.uplink;
        }
        let lab = hosts_of(&plan)?;
        if self.data_path == DataPath::Apart {
            second_cables(&lab, self.uplink)?;
        }
        self.swarm(&lab)?;
        Ok(lab)
    }

    fn swarm(&self, lab: &Lab) -> Result<()> {
        let (first, second) = (lab.host(1), lab.host(2));
        let mut init = format!("swarm init --advertise-addr {}", first.address);
        let mut join = format!("swarm join --advertise-addr {}", second.address);
        if self.data_path != DataPath::Advertised {
            init += &format!(" --data-path-addr {}", self.given(lab, 1));
            join += &format!(" --data-path-addr {}", self.given(lab, 2));
        }
        if self.port != 4789 {
            init += &format!(" --data-path-port {}", self.port);
        }
        first.dk(&init)?;
        let token = first.dk("swarm join-token -q worker")?;
        second.dk(&format!("{join} --token {token} {}:2377", first.address)).map(drop)
    }
}

/// Another switch with a cable to each host.
fn second_cables(lab: &Lab, mtu: u32) -> Result<()> {
    let router = &lab.router;
    sh(&format!("ip -n {router} link add br1 mtu {mtu} type bridge"))?;
    sh(&format!("ip -n {router} link set br1 up"))?;
    for host in &lab.hosts {
        let (number, init) = (host.number, host.init_pid());
        sh(&format!(
            "ip -n {router} link add d{number} mtu {mtu} type veth peer name data0 mtu {mtu} netns {init}"
        ))?;
        sh(&format!("ip -n {router} link set d{number} master br1 up"))?;
        host.sh(&format!("ip addr add 192.168.70.{}/24 dev data0", 108 + number))?;
        host.sh("ip link set data0 up")?;
    }
    Ok(())
}

#[test]
fn the_smallest_cables() -> Result<()> {
    way(&Case { data_path: DataPath::Advertised, routed: false, uplink: 1280, port: 4789 })
}

#[test]
fn routed_hosts_and_another_port() -> Result<()> {
    way(&Case { data_path: DataPath::Advertised, routed: true, uplink: 1400, port: 5789 })
}

#[test]
fn jumbo_frames_over_ipv6() -> Result<()> {
    way(&Case { data_path: DataPath::Six, routed: false, uplink: 9000, port: 4789 })
}

#[test]
fn routed_hosts_over_ipv6() -> Result<()> {
    way(&Case { data_path: DataPath::Six, routed: true, uplink: 1400, port: 4789 })
}

#[test]
fn a_data_path_of_its_own() -> Result<()> {
    way(&Case { data_path: DataPath::Apart, routed: false, uplink: 1400, port: 4790 })
}

fn way(case: &Case) -> Result<()> {
    let lab = case.up()?;
    let first = lab.host(1);
    first.dk("network create -d overlay --attachable plain")?;
    first.dk(&format!(
        "network create -d overlay --attachable -o com.docker.network.driver.mtu={NARROW} narrow"
    ))?;
    first.dk("network create -d overlay --attachable --ipv6 both")?;
    for host in &lab.hosts {
        for network in ["plain", "narrow", "both"] {
            let name = format!("{network}{}", host.number);
            host.dk(&format!("run -d --name {name} --network {network} httpd"))?;
        }
    }
    let left = case.uplink - case.overhead();
    full_size(&lab, case, "plain", left)?;
    full_size(&lab, case, "narrow", NARROW)?;
    full_size6(&lab, left.max(MTU_MIN6))?;
    streams(&lab).context("streams")?;
    lab.down()
}

/// The address of a container's leg, from the host that runs it.
fn address(host: &Host, network: &str, field: &str) -> Result<String> {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").{field}}}}}");
    host.docker(&["inspect", "-f", &format, &format!("{network}{}", host.number)])
}

/// Pings that may not be fragmented, from a container of this machine's own `ping`.
fn ping(host: &Host, container: &str, size: u32, to: &str) -> Result<bool> {
    let mut ping = From::Container(host, container).command("ping")?;
    ping.args(["-M", "do", "-c", "2", "-i", "0.2", "-W", "2", "-s", &size.to_string(), to]);
    Ok(lab::command::output(&mut ping)?.status.success())
}

/// All flows together are at most so many for the firewalls on the way.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=50_175;

/// The biggest packets that the link allows pass whole, and are as big on the cable as it allows.
fn full_size(lab: &Lab, case: &Case, network: &str, mtu: u32) -> Result<()> {
    let (here, there) = (lab.host(1), lab.host(2));
    let container = format!("{network}1");
    let shown = here.docker(&["exec", &container, "cat", "/sys/class/net/eth0/mtu"])?;
    ensure!(shown == mtu.to_string(), "{network}: the link's MTU is {shown}, not {mtu}");
    let (from, to) = (address(here, network, "IPAddress")?, address(there, network, "IPAddress")?);
    wait_until(SOON, || ping(here, &container, 8, &to)).with_context(|| network.to_owned())?;
    let capture = Capture::start_on(there, case.link(), case.port)?;
    ensure!(ping(here, &container, mtu - PING_HEADERS, &to)?, "{network}: {mtu} bytes are lost");
    let format = "{{index .Options \"com.docker.network.driver.overlay.vxlanid_list\"}}";
    let vni: u32 = here.docker(&["network", "inspect", "-f", format, network])?.parse()?;
    let outer = (mtu + case.overhead()) as usize;
    let packets = capture.finish(|packet| packet.vni == vni && packet.inner_protocol == 1, 4)?;
    let addresses = |text: [&str; 4]| -> Result<[IpAddr; 4]> {
        Ok([text[0].parse()?, text[1].parse()?, text[2].parse()?, text[3].parse()?])
    };
    let (near, far) = (case.vtep(lab, 1), case.vtep(lab, 2));
    for (kind, ends) in [
        (ECHO_REQUEST, addresses([&near, &far, &from, &to])?),
        (ECHO_REPLY, addresses([&far, &near, &to, &from])?),
    ] {
        let right = packets.iter().filter(|packet| {
            let seen = [
                packet.outer_source,
                packet.outer_target,
                packet.inner_source,
                packet.inner_target,
            ];
            seen == ends
                && (packet.inner_first, packet.udp_target) == (kind, case.port)
                && SOURCE_PORTS.contains(&packet.udp_source)
                && (packet.outer_length, packet.fragmented) == (outer, false)
        });
        ensure!(
            right.count() == 2,
            "{network}: not two of ICMP type {kind}, {outer} bytes to port {} between {ends:?}: {packets:?}",
            case.port
        );
    }
    ensure!(!ping(here, &container, mtu - PING_HEADERS + 1, &to)?, "{network}: bigger than {mtu}");
    Ok(())
}

/// IPv6 has a least size: where the cable is smaller, its full packets still arrive.
fn full_size6(lab: &Lab, mtu: u32) -> Result<()> {
    let (here, there) = (lab.host(1), lab.host(2));
    let shown = here.docker(&["exec", "both1", "cat", "/sys/class/net/eth0/mtu"])?;
    ensure!(shown == mtu.to_string(), "IPv6: the link's MTU is {shown}, not {mtu}");
    let to = address(there, "both", "GlobalIPv6Address")?;
    wait_until(SOON, || ping(here, "both1", 8, &to)).context("IPv6")?;
    ensure!(ping(here, "both1", mtu - PING6_HEADERS, &to)?, "IPv6: {mtu} bytes are lost");
    // Whoever sends a full IPv4 packet there is told or served, never left alone.
    let four = address(there, "both", "IPAddress")?;
    let urls = [format!("http://[{to}]/"), format!("http://{four}/")];
    for url in urls {
        let page = here.docker(&["exec", "both1", "timeout", "5", "wget", "-qO-", &url])?;
        ensure!(page == lab::image::IT_WORKS, "{url}: {page}");
    }
    Ok(())
}

const STREAM: usize = 1 << 20;

/// A stream there and back through the virtual address, and through the mesh by either host.
fn streams(lab: &Lab) -> Result<()> {
    let (first, far) = (lab.host(1), lab.host(2));
    first.dk("service create -q --no-resolve-image --detach --name sink --network plain \
         --constraint node.hostname==sathish-vm2 -p 9000:9000 httpd")?;
    until_running(first, "sink", 1)?;
    let netns = far.netns_of(&task_on(far, "sink")?)?;
    let listener = far.within(&netns, || Ok(TcpListener::bind("[::]:9000")?))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who asks sees what went wrong here.
            std::thread::spawn(move || serve(stream));
        }
    });
    let vip: SocketAddr = format!("{}:9000", virtual_address(first, "sink", "plain")?).parse()?;
    let caller = first.netns_of("plain1")?;
    wait_until(SOON, || Ok(first.within(&caller, || there_and_back(vip)).is_ok()))
        .with_context(|| format!("{vip}: {:?}", first.within(&caller, || there_and_back(vip))))?;
    let outside = format!("/run/netns/{}", lab.router);
    for host in &lab.hosts {
        let port: SocketAddr = format!("{}:9000", host.address).parse()?;
        // The host without a task hears of it a moment later.
        wait_until(SOON, || Ok(within(&outside, || there_and_back(port)).is_ok()))
            .with_context(|| format!("{port}: {:?}", within(&outside, || there_and_back(port))))?;
    }
    Ok(())
}

/// Takes a stream in, then sends it back.
fn serve(mut stream: TcpStream) -> Result<()> {
    let mut bytes = vec![0; STREAM];
    stream.read_exact(&mut bytes)?;
    Ok(stream.write_all(&bytes)?)
}

fn there_and_back(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let sent: Vec<u8> = (0..STREAM).map(|n| (n % 251) as u8).collect();
    stream.write_all(&sent)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    ensure!(back == sent, "{} bytes came back, of {STREAM}", back.len());
    Ok(())
}

//! How long it takes until the kernel has 10, 100 and 1,000 endpoints of other hosts, and then one more:
//! plan, look, difference and changes, as the daemon does it. Prints one line of JSON, in milliseconds.
//!
//! `endpoints hold 1000` makes two hosts, with a task on the first and so many endpoints on the second that answer,
//! prints the files of both sides' namespaces, an endpoint and the virtual address, and lasts until its standard
//! input ends.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use netlink::{Kernel, namespace};
use netplan::{
    Backend, Cidr, Link, Mac, Overlay, OverlaySubnet, Peer, Sandbox, SandboxId, Service, View,
    desired, diff,
};

const COUNTS: [u32; 3] = [10, 100, 1_000];

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => measure(),
        ["hold", count] => hold(count.parse()?),
        _ => Err("usage: endpoints [hold COUNT]".into()),
    }
}

fn hold(count: u32) -> Result<(), Failure> {
    let (one, two) = (Host::new(1)?, Host::new(2)?);
    ip(&[
        "-n", &one.name, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", &two.name,
    ])?;
    for (host, number) in [(&one, 1), (&two, 2)] {
        ip(&["-n", &host.name, "addr", "add", &format!("192.0.2.{number}/24"), "dev", "eth0"])?;
        ip(&["-n", &host.name, "link", "set", "eth0", "up"])?;
    }
    for (host, view) in [(&one, view(count)), (&two, far_view(count))] {
        namespace::visit(&host.path(), || {
            settle(&mut Kernel::open(&host.directory)?, &view).map(drop)
        })?;
    }
    let files = [&one, &two].map(|host| host.directory.join("task"));
    let [near, far] = files.each_ref().map(|file| file.display());
    println!(
        "{{\"near\":\"{near}\",\"far\":\"{far}\",\"endpoint\":\"{}\",\"virtual\":\"{}\"}}",
        address(1),
        address(VIRTUAL)
    );
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn measure() -> Result<(), Failure> {
    let mut figures = Vec::new();
    for count in COUNTS {
        let host = Host::new(count)?;
        let (all, one) = namespace::visit(&host.path(), || {
            let mut kernel = Kernel::open(&host.directory)?;
            settle(&mut kernel, &view(0))?;
            Ok((settle(&mut kernel, &view(count))?, settle(&mut kernel, &view(count + 1))?))
        })?;
        figures.push(format!("\"all_{count}\":{all:.3},\"one_{count}\":{one:.3}"));
    }
    println!("{{{}}}", figures.join(","));
    Ok(())
}

/// Milliseconds from the view to a kernel that is as it wants.
fn settle(kernel: &mut Kernel, view: &View) -> std::io::Result<f64> {
    let begun = Instant::now();
    let wanted = desired(view);
    let observed = kernel.observe(&wanted);
    let failures = kernel.apply(&diff(&observed, &wanted));
    let time = begun.elapsed().as_secs_f64() * 1_000.0;
    match failures.first() {
        None => Ok(time),
        Some(failure) => Err(std::io::Error::other(format!("{failure:?}"))),
    }
}

/// The task's, and the virtual address: numbers past all endpoints'.
const VIRTUAL: u32 = 60_000;
const CALLER: u32 = 60_001;
/// Endpoints that are in the tables and answer nobody begin after this.
const SILENT: u32 = 20_000;

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0100 + number))
}

fn host(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

fn own(number: u32) -> Cidr {
    Cidr { addr: address(number), prefix: 16 }
}

/// One task on an overlay, with a service of so many tasks on another host.
fn view(count: u32) -> View {
    // Those that answer are all on one link there.
    let there = Mac::for_ip(address(1));
    let far = |number: u32| (address(number), Peer { mac: there, vtep: host(2) });
    let silent = |number: u32| {
        let addr = address(SILENT + number);
        (addr, Peer { mac: Mac::for_ip(addr), vtep: host(2) })
    };
    let backends = (1..=count).map(|number| Backend { address: address(number), ready: true });
    let overlay = Overlay {
        peers: (1..=count).map(far).chain((1..=count).map(silent)).collect(),
        services: vec![Service {
            name: "web".into(),
            vips: vec![address(VIRTUAL)],
            backends: backends.collect(),
        }],
        ..network()
    };
    with_task(1, overlay, vec![own(CALLER)])
}

/// The other host, whose one task has all the endpoints' addresses.
fn far_view(count: u32) -> View {
    let caller = (address(CALLER), Peer { mac: Mac::for_ip(address(CALLER)), vtep: host(1) });
    let overlay = Overlay { peers: [caller].into(), ..network() };
    with_task(2, overlay, (1..=count).map(own).collect())
}

fn network() -> Overlay {
    let subnet = own(0).network();
    Overlay {
        subnets: vec![OverlaySubnet { subnet, gateway: None, vni: 4_097 }],
        ..Overlay::default()
    }
}

fn with_task(number: u8, overlay: Overlay, addresses: Vec<Cidr>) -> View {
    let link = Link {
        network: "web".into(),
        ifname: "eth0".into(),
        peer: "veth0".into(),
        mac: Mac::for_ip(addresses[0].addr),
        addresses,
        gateways: Vec::new(),
        routes: Vec::new(),
    };
    let mut view = View::default();
    view.host.data_path = Some(host(number));
    view.host.uplink_mtu = 1_500;
    view.host.bridge_hooks = Path::new("/proc/sys/net/bridge").exists();
    view.overlays.insert("web".into(), overlay);
    let task = Sandbox { links: vec![link], resolver: None, published: vec![], ingress: vec![] };
    view.sandboxes.insert(SandboxId("task".into()), task);
    view
}

/// A namespace that is taken for a host's, removed at the end.
struct Host {
    name: String,
    directory: PathBuf,
}

impl Host {
    fn new(count: u32) -> Result<Self, Failure> {
        let name = format!("ske-{}-{count}", std::process::id());
        let host = Self { directory: std::env::temp_dir().join(&name), name };
        ip(&["netns", "add", &host.name])?;
        ip(&["-n", &host.name, "link", "set", "lo", "up"])?;
        Ok(host)
    }

    fn path(&self) -> PathBuf {
        Path::new("/var/run/netns").join(&self.name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let _ = namespace::remove(&entry.path());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<(), Failure> {
    let status = Command::new("ip").args(arguments).status()?;
    status.success().then_some(()).ok_or_else(|| format!("ip {arguments:?}: {status}").into())
}

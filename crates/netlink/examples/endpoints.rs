//! How long it takes until the kernel has 10, 100 and 1,000 endpoints of other hosts, and then one more:
//! plan, look, difference and changes, as the daemon does it. Prints one line of JSON, in milliseconds.

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
    let mut figures = Vec::new();
    for count in COUNTS {
        let host = Host::new(count)?;
        let (all, one) = namespace::visit(&host.path(), || {
            let mut kernel = Kernel::open(&host.directory)?;
            settle(&mut kernel, &view(0)?)?;
            Ok((settle(&mut kernel, &view(count)?)?, settle(&mut kernel, &view(count + 1)?)?))
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

/// One task on an overlay, with a service of so many tasks on another host.
fn view(count: u32) -> std::io::Result<View> {
    let address = |number: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0100 + number));
    let host = |number: u8| IpAddr::V4(Ipv4Addr::new(192, 0, 2, number));
    let subnet = Cidr { addr: address(0), prefix: 16 }.network();
    let far =
        |number: u32| (address(number), Peer { mac: Mac::for_ip(address(number)), vtep: host(2) });
    let backends = (1..=count).map(|number| Backend { address: address(number), ready: true });
    let overlay = Overlay {
        subnets: vec![OverlaySubnet { subnet, gateway: None, vni: 4_097 }],
        peers: (1..=count).map(far).collect(),
        services: vec![Service {
            name: "web".into(),
            vips: vec![address(60_000)],
            backends: backends.collect(),
        }],
        ..Overlay::default()
    };
    let own = Cidr { addr: address(60_001), prefix: 16 };
    let link = Link {
        network: "web".into(),
        ifname: "eth0".into(),
        peer: "veth0".into(),
        mac: Mac::for_ip(own.addr),
        addresses: vec![own],
        gateways: Vec::new(),
        routes: Vec::new(),
    };
    let mut view = View::default();
    view.host.data_path = Some(host(1));
    view.host.uplink_mtu = 1_500;
    view.overlays.insert("web".into(), overlay);
    let task = Sandbox { links: vec![link], resolver: None, published: vec![], ingress: vec![] };
    view.sandboxes.insert(SandboxId("task".into()), task);
    Ok(view)
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

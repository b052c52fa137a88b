//! From the view to the objects: a pure function, one file per kind of namespace.

mod host;
mod ingress;
pub mod mesh6;
mod overlay;
pub mod sandbox;

use std::net::IpAddr;

use crate::objects::{BridgePort, LinkKind, LinkObject, Namespace, World};
use crate::view::{Bridge, Host, Link, Overlay, View};

pub use ingress::mark_of;
pub use overlay::mtu as overlay_mtu;

/// Everything the view asks for.
pub fn desired(view: &View) -> World {
    let mut world = World::new();
    world.insert(Namespace::Host, host::objects(view));
    for (id, overlay) in &view.overlays {
        if let Some(objects) = overlay::objects(view, id, overlay) {
            world.insert(Namespace::Overlay(id.clone()), objects);
        }
    }
    for (id, sandbox) in &view.sandboxes {
        world.insert(Namespace::Sandbox(id.clone()), sandbox::objects(view, id, sandbox));
    }
    world
}

/// What a sandbox's link is plugged into.
enum Plug<'a> {
    Bridge(&'a Bridge),
    Overlay(&'a Overlay),
}

fn plug<'a>(view: &'a View, link: &Link) -> Option<Plug<'a>> {
    if let Some(bridge) = view.bridges.get(&link.network) {
        return Some(Plug::Bridge(bridge));
    }
    let overlay = view.overlays.get(&link.network)?;
    overlay::carried(&view.host, overlay).then_some(Plug::Overlay(overlay))
}

fn link_mtu(host: &Host, plug: &Plug<'_>) -> u32 {
    match plug {
        Plug::Bridge(bridge) => bridge.mtu,
        Plug::Overlay(overlay) => overlay::mtu(host, overlay),
    }
}

/// The end of a pair that stays outside the sandbox.
fn outer_end(
    sandbox: Namespace,
    link: &Link,
    mtu: u32,
    master: String,
    port: BridgePort,
) -> LinkObject {
    LinkObject {
        kind: LinkKind::Veth { peer_namespace: sandbox, peer: link.ifname.clone() },
        mac: None,
        mtu,
        master: Some(master),
        port,
        up: true,
        link_local: false,
    }
}

fn bridge_link(mac: Option<crate::Mac>, mtu: u32, link_local: bool) -> LinkObject {
    LinkObject {
        kind: LinkKind::Bridge,
        mac,
        mtu,
        master: None,
        port: BridgePort::default(),
        up: true,
        link_local,
    }
}

fn loopback() -> LinkObject {
    LinkObject {
        kind: LinkKind::Other("loopback".to_owned()),
        mac: None,
        mtu: 0,
        master: None,
        port: BridgePort::default(),
        up: true,
        link_local: true,
    }
}

fn any(v4: bool) -> crate::Cidr {
    let addr: IpAddr = if v4 {
        IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
    };
    crate::Cidr { addr, prefix: 0 }
}

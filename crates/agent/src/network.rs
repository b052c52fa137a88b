//! This node's view of the overlay networks: who is where, who answers for what, which names there
//! are, and what this node tells the others. Computed as a whole from tasks, node and rows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gossip::{ENDPOINT_TABLE, OVERLAY_PEER_TABLE};
use model::NetworkId;
use netplan::addr::{Cidr, Mac};
use netplan::view::{
    Backend, Ingress, IngressBackend, IngressNode, IngressPort, IngressTarget, NodeEngine, Overlay,
    OverlaySubnet, Proto, Service,
};
use prost::Message as _;
use sha2::{Digest, Sha256};
use wire::networktable::{self, EndpointRecord, PeerRecord};
use wire::swarmkit as pb;

use crate::claims::{self, Believed, Ground};
use crate::event::{Endpoint, Listed, OverlayState};
use crate::life::Life;
use crate::rows::{Rows, addresses_of, plain, vips_of};

const MTU_OPTION: &str = "com.docker.network.driver.mtu";
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// The routing mesh's own endpoint on the ingress network, by the name all nodes know it by.
const INGRESS_ENDPOINT: &str = "ingress-endpoint";

/// A row as it is announced: network, table, key.
pub type RowKey = (NetworkId, &'static str, String);

/// Everything that follows from the view.
#[derive(Default)]
pub struct Picture {
    pub state: OverlayState,
    pub zones: BTreeMap<NetworkId, dns::Zone>,
    pub rows: BTreeMap<RowKey, Vec<u8>>,
    /// Rows of others that claim what they may not, by network, table and key.
    pub refused: BTreeSet<(NetworkId, &'static str, String)>,
}

/// What the picture is made of.
pub struct Subject<'a> {
    pub own_name: &'a str,
    pub own_id: &'a str,
    pub data_path: IpAddr,
    pub node: Option<&'a pb::Node>,
    pub lives: &'a BTreeMap<String, Life>,
    pub rows: &'a Rows,
}

/// An endpoint with a name, of this node or another.
struct Named {
    endpoint_id: String,
    record: EndpointRecord,
    /// The first is the one that the Docker Engine knows it by.
    addresses: Vec<IpAddr>,
    ready: bool,
    /// Its host does not answer: connections to it lead nowhere.
    silent: bool,
    engine: NodeEngine,
    own: bool,
}

pub fn is_overlay(network: &pb::Network) -> bool {
    network.driver_state.as_ref().is_some_and(|driver| driver.name == "overlay")
}

fn name_of(network: &pb::Network) -> &str {
    let annotations = network.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    annotations.map_or("", |annotations| annotations.name.as_str())
}

/// The overlay networks that this node is on, with its own address on each.
pub fn networks<'a>(subject: &Subject<'a>) -> BTreeMap<NetworkId, (&'a pb::Network, Option<Cidr>)> {
    let mut networks = BTreeMap::new();
    let attached = subject.node.into_iter().flat_map(|node| &node.attachments);
    for attachment in attached {
        let Some(network) = attachment.network.as_ref().filter(|n| is_overlay(n)) else { continue };
        let mut addresses = attachment.addresses.iter().filter_map(|text| text.parse().ok());
        networks.insert(NetworkId::new(&network.id), (network, addresses.next()));
    }
    // A task may arrive before its node's own address does.
    for life in subject.lives.values().filter(|life| life.is_present()) {
        for network in life.task.networks.iter().filter_map(|a| a.network.as_ref()) {
            if is_overlay(network) {
                networks.entry(NetworkId::new(&network.id)).or_insert((network, None));
            }
        }
    }
    networks
}

pub fn picture(subject: &Subject) -> Picture {
    let mut picture = Picture::default();
    picture.state.vxlan_port =
        subject.node.and_then(|node| u16::try_from(node.vxlanudp_port).ok()).unwrap_or_default();
    for (id, (network, own)) in networks(subject) {
        let ingress = store::tables::is_ingress(network);
        let mut overlay = bare(network);
        let believed = claims::believe(subject.rows, &id, &ground(subject, &id, &overlay, own));
        let refused = believed.refused.iter().cloned();
        picture.refused.extend(refused.map(|(table, key)| (id.clone(), table, key)));
        let named = named(subject, &id, network, &believed);
        overlay.lb_address = own;
        overlay.services = services(subject, &id, &named);
        if ingress {
            overlay.ingress = Some(mesh(subject, own, &named, &believed));
        } else {
            picture.zones.insert(id.clone(), zone(network, &named));
        }
        overlay.peers = believed.peers;
        picture.state.listed.insert(id.clone(), listed(subject, &overlay, &named));
        announce(subject, &id, network, own, &mut picture.rows);
        picture.state.names.insert(id.clone(), name_of(network).to_owned());
        picture.state.overlays.insert(id, overlay);
    }
    picture
}

/// What this node knows of a network by itself.
fn ground<'a>(
    subject: &Subject<'a>,
    id: &NetworkId,
    overlay: &Overlay,
    own: Option<Cidr>,
) -> Ground<'a> {
    let lives = || subject.lives.values().filter(|life| life.is_reachable());
    let attachments = lives().filter_map(|life| attachment(&life.task, id));
    let addresses = attachments.flat_map(|it| &it.addresses).filter_map(|text| plain(text));
    let gateways = || overlay.subnets.iter().filter_map(|subnet| subnet.gateway);
    let links = lives().filter_map(|life| link_of(life, attachment(&life.task, id)?));
    let vips = lives()
        .flat_map(|life| vips(&life.task, id).map(|vip| (vip, life.task.service_id.as_str())));
    Ground {
        own_name: subject.own_name,
        data_path: Some(subject.data_path),
        subnets: overlay.subnets.iter().map(|subnet| subnet.subnet).collect(),
        held: addresses.chain(gateways()).chain(own.map(|own| own.addr)).collect(),
        links: gateways().chain(own.map(|own| own.addr)).map(Mac::for_ip).chain(links).collect(),
        vips: vips.collect(),
    }
}

/// What the network's own object says.
fn bare(network: &pb::Network) -> Overlay {
    let options = network.driver_state.as_ref().map(|driver| &driver.options);
    let option = |name: &str| options.and_then(|options| options.get(name));
    let vnis: Vec<u32> = option(VNI_OPTION)
        .map(|list| list.split(',').filter_map(|vni| vni.trim().parse().ok()).collect())
        .unwrap_or_default();
    let mut given = vnis.iter().copied();
    let configs = network.ipam.iter().flat_map(|ipam| &ipam.configs);
    let subnets = configs.filter_map(|config| {
        let subnet: Cidr = config.subnet.parse().ok()?;
        let subnet = subnet.network();
        // Each IPv4 subnet has a VNI of its own; IPv6 goes with the first.
        let own = if subnet.is_v4() { given.next() } else { None };
        let vni = own.or(vnis.first().copied())?;
        Some(OverlaySubnet { subnet, gateway: plain(&config.gateway), vni })
    });
    Overlay {
        subnets: subnets.collect(),
        mtu: option(MTU_OPTION).and_then(|mtu| mtu.parse().ok()).unwrap_or(0),
        internal: network.spec.as_ref().is_some_and(|spec| spec.internal),
        ..Default::default()
    }
}

/// All endpoints with a name on a network: this node's own as they are, the others' as announced.
fn named(
    subject: &Subject,
    id: &NetworkId,
    network: &pb::Network,
    believed: &Believed,
) -> Vec<Named> {
    let own = subject.lives.values().filter(|life| life.serves()).flat_map(|life| {
        let record = record_of(life, network)?;
        Some(Named {
            endpoint_id: endpoint_id(&life.task.id, id),
            addresses: addresses_of(&record),
            record,
            ready: life.is_ready(),
            silent: false,
            engine: NodeEngine::Skep,
            own: true,
        })
    });
    let others = believed.endpoints.iter().map(|(key, row)| Named {
        endpoint_id: (*key).clone(),
        record: row.record.clone(),
        addresses: addresses_of(&row.record),
        // Nothing is sent where no way is known yet.
        ready: !row.record.service_disabled
            && subject.rows.is_up(&row.owner)
            && believed.peers.contains_key(&row.address),
        silent: subject.rows.is_silent(&row.owner),
        engine: subject.rows.engine(&row.owner),
        own: false,
    });
    own.chain(others).collect()
}

/// What a task says about itself on a network.
fn record_of(life: &Life, network: &pb::Network) -> Option<EndpointRecord> {
    let task = &life.task;
    let attachment = attachment(task, &network.id)?;
    let mut addresses = attachment.addresses.iter().filter_map(|text| plain(text));
    let address = addresses.next()?;
    let mut vips = vips(task, &network.id);
    let service = task.service_annotations.as_ref().map_or("", |named| named.name.as_str());
    let short = |id: &str| id.get(..12).map(str::to_owned);
    let (name, task_aliases) = match &life.attached {
        Some(guest) => {
            let aliases = guest.aliases.iter().cloned().chain(short(&guest.container_id));
            (guest.name.clone(), aliases.collect())
        }
        None => (
            store::access::task_name(task),
            short(&life.container.container_id).into_iter().collect(),
        ),
    };
    let ingress = store::tables::is_ingress(network);
    Some(EndpointRecord {
        name,
        service_name: service.to_owned(),
        service_id: task.service_id.clone(),
        virtual_ip: vips.next().map(|vip| vip.to_string()).unwrap_or_default(),
        further_vips: vips.map(|vip| vip.to_string()).collect(),
        further_ips: addresses.map(|address| address.to_string()).collect(),
        endpoint_ip: address.to_string(),
        ingress_ports: if ingress { ingress_ports(task) } else { Vec::new() },
        aliases: attachment.aliases.clone(),
        task_aliases,
        service_disabled: !life.is_ready(),
    })
}

fn attachment<'a>(task: &'a pb::Task, network: &str) -> Option<&'a pb::NetworkAttachment> {
    let mut attachments = task.networks.iter();
    attachments.find(|a| a.network.as_ref().is_some_and(|held| held.id == network))
}

/// The link of a task's leg: the user's choice, or what follows from its first address.
fn link_of(life: &Life, attachment: &pb::NetworkAttachment) -> Option<Mac> {
    let chosen = life.attached.as_ref().and_then(|guest| guest.mac);
    let mut addresses = attachment.addresses.iter().filter_map(|text| plain(text));
    chosen.or_else(|| addresses.next().map(Mac::for_ip))
}

fn vips(task: &pb::Task, network: &str) -> impl Iterator<Item = IpAddr> {
    let vips = task.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
    vips.filter(move |vip| vip.network_id == network).filter_map(|vip| plain(&vip.addr))
}

fn published(task: &pb::Task) -> impl Iterator<Item = &pb::PortConfig> {
    let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    ports.filter(|port| port.publish_mode() == pb::port_config::PublishMode::Ingress)
}

fn ingress_ports(task: &pb::Task) -> Vec<networktable::PortConfig> {
    published(task)
        .map(|port| networktable::PortConfig {
            name: port.name.clone(),
            protocol: port.protocol,
            target_port: port.target_port,
            published_port: port.published_port,
        })
        .collect()
}

/// Virtual addresses and who answers for them. A service whose tasks are here is known even
/// while nobody answers.
fn services(subject: &Subject, id: &NetworkId, named: &[Named]) -> Vec<Service> {
    let mut services: BTreeMap<(String, IpAddr), (String, BTreeMap<IpAddr, bool>)> =
        BTreeMap::new();
    for life in subject.lives.values().filter(|life| life.is_present()) {
        for vip in vips(&life.task, id) {
            let service = life.task.service_annotations.as_ref();
            let name = service.map_or(String::new(), |named| named.name.clone());
            let key = (life.task.service_id.clone(), vip);
            services.entry(key).or_insert((name, BTreeMap::new()));
        }
    }
    for endpoint in named {
        for vip in vips_of(&endpoint.record) {
            let key = (endpoint.record.service_id.clone(), vip);
            let service = services
                .entry(key)
                .or_insert_with(|| (endpoint.record.service_name.clone(), BTreeMap::new()));
            let same = |address: &&IpAddr| address.is_ipv4() == vip.is_ipv4() && !endpoint.silent;
            for address in endpoint.addresses.iter().filter(same) {
                *service.1.entry(*address).or_default() |= endpoint.ready;
            }
        }
    }
    let service = |((_, vip), (name, backends)): (_, (String, BTreeMap<IpAddr, bool>))| Service {
        name,
        vips: vec![vip],
        backends: backends.into_iter().map(|(address, ready)| Backend { address, ready }).collect(),
    };
    services.into_iter().map(service).collect()
}

/// Who has a name, and where he is.
fn listed(subject: &Subject, overlay: &Overlay, named: &[Named]) -> Vec<Listed> {
    let one = |endpoint: &Named| {
        let record = &endpoint.record;
        let address = *endpoint.addresses.first()?;
        let host = match endpoint.own {
            true => Some(subject.data_path),
            false => overlay.peers.get(&address).map(|peer| peer.vtep),
        };
        let port = |port: &networktable::PortConfig| {
            let target = u16::try_from(port.target_port).ok()?;
            Some((target, u16::try_from(port.published_port).ok()?))
        };
        Some(Listed {
            service: record.service_name.clone(),
            vips: vips_of(record),
            ports: record.ingress_ports.iter().filter_map(port).collect(),
            task: record.name.clone(),
            endpoint_id: endpoint.endpoint_id.clone(),
            address,
            host,
        })
    };
    named.iter().filter_map(one).collect()
}

/// Published ports of the whole cluster, and the nodes through which they are reached.
fn mesh(subject: &Subject, own: Option<Cidr>, named: &[Named], believed: &Believed) -> Ingress {
    let mut ports: BTreeMap<(Proto, u16), BTreeMap<IpAddr, IngressBackend>> = BTreeMap::new();
    for endpoint in named {
        for port in &endpoint.record.ingress_ports {
            let (Some(proto), Ok(published)) =
                (proto(port.protocol), u16::try_from(port.published_port))
            else {
                continue;
            };
            let backends = ports.entry((proto, published)).or_default();
            if let Some(&address) = endpoint.addresses.first().filter(|_| !endpoint.silent) {
                let (ready, engine) = (endpoint.ready, endpoint.engine);
                backends.insert(address, IngressBackend { address, ready, engine });
            }
        }
    }
    let ports = ports.into_iter().map(|((proto, published), backends)| IngressPort {
        proto,
        published,
        backends: backends.into_values().collect(),
    });
    let mut nodes: BTreeSet<IngressNode> = believed
        .endpoints
        .iter()
        .filter(|(_, row)| row.record.name == INGRESS_ENDPOINT)
        .map(|(_, row)| IngressNode {
            address: row.address,
            engine: subject.rows.engine(&row.owner),
        })
        .collect();
    let own = own.map(|own| IngressNode { address: own.addr, engine: NodeEngine::Skep });
    nodes.extend(own);
    Ingress { ports: ports.collect(), nodes: nodes.into_iter().collect() }
}

fn proto(number: i32) -> Option<Proto> {
    match number {
        0 => Some(Proto::Tcp),
        1 => Some(Proto::Udp),
        2 => Some(Proto::Sctp),
        _ => None,
    }
}

/// The names on a network. A service is its virtual address, or without one its ready tasks.
fn zone(network: &pb::Network, named: &[Named]) -> dns::Zone {
    let mut zone = dns::Zone::new(name_of(network));
    for endpoint in named {
        let record = &endpoint.record;
        for address in endpoint.addresses.iter().copied() {
            zone.add(&record.name, address);
            zone.point(address, &record.name);
            for alias in &record.task_aliases {
                zone.add(alias, address);
            }
        }
        let service = Some(&record.service_name).filter(|name| !name.is_empty());
        let vips = vips_of(record);
        if let Some(name) = service {
            vips.iter().for_each(|vip| zone.point(*vip, name));
        }
        for name in service.into_iter().chain(&record.aliases) {
            vips.iter().for_each(|vip| zone.add(name, *vip));
            for address in endpoint.addresses.iter().filter(|_| endpoint.ready).copied() {
                if vips.is_empty() {
                    zone.add(name, address);
                }
                zone.add(&format!("tasks.{name}"), address);
            }
        }
    }
    zone
}

/// What this node tells the others about a network.
fn announce(
    subject: &Subject,
    id: &NetworkId,
    network: &pb::Network,
    own: Option<Cidr>,
    rows: &mut BTreeMap<RowKey, Vec<u8>>,
) {
    let peer = |cidr: Cidr, mac: Mac| {
        let record = PeerRecord {
            endpoint_ip: cidr.to_string(),
            endpoint_mac: mac.to_string(),
            tunnel_endpoint_ip: subject.data_path.to_string(),
        };
        record.encode_to_vec()
    };
    if let Some(own) = own {
        let key = endpoint_id(subject.own_id, id);
        let row = peer(own, Mac::for_ip(own.addr));
        rows.insert((id.clone(), OVERLAY_PEER_TABLE, key.clone()), row);
        if store::tables::is_ingress(network) {
            let record = EndpointRecord {
                name: INGRESS_ENDPOINT.to_owned(),
                endpoint_ip: own.addr.to_string(),
                ..Default::default()
            };
            rows.insert((id.clone(), ENDPOINT_TABLE, key), record.encode_to_vec());
        }
    }
    for life in subject.lives.values().filter(|life| life.is_reachable()) {
        let Some(attachment) = attachment(&life.task, id) else { continue };
        let key = endpoint_id(&life.task.id, id);
        let Some(mac) = link_of(life, attachment) else { continue };
        let addresses = attachment.addresses.iter().filter_map(|text| text.parse::<Cidr>().ok());
        for (number, cidr) in addresses.enumerate() {
            // One row holds one address; further ones get rows of their own. The link is one.
            let key = if number == 0 { key.clone() } else { endpoint_id(&key, id) };
            rows.insert((id.clone(), OVERLAY_PEER_TABLE, key), peer(cidr, mac));
        }
        if let Some(record) = record_of(life, network).filter(|_| life.serves()) {
            rows.insert((id.clone(), ENDPOINT_TABLE, key), record.encode_to_vec());
        }
    }
}

/// 64 hex digits that are the same whenever the same task is on the same network.
pub fn endpoint_id(of: &str, network: &str) -> String {
    let digest = Sha256::digest(format!("{of}/{network}").as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The legs of a task on overlay networks, the ingress network last.
pub fn endpoints(task: &pb::Task) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for attachment in &task.networks {
        let Some(network) = attachment.network.as_ref().filter(|n| is_overlay(n)) else { continue };
        let addresses: Vec<Cidr> =
            attachment.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        let Some(first) = addresses.first() else { continue };
        endpoints.push(Endpoint {
            network: NetworkId::new(&network.id),
            network_name: name_of(network).to_owned(),
            endpoint_id: endpoint_id(&task.id, &network.id),
            mac: Mac::for_ip(first.addr),
            addresses,
            aliases: attachment.aliases.clone(),
            ingress: store::tables::is_ingress(network),
            internal: network.spec.as_ref().is_some_and(|spec| spec.internal),
        });
    }
    endpoints.sort_by_key(|endpoint| endpoint.ingress);
    endpoints
}

pub fn ingress_targets(task: &pb::Task) -> Vec<IngressTarget> {
    let target = |port: &pb::PortConfig| {
        Some(IngressTarget {
            proto: proto(port.protocol)?,
            published: u16::try_from(port.published_port).ok()?,
            target: u16::try_from(port.target_port).ok()?,
        })
    };
    published(task).filter_map(target).collect()
}

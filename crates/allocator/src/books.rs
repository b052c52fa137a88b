//! Who holds what: built from the stored objects, never stored itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use store::{Held, Kind, Store, Touched, access};
use wire::swarmkit as pb;

use crate::subnet::{Holder, Pool, Subnet};

/// The option by which an overlay's driver learns its VNIs, one per IPv4 subnet.
pub const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// VNIs below are left to VLAN ids.
const VNI_MIN: u32 = 4096;
const VNI_MAX: u32 = (1 << 24) - 1;
const PORT_MIN: u32 = 30_000;
const PORT_MAX: u32 = 32_767;

/// The addresses of one network.
#[derive(Clone, Debug, Default)]
pub struct Net {
    pub pools: Vec<Pool>,
}

/// A claim that was made for a wish; undone unless the wish came true.
enum Tentative {
    Address(String, IpAddr, Holder),
    Network(String),
    Port(i32, u32, String),
}

#[derive(Default)]
pub struct Books {
    nets: BTreeMap<String, Net>,
    vnis: BTreeMap<u32, String>,
    vni_cursor: u32,
    /// (protocol, published port) -> service.
    ports: BTreeMap<(i32, u32), String>,
    /// (protocol, port) that services publish on the hosts of their tasks, and the service.
    host_ports: BTreeSet<((i32, u32), String)>,
    tentative: Vec<Tentative>,
    /// As in [`crate::Allocator`].
    pub avoided: Vec<Subnet>,
}

impl Books {
    /// Reads the whole store: networks first, since the rest holds addresses in them.
    pub fn read(store: &Store) -> Self {
        let mut books = Books { vni_cursor: VNI_MIN - 1, ..Default::default() };
        store.all::<pb::Network>().for_each(|network| books.open_network(network));
        store.all::<pb::Service>().for_each(|service| books.enter(&held_by_service(service), true));
        store.all::<pb::Service>().for_each(|service| books.enter_ports(service, true));
        store.all::<pb::Task>().for_each(|task| books.enter(&held_by_task(task), true));
        store.all::<pb::Node>().for_each(|node| books.enter(&held_by_node(node), true));
        books
    }

    /// Forgets what was only wished for.
    pub fn settle(&mut self) {
        for claim in std::mem::take(&mut self.tentative).into_iter().rev() {
            match claim {
                Tentative::Address(network, address, holder) => {
                    self.release(&network, address, &holder);
                }
                Tentative::Network(id) => self.close_network(&id),
                Tentative::Port(protocol, port, service) => {
                    self.release_port(protocol, port, &service);
                }
            }
        }
    }

    /// Takes in what was applied.
    pub fn apply(&mut self, touched: &Touched) {
        for (target, taken) in [(&touched.old, false), (&touched.new, true)] {
            match target {
                Some(Held::Network(network)) if taken => self.open_network(network),
                Some(Held::Network(network)) if touched.new.is_none() => {
                    self.close_network(&network.id);
                }
                Some(Held::Service(service)) => {
                    self.enter(&held_by_service(service), taken);
                    self.enter_ports(service, taken);
                }
                Some(Held::Task(task)) => self.enter(&held_by_task(task), taken),
                Some(Held::Node(node)) => self.enter(&held_by_node(node), taken),
                _ => {}
            }
        }
    }

    fn enter(&mut self, held: &[(String, IpAddr, Holder)], taken: bool) {
        for (network, address, holder) in held {
            if taken {
                self.claim(network, *address, holder.clone());
            } else {
                self.release(network, *address, holder);
            }
        }
    }

    fn enter_ports(&mut self, service: &pb::Service, taken: bool) {
        for key in host_ports(service) {
            let entry = (key, service.id.clone());
            let _ =
                if taken { self.host_ports.insert(entry) } else { self.host_ports.remove(&entry) };
        }
        for port in ingress_ports(service.endpoint.as_ref()) {
            if taken {
                let key = (port.protocol, port.published_port);
                self.ports.entry(key).or_insert_with(|| service.id.clone());
            } else {
                self.release_port(port.protocol, port.published_port, &service.id);
            }
        }
    }

    fn open_network(&mut self, network: &pb::Network) {
        let configs = network.ipam.iter().flat_map(|ipam| &ipam.configs);
        let pools: Vec<Pool> = configs.filter_map(pool_of).collect();
        // An allocated network never changes its subnets: the addresses in them stay claimed.
        let known = self.nets.entry(network.id.clone()).or_default();
        let same = known.pools.len() == pools.len()
            && known.pools.iter().zip(&pools).all(|(a, b)| a.subnet == b.subnet);
        if !same {
            known.pools = pools;
        }
        for vni in vnis_of(network) {
            self.vnis.entry(vni).or_insert_with(|| network.id.clone());
            self.vni_cursor = self.vni_cursor.max(vni);
        }
    }

    fn close_network(&mut self, id: &str) {
        self.nets.remove(id);
        self.vnis.retain(|_, holder| holder != id);
    }

    /// Makes a network known that is about to be stored.
    pub fn add_network(&mut self, network: &pb::Network) {
        self.open_network(network);
        self.tentative.push(Tentative::Network(network.id.clone()));
    }

    pub fn subnets(&self) -> impl Iterator<Item = (&str, Subnet)> {
        self.nets
            .iter()
            .flat_map(|(id, net)| net.pools.iter().map(move |pool| (id.as_str(), pool.subnet)))
    }

    pub fn vni_holder(&self, vni: u32) -> Option<&str> {
        self.vnis.get(&vni).map(String::as_str)
    }

    /// The VNI behind the last one given, so that a freed one rests; `besides` are given already.
    pub fn next_vni(&self, besides: &BTreeSet<u32>) -> Option<u32> {
        let start = self.vni_cursor.saturating_add(1).max(VNI_MIN);
        (start..=VNI_MAX)
            .chain(VNI_MIN..start)
            .find(|vni| !self.vnis.contains_key(vni) && !besides.contains(vni))
    }

    /// One address in each family that the network has; the reason when a family has none left.
    pub fn take(&mut self, network: &str, holder: &Holder) -> Result<Vec<String>, String> {
        self.take_besides(network, holder, &[])
    }

    /// The same for the families of which none is in `held`.
    pub fn take_besides(
        &mut self,
        network: &str,
        holder: &Holder,
        held: &[IpAddr],
    ) -> Result<Vec<String>, String> {
        let Some(net) = self.nets.get_mut(network) else {
            return Err("the network has no subnet yet".to_owned());
        };
        let mut given = Vec::new();
        let lacking = |v6: &bool| !held.iter().any(|address| address.is_ipv6() == *v6);
        for v6 in [false, true].into_iter().filter(lacking) {
            let mut family = net.pools.iter_mut().filter(|pool| pool.subnet.is_v6() == v6);
            let mut asked = false;
            let taken = family.find_map(|pool| {
                asked = true;
                Some((pool.take(holder.clone())?, pool.subnet))
            });
            match taken {
                Some(taken) => given.push(taken),
                None if asked => {
                    let full: Vec<String> = net
                        .pools
                        .iter()
                        .filter(|pool| pool.subnet.is_v6() == v6)
                        .map(Pool::explain)
                        .collect();
                    for (address, _) in given {
                        net.pools.iter_mut().for_each(|pool| pool.release(address, holder));
                    }
                    return Err(full.join("; "));
                }
                None => {}
            }
        }
        for (address, _) in &given {
            let claim = Tentative::Address(network.to_owned(), *address, holder.clone());
            self.tentative.push(claim);
        }
        Ok(given.into_iter().map(|(address, subnet)| subnet.with_prefix(address)).collect())
    }

    /// A certain address, with its subnet's prefix length.
    pub fn take_exactly(
        &mut self,
        network: &str,
        wanted: IpAddr,
        holder: &Holder,
    ) -> Result<String, String> {
        let pools = self.nets.get_mut(network).map(|net| net.pools.iter_mut());
        let mut pools = pools.into_iter().flatten();
        let Some(pool) = pools.find(|pool| pool.subnet.contains(wanted)) else {
            return Err(format!("{wanted} is in none of the network's subnets"));
        };
        if !pool.subnet.is_host(wanted) {
            return Err(format!("{wanted} is no host's address in {}", pool.subnet));
        }
        if !pool.claim(wanted, holder.clone()) {
            return Err(format!("{wanted} is in use already"));
        }
        let claim = Tentative::Address(network.to_owned(), wanted, holder.clone());
        self.tentative.push(claim);
        Ok(pool.subnet.with_prefix(wanted))
    }

    fn claim(&mut self, network: &str, address: IpAddr, holder: Holder) {
        if let Some(net) = self.nets.get_mut(network) {
            net.pools.iter_mut().any(|pool| pool.claim(address, holder.clone()));
        }
    }

    fn release(&mut self, network: &str, address: IpAddr, holder: &Holder) {
        if let Some(net) = self.nets.get_mut(network) {
            net.pools.iter_mut().for_each(|pool| pool.release(address, holder));
        }
    }

    /// Whether an address is this holder's by the books, and nobody else's.
    pub fn holds(&self, network: &str, address: IpAddr, holder: &Holder) -> bool {
        let pools = self.nets.get(network).map(|net| net.pools.iter());
        pools.into_iter().flatten().any(|pool| pool.holder(address) == Some(holder))
    }

    pub fn port_holder(&self, protocol: i32, port: u32) -> Option<&str> {
        self.ports.get(&(protocol, port)).map(String::as_str)
    }

    pub fn take_port(&mut self, protocol: i32, port: u32, service: &str) {
        self.ports.insert((protocol, port), service.to_owned());
        self.tentative.push(Tentative::Port(protocol, port, service.to_owned()));
    }

    /// The lowest free port of the dynamic range; one that no service publishes on its hosts, as
    /// long as there is one: where such a task runs the mesh would not get it.
    pub fn free_port(&self, protocol: i32) -> Option<u32> {
        let mut free =
            (PORT_MIN..=PORT_MAX).filter(|port| !self.ports.contains_key(&(protocol, *port)));
        let on_hosts = |port: &u32| {
            let key = (protocol, *port);
            let mut services = self.host_ports.range((key, String::new())..);
            services.next().is_some_and(|(held, _)| *held == key)
        };
        let first = free.next();
        first.into_iter().chain(free).find(|port| !on_hosts(port)).or(first)
    }

    fn release_port(&mut self, protocol: i32, port: u32, service: &str) {
        if self.ports.get(&(protocol, port)).is_some_and(|holder| holder == service) {
            self.ports.remove(&(protocol, port));
        }
    }
}

fn pool_of(config: &pb::IpamConfig) -> Option<Pool> {
    let subnet = Subnet::parse(&config.subnet)?;
    let mut pool = Pool::new(subnet, Subnet::parse(&config.range));
    if let Some(gateway) = address_of(&config.gateway) {
        pool.claim(gateway, Holder::Gateway);
    }
    for address in config.reserved.values().filter_map(|address| address_of(address)) {
        pool.claim(address, Holder::Reserved);
    }
    Some(pool)
}

/// `10.0.1.7/24` or `10.0.1.7`.
pub fn address_of(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.trim().parse().ok()
}

pub fn vnis_of(network: &pb::Network) -> Vec<u32> {
    let list = network.driver_state.as_ref().and_then(|driver| driver.options.get(VNI_OPTION));
    list.map(|list| list.split(',').filter_map(|vni| vni.trim().parse().ok()).collect())
        .unwrap_or_default()
}

pub fn ingress_ports(endpoint: Option<&pb::Endpoint>) -> impl Iterator<Item = &pb::PortConfig> {
    endpoint
        .into_iter()
        .flat_map(|endpoint| &endpoint.ports)
        .filter(|port| port.publish_mode() == pb::port_config::PublishMode::Ingress)
        .filter(|port| port.published_port != 0)
}

/// As the service wants them: a node may open them before the service's endpoint says so.
fn host_ports(service: &pb::Service) -> impl Iterator<Item = (i32, u32)> {
    let endpoint = service.spec.iter().filter_map(|spec| spec.endpoint.as_ref());
    endpoint
        .flat_map(|endpoint| &endpoint.ports)
        .filter(|port| port.publish_mode() == pb::port_config::PublishMode::Host)
        .map(|port| (port.protocol, port.published_port))
}

fn held_by_service(service: &pb::Service) -> Vec<(String, IpAddr, Holder)> {
    let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
    let holder = Holder::Service(service.id.clone());
    vips.filter_map(|vip| Some((vip.network_id.clone(), address_of(&vip.addr)?, holder.clone())))
        .collect()
}

/// A task gives its addresses back when it has ended; the object goes on showing them.
fn held_by_task(task: &pb::Task) -> Vec<(String, IpAddr, Holder)> {
    if access::has_ended(task) {
        return Vec::new();
    }
    held(&task.networks, Holder::Task(task.id.clone()))
}

fn held_by_node(node: &pb::Node) -> Vec<(String, IpAddr, Holder)> {
    held(&node.attachments, Holder::Node(node.id.clone()))
}

fn held(attachments: &[pb::NetworkAttachment], holder: Holder) -> Vec<(String, IpAddr, Holder)> {
    let mut held = Vec::new();
    for attachment in attachments {
        let Some(network) = &attachment.network else { continue };
        for address in attachment.addresses.iter().filter_map(|address| address_of(address)) {
            held.push((network.id.clone(), address, holder.clone()));
        }
    }
    held
}

/// What has to be looked at again after a change: the thing itself, and the node of a task that
/// came to live there, or no longer does, or on other networks.
pub fn affected(touched: &Touched) -> Vec<(Kind, String)> {
    let mut affected = vec![(touched.kind, touched.id.clone())];
    let lives = |target: &Option<Held>| match target {
        Some(Held::Task(task)) if !task.node_id.is_empty() && !access::has_ended(task) => {
            let networks = task.networks.iter().filter_map(|held| held.network.as_ref());
            let networks: Vec<String> = networks.map(|network| network.id.clone()).collect();
            Some((task.node_id.clone(), networks))
        }
        _ => None,
    };
    let (before, after) = (lives(&touched.old), lives(&touched.new));
    if before != after {
        let nodes = [before, after].into_iter().flatten().map(|(node, _)| node);
        affected.extend(nodes.map(|node| (Kind::Node, node)));
    }
    affected
}

/// What a change gave back to others.
pub enum GivenBack {
    /// Perhaps anything.
    Anything,
    /// Addresses in these networks, if any.
    In(BTreeSet<String>),
}

/// A wish that never came true gives back what no object ever held: the end of a task, node or
/// service gives back what it asked for, too.
pub fn given_back(touched: &Touched) -> GivenBack {
    let held = |target: &Option<Held>| match target {
        Some(Held::Task(task)) => held_by_task(task),
        Some(Held::Node(node)) => held_by_node(node),
        Some(Held::Service(service)) => held_by_service(service),
        _ => Vec::new(),
    };
    let ended = |target: &Option<Held>| match target {
        Some(Held::Task(task)) => access::has_ended(task),
        target => target.is_none(),
    };
    let ports = |target: &Option<Held>| match target {
        Some(Held::Service(service)) => {
            let ports = ingress_ports(service.endpoint.as_ref());
            ports.map(|port| (port.protocol, port.published_port)).collect()
        }
        _ => Vec::new(),
    };
    let kept = ports(&touched.new);
    let networks_or_ports = !matches!(touched.kind, Kind::Task | Kind::Node | Kind::Service)
        || ports(&touched.old).iter().any(|port| !kept.contains(port));
    if networks_or_ports {
        return GivenBack::Anything;
    }
    let (before, after) = (held(&touched.old), held(&touched.new));
    if before.is_empty() && ended(&touched.new) && !ended(&touched.old) {
        return GivenBack::Anything;
    }
    let gone = before.into_iter().filter(|claim| !after.contains(claim));
    GivenBack::In(gone.map(|(network, _, _)| network).collect())
}

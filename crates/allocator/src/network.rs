//! A network's driver state and subnets.

use std::collections::{BTreeMap, BTreeSet};

use store::Store;
use wire::swarmkit as pb;

use crate::books::{Books, VNI_OPTION, address_of};
use crate::subnet::{Holder, Pool, Subnet};

const DEFAULT_POOL: &str = "10.0.0.0/8";
const DEFAULT_PREFIX: u32 = 24;
/// More pools than this are not searched for a free part.
const SPLIT_MAX: usize = 1 << 20;

pub fn driver_name(network: &pb::Network) -> &str {
    let spec = network.spec.as_ref().and_then(|spec| spec.driver_config.as_ref());
    let state = network.driver_state.as_ref();
    let name = spec.or(state).map_or("", |driver| driver.name.as_str());
    if name.is_empty() { "overlay" } else { name }
}

/// Networks such as `host` and `bridge` are each node's own: no addresses come from here.
pub fn is_overlay(network: &pb::Network) -> bool {
    driver_name(network) == "overlay"
}

pub fn is_allocated(network: &pb::Network) -> bool {
    network.driver_state.is_some() && (!is_overlay(network) || network.ipam.is_some())
}

pub fn name(network: &pb::Network) -> &str {
    let annotations = network.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    annotations.map_or("", |annotations| annotations.name.as_str())
}

/// The network with everything that a node needs to know of it, or why it cannot be.
pub fn allocate(
    books: &mut Books,
    store: &Store,
    network: &pb::Network,
) -> Result<pb::Network, String> {
    let mut allocated = network.clone();
    let spec = network.spec.clone().unwrap_or_default();
    let mut options = spec.driver_config.map(|driver| driver.options).unwrap_or_default();
    if is_overlay(network) {
        let wanted = spec.ipam.unwrap_or_default();
        let configs = subnets(books, store, &network.id, wanted.configs, spec.ipv6_enabled)?;
        let v4 = configs.iter().filter(|config| is_v4(config)).count();
        let vnis = vnis(books, &network.id, options.get(VNI_OPTION), v4)?;
        options.insert(VNI_OPTION.to_owned(), vnis);
        let driver = wanted.driver.filter(|driver| !driver.name.is_empty());
        let driver = driver
            .unwrap_or_else(|| pb::Driver { name: "default".to_owned(), options: BTreeMap::new() });
        allocated.ipam = Some(pb::IpamOptions { driver: Some(driver), configs });
    }
    allocated.driver_state = Some(pb::Driver { name: driver_name(network).to_owned(), options });
    books.add_network(&allocated);
    Ok(allocated)
}

fn is_v4(config: &pb::IpamConfig) -> bool {
    Subnet::parse(&config.subnet).is_some_and(|subnet| !subnet.is_v6())
}

/// The subnets that were asked for, each with a gateway; one of the cluster's pool when none was.
fn subnets(
    books: &Books,
    store: &Store,
    id: &str,
    mut wanted: Vec<pb::IpamConfig>,
    ipv6: bool,
) -> Result<Vec<pb::IpamConfig>, String> {
    wanted.retain(|config| ipv6 || !Subnet::parse(&config.subnet).is_some_and(|s| s.is_v6()));
    if !wanted.iter().any(is_v4) {
        let without = wanted.iter_mut().find(|config| config.subnet.is_empty());
        let subnet = free_subnet(books, store)?;
        match without {
            Some(config) => config.subnet = subnet.to_string(),
            None => wanted
                .insert(0, pb::IpamConfig { subnet: subnet.to_string(), ..Default::default() }),
        }
    }
    wanted.retain(|config| !config.subnet.is_empty());
    if ipv6 && wanted.iter().all(is_v4) {
        let subnet = free_subnet6(books, store)?.to_string();
        wanted.push(pb::IpamConfig { subnet, ..Default::default() });
    }
    for config in &mut wanted {
        let text = &config.subnet;
        let subnet = Subnet::parse(text).ok_or_else(|| format!("invalid subnet {text}"))?;
        for (other, theirs) in books.subnets().filter(|(other, _)| *other != id) {
            if theirs.overlaps(&subnet) {
                let other = store.get::<pb::Network>(other).map_or(other, |n| name(n));
                return Err(format!("subnet {subnet} overlaps {theirs} of network {other}"));
            }
        }
        let family = match subnet.is_v6() {
            true => pb::ipam_config::AddressFamily::Ipv6,
            false => pb::ipam_config::AddressFamily::Ipv4,
        };
        config.set_family(family);
        if config.gateway.is_empty() {
            config.gateway = first_free(&subnet, config)
                .ok_or_else(|| format!("no address is left for the gateway of {subnet}"))?;
        }
        match address_of(&config.gateway) {
            Some(gateway) if subnet.contains(gateway) => config.gateway = gateway.to_string(),
            _ => return Err(format!("gateway {} is not in {subnet}", config.gateway)),
        }
    }
    Ok(wanted)
}

/// The first address that can be a gateway: `.1`, unless it is set aside.
fn first_free(subnet: &Subnet, config: &pb::IpamConfig) -> Option<String> {
    let mut pool = Pool::new(*subnet, Subnet::parse(&config.range));
    for reserved in config.reserved.values().filter_map(|address| address_of(address)) {
        pool.claim(reserved, Holder::Reserved);
    }
    pool.take(Holder::Gateway).map(|address| address.to_string())
}

/// A /64 for a network with IPv6 that was given none, below a prefix of the cluster's own (RFC 4193
/// section 3.2: 40 bits that no other site is likely to have; here they are the cluster id's).
fn free_subnet6(books: &Books, store: &Store) -> Result<Subnet, String> {
    // FNV-1a.
    let id = store.cluster().map(|cluster| cluster.id.clone()).unwrap_or_default();
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let site = id.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let (a, b, c) = (site & 0xff, (site >> 8) & 0xffff, (site >> 24) & 0xffff);
    let site = format!("fd{a:02x}:{b:x}:{c:x}::/48");
    let used: Vec<Subnet> = books.subnets().map(|(_, subnet)| subnet).collect();
    Subnet::parse(&site)
        .and_then(|site| site.split(64).find(|part| !used.iter().any(|used| used.overlaps(part))))
        .ok_or_else(|| format!("no free /64 subnet left in {site}"))
}

/// The first part of the cluster's address pools that overlaps no network, and nothing that is
/// better avoided if there is such a part.
fn free_subnet(books: &Books, store: &Store) -> Result<Subnet, String> {
    let cluster = store.cluster();
    let mut pools: Vec<String> =
        cluster.map(|cluster| cluster.default_address_pool.clone()).unwrap_or_default();
    if pools.is_empty() {
        pools.push(DEFAULT_POOL.to_owned());
    }
    let prefix = cluster.map_or(0, |cluster| cluster.subnet_size);
    let prefix = if prefix == 0 { DEFAULT_PREFIX } else { prefix };
    let prefix = u8::try_from(prefix).unwrap_or(32);
    let used: Vec<Subnet> = books.subnets().map(|(_, subnet)| subnet).collect();
    let outside = |others: &[Subnet], part: &Subnet| !others.iter().any(|it| it.overlaps(part));
    let mut free = pools
        .iter()
        .filter_map(|pool| Subnet::parse(pool))
        .flat_map(|pool| pool.split(prefix).take(SPLIT_MAX))
        .filter(|part| outside(&used, part));
    let first = free.next();
    first.into_iter().chain(free).find(|part| outside(&books.avoided, part)).or(first).ok_or_else(
        || format!("no free /{prefix} subnet left in the address pools {}", pools.join(", ")),
    )
}

/// One VNI per IPv4 subnet: those asked for, then new ones.
fn vnis(books: &Books, id: &str, wanted: Option<&String>, count: usize) -> Result<String, String> {
    let mut given: Vec<u32> = Vec::new();
    for text in wanted.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
        let vni = text.parse::<u32>().ok().filter(|vni| *vni > 0 && *vni < 1 << 24);
        let vni = vni.ok_or_else(|| format!("invalid VXLAN id {text}"))?;
        if books.vni_holder(vni).is_some_and(|holder| holder != id) || given.contains(&vni) {
            return Err(format!("VXLAN id {vni} is in use already"));
        }
        given.push(vni);
    }
    let mut besides: BTreeSet<u32> = given.iter().copied().collect();
    while given.len() < count {
        let vni = books.next_vni(&besides).ok_or("no free VXLAN id left")?;
        besides.insert(vni);
        given.push(vni);
    }
    Ok(given.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
}

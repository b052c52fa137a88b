//! Addresses of local networks: pools that do not overlap, addresses that are free.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::api::{AddressPool, Cidr, IpamPool, NetworkError, NetworkErrorKind};

/// How many subnets of a pool, or addresses of a subnet, are looked at before it counts as full.
const TRIES_MAX: u128 = 1 << 17;

fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Cidr {
    Cidr { addr: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

/// Docker's own pools for networks of one host.
pub fn default_pools() -> Vec<AddressPool> {
    let mut pools: Vec<_> =
        (17..32).map(|n| AddressPool { base: v4(172, n, 0, 0, 16), size: 16 }).collect();
    pools.push(AddressPool { base: v4(192, 168, 0, 0, 16), size: 20 });
    pools
}

/// The first subnet of the pools that overlaps nothing in `taken`.
pub fn free_subnet(pools: &[AddressPool], taken: &[Cidr]) -> Result<Cidr, NetworkError> {
    for pool in pools {
        let base = pool.base.network();
        let size = pool.size.max(base.prefix);
        let step = Cidr::new(base.addr, size).size();
        let mut offset = 0;
        for _ in 0..TRIES_MAX {
            let Some(addr) = base.nth(offset) else { break };
            let subnet = Cidr::new(addr, size);
            if !taken.iter().any(|other| other.overlaps(&subnet)) {
                return Ok(subnet);
            }
            offset = offset.saturating_add(step);
        }
    }
    Err(NetworkError::new(
        NetworkErrorKind::Invalid,
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
    ))
}

/// The gateway of a pool that names none: its first address.
pub fn first_host(subnet: &Cidr) -> Option<IpAddr> {
    subnet.network().nth(u128::from(subnet.size() > 2))
}

/// Network and broadcast addresses are nobody's; in a network of one or two there are none.
fn is_host(subnet: &Cidr, addr: IpAddr) -> bool {
    let Some(offset) = subnet.offset(addr) else { return false };
    subnet.size() <= 2 || (offset != 0 && (!subnet.is_v4() || offset != subnet.size() - 1))
}

/// The lowest free address of the pool's range.
pub fn free_address(pool: &IpamPool, used: &BTreeSet<IpAddr>) -> Option<Cidr> {
    let subnet = pool.subnet?;
    let range = pool.ip_range.unwrap_or(subnet).network();
    (0..range.size().min(TRIES_MAX))
        .filter_map(|offset| range.nth(offset))
        .find(|addr| is_host(&subnet, *addr) && !reserved(pool, *addr) && !used.contains(addr))
        .map(|addr| Cidr::new(addr, subnet.prefix))
}

fn reserved(pool: &IpamPool, addr: IpAddr) -> bool {
    pool.gateway == Some(addr) || pool.aux_addresses.values().any(|aux| *aux == addr)
}

/// An address that somebody asked for.
pub fn take_address(
    pools: &[IpamPool],
    addr: IpAddr,
    used: &BTreeSet<IpAddr>,
) -> Result<Cidr, NetworkError> {
    let invalid = |text: String| NetworkError::new(NetworkErrorKind::Invalid, text);
    let pool = pools.iter().find(|pool| pool.subnet.is_some_and(|subnet| subnet.contains(addr)));
    let Some((pool, subnet)) = pool.and_then(|pool| Some((pool, pool.subnet?))) else {
        return Err(invalid(format!(
            "invalid address {addr}: it does not belong to any of this network's subnets"
        )));
    };
    if pool.automatic {
        return Err(invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets".to_owned(),
        ));
    }
    if !is_host(&subnet, addr) || reserved(pool, addr) || used.contains(&addr) {
        return Err(NetworkError::new(NetworkErrorKind::Forbidden, "Address already in use"));
    }
    Ok(Cidr::new(addr, subnet.prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str, range: Option<&str>, gateway: &str) -> IpamPool {
        IpamPool {
            subnet: Some(subnet.parse().unwrap()),
            ip_range: range.map(|range| range.parse().unwrap()),
            gateway: Some(gateway.parse().unwrap()),
            aux_addresses: [("router".to_owned(), "10.1.0.2".parse().unwrap())].into(),
            automatic: false,
        }
    }

    #[test]
    fn the_lowest_free_address_is_given_and_none_twice() {
        let pool = pool("10.1.0.0/29", None, "10.1.0.1");
        let mut used = BTreeSet::new();
        for n in 3..=6u8 {
            let got = free_address(&pool, &used).unwrap();
            assert_eq!(got.to_string(), format!("10.1.0.{n}/29"));
            used.insert(got.addr);
        }
        assert_eq!(free_address(&pool, &used), None, "network, gateway, aux, broadcast are kept");
    }

    #[test]
    fn a_range_bounds_what_is_given_but_not_what_may_be_asked_for() {
        let pool = pool("10.1.0.0/16", Some("10.1.5.0/24"), "10.1.0.1");
        let used = BTreeSet::new();
        assert_eq!(free_address(&pool, &used).unwrap().to_string(), "10.1.5.0/16");
        let pools = [pool];
        assert!(take_address(&pools, "10.1.9.9".parse().unwrap(), &used).is_ok());
        for wrong in ["10.2.0.1", "10.1.0.0", "10.1.255.255", "10.1.0.1", "10.1.0.2", "::1"] {
            assert!(take_address(&pools, wrong.parse().unwrap(), &used).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_new_subnet_overlaps_nothing_that_is_taken() {
        let taken = ["172.17.0.0/16".parse().unwrap(), "172.18.3.0/24".parse().unwrap()];
        let subnet = free_subnet(&default_pools(), &taken).unwrap();
        assert_eq!(subnet.to_string(), "172.19.0.0/16");
        let all = ["172.16.0.0/12".parse().unwrap(), "192.168.68.0/24".parse().unwrap()];
        assert_eq!(free_subnet(&default_pools(), &all).unwrap().to_string(), "192.168.0.0/20");
        let everything = ["0.0.0.0/0".parse().unwrap()];
        assert!(free_subnet(&default_pools(), &everything).is_err());
    }
}

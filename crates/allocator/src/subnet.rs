//! Subnets, and the addresses in them that are taken.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A subnet of either family, as a range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    v6: bool,
    base: u128,
    prefix: u8,
}

impl Subnet {
    /// The subnet that an address with a prefix length lies in: `10.0.1.7/24` gives `10.0.1.0/24`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let v6 = address.is_ipv6();
        if prefix > Self::bits(v6) {
            return None;
        }
        let mut subnet = Self { v6, base: number(address), prefix };
        subnet.base -= subnet.base % subnet.size();
        Some(subnet)
    }

    fn bits(v6: bool) -> u8 {
        if v6 { 128 } else { 32 }
    }

    pub fn is_v6(&self) -> bool {
        self.v6
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// How many addresses there are; the whole of IPv6 counts as one less than it has.
    pub fn size(&self) -> u128 {
        let free = u32::from(Self::bits(self.v6) - self.prefix);
        1u128.checked_shl(free).unwrap_or(u128::MAX)
    }

    fn last(&self) -> u128 {
        self.base.saturating_add(self.size() - 1)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.v6 && (self.base..=self.last()).contains(&number(address))
    }

    /// The network's own address is no host's; in IPv4 neither is the last, the broadcast.
    pub fn is_host(&self, address: IpAddr) -> bool {
        let at = number(address);
        let set_aside = at == self.base || (!self.v6 && at == self.last());
        self.contains(address) && (self.size() <= 2 || !set_aside)
    }

    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.v6 == other.v6 && self.base <= other.last() && other.base <= self.last()
    }

    /// Its parts of a longer prefix, in order.
    pub fn split(self, prefix: u8) -> impl Iterator<Item = Subnet> {
        let (v6, last) = (self.v6, self.last());
        let prefix = prefix.clamp(self.prefix, Self::bits(v6));
        let mut next = Some(self.base);
        std::iter::from_fn(move || {
            let subnet = Subnet { v6, base: next?, prefix };
            next = subnet.base.checked_add(subnet.size()).filter(|base| *base <= last);
            Some(subnet)
        })
    }

    /// `10.0.1.7/24`: an address of this subnet with its prefix length.
    pub fn with_prefix(&self, address: IpAddr) -> String {
        format!("{address}/{}", self.prefix)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", address(self.base, self.v6), self.prefix)
    }
}

pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    match (v6, u32::try_from(number)) {
        (false, Ok(number)) => IpAddr::V4(Ipv4Addr::from(number)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Gateway,
    /// An auxiliary address, or one named by hand.
    Reserved,
    Service(String),
    Task(String),
    Node(String),
}

/// The addresses of one subnet of a network.
#[derive(Clone, Debug)]
pub struct Pool {
    pub subnet: Subnet,
    /// What may be given out. A range may have no host in it: then `first` is past `last`.
    first: u128,
    last: u128,
    taken: BTreeMap<u128, Holder>,
    /// What was given last: the search goes on behind it, so that freed addresses rest a while.
    cursor: u128,
}

impl Pool {
    /// `range` limits what is given out, not what may be claimed.
    pub fn new(subnet: Subnet, range: Option<Subnet>) -> Self {
        let (mut first, mut last) = (subnet.base, subnet.last());
        if subnet.size() > 2 {
            first += 1;
            last -= u128::from(!subnet.v6);
        }
        if let Some(range) = range.filter(|range| subnet.overlaps(range)) {
            first = first.max(range.base);
            last = last.min(range.last());
        }
        Self { subnet, first, last, taken: BTreeMap::new(), cursor: first.wrapping_sub(1) }
    }

    /// The next free address.
    pub fn take(&mut self, holder: Holder) -> Option<IpAddr> {
        if self.first > self.last {
            return None;
        }
        let start = self.cursor.wrapping_add(1).clamp(self.first, self.last);
        let free =
            self.free_from(start, self.last).or_else(|| self.free_from(self.first, start))?;
        self.cursor = free;
        self.taken.insert(free, holder);
        Some(address(free, self.subnet.v6))
    }

    fn free_from(&self, from: u128, to: u128) -> Option<u128> {
        let mut free = from;
        for taken in self.taken.range(from..=to).map(|(number, _)| *number) {
            if taken != free {
                break;
            }
            free = free.checked_add(1)?;
        }
        (free <= to).then_some(free)
    }

    /// Takes a certain address; false when another has it or it is not of this subnet.
    pub fn claim(&mut self, wanted: IpAddr, holder: Holder) -> bool {
        if !self.subnet.contains(wanted) {
            return false;
        }
        let at = number(wanted);
        match self.taken.get(&at) {
            Some(other) => *other == holder,
            None => {
                if (self.first..=self.last).contains(&at)
                    && !matches!(holder, Holder::Gateway | Holder::Reserved)
                    && (at > self.cursor || self.cursor > self.last)
                {
                    self.cursor = at;
                }
                self.taken.insert(at, holder);
                true
            }
        }
    }

    /// Gives an address back, if it is this holder's.
    pub fn release(&mut self, address: IpAddr, holder: &Holder) {
        let at = number(address);
        if self.subnet.contains(address) && self.taken.get(&at) == Some(holder) {
            self.taken.remove(&at);
        }
    }

    pub fn holder(&self, address: IpAddr) -> Option<&Holder> {
        self.taken.get(&number(address)).filter(|_| self.subnet.contains(address))
    }

    /// Why nothing more can be had: `10.0.1.0/24: 253 of 253 in use by 250 tasks, 3 services`.
    pub fn explain(&self) -> String {
        let mut counts = [0usize; 3];
        let mut set_aside = 0u128;
        let hosts = (self.first <= self.last).then_some(self.first..=self.last);
        let taken = hosts.iter().flat_map(|hosts| self.taken.range(hosts.clone()));
        for holder in taken.map(|(_, holder)| holder) {
            match holder {
                Holder::Gateway | Holder::Reserved => set_aside += 1,
                Holder::Task(_) => counts[0] += 1,
                Holder::Service(_) => counts[1] += 1,
                Holder::Node(_) => counts[2] += 1,
            }
        }
        let all = hosts.map_or(0, |hosts| (hosts.end() - hosts.start()).saturating_add(1));
        let all = all.saturating_sub(set_aside);
        let used: usize = counts.iter().sum();
        let names = [("task", "tasks"), ("service", "services"), ("node", "nodes")];
        let by: Vec<String> = counts
            .iter()
            .zip(names)
            .filter(|(count, _)| **count > 0)
            .map(|(count, (one, more))| format!("{count} {}", if *count == 1 { one } else { more }))
            .collect();
        let by = if by.is_empty() { "nobody".to_owned() } else { by.join(", ") };
        format!("{}: {used} of {all} in use by {by}", self.subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u32) -> Holder {
        Holder::Task(format!("t{number}"))
    }

    #[test]
    fn addresses_are_given_in_order_and_a_freed_one_rests() {
        let mut pool = Pool::new(Subnet::parse("10.0.1.0/24").unwrap(), None);
        assert!(pool.claim("10.0.1.1".parse().unwrap(), Holder::Gateway));
        let second = pool.take(task(1)).unwrap();
        assert_eq!(second.to_string(), "10.0.1.2");
        assert_eq!(pool.take(task(2)).unwrap().to_string(), "10.0.1.3");
        pool.release(second, &task(1));
        assert_eq!(pool.take(task(3)).unwrap().to_string(), "10.0.1.4");
        for number in 5..=254 {
            assert_eq!(pool.take(task(number)).unwrap().to_string(), format!("10.0.1.{number}"));
        }
        assert_eq!(pool.take(task(300)).unwrap(), second);
        assert_eq!(pool.take(task(301)), None);
        assert_eq!(pool.explain(), "10.0.1.0/24: 253 of 253 in use by 253 tasks");
    }

    #[test]
    fn a_range_limits_what_is_given_but_not_what_is_claimed() {
        let subnet = Subnet::parse("10.9.0.0/16").unwrap();
        let mut pool = Pool::new(subnet, Subnet::parse("10.9.5.0/30"));
        assert!(pool.claim("10.9.0.1".parse().unwrap(), Holder::Gateway));
        assert!(!pool.claim("10.9.0.1".parse().unwrap(), task(1)));
        assert!(!pool.claim("10.8.0.1".parse().unwrap(), task(1)));
        let given: Vec<String> =
            std::iter::from_fn(|| pool.take(task(2))).map(|ip| ip.to_string()).collect();
        assert_eq!(given, ["10.9.5.0", "10.9.5.1", "10.9.5.2", "10.9.5.3"]);
    }

    #[test]
    fn a_range_without_a_host_gives_nothing() {
        for (subnet, range) in [
            ("10.9.0.0/24", "10.9.0.0/32"),
            ("10.9.0.0/24", "10.9.0.255/32"),
            ("fd00::/64", "fd00::/128"),
        ] {
            let subnet = Subnet::parse(subnet).unwrap();
            let mut pool = Pool::new(subnet, Subnet::parse(range));
            assert_eq!(pool.take(task(1)), None, "{range}");
            assert_eq!(pool.explain(), format!("{subnet}: 0 of 0 in use by nobody"));
        }
    }

    #[test]
    fn subnets_know_their_parts_and_their_neighbours() {
        let all = Subnet::parse("10.0.0.0/8").unwrap();
        let parts: Vec<String> = all.split(24).take(3).map(|part| part.to_string()).collect();
        assert_eq!(parts, ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]);
        assert_eq!(all.split(24).count(), 65536);
        let mine = Subnet::parse("10.0.1.77/24").unwrap();
        assert_eq!(mine.to_string(), "10.0.1.0/24");
        for (other, overlaps) in [
            ("10.0.0.0/16", true),
            ("10.0.1.128/25", true),
            ("10.0.2.0/24", false),
            ("fd00::/8", false),
        ] {
            assert_eq!(mine.overlaps(&Subnet::parse(other).unwrap()), overlaps, "{other}");
        }
        assert_eq!(Subnet::parse("10.0.0.0/33"), None);
        for (subnet, address, host) in [
            ("10.0.1.0/24", "10.0.1.0", false),
            ("10.0.1.0/24", "10.0.1.1", true),
            ("10.0.1.0/24", "10.0.1.255", false),
            ("10.0.1.0/24", "10.0.2.1", false),
            ("10.0.1.0/31", "10.0.1.0", true),
            ("fd00::/64", "fd00::", false),
            ("fd00::/64", "fd00::ffff:ffff:ffff:ffff", true),
        ] {
            let subnet = Subnet::parse(subnet).unwrap();
            assert_eq!(subnet.is_host(address.parse().unwrap()), host, "{address} in {subnet}");
        }
        assert_eq!(Subnet::parse("fd00::5/64").unwrap().to_string(), "fd00::/64");
    }
}

//! Addresses with a prefix, hardware addresses, and their text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    #[error("invalid CIDR address: {0}")]
    Cidr(String),
    #[error("invalid MAC address: {0}")]
    Mac(String),
}

/// An address and the length of its network's prefix: an interface's address, or a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    pub addr: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// A prefix longer than the family allows is cut to the family's length.
    pub fn new(addr: IpAddr, prefix: u8) -> Self {
        Self { addr, prefix: prefix.min(bits(addr)) }
    }

    /// The address alone: /32 or /128.
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, prefix: bits(addr) }
    }

    pub fn is_v4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// The same network with its host bits cleared.
    pub fn network(&self) -> Cidr {
        Cidr { addr: from_number(self.addr, number(self.addr) & self.mask()), prefix: self.prefix }
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4()
            && number(addr) & self.mask() == number(self.addr) & self.mask()
    }

    pub fn contains_net(&self, other: &Cidr) -> bool {
        other.prefix >= self.prefix && self.contains(other.addr)
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains_net(other) || other.contains_net(self)
    }

    /// How many addresses the network has, network and broadcast included; saturating.
    pub fn size(&self) -> u128 {
        let host_bits = u32::from(bits(self.addr) - self.prefix);
        1u128.checked_shl(host_bits).unwrap_or(u128::MAX)
    }

    /// The address `offset` places after the network's first.
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        (offset < self.size())
            .then(|| from_number(self.addr, (number(self.addr) & self.mask()) + offset))
    }

    /// How many places `addr` is after the network's first address.
    pub fn offset(&self, addr: IpAddr) -> Option<u128> {
        self.contains(addr).then(|| number(addr) & !self.mask() & family_mask(addr))
    }

    fn mask(&self) -> u128 {
        let host_bits = u32::from(bits(self.addr) - self.prefix);
        family_mask(self.addr) & u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn family_mask(addr: IpAddr) -> u128 {
    if addr.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_number(like: IpAddr, number: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = AddrError;
    fn from_str(text: &str) -> Result<Self, AddrError> {
        let wrong = || AddrError::Cidr(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix > bits(addr) {
            return Err(wrong());
        }
        Ok(Self { addr, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = AddrError;
    fn try_from(text: String) -> Result<Self, AddrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// What Docker gives an endpoint: 02:42 and the four bytes of its IPv4 address. An endpoint
    /// that has IPv6 alone gets the last four bytes of that.
    pub fn for_ip(addr: IpAddr) -> Self {
        let [a, b, c, d] = match addr {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => (v6.to_bits() as u32).to_be_bytes(),
        };
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = AddrError;
    fn from_str(text: &str) -> Result<Self, AddrError> {
        let wrong = || AddrError::Mac(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = AddrError;
    fn try_from(text: String) -> Result<Self, AddrError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a CIDR")
    }

    #[test]
    fn a_cidr_reads_back_as_written() {
        for text in ["10.0.1.7/24", "0.0.0.0/0", "fd00::1/64", "::/0", "10.0.0.1/32"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        for text in ["10.0.1.7", "10.0.1.7/33", "fd00::/129", "x/1", "1.2.3/8", ""] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_contain_and_overlap() {
        assert_eq!(cidr("10.0.1.7/24").network(), cidr("10.0.1.0/24"));
        assert!(cidr("10.0.0.0/8").contains("10.255.0.1".parse().unwrap()));
        assert!(!cidr("10.0.0.0/8").contains("11.0.0.1".parse().unwrap()));
        assert!(!cidr("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(cidr("10.0.0.0/8").overlaps(&cidr("10.1.0.0/16")));
        assert!(cidr("10.1.0.0/16").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.1.0.0/16").overlaps(&cidr("10.2.0.0/16")));
    }

    #[test]
    fn places_in_a_network_are_counted_from_its_first_address() {
        assert_eq!(cidr("10.0.1.0/24").nth(5), Some("10.0.1.5".parse().unwrap()));
        assert_eq!(cidr("10.0.1.0/24").nth(256), None);
        assert_eq!(cidr("10.0.1.0/24").offset("10.0.1.5".parse().unwrap()), Some(5));
        assert_eq!(cidr("fd00::/64").nth(1), Some("fd00::1".parse().unwrap()));
        assert_eq!(cidr("::/0").size(), u128::MAX);
    }

    #[test]
    fn a_mac_follows_its_address_and_reads_back() {
        let mac = Mac::for_ip("10.0.1.10".parse().unwrap());
        assert_eq!(mac.to_string(), "02:42:0a:00:01:0a");
        assert_eq!("02:42:0a:00:01:0a".parse::<Mac>().unwrap(), mac);
        for text in ["02:42:0a:00:01", "02:42:0a:00:01:0a:00", "02:42:0a:00:01:zz", ""] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}

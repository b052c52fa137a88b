//! What the gossip says: rows by network, and the nodes that announced them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gossip::{ENDPOINT_TABLE, OVERLAY_PEER_TABLE};
use model::NetworkId;
use netplan::addr::Mac;
use netplan::view::{NodeEngine, Peer};
use prost::Message as _;
use wire::networktable::{EndpointRecord, PeerRecord};

/// An endpoint of another node.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    pub owner: String,
    pub record: EndpointRecord,
    pub address: IpAddr,
    /// Grows with the order of arrival; a change of anything but the claim does not renew it.
    pub since: u64,
}

/// Where an address of another node is.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub owner: String,
    pub address: IpAddr,
    pub peer: Peer,
    /// As in [`Remote`].
    pub since: u64,
}

/// A row that claims addresses.
trait Claim {
    /// Whether the other row claims the same for the same node.
    fn same(&self, other: &Self) -> bool;
    fn since(&mut self) -> &mut u64;
}

impl Claim for Remote {
    fn same(&self, other: &Self) -> bool {
        self.owner == other.owner
            && addresses_of(&self.record) == addresses_of(&other.record)
            && vips_of(&self.record) == vips_of(&other.record)
    }

    fn since(&mut self) -> &mut u64 {
        &mut self.since
    }
}

impl Claim for Located {
    fn same(&self, other: &Self) -> bool {
        (&self.owner, self.address, self.peer) == (&other.owner, other.address, other.peer)
    }

    fn since(&mut self) -> &mut u64 {
        &mut self.since
    }
}

/// Every address of an endpoint, the first one first.
pub fn addresses_of(record: &EndpointRecord) -> Vec<IpAddr> {
    let texts = std::iter::once(&record.endpoint_ip).chain(&record.further_ips);
    texts.filter_map(|text| plain(text)).collect()
}

/// Every virtual address of an endpoint's service.
pub fn vips_of(record: &EndpointRecord) -> Vec<IpAddr> {
    let texts = std::iter::once(&record.virtual_ip).chain(&record.further_vips);
    texts.filter_map(|text| plain(text)).collect()
}

#[derive(Default)]
pub struct Rows {
    /// By network and endpoint id.
    endpoints: BTreeMap<NetworkId, BTreeMap<String, Remote>>,
    peers: BTreeMap<NetworkId, BTreeMap<String, Located>>,
    members: BTreeMap<String, bool>,
    /// Nodes that failed and whose hosts do not answer.
    silent: BTreeSet<String>,
    arrivals: u64,
    /// Rows that could not be read.
    pub dropped: u64,
}

impl Rows {
    /// Takes one row in; those that cannot be read count and are as if they were not there.
    pub fn put(
        &mut self,
        network: NetworkId,
        table: &str,
        key: String,
        owner: String,
        value: Option<&[u8]>,
    ) {
        self.arrivals += 1;
        let since = self.arrivals;
        match table {
            ENDPOINT_TABLE => {
                let row = value.map(|value| endpoint(owner, since, value));
                self.dropped += u64::from(matches!(row, Some(None)));
                set(self.endpoints.entry(network).or_default(), key, row.flatten());
            }
            OVERLAY_PEER_TABLE => {
                let row = value.map(|value| located(owner, since, value));
                self.dropped += u64::from(matches!(row, Some(None)));
                set(self.peers.entry(network).or_default(), key, row.flatten());
            }
            _ => {}
        }
    }

    pub fn member_up(&mut self, name: String, skep: bool) {
        self.silent.remove(&name);
        self.members.insert(name, skep);
    }

    pub fn member_down(&mut self, name: &str) {
        self.members.remove(name);
    }

    pub fn host_silent(&mut self, name: String) {
        if self.is_up(&name) {
            return;
        }
        let endpoints = self.endpoints.values().flat_map(BTreeMap::values);
        let owners: BTreeSet<&str> = endpoints.map(|row| row.owner.as_str()).collect();
        self.silent.retain(|silent| owners.contains(silent.as_str()));
        self.silent.insert(name);
    }

    pub fn is_silent(&self, owner: &str) -> bool {
        self.silent.contains(owner)
    }

    pub fn members(&self) -> usize {
        self.members.len()
    }

    pub fn forget_network(&mut self, network: &NetworkId) {
        self.endpoints.remove(network);
        self.peers.remove(network);
    }

    pub fn is_up(&self, owner: &str) -> bool {
        self.members.contains_key(owner)
    }

    pub fn engine(&self, owner: &str) -> NodeEngine {
        match self.members.get(owner) {
            Some(true) => NodeEngine::Skep,
            _ => NodeEngine::Docker,
        }
    }

    pub fn endpoints(&self, network: &NetworkId) -> impl Iterator<Item = (&String, &Remote)> {
        self.endpoints.get(network).into_iter().flatten()
    }

    pub fn peers(&self, network: &NetworkId) -> impl Iterator<Item = (&String, &Located)> {
        self.peers.get(network).into_iter().flatten()
    }
}

fn set<T: Claim>(rows: &mut BTreeMap<String, T>, key: String, row: Option<T>) {
    match row {
        Some(mut row) => {
            if let Some(before) = rows.get_mut(&key).filter(|before| before.same(&row)) {
                *row.since() = *before.since();
            }
            rows.insert(key, row);
        }
        None => drop(rows.remove(&key)),
    }
}

fn endpoint(owner: String, since: u64, value: &[u8]) -> Option<Remote> {
    let record = EndpointRecord::decode(value).ok()?;
    let address = plain(&record.endpoint_ip)?;
    (!record.name.is_empty()).then_some(Remote { owner, record, address, since })
}

fn located(owner: String, since: u64, value: &[u8]) -> Option<Located> {
    let record = PeerRecord::decode(value).ok()?;
    let address = plain(&record.endpoint_ip)?;
    let mac: Mac = record.endpoint_mac.parse().ok()?;
    let vtep = plain(&record.tunnel_endpoint_ip)?;
    let usable = !vtep.is_unspecified() && !vtep.is_multicast() && !vtep.is_loopback();
    // The lowest bit of the first byte is that of groups.
    let single = mac.0[0] & 1 == 0 && mac.0 != [0; 6];
    (usable && single).then_some(Located { owner, address, peer: Peer { mac, vtep }, since })
}

/// An address, with or without a prefix length; Docker writes a missing one as `<nil>`.
pub fn plain(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.trim().parse().ok()
}

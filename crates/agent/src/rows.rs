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
    peers: BTreeMap<NetworkId, BTreeMap<String, (String, IpAddr, Peer)>>,
    members: BTreeMap<String, bool>,
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
        match table {
            ENDPOINT_TABLE => {
                let row = value.map(|value| endpoint(owner, value));
                self.dropped += u64::from(matches!(row, Some(None)));
                set(self.endpoints.entry(network).or_default(), key, row.flatten());
            }
            OVERLAY_PEER_TABLE => {
                let row = value.map(|value| peer(owner, value));
                self.dropped += u64::from(matches!(row, Some(None)));
                set(self.peers.entry(network).or_default(), key, row.flatten());
            }
            _ => {}
        }
    }

    pub fn member_up(&mut self, name: String, skep: bool) {
        self.members.insert(name, skep);
    }

    pub fn member_down(&mut self, name: &str) {
        self.members.remove(name);
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

    /// The addresses of which some node has said where they are.
    pub fn reachable(&self, network: &NetworkId) -> BTreeSet<IpAddr> {
        let rows = self.peers.get(network).into_iter().flat_map(BTreeMap::values);
        rows.map(|(_, address, _)| *address).collect()
    }

    /// Where the addresses of other nodes are; where two rows claim one, the living owner's holds.
    pub fn peers(&self, network: &NetworkId, own: &str) -> BTreeMap<IpAddr, Peer> {
        let mut peers: BTreeMap<IpAddr, (bool, Peer)> = BTreeMap::new();
        let rows = self.peers.get(network).into_iter().flat_map(BTreeMap::values);
        for (owner, address, peer) in rows.filter(|(owner, _, _)| owner != own) {
            let up = self.is_up(owner);
            let known = peers.get(address);
            if known.is_none_or(|(known_up, _)| up && !known_up) {
                peers.insert(*address, (up, *peer));
            }
        }
        peers.into_iter().map(|(address, (_, peer))| (address, peer)).collect()
    }
}

fn set<T>(rows: &mut BTreeMap<String, T>, key: String, row: Option<T>) {
    match row {
        Some(row) => drop(rows.insert(key, row)),
        None => drop(rows.remove(&key)),
    }
}

fn endpoint(owner: String, value: &[u8]) -> Option<Remote> {
    let record = EndpointRecord::decode(value).ok()?;
    let address = plain(&record.endpoint_ip)?;
    (!record.name.is_empty()).then_some(Remote { owner, record, address })
}

fn peer(owner: String, value: &[u8]) -> Option<(String, IpAddr, Peer)> {
    let record = PeerRecord::decode(value).ok()?;
    let address = plain(&record.endpoint_ip)?;
    let mac: Mac = record.endpoint_mac.parse().ok()?;
    let vtep = plain(&record.tunnel_endpoint_ip)?;
    Some((owner, address, Peer { mac, vtep }))
}

/// An address, with or without a prefix length; Docker writes a missing one as `<nil>`.
pub fn plain(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.trim().parse().ok()
}

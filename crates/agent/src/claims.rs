//! Which rows of other nodes are believed. Every node may announce rows; what one may not do is claim
//! what is this node's, what another already has, or what no task can have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::NetworkId;
use netplan::addr::{Cidr, Mac};
use netplan::view::Peer;

use crate::rows::{Remote, Rows, addresses_of, vips_of};

/// What is certain about a network without asking the gossip.
#[derive(Default)]
pub struct Ground<'a> {
    pub own_name: &'a str,
    pub data_path: Option<IpAddr>,
    pub subnets: Vec<Cidr>,
    /// This node's addresses there, its tasks' and the gateways.
    pub held: BTreeSet<IpAddr>,
    /// Those of the links that have them.
    pub links: BTreeSet<Mac>,
    /// The virtual addresses of services whose tasks are here, and whose they are.
    pub vips: BTreeMap<IpAddr, &'a str>,
}

/// Rows that are believed, and those that are not.
#[derive(Default)]
pub struct Believed<'a> {
    pub endpoints: Vec<(&'a String, &'a Remote)>,
    pub peers: BTreeMap<IpAddr, Peer>,
    /// By table and key.
    pub refused: BTreeSet<(&'static str, String)>,
}

/// Who is there comes before who is silent, and who came first before who came later: an address
/// that has moved is its new owner's as soon as the old one is silent or has taken its row back.
pub fn believe<'a>(rows: &'a Rows, network: &NetworkId, ground: &Ground<'a>) -> Believed<'a> {
    let mut believed = Believed::default();
    let mut peers: Vec<_> =
        rows.peers(network).filter(|(_, it)| it.owner != ground.own_name).collect();
    peers.sort_by_key(|(_, it)| (!rows.is_up(&it.owner), it.since));
    // Frames are led by the link's address alone.
    let mut links: BTreeMap<Mac, IpAddr> = BTreeMap::new();
    for (key, located) in peers {
        let Peer { mac, vtep } = located.peer;
        let possible = ground.has(located.address)
            && !ground.vips.contains_key(&located.address)
            && Some(vtep) != ground.data_path
            && !ground.links.contains(&mac)
            && links.get(&mac).is_none_or(|there| *there == vtep);
        if possible && !believed.peers.contains_key(&located.address) {
            links.insert(mac, vtep);
            believed.peers.insert(located.address, located.peer);
        } else {
            believed.refused.insert((gossip::OVERLAY_PEER_TABLE, key.clone()));
        }
    }
    let mut endpoints: Vec<_> =
        rows.endpoints(network).filter(|(_, it)| it.owner != ground.own_name).collect();
    endpoints.sort_by_key(|(_, it)| (!rows.is_up(&it.owner), it.since));
    let mut taken = BTreeSet::new();
    let mut vips = ground.vips.clone();
    for (key, remote) in endpoints {
        let (addresses, own_vips) = (addresses_of(&remote.record), vips_of(&remote.record));
        let free = |it: &IpAddr| ground.has(*it) && !taken.contains(it) && !vips.contains_key(it);
        let service = remote.record.service_id.as_str();
        let ours = |it: &IpAddr| {
            ground.has(*it) && !taken.contains(it) && vips.get(it).is_none_or(|of| *of == service)
        };
        if addresses.iter().all(free) && own_vips.iter().all(ours) {
            taken.extend(addresses);
            vips.extend(own_vips.into_iter().map(|vip| (vip, service)));
            believed.endpoints.push((key, remote));
        } else {
            believed.refused.insert((gossip::ENDPOINT_TABLE, key.clone()));
        }
    }
    believed.endpoints.sort_by_key(|(key, _)| *key);
    believed
}

impl Ground<'_> {
    /// Somebody else's task may have the address.
    fn has(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(address)) && !self.held.contains(&address)
    }
}

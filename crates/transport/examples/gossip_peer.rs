//! A node of a swarm that only gossips: joins with a token, takes the keys from the session, announces
//! one endpoint on a network and prints what it hears. Shows that a Docker Engine takes us as one of its own.
//!
//! `gossip_peer <own address> <manager address:port> <token> <network id> <endpoint address/bits> <name>`

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use gossip::{Config, Effect, Event, Key};
use model::NetworkId;
use prost::Message;
use transport::client::Manager;
use transport::join::{Wishes, join};
use transport::{Keys, gossip as sockets};
use wire::networktable::{EndpointRecord, PeerRecord};
use wire::swarmkit as pb;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [own, manager, token, network, endpoint, name] = arguments.as_slice() else {
        return Err("own address, manager, token, network id, endpoint, name".into());
    };
    let own: IpAddr = own.parse()?;
    let identity = join(std::slice::from_ref(manager), token, Wishes::default()).await?;
    println!("joined as {}", identity.subject.node_id);
    let client = Manager::new(manager.clone(), Keys::new(identity)?)?;
    let request = pb::SessionRequest {
        description: Some(pb::NodeDescription { hostname: name.clone(), ..Default::default() }),
        ..Default::default()
    };
    let mut session = client.dispatcher().session(request).await?.into_inner();
    let first = session.message().await?.ok_or("the session ended")?;
    let keys = first
        .network_bootstrap_keys
        .iter()
        .filter(|key| key.subsystem == "networking:gossip")
        .map(|key| Ok(Key { lamport: key.lamport_time, secret: key.key.as_slice().try_into()? }))
        .collect::<Result<Vec<Key>, Failure>>()?;
    println!("{} keys", keys.len());

    let (out, mut effects) = tokio::sync::mpsc::channel(1_024);
    let address = SocketAddr::new(own, 7_946);
    let config = Config::new("5ce95ce95ce9", address, [7; 32]);
    let handle = sockets::start(config, SocketAddr::new([0, 0, 0, 0].into(), 7_946), out).await?;
    let network = NetworkId::new(network.clone());
    let manager: SocketAddr = manager.parse()?;
    handle.send(Event::SetKeys(keys)).await;
    handle.send(Event::Join { addresses: vec![SocketAddr::new(manager.ip(), 7_946)] }).await;
    handle.send(Event::JoinNetwork { network: network.clone() }).await;
    announce(&handle, &network, own, endpoint, name).await?;
    loop {
        tokio::select! {
            effect = effects.recv() => print(effect.ok_or("the gossip ended")?)?,
            () = tokio::time::sleep(Duration::from_secs(3)) => println!("{:?}", handle.counters().await),
        }
    }
}

async fn announce(
    handle: &sockets::Handle,
    network: &NetworkId,
    own: IpAddr,
    endpoint: &str,
    name: &str,
) -> Result<(), Failure> {
    let (address, _) = endpoint.split_once('/').ok_or("no prefix length")?;
    let IpAddr::V4(octets) = address.parse()? else { return Err("not IPv4".into()) };
    let [a, b, c, d] = octets.octets();
    let peer = PeerRecord {
        endpoint_ip: endpoint.to_owned(),
        endpoint_mac: format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}"),
        tunnel_endpoint_ip: own.to_string(),
    };
    let row = EndpointRecord {
        name: name.to_owned(),
        virtual_ip: "<nil>".to_owned(),
        endpoint_ip: address.to_owned(),
        ..Default::default()
    };
    let rows = [
        (gossip::OVERLAY_PEER_TABLE, peer.encode_to_vec()),
        (gossip::ENDPOINT_TABLE, row.encode_to_vec()),
    ];
    for (table, value) in rows {
        let (table, key) = (table.to_owned(), "ab".repeat(32));
        handle.send(Event::PutRow { network: network.clone(), table, key, value }).await;
    }
    Ok(())
}

fn print(effect: Effect) -> Result<(), Failure> {
    match effect {
        Effect::RowChanged { table, key, owner, new, .. } => match new {
            None => println!("gone {table} {key:.12} of {owner}"),
            Some(value) if table == gossip::ENDPOINT_TABLE => {
                println!("row of {owner}: {:?}", EndpointRecord::decode(value.as_slice())?);
            }
            Some(value) => println!("row of {owner}: {:?}", PeerRecord::decode(value.as_slice())?),
        },
        other => println!("{other:?}"),
    }
    Ok(())
}

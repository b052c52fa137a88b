//! What the gossip says, as the agent hears it.

use agent::Event;

pub fn gossiped(effect: ::gossip::Effect) -> Option<Event> {
    match effect {
        ::gossip::Effect::RowChanged { network, table, key, owner, new, .. } => {
            Some(Event::Row { network, table, key, owner, value: new })
        }
        ::gossip::Effect::NodeUp(member) => {
            let skep = member.is_skep();
            Some(Event::MemberUp { name: member.name, address: member.address.ip(), skep })
        }
        ::gossip::Effect::PeersChanged { network, peers, failed } => {
            let names = peers.into_iter().map(|(name, _)| name).collect();
            Some(Event::Peers { network, names, failed: failed.into_iter().collect() })
        }
        ::gossip::Effect::Synced { network } => Some(Event::Synced { network }),
        ::gossip::Effect::Applied { by, rows } => Some(Event::Applied { by, rows }),
        ::gossip::Effect::NodeDown(member) => {
            tracing::info!(address = %member.address, "a node of the swarm does not answer on the gossip");
            Some(Event::MemberDown { name: member.name })
        }
        ::gossip::Effect::HostSilent(member) => {
            tracing::warn!(address = %member.address, "the host of a node that failed does not answer either: connections to its tasks are reset");
            Some(Event::HostSilent { name: member.name })
        }
        _ => None,
    }
}

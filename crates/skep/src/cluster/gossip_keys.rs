//! The gossip's keys, kept for the next life of the daemon: a node that begins again while no manager
//! answers, or none leads, hears the others all the same and is heard by them.

use disk::{Certificates, records};
use prost::Message as _;
use wire::swarmkit as pb;

use super::saved::Folder;

const SUBSYSTEM: &str = "networking:gossip";

/// Those of the keys that managers hand out.
pub fn among(keys: Vec<agent::Key>) -> Vec<gossip::Key> {
    let keys = keys.into_iter().filter(|key| key.subsystem == SUBSYSTEM);
    keys.filter_map(|key| {
        Some(gossip::Key { lamport: key.lamport, secret: key.secret.try_into().ok()? })
    })
    .collect()
}

/// Beside this node's own key, which opens as much: not where that is sealed, perhaps at this moment.
pub fn save(folder: &Folder, keys: &[gossip::Key]) {
    if !is_sealed(folder) {
        replace(folder, keys);
    }
    if is_sealed(folder)
        && let Err(error) = records::remove(&folder.gossip_keys())
    {
        tracing::warn!(%error, "keys of the gossip, which autolock is to seal, are still in a file");
    }
}

/// Looks at the file alone: to read the key would tidy up after a renewal that is perhaps under way.
fn is_sealed(folder: &Folder) -> bool {
    let look = || Certificates::new(folder.certificates())?.is_locked();
    look().unwrap_or(true)
}

fn replace(folder: &Folder, keys: &[gossip::Key]) {
    let keys = keys.iter().map(|key| pb::EncryptionKey {
        subsystem: SUBSYSTEM.to_owned(),
        key: key.secret.to_vec(),
        lamport_time: key.lamport,
        ..Default::default()
    });
    let kept = pb::SessionMessage { network_bootstrap_keys: keys.collect(), ..Default::default() };
    if let Err(error) = records::replace(&folder.gossip_keys(), &kept.encode_to_vec(), 0o600) {
        tracing::warn!(%error, "keys of the gossip not kept");
    }
}

/// None where there are none, or none that can be read: a manager will tell them.
pub fn load(folder: &Folder) -> Vec<gossip::Key> {
    let bytes = records::read(&folder.gossip_keys()).ok().flatten().unwrap_or_default();
    let kept = pb::SessionMessage::decode(bytes.as_slice()).unwrap_or_default();
    let keys = kept.network_bootstrap_keys.into_iter();
    among(
        keys.map(|key| agent::Key {
            subsystem: key.subsystem,
            lamport: key.lamport_time,
            secret: key.key,
        })
        .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(subsystem: &str, lamport: u64, bytes: usize) -> agent::Key {
        agent::Key { subsystem: subsystem.into(), lamport, secret: vec![lamport as u8; bytes] }
    }

    #[test]
    fn what_the_gossip_is_sealed_with_is_there_for_the_next_daemon() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::below(root.path());
        folder.create().unwrap();
        assert!(load(&folder).is_empty());
        let told = vec![
            key(SUBSYSTEM, 7, 16),
            key("networking:ipsec", 8, 16),
            key(SUBSYSTEM, 9, 16),
            key(SUBSYSTEM, 10, 3),
        ];
        save(&folder, &among(told));
        let found: Vec<(u64, [u8; 16])> =
            load(&folder).iter().map(|key| (key.lamport, key.secret)).collect();
        assert_eq!(found, [(7, [7; 16]), (9, [9; 16])]);
        std::fs::write(folder.gossip_keys(), [0xff; 9]).unwrap();
        assert!(load(&folder).is_empty(), "what cannot be read is as if it were not there");
    }
}

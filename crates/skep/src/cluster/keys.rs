//! This node's keys on disk: certificate and key, the raft log's key, and what seals them.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use anyhow::Context as _;
use disk::{Certificates, DataKey, NodeKey};
use transport::Identity;

use super::node::Node;
use super::saved::GOSSIP_KEYS;

/// The folder with certificate and key, and what seals the key. Whoever reads one and writes another holds
/// both meanwhile: a renewal, autolock and a promotion may come at the same time.
pub struct Keys {
    folder: PathBuf,
    /// What seals a manager's keys on disk, when autolock is on.
    unlock: Mutex<Option<Vec<u8>>>,
}

impl Keys {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, unlock: Mutex::default() }
    }

    fn hold(&self) -> anyhow::Result<(MutexGuard<'_, Option<Vec<u8>>>, Certificates)> {
        let unlock = self.unlock.lock().unwrap_or_else(|poison| poison.into_inner());
        Ok((unlock, Certificates::new(&self.folder)?))
    }

    /// What seals keys that are written from now on.
    pub fn set_unlock_key(&self, key: Option<Vec<u8>>) {
        *self.unlock.lock().unwrap_or_else(|poison| poison.into_inner()) = key;
    }

    /// Certificate, key and roots as the disk has them; `None` when one of them is missing.
    pub fn identity(&self) -> anyhow::Result<Option<Identity>> {
        let (unlock, certificates) = self.hold()?;
        let (Some(roots), Some(chain)) = (certificates.roots()?, certificates.certificate()?)
        else {
            return Ok(None);
        };
        let Some(key) = certificates.key(unlock.as_deref())? else { return Ok(None) };
        Ok(Some(Identity::from_pem(&chain, key.key.pem().as_bytes(), &roots)?))
    }

    /// Tries the user's key.
    pub fn unlock(&self, key: Vec<u8>) -> anyhow::Result<()> {
        let (mut unlock, certificates) = self.hold()?;
        certificates.key(Some(&key))?;
        *unlock = Some(key);
        Ok(())
    }

    /// The key that seals the raft log: made when a node becomes a manager.
    pub fn data_key(&self) -> anyhow::Result<DataKey> {
        let (unlock, certificates) = self.hold()?;
        let mut key = certificates.key(unlock.as_deref())?.context("this node has no key")?;
        if let Some(data_key) = key.data_key.clone() {
            return Ok(data_key);
        }
        let data_key = DataKey::generate()?;
        key.data_key = Some(data_key.clone());
        certificates.save_key(&key, unlock.as_deref())?;
        Ok(data_key)
    }

    /// Certificate, key and roots on disk; the raft log's key is kept.
    pub fn save_identity(&self, identity: &Identity) -> anyhow::Result<()> {
        let (unlock, certificates) = self.hold()?;
        let before = certificates.key(unlock.as_deref())?;
        let key = NodeKey {
            key: ca::Key::from_pem(&identity.key_pem)?,
            data_key: before.as_ref().and_then(|before| before.data_key.clone()),
            unlock_version: before.map_or(0, |before| before.unlock_version),
        };
        certificates.save_roots(&identity.root_pem)?;
        certificates.save(&identity.certificate_pem, &key, unlock.as_deref())?;
        Ok(())
    }

    /// Seals the key with `wanted`, or opens it, unless that is how it is. `version` is the cluster
    /// object's that says so; without one the file keeps its own.
    pub fn seal(&self, wanted: Option<Vec<u8>>, version: Option<u64>) -> anyhow::Result<()> {
        let (mut unlock, certificates) = self.hold()?;
        if wanted == *unlock {
            return Ok(());
        }
        let mut key = certificates.key(unlock.as_deref())?.context("this node has no key")?;
        key.unlock_version = version.unwrap_or(key.unlock_version);
        certificates.save_key(&key, wanted.as_deref())?;
        let sealed = wanted.is_some();
        *unlock = wanted;
        if sealed {
            // They would open what the sealed key does. After it, as they may be kept anew meanwhile.
            disk::records::remove(&self.folder.with_file_name(GOSSIP_KEYS))?;
        }
        Ok(())
    }

    /// Autolock: seals or opens the key file as the cluster says.
    pub fn settle(&self, node: &Node) -> anyhow::Result<()> {
        let Some(manager) = node.manager() else { return Ok(()) };
        let Some(object) = manager.cluster.borrow().clone() else { return Ok(()) };
        let spec = object.spec.clone().unwrap_or_default();
        let locked = spec.encryption_config.is_some_and(|config| config.auto_lock_managers);
        let key = object.unlock_keys.iter().find(|key| key.subsystem == ca::MANAGER_UNIT);
        let wanted = key.filter(|_| locked).map(|key| key.key.clone());
        let version = object.meta.as_ref().and_then(|meta| meta.version.as_ref());
        self.seal(wanted, Some(version.map_or(0, |version| version.index)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::gossip_keys;
    use super::super::saved::Folder;
    use super::*;

    fn identity() -> Identity {
        let mut dice = rand::rng();
        let now = model::Instant::from_nanos(1_790_000_000_000_000_000);
        let root = ca::Root::create(now, &mut dice).expect("a root");
        let key = ca::Key::generate().expect("a key");
        let subject = ca::Identity {
            node_id: "n".into(),
            role: wire::swarmkit::NodeRole::Manager,
            organization: "c".into(),
        };
        let expiry = ca::certificate::EXPIRY_DEFAULT;
        let request = key.request().expect("a request");
        let issued = root.sign(&request, &subject, now, expiry, &mut dice).expect("a certificate");
        Identity::from_pem(&issued.chain, key.pem().as_bytes(), &root.roots).expect("an identity")
    }

    #[test]
    fn renewals_and_autolock_at_the_same_time_lose_neither_key() {
        const ROUNDS: usize = 100;
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder::below(root.path());
        folder.create().expect("a folder");
        let keys = Keys::new(folder.certificates());
        let identities: Vec<Identity> = (0..4).map(|_| identity()).collect();
        keys.save_identity(&identities[0]).expect("saved");
        let data_key = keys.data_key().expect("a key for the log");
        std::thread::scope(|scope| {
            for identity in &identities {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        keys.save_identity(identity).expect("renewed");
                    }
                });
            }
            scope.spawn(|| {
                for lamport in 0..ROUNDS as u64 {
                    gossip_keys::save(&folder, &[gossip::Key { lamport, secret: [7; 16] }]);
                }
            });
            for round in 1..=ROUNDS {
                let wanted = (round % 3 > 0).then(|| vec![round as u8; 32]);
                keys.seal(wanted, Some(round as u64)).expect("sealed");
                keys.identity().expect("read").expect("an identity");
            }
        });
        assert!(keys.data_key().expect("the log's key") == data_key);
        assert!(gossip_keys::load(&folder).is_empty(), "the node's own key is sealed");
        keys.seal(None, None).expect("opened");
        let found = Keys::new(folder.certificates()).identity();
        let found = found.expect("read without any key").expect("an identity");
        assert!(identities.iter().any(|one| one.certificate_pem == found.certificate_pem));
    }
}

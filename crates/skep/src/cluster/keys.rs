//! This node's keys on disk: certificate and key, the raft log's key, and what seals them.

use anyhow::Context as _;
use transport::Identity;

use super::Cluster;
use super::node::Node;

/// The key that seals the raft log: made when a node becomes a manager.
pub fn data_key(cluster: &Cluster) -> anyhow::Result<disk::DataKey> {
    let certificates = disk::Certificates::new(cluster.folder.certificates())?;
    let unlock = cluster.unlock_key();
    let mut key = certificates.key(unlock.as_deref())?.context("this node has no key")?;
    if let Some(data_key) = key.data_key.clone() {
        return Ok(data_key);
    }
    let data_key = disk::DataKey::generate()?;
    key.data_key = Some(data_key.clone());
    certificates.save_key(&key, unlock.as_deref())?;
    Ok(data_key)
}

/// Certificate, key and roots on disk; the raft log's key is kept.
pub fn save_identity(cluster: &Cluster, identity: &Identity) -> anyhow::Result<()> {
    let certificates = disk::Certificates::new(cluster.folder.certificates())?;
    let unlock = cluster.unlock_key();
    let before = certificates.key(unlock.as_deref())?;
    let key = disk::NodeKey {
        key: ca::Key::from_pem(&identity.key_pem)?,
        data_key: before.as_ref().and_then(|before| before.data_key.clone()),
        unlock_version: before.map_or(0, |before| before.unlock_version),
    };
    certificates.save_roots(&identity.root_pem)?;
    certificates.save(&identity.certificate_pem, &key, unlock.as_deref())?;
    Ok(())
}

/// Autolock: seals or opens the key file as the cluster says.
pub fn settle_lock(cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
    let Some(manager) = node.manager() else { return Ok(()) };
    let Some(object) = manager.cluster.borrow().clone() else { return Ok(()) };
    let spec = object.spec.clone().unwrap_or_default();
    let locked = spec.encryption_config.is_some_and(|config| config.auto_lock_managers);
    let key = object.unlock_keys.iter().find(|key| key.subsystem == ca::MANAGER_UNIT);
    let wanted = key.filter(|_| locked).map(|key| key.key.clone());
    if wanted == cluster.unlock_key() {
        return Ok(());
    }
    let certificates = disk::Certificates::new(cluster.folder.certificates())?;
    let mut sealed =
        certificates.key(cluster.unlock_key().as_deref())?.context("this node has no key")?;
    sealed.unlock_version = object
        .meta
        .as_ref()
        .and_then(|meta| meta.version.as_ref())
        .map_or(0, |version| version.index);
    certificates.save_key(&sealed, wanted.as_deref())?;
    cluster.set_unlock_key(wanted);
    Ok(())
}

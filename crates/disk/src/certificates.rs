//! `<data-root>/swarm/certificates`: the trusted roots, this node's certificate and its key.
//!
//! The key file carries, as PEM headers, the key that seals the raft log. With autolock on, both
//! are sealed under the unlock key; nothing else on a manager's disk opens the log.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ca::pem;

use crate::{DataKey, Error, io, records};

const ROOTS: &str = "swarm-root-ca.crt";
const CERTIFICATE: &str = "swarm-node.crt";
const KEY: &str = "swarm-node.key";
const PLAIN_LABEL: &str = "PRIVATE KEY";
const SEALED_LABEL: &str = "SEALED PRIVATE KEY";
const VERSION_HEADER: &str = "kek-version";
const DATA_KEY_HEADER: &str = "raft-dek";

/// The folder of a node's certificates.
pub struct Certificates {
    folder: PathBuf,
}

/// What the key file holds. It has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeKey {
    pub key: ca::Key,
    /// Seals the raft log; on managers only.
    pub data_key: Option<DataKey>,
    /// The version of the cluster object whose unlock key seals this file.
    pub unlock_version: u64,
}

impl Certificates {
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(io(&folder, "create"))?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&folder, private).map_err(io(&folder, "set the mode"))?;
        Ok(Self { folder })
    }

    pub fn roots(&self) -> Result<Option<Vec<u8>>, Error> {
        records::read(&self.path(ROOTS))
    }

    pub fn save_roots(&self, roots: &[u8]) -> Result<(), Error> {
        records::replace(&self.path(ROOTS), roots, 0o644)
    }

    pub fn certificate(&self) -> Result<Option<Vec<u8>>, Error> {
        records::read(&self.path(CERTIFICATE))
    }

    /// Replaces certificate and key together. After a crash in between, [`Self::key`] finds the one
    /// that belongs to the certificate.
    pub fn save(
        &self,
        chain: &[u8],
        key: &NodeKey,
        unlock_key: Option<&[u8]>,
    ) -> Result<(), Error> {
        let (certificate_path, key_path) = (self.path(CERTIFICATE), self.path(KEY));
        let text = write_key(key, unlock_key)?;
        records::write_new(&records::beside(&key_path), text.as_bytes(), 0o600)?;
        records::replace(&certificate_path, chain, 0o644)?;
        self.adopt_new_key()
    }

    /// Replaces only the key file: another unlock key, another data key.
    pub fn save_key(&self, key: &NodeKey, unlock_key: Option<&[u8]>) -> Result<(), Error> {
        records::replace(&self.path(KEY), write_key(key, unlock_key)?.as_bytes(), 0o600)
    }

    /// Whether the key can only be read with the unlock key.
    pub fn is_locked(&self) -> Result<bool, Error> {
        let Some(text) = records::read(&self.path(KEY))? else { return Ok(false) };
        let blocks = pem::parse(&String::from_utf8_lossy(&text)).unwrap_or_default();
        Ok(blocks.iter().any(|block| block.label == SEALED_LABEL))
    }

    /// The key that belongs to the certificate; `None` when this node has none yet.
    pub fn key(&self, unlock_key: Option<&[u8]>) -> Result<Option<NodeKey>, Error> {
        let path = self.path(KEY);
        let Some(chain) = self.certificate()? else { return Ok(None) };
        let fresh_path = records::beside(&path);
        if let Some(text) = records::read(&fresh_path)? {
            let fresh = read_key(&fresh_path, &text, unlock_key);
            match fresh {
                Ok(fresh) if fresh.key.owns(&chain).unwrap_or(false) => {
                    self.adopt_new_key()?;
                    return Ok(Some(fresh));
                }
                Err(Error::Locked) => return Err(Error::Locked),
                // What cannot be read may be the certificate's only key.
                Err(Error::WrongKey) if !self.old_key_fits(&chain, unlock_key)? => {
                    return Err(Error::WrongKey);
                }
                // The certificate was not replaced any more: the old key is the right one.
                _ => records::remove(&fresh_path)?,
            }
        }
        let Some(text) = records::read(&path)? else { return Ok(None) };
        read_key(&path, &text, unlock_key).map(Some)
    }

    fn old_key_fits(&self, chain: &[u8], unlock_key: Option<&[u8]>) -> Result<bool, Error> {
        let path = self.path(KEY);
        let Some(text) = records::read(&path)? else { return Ok(false) };
        let old = read_key(&path, &text, unlock_key);
        Ok(old.is_ok_and(|old| old.key.owns(chain).unwrap_or(false)))
    }

    /// Forgets everything: the node left its swarm.
    pub fn clear(&self) -> Result<(), Error> {
        for name in [KEY, CERTIFICATE, ROOTS] {
            records::remove(&self.path(name))?;
        }
        records::remove(&records::beside(&self.path(KEY)))?;
        records::sync_folder_of(&self.path(KEY))
    }

    fn adopt_new_key(&self) -> Result<(), Error> {
        let path = self.path(KEY);
        fs::rename(records::beside(&path), &path).map_err(io(&path, "rename"))?;
        records::sync_folder_of(&path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn write_key(key: &NodeKey, unlock_key: Option<&[u8]>) -> Result<String, Error> {
    let unlock_key = match unlock_key {
        Some(bytes) => Some(DataKey::from_bytes(bytes).ok_or(Error::WrongKey)?),
        None => None,
    };
    let version = key.unlock_version.to_string();
    let wrap = |secret: &[u8], what: &str| match &unlock_key {
        Some(unlock_key) => unlock_key.seal(secret, context(what, &version).as_bytes()),
        None => Ok(secret.to_vec()),
    };
    let plain = pem::parse(key.key.pem()).and_then(|blocks| blocks.into_iter().next());
    let der = plain.map(|block| block.der).unwrap_or_default();
    let mut headers = vec![(VERSION_HEADER.to_owned(), version.clone())];
    if let Some(data_key) = &key.data_key {
        let wrapped = wrap(data_key.bytes(), DATA_KEY_HEADER)?;
        headers.push((DATA_KEY_HEADER.to_owned(), STANDARD.encode(wrapped)));
    }
    let label = if unlock_key.is_some() { SEALED_LABEL } else { PLAIN_LABEL };
    let der = wrap(&der, KEY)?;
    Ok(pem::write(&pem::Block { label: label.into(), headers, der }))
}

fn read_key(path: &Path, text: &[u8], unlock_key: Option<&[u8]>) -> Result<NodeKey, Error> {
    let unreadable =
        |detail: &str| Error::Unreadable { path: path.to_owned(), detail: detail.into() };
    let text = std::str::from_utf8(text).map_err(|_| unreadable("not text"))?;
    let blocks = pem::parse(text).ok_or_else(|| unreadable("broken PEM"))?;
    let block = blocks.first().ok_or_else(|| unreadable("no PEM block"))?;
    let header =
        |name: &str| block.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let version = header(VERSION_HEADER).cloned().unwrap_or_else(|| "0".into());
    let unlock_key = match (block.label.as_str(), unlock_key) {
        (PLAIN_LABEL, _) => None,
        (SEALED_LABEL, None) => return Err(Error::Locked),
        (SEALED_LABEL, Some(bytes)) => Some(DataKey::from_bytes(bytes).ok_or(Error::WrongKey)?),
        _ => return Err(unreadable("another kind of PEM block")),
    };
    let unwrap = |secret: &[u8], what: &str| match &unlock_key {
        Some(key) => {
            key.open(secret, context(what, &version).as_bytes()).map_err(|_| Error::WrongKey)
        }
        None => Ok(secret.to_vec()),
    };
    let plain = pem::Block {
        label: PLAIN_LABEL.into(),
        headers: Vec::new(),
        der: unwrap(&block.der, KEY)?,
    };
    let key = ca::Key::from_pem(pem::write(&plain).as_bytes())
        .map_err(|error| unreadable(&error.to_string()))?;
    let data_key = match header(DATA_KEY_HEADER) {
        None => None,
        Some(text) => {
            let wrapped = STANDARD.decode(text).map_err(|_| unreadable("data key: no base 64"))?;
            let bytes = unwrap(&wrapped, DATA_KEY_HEADER)?;
            Some(DataKey::from_bytes(&bytes).ok_or_else(|| unreadable("data key: wrong length"))?)
        }
    };
    let unlock_version = version.parse().map_err(|_| unreadable("the version is no number"))?;
    Ok(NodeKey { key, data_key, unlock_version })
}

/// A sealed part opens only in its own place.
fn context(what: &str, version: &str) -> String {
    format!("{what} {version}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Instant;
    use rand::SeedableRng;

    fn signed(key: &ca::Key) -> Vec<u8> {
        let now = Instant::from_nanos(1_790_000_000_000_000_000);
        let mut dice = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let root = ca::Root::create(now, &mut dice).unwrap();
        let identity = ca::Identity {
            node_id: "n".into(),
            role: wire::swarmkit::NodeRole::Manager,
            organization: "c".into(),
        };
        let expiry = ca::certificate::EXPIRY_DEFAULT;
        root.sign(&key.request().unwrap(), &identity, now, expiry, &mut dice).unwrap().chain
    }

    fn node_key(version: u64) -> NodeKey {
        let key = ca::Key::generate().unwrap();
        NodeKey { key, data_key: Some(DataKey::generate().unwrap()), unlock_version: version }
    }

    #[test]
    fn certificate_and_key_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Certificates::new(folder.path()).unwrap();
        assert!(store.key(None).unwrap().is_none());
        let key = node_key(0);
        let chain = signed(&key.key);
        store.save(&chain, &key, None).unwrap();
        assert!(store.key(None).unwrap() == Some(key));
        assert_eq!(store.certificate().unwrap(), Some(chain));
        let mode = fs::metadata(folder.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        store.clear().unwrap();
        assert!(store.key(None).unwrap().is_none());
    }

    #[test]
    fn a_sealed_key_opens_with_its_unlock_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Certificates::new(folder.path()).unwrap();
        let key = node_key(7);
        store.save(&signed(&key.key), &key, Some(&[1; 32])).unwrap();
        assert!(store.is_locked().unwrap());
        assert!(matches!(store.key(None), Err(Error::Locked)));
        assert!(matches!(store.key(Some(&[2; 32])), Err(Error::WrongKey)));
        assert!(store.key(Some(&[1; 32])).unwrap() == Some(key.clone()));
        let text = fs::read(folder.path().join(KEY)).unwrap();
        let secret = STANDARD.encode(key.data_key.as_ref().unwrap().bytes());
        assert!(!String::from_utf8(text).unwrap().contains(&secret));
        store.save_key(&key, None).unwrap();
        assert!(!store.is_locked().unwrap());
        assert!(store.key(None).unwrap() == Some(key));
    }

    #[test]
    fn after_a_crash_between_the_two_files_the_right_key_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = Certificates::new(folder.path()).unwrap();
        let (old, new) = (node_key(0), node_key(0));
        let old_chain = signed(&old.key);
        store.save(&old_chain, &old, None).unwrap();
        let fresh = records::beside(&folder.path().join(KEY));
        fs::write(&fresh, write_key(&new, None).unwrap()).unwrap();
        assert!(store.key(None).unwrap() == Some(old.clone()), "only the key was written");
        assert!(!fresh.exists());
        fs::write(&fresh, write_key(&new, None).unwrap()).unwrap();
        fs::write(folder.path().join(CERTIFICATE), signed(&new.key)).unwrap();
        assert!(store.key(None).unwrap() == Some(new.clone()), "the certificate was written, too");
        assert!(store.key(None).unwrap() == Some(new));
    }

    #[test]
    fn a_wrong_unlock_key_costs_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = Certificates::new(folder.path()).unwrap();
        let (old, new) = (node_key(0), node_key(1));
        let unlock_key = [1; 32];
        store.save(&signed(&old.key), &old, Some(&unlock_key)).unwrap();
        let fresh = records::beside(&folder.path().join(KEY));
        fs::write(&fresh, write_key(&new, Some(&unlock_key)).unwrap()).unwrap();
        fs::write(folder.path().join(CERTIFICATE), signed(&new.key)).unwrap();
        assert!(matches!(store.key(Some(&[2; 32])), Err(Error::WrongKey)));
        assert!(store.key(Some(&unlock_key)).unwrap() == Some(new.clone()));
        // Another unlock key that never came into force.
        fs::write(&fresh, write_key(&new, Some(&[2; 32])).unwrap()).unwrap();
        assert!(store.key(Some(&unlock_key)).unwrap() == Some(new));
        assert!(!fresh.exists());
    }
}

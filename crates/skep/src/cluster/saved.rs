//! What a node keeps on disk about its membership, beside certificates, raft log and task records.

use std::path::{Path, PathBuf};

use disk::records;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use wire::swarmkit as pb;

/// `<data-root>/swarm/state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    pub node_id: String,
    pub cluster_id: String,
    /// `host:port` that a manager listens on.
    pub listen_addr: String,
    /// `host:port` under which the others reach this node.
    pub advertise_addr: String,
    /// Address only; empty: the advertised one.
    pub data_path_addr: String,
    /// Managers to turn to: node id and `host:port`.
    pub managers: Vec<(String, String)>,
    /// The next start makes a cluster of this manager alone.
    pub force_new_cluster: bool,
}

/// Beside the folder of certificates.
pub const GOSSIP_KEYS: &str = "gossip-keys";

/// The folder of everything that belongs to the swarm.
#[derive(Clone)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn below(data_root: &Path) -> Self {
        Self(data_root.join("swarm"))
    }

    pub fn create(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.tasks())
    }

    fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    pub fn certificates(&self) -> PathBuf {
        self.0.join("certificates")
    }

    pub fn gossip_keys(&self) -> PathBuf {
        self.0.join(GOSSIP_KEYS)
    }

    pub fn raft(&self) -> PathBuf {
        self.0.join("raft")
    }

    pub fn tasks(&self) -> PathBuf {
        self.0.join("worker/tasks")
    }

    /// This node's own object as the manager sent it last.
    pub fn node(&self) -> Option<pb::Node> {
        let bytes = records::read(&self.0.join("node")).ok()??;
        pb::Node::decode(bytes.as_slice()).ok()
    }

    pub fn save_node(&self, node: &pb::Node) -> Result<(), disk::Error> {
        records::replace(&self.0.join("node"), &node.encode_to_vec(), 0o600)
    }

    pub fn load(&self) -> Result<Option<Saved>, disk::Error> {
        records::load(&self.state())
    }

    pub fn save(&self, saved: &Saved) -> Result<(), disk::Error> {
        records::save(&self.state(), saved)
    }

    /// The node left: nothing of the swarm stays.
    pub fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

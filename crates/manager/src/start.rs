//! What a manager is told about itself when its life begins.

use wire::swarmkit as pb;

/// Who this manager is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    pub node_id: String,
    /// The cluster's id: the organization in the certificate.
    pub cluster_id: String,
    /// `host:port` under which the other managers reach it.
    pub address: String,
}

/// What a new cluster begins with.
#[derive(Clone)]
pub struct Bootstrap {
    /// As the user gave it; what is absent becomes Docker's default.
    pub spec: pb::ClusterSpec,
    /// With the key that signs.
    pub root: ca::Root,
    pub address_pools: Vec<String>,
    /// 0 for 24.
    pub subnet_size: u32,
    /// 0 for 4789.
    pub data_path_port: u32,
    pub availability: pb::node_spec::Availability,
    /// This node's own signing request and certificate.
    pub request: Vec<u8>,
    pub certificate: Vec<u8>,
    /// With autolock, the key that the node's files are sealed with already.
    pub unlock_key: Option<Vec<u8>>,
    /// As in [`crate::Event::HostNetworks`]: the ingress network gets its subnet before any event.
    pub host_networks: Vec<String>,
}

//! What the daemon was told: dockerd's settings, parsed and merged, as the engine needs them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};
use crate::network::{self, Cidr, NetworkConfig};

/// A range that new local networks take their subnets from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    /// In CIDR form.
    pub base: String,
    /// The prefix length of each subnet.
    pub size: u8,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub debug: bool,
    pub labels: Vec<String>,
    pub storage_driver: String,
    pub insecure_registries: Vec<String>,
    pub registry_mirrors: Vec<String>,
    pub max_concurrent_downloads: usize,
    pub max_concurrent_uploads: usize,
    pub max_download_attempts: usize,
    pub log_driver: String,
    pub log_opts: BTreeMap<String, String>,
    pub dns: Vec<String>,
    pub dns_opts: Vec<String>,
    pub dns_search: Vec<String>,
    /// The name of the default bridge's device; `none` switches the default network off.
    pub bridge: String,
    pub bip: Option<String>,
    pub fixed_cidr: Option<String>,
    pub fixed_cidr_v6: Option<String>,
    pub default_gateway: Option<IpAddr>,
    pub default_gateway_v6: Option<IpAddr>,
    /// IPv6 on the default bridge.
    pub ipv6: bool,
    pub icc: bool,
    pub mtu: Option<u32>,
    /// The address that `-p` binds to when none is given.
    pub ip: Option<IpAddr>,
    pub iptables: bool,
    pub ip6tables: bool,
    pub ip_forward: bool,
    pub ip_masq: bool,
    pub userland_proxy: bool,
    pub default_address_pools: Vec<AddressPool>,
    pub host_gateway_ips: Vec<IpAddr>,
    pub default_runtime: String,
    /// Name to program, beside the built-in ones.
    pub runtimes: BTreeMap<String, PathBuf>,
    pub default_ulimits: BTreeMap<String, (i64, i64)>,
    pub default_shm_size: i64,
    pub default_ipc_mode: String,
    pub default_cgroupns_mode: Option<String>,
    pub cgroup_parent: Option<String>,
    pub seccomp_profile: Option<String>,
    pub no_new_privileges: bool,
    pub init: bool,
    pub init_path: Option<PathBuf>,
    pub selinux_enabled: bool,
    pub shutdown_timeout_seconds: i64,
    pub http_proxy: Option<String>,
    pub https_proxy: Option<String>,
    pub no_proxy: Option<String>,
    pub node_generic_resources: Vec<String>,
    pub swarm_default_advertise_addr: Option<String>,
    /// Shown by `docker info`: what was asked and cannot be honoured.
    pub warnings: Vec<String>,
}

impl Config {
    /// The defaults below two given directories; what tests start from.
    pub fn below(data_root: impl Into<PathBuf>, exec_root: impl Into<PathBuf>) -> Self {
        Self {
            data_root: data_root.into(),
            exec_root: exec_root.into(),
            debug: false,
            labels: Vec::new(),
            storage_driver: "overlay2".into(),
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
            max_concurrent_downloads: 3,
            max_concurrent_uploads: 5,
            max_download_attempts: 5,
            log_driver: "json-file".into(),
            log_opts: BTreeMap::new(),
            dns: Vec::new(),
            dns_opts: Vec::new(),
            dns_search: Vec::new(),
            bridge: "docker0".into(),
            bip: None,
            fixed_cidr: None,
            fixed_cidr_v6: None,
            default_gateway: None,
            default_gateway_v6: None,
            ipv6: false,
            icc: true,
            mtu: None,
            ip: None,
            iptables: true,
            ip6tables: true,
            ip_forward: true,
            ip_masq: true,
            userland_proxy: true,
            default_address_pools: Vec::new(),
            host_gateway_ips: Vec::new(),
            default_runtime: "skep".into(),
            runtimes: BTreeMap::new(),
            default_ulimits: BTreeMap::new(),
            default_shm_size: 64 << 20,
            default_ipc_mode: "private".into(),
            default_cgroupns_mode: None,
            cgroup_parent: None,
            seccomp_profile: None,
            no_new_privileges: false,
            init: false,
            init_path: None,
            selinux_enabled: false,
            shutdown_timeout_seconds: 15,
            http_proxy: None,
            https_proxy: None,
            no_proxy: None,
            node_generic_resources: Vec::new(),
            swarm_default_advertise_addr: None,
            warnings: Vec::new(),
        }
    }

    /// The part that the network controller needs.
    pub(crate) fn network(&self) -> Result<NetworkConfig> {
        Ok(NetworkConfig {
            data_root: self.data_root.clone(),
            exec_root: self.exec_root.clone(),
            bridge: Some(self.bridge.clone()),
            bip: self.bip.as_deref().map(|bip| cidr("--bip", bip)).transpose()?,
            fixed_cidr: self
                .fixed_cidr
                .as_deref()
                .map(|range| cidr("--fixed-cidr", range))
                .transpose()?,
            pools: self
                .default_address_pools
                .iter()
                .map(|pool| {
                    Ok(network::AddressPool {
                        base: cidr("--default-address-pool", &pool.base)?,
                        size: pool.size,
                    })
                })
                .collect::<Result<_>>()?,
            firewall: self.iptables,
            ip_forward: self.ip_forward,
            ip_masq: self.ip_masq,
            icc: self.icc,
            default_host_ip: self.ip,
            mtu: self.mtu.unwrap_or(0),
            userland_proxy: self.userland_proxy,
        })
    }

    pub fn containers_directory(&self) -> PathBuf {
        self.data_root.join("containers")
    }

    pub(crate) fn make_directories(&self) -> Result<()> {
        make_directory(&self.data_root, 0o711)?;
        make_directory(&self.containers_directory(), 0o710)?;
        make_directory(&self.exec_root, 0o711)
    }
}

fn cidr(flag: &str, text: &str) -> Result<Cidr> {
    text.parse().map_err(|_| {
        Error::bad_parameter(format!("{flag} {text}: not an address with a prefix length"))
    })
}

/// Creates a directory and its parents; the mode is the last one's.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .during(format_args!("create directory {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .during(format_args!("set the mode of {}", path.display()))
}

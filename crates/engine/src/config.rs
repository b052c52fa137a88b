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
            http_proxy: None,
            https_proxy: None,
            no_proxy: None,
            node_generic_resources: Vec::new(),
            swarm_default_advertise_addr: None,
            warnings: Vec::new(),
        }
    }

    /// What dockerd refuses to start with, in its words.
    ///
    /// # Errors
    /// The first setting that cannot be used, or that contradicts another.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::bad_parameter(text));
        if self.bip.is_some() && !["", "docker0"].contains(&self.bridge.as_str()) {
            return refuse(
                "You specified -b & --bip, mutually exclusive options. Please specify only one"
                    .into(),
            );
        }
        if !self.icc && !self.iptables {
            return refuse("You specified --iptables=false with --icc=false. ICC=false uses iptables to function. Please set --icc or --iptables to true".into());
        }
        self.check_labels()?;
        for server in &self.dns {
            if server.parse::<IpAddr>().is_err() {
                return refuse(format!("{server} is not an ip address"));
            }
        }
        for mirror in &self.registry_mirrors {
            check_mirror(mirror)?;
        }
        let known = self.runtimes.contains_key(&self.default_runtime)
            || ["skep", "runc", "io.containerd.runc.v2"].contains(&self.default_runtime.as_str());
        if !known {
            return refuse(format!(
                "specified default runtime '{}' does not exist: name it with --add-runtime",
                self.default_runtime
            ));
        }
        if let Some(path) = self.init_path.as_ref().filter(|path| !path.is_file()) {
            return refuse(format!("--init-path {}: no such file", path.display()));
        }
        crate::containers::check_log_options(&self.log_driver, &self.log_opts)
            .map_err(|error| error.context("failed to set log opts"))?;
        self.network().map(drop)
    }

    fn check_labels(&self) -> Result<()> {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for label in &self.labels {
            let Some((key, value)) = label.split_once('=').filter(|(key, _)| !key.is_empty())
            else {
                return Err(Error::bad_parameter(format!("bad attribute format: {label}")));
            };
            if let Some(other) = seen.insert(key, value).filter(|other| *other != value) {
                return Err(Error::bad_parameter(format!(
                    "conflict labels for {key}={value} and {key}={other}"
                )));
            }
        }
        Ok(())
    }

    /// These settings with those of `new` that may change while containers run: what dockerd
    /// reloads on SIGHUP (moby daemon/reload.go), as far as skep has it.
    pub fn reloaded(&self, new: &Config) -> Config {
        Config {
            debug: new.debug,
            labels: new.labels.clone(),
            insecure_registries: new.insecure_registries.clone(),
            registry_mirrors: new.registry_mirrors.clone(),
            max_concurrent_downloads: new.max_concurrent_downloads,
            max_concurrent_uploads: new.max_concurrent_uploads,
            max_download_attempts: new.max_download_attempts,
            default_runtime: new.default_runtime.clone(),
            runtimes: new.runtimes.clone(),
            default_shm_size: new.default_shm_size,
            warnings: new.warnings.clone(),
            ..self.clone()
        }
    }

    /// What the event of a reload tells; lists are JSON, as dockerd has them.
    pub(crate) fn reload_attributes(&self) -> Vec<(&'static str, String)> {
        let list = |list: &[String]| serde_json::to_string(list).unwrap_or_default();
        vec![
            ("debug", self.debug.to_string()),
            ("labels", list(&self.labels)),
            ("insecure-registries", list(&self.insecure_registries)),
            ("registry-mirrors", list(&self.registry_mirrors)),
            ("max-concurrent-downloads", self.max_concurrent_downloads.to_string()),
            ("max-concurrent-uploads", self.max_concurrent_uploads.to_string()),
            ("max-download-attempts", self.max_download_attempts.to_string()),
            ("default-runtime", self.default_runtime.clone()),
            ("default-shm-size", self.default_shm_size.to_string()),
            ("live-restore", "true".to_owned()),
        ]
    }

    /// The registries and limits that images are pulled and pushed with.
    pub(crate) fn images(&self) -> image::Options {
        image::Options {
            registries: image::Registries {
                insecure: self.insecure_registries.clone(),
                mirrors: self.registry_mirrors.clone(),
                proxies: image::Proxies {
                    http: self.http_proxy.clone(),
                    https: self.https_proxy.clone(),
                    except: self.no_proxy.clone(),
                },
            },
            downloads_max: self.max_concurrent_downloads,
            uploads_max: self.max_concurrent_uploads,
            attempts_max: self.max_download_attempts,
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
            ipv6: self.ipv6,
            fixed_cidr_v6: self
                .fixed_cidr_v6
                .as_deref()
                .map(|range| cidr("--fixed-cidr-v6", range))
                .transpose()?,
            gateways: [self.default_gateway, self.default_gateway_v6]
                .into_iter()
                .flatten()
                .collect(),
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
            firewall6: self.ip6tables,
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

/// A mirror is a scheme, a host and perhaps a port (moby registry/config.go `ValidateMirror`).
fn check_mirror(mirror: &str) -> Result<()> {
    let invalid = |why: &str| {
        // A login that somebody wrote into the URL is not repeated.
        let shown = mirror.rsplit_once('@').map_or(mirror, |(_, host)| host);
        Err(Error::bad_parameter(format!("invalid mirror: {why}: {shown}")))
    };
    let Some((scheme, rest)) = mirror.split_once("://") else {
        return invalid("no scheme, http or https");
    };
    if !["http", "https"].contains(&scheme) {
        return invalid("unsupported scheme");
    }
    if rest.contains('@') {
        return invalid("username/password not allowed in URI");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match host.is_empty() || !path.is_empty() || rest.contains(['?', '#']) {
        true => invalid("path, query, or fragment at end of the URI"),
        false => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dockerd_refuses_is_refused() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 8] = [
            ("mutually exclusive", |c| {
                (c.bip, c.bridge) = (Some("10.0.0.1/24".into()), "br0".into())
            }),
            ("ICC=false uses iptables", |c| (c.icc, c.iptables) = (false, false)),
            ("bad attribute format: a", |c| c.labels = vec!["a".into()]),
            ("conflict labels", |c| c.labels = vec!["a=b".into(), "a=c".into()]),
            ("here is not an ip address", |c| c.dns = vec!["here".into()]),
            ("invalid mirror", |c| c.registry_mirrors = vec!["https://m/path".into()]),
            ("default runtime 'fast' does not exist", |c| c.default_runtime = "fast".into()),
            ("failed to set log opts", |c| {
                c.log_opts = [("colour".to_owned(), "red".to_owned())].into()
            }),
        ];
        for (expected, change) in cases {
            let mut config = Config::below("/data", "/exec");
            config.check().expect("the defaults are fine");
            change(&mut config);
            let message = config.check().expect_err(expected).message;
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_mirrors_password_is_not_repeated() {
        let message = check_mirror("https://user:geheim@m").expect_err("a login").message;
        assert!(!message.contains("geheim"), "{message}");
        check_mirror("http://m:5000/").expect("a mirror");
    }

    #[test]
    fn a_reload_changes_only_what_it_may() {
        let before = Config::below("/data", "/exec");
        let mut new = Config::below("/other", "/exec");
        (new.debug, new.icc) = (true, false);
        let after = before.reloaded(&new);
        assert_eq!((after.debug, after.icc), (true, true));
        assert_eq!(after.data_root, before.data_root);
    }
}

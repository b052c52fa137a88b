//! The files the engine gives every container: hostname, hosts, resolv.conf, and a task's secrets.

use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use runtime::{Mount, MountKind, Propagation};

use super::container::{Container, Spec, TaskFile};
use super::record;
use crate::Engine;
use crate::error::{Error, IoContext, Result};
use crate::network::SandboxState;

impl Engine {
    /// Writes the files and gives the mounts that show them, leaving out what a user's mount hides.
    pub(super) fn engine_files(
        &self,
        container: &Container,
        spec: &Spec,
        sandbox: &SandboxState,
    ) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        let directory = match self.shares_files_of(spec)? {
            Some(other) => other,
            None => {
                self.write_network_files(container, spec, sandbox)?;
                container.directory().to_owned()
            }
        };
        mounts.extend(network_files(spec, &directory));
        mounts.extend(self.task_files(spec)?);
        Ok(mounts)
    }

    /// What a start has written and the container has not any more while it stands still, for a look.
    pub(crate) fn files_of_last_start(
        &self,
        container: &Container,
        spec: &Spec,
    ) -> impl Iterator<Item = Mount> {
        network_files(spec, container.directory()).filter(
            |mount| matches!(&mount.kind, MountKind::Bind { source, .. } if source.exists()),
        )
    }

    /// With `--network container:X` its files are shared as well.
    fn shares_files_of(&self, spec: &Spec) -> Result<Option<PathBuf>> {
        let mode = spec.host_config.network_mode.as_deref().unwrap_or_default();
        match mode.strip_prefix("container:") {
            Some(other) => Ok(Some(self.container(other)?.directory().to_owned())),
            None => Ok(None),
        }
    }

    fn write_network_files(
        &self,
        container: &Container,
        spec: &Spec,
        sandbox: &SandboxState,
    ) -> Result<()> {
        let directory = container.directory();
        let hostname = spec.config.hostname.as_deref().unwrap_or_default();
        write(directory, "hostname", &format!("{hostname}\n"))?;
        write(directory, "resolv.conf", &self.resolv_conf(spec, sandbox))?;
        write(directory, "hosts", &self.hosts(spec, sandbox)?)
    }

    /// After a change of a running container's networks. What its processes have written into the
    /// files stays theirs.
    pub(super) fn refresh_network_files(
        &self,
        container: &Container,
        before: Option<&SandboxState>,
    ) -> Result<()> {
        let (spec, now) = (container.spec(), self.network.sandbox(container.id()));
        let (Some(before), Some(now)) = (before, now) else { return Ok(()) };
        let texts = [
            ("resolv.conf", self.resolv_conf(&spec, before), self.resolv_conf(&spec, &now)),
            ("hosts", self.hosts(&spec, before)?, self.hosts(&spec, &now)?),
        ];
        for (name, old, new) in texts {
            let path = container.directory().join(name);
            let there = std::fs::read_to_string(&path);
            if there.during(format_args!("read {}", path.display()))? == old && old != new {
                write(container.directory(), name, &new)?;
            }
        }
        Ok(())
    }

    fn resolv_conf(&self, spec: &Spec, sandbox: &SandboxState) -> String {
        let own = spec.host_config.dns.as_ref().is_some_and(|dns| !dns.is_empty())
            || !self.config().dns.is_empty();
        match sandbox.netns {
            None if !own => host_file("/etc/resolv.conf"),
            _ => sandbox.resolv_conf.clone(),
        }
    }

    fn hosts(&self, spec: &Spec, sandbox: &SandboxState) -> Result<String> {
        let mut text = match sandbox.netns {
            None => host_file("/etc/hosts"),
            Some(_) => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n".to_owned(),
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        for pair in spec.host_config.extra_hosts.iter().flatten() {
            let Some((name, address)) = pair.split_once(':') else { continue };
            for address in self.extra_address(address)? {
                text.push_str(&format!("{address}\t{name}\n"));
            }
        }
        for (address, names) in &sandbox.hosts {
            text.push_str(&format!("{address}\t{names}\n"));
        }
        let hostname = spec.config.hostname.as_deref().unwrap_or_default();
        let domain = spec.config.domainname.as_deref().unwrap_or_default();
        let names = match domain {
            "" => hostname.to_owned(),
            domain => format!("{hostname}.{domain} {hostname}"),
        };
        for endpoint in sandbox.endpoints.values() {
            for address in &endpoint.addresses {
                text.push_str(&format!("{}\t{names}\n", address.addr));
            }
        }
        Ok(text)
    }

    /// `host-gateway` is the default bridge's own address, unless the daemon was told another.
    fn extra_address(&self, address: &str) -> Result<Vec<String>> {
        if address != "host-gateway" {
            return Ok(vec![address.trim_matches(['[', ']']).to_owned()]);
        }
        if !self.config().host_gateway_ips.is_empty() {
            return Ok(self.config().host_gateway_ips.iter().map(IpAddr::to_string).collect());
        }
        let bridge = self.network.find("bridge")?;
        let gateways: Vec<String> =
            bridge.pools.iter().filter_map(|pool| pool.gateway).map(|ip| ip.to_string()).collect();
        if gateways.is_empty() {
            return Err(Error::bad_parameter("unable to derive the IP value for host-gateway"));
        }
        Ok(gateways)
    }

    fn secrets_directory(&self, id: &str) -> PathBuf {
        self.config().exec_root.join("secrets").join(id)
    }

    /// Secrets and configs lie in a tmpfs of the container's own: never on a disk.
    fn task_files(&self, spec: &Spec) -> Result<Vec<Mount>> {
        let Some(task) = spec.task.as_ref().filter(|task| !task.files.is_empty()) else {
            return Ok(Vec::new());
        };
        let directory = self.secrets_directory(&spec.id);
        crate::config::make_directory(&directory, 0o700)?;
        mount_tmpfs(&directory)?;
        task.files
            .iter()
            .enumerate()
            .map(|(at, file)| {
                let path = directory.join(at.to_string());
                write_task_file(&path, file)?;
                Ok(bind(path, &target(file), true))
            })
            .collect()
    }

    /// Forgets the secrets of a container that has ended.
    pub(super) fn drop_task_files(&self, id: &str) -> Result<()> {
        let directory = self.secrets_directory(id);
        if !directory.exists() {
            return Ok(());
        }
        // Not mounted any more is as good.
        let _ = rustix::mount::unmount(&directory, rustix::mount::UnmountFlags::DETACH);
        std::fs::remove_dir_all(&directory).during(format_args!("remove {}", directory.display()))
    }
}

/// The mounts of the network's files, those left out that a user's mount hides.
fn network_files(spec: &Spec, directory: &Path) -> impl Iterator<Item = Mount> {
    let read_only = spec.host_config.readonly_rootfs.unwrap_or_default();
    [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts")]
        .into_iter()
        .filter(|(_, place)| spec.mounts.iter().all(|mount| mount.destination != *place))
        .map(move |(name, place)| bind(directory.join(name), place, read_only))
}

fn mount_tmpfs(directory: &Path) -> Result<()> {
    use rustix::mount::MountFlags;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", directory, "tmpfs", flags, Some(c"mode=0700,size=64m"))
        .during(format_args!("mount a tmpfs for secrets at {}", directory.display()))
}

fn write_task_file(path: &Path, file: &TaskFile) -> Result<()> {
    let doing = || format!("write the file for {}", file.target);
    std::fs::write(path, &file.data).during(doing())?;
    chown(path, Some(file.uid), Some(file.gid)).during(doing())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(file.mode)).during(doing())
}

/// Docker's places: secrets below `/run/secrets`, configs below the root.
fn target(file: &TaskFile) -> String {
    match (file.target.starts_with('/'), file.secret) {
        (true, _) => file.target.clone(),
        (false, true) => format!("/run/secrets/{}", file.target),
        (false, false) => format!("/{}", file.target),
    }
}

fn bind(source: PathBuf, destination: &str, read_only: bool) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: MountKind::Bind { source, propagation: Propagation::RPrivate, recursive: true },
        read_only,
    }
}

fn host_file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// In place when it exists: a running container sees the file through a mount of it.
fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    if path.exists() {
        return std::fs::write(&path, text).during(format_args!("write {}", path.display()));
    }
    record::replace(directory, name, text.as_bytes(), 0o644, false)
}

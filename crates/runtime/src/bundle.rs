//! What is put on disk for a container before its shim starts, and taken away after it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::cgroup::{self, Cgroup};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::oci;
use crate::protocol::{CONFIG_FILE, SHIM_FILE, ShimSpec};
use crate::runtime::Config;
use crate::spec::{ContainerSpec, Mount, MountKind, Namespace, OciRuntime, Propagation};
use crate::users;

/// The small program that `--init` runs as process 1.
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));
const DEFAULT_PARENT: &str = "/docker";

pub fn containers_dir(config: &Config) -> PathBuf {
    config.exec_root.join("containers")
}

/// Writes the bundle; afterwards the shim needs nothing but its path.
pub fn prepare(config: &Config, spec: &ContainerSpec) -> Result<(PathBuf, ShimSpec)> {
    if spec.args.is_empty() {
        return Err(Error::invalid("No command specified"));
    }
    let failed =
        |e: io::Error| Error::system(format!("bundle of container {} not written", spec.id), e);
    refuse_in_runc_s_words(spec)?;
    let user = users::resolve(&spec.rootfs, &spec.user, &spec.groups)?;
    if !spec.cwd.is_empty() {
        make_directory(&spec.rootfs, &spec.cwd)
            .map_err(|e| Error::system(format!("working directory {} not made", spec.cwd), e))?;
    }
    let parent = [&spec.cgroup_parent, &config.cgroup_parent]
        .into_iter()
        .find(|p| !p.is_empty())
        .map_or(DEFAULT_PARENT, |p| p.as_str());
    let cgroup = format!("/{}/{}", parent.trim_matches('/'), spec.id);
    let init = match (&config.init_program, spec.init) {
        (_, false) => None,
        (Some(own), true) => Some(own.clone()),
        (None, true) => Some(write_init(config).map_err(failed)?),
    };
    let groups = Cgroup::at(&cgroup);
    let context = oci::Context {
        user: &user,
        cgroup: &cgroup,
        cgroup_v2: groups.is_v2(),
        cgroup_v1: groups.v1(),
        init: init.as_deref(),
    };
    let mut document = oci::config(spec, &context)?;
    let pids_limit = late_pids_limit(spec, &mut document);
    let given_home = spec.env.iter().any(|e| e.starts_with("HOME="));
    let mut env = oci::environment(spec, "");
    // An exec by another user has another home.
    env.retain(|e| given_home || !e.starts_with("HOME="));
    env.retain(|e| spec.env.contains(e) || !e.starts_with("TERM="));
    let shim = ShimSpec {
        id: spec.id.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stdin_once: spec.stdin_once,
        console_size: spec.console_size,
        runtime: spec.runtime.clone(),
        log: spec.log.clone(),
        cgroup,
        uid: user.uid,
        stop_signal: spec.stop_signal,
        shared_pid: spec.pid != Namespace::Private,
        env,
        rootfs: spec.rootfs.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        cwd: spec.cwd.clone(),
        open_files: limits::given_open_files(),
        propagation: propagation(spec),
        pids_limit,
    };
    let dir = containers_dir(config).join(&spec.id);
    std::fs::create_dir_all(&dir).map_err(failed)?;
    let config_text = document.to_string();
    std::fs::write(dir.join(CONFIG_FILE), config_text).map_err(failed)?;
    // Last: a bundle without it was never complete.
    let shim_text = serde_json::to_vec(&shim).map_err(|e| failed(io::Error::other(e)))?;
    std::fs::write(dir.join(SHIM_FILE), shim_text).map_err(failed)?;
    Ok((dir, shim))
}

/// What the kernel or libcontainer would refuse without saying what it is, or take for something else.
fn refuse_in_runc_s_words(spec: &ContainerSpec) -> Result<()> {
    let refused = |text: String| {
        let text = format!(
            "OCI runtime create failed: unable to start container process: {text}: unknown"
        );
        Err(Error::new(ErrorKind::System, text))
    };
    if let Err(error) = cgroup::check_shares(spec.resources.cpu_shares) {
        return refused(format!("error setting cgroup config for procHooks process: {error}"));
    }
    // Those of links are of the container's own, which are not there yet.
    let of_a_link = |key: &str| key.contains(".conf.") || key.contains(".neigh.");
    for key in spec.sysctls.keys().filter(|key| !of_a_link(key) && !key.contains('/')) {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        if !path.exists() {
            return refused(format!("open {}: no such file or directory", path.display()));
        }
    }
    Ok(())
}

/// A limit of one process holds once there is one: libcontainer makes it by way of another.
fn late_pids_limit(spec: &ContainerSpec, document: &mut serde_json::Value) -> Option<i64> {
    if spec.runtime != OciRuntime::BuiltIn || spec.resources.pids_limit != 1 {
        return None;
    }
    document["linux"]["resources"].as_object_mut()?.remove("pids");
    Some(1)
}

/// Nothing can be mounted below a file, so only directories count.
fn propagation(spec: &ContainerSpec) -> Vec<(String, Propagation)> {
    let of = |mount: &Mount| match &mount.kind {
        MountKind::Bind { source, propagation, .. } if source.is_dir() => {
            Some((mount.destination.clone(), *propagation))
        }
        _ => None,
    };
    spec.mounts.iter().filter_map(of).collect()
}

/// The init program, once per daemon, replaced only as a whole.
fn write_init(config: &Config) -> io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = config.exec_root.join("init");
    if std::fs::read(&path).is_ok_and(|present| present == INIT) {
        return Ok(path);
    }
    let new = config.exec_root.join("init.new");
    std::fs::write(&new, INIT)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}

/// `mkdir -p` inside a root file system, whose links never lead out of it.
fn make_directory(rootfs: &Path, path: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())?;
    let open = |path: &Path| -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(
            &root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let mut so_far = PathBuf::from("/");
    let mut dir = open(&so_far)?;
    for part in Path::new(path).components() {
        let std::path::Component::Normal(name) = part else { continue };
        so_far.push(name);
        dir = match open(&so_far) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
                open(&so_far)?
            }
            Err(e) => return Err(e.into()),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_directory_is_made_inside_even_over_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        make_directory(dir.path(), "/a/b/c").unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        // The link's target does not exist inside, so nothing can be made through it.
        assert!(make_directory(dir.path(), "/out/x").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

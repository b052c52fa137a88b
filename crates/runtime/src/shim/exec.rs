//! `docker exec`: a further process in the namespaces and groups of a running container, as a child of the shim.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::syscall::syscall::create_syscall;
use serde_json::{Value, json};

use super::create::Made;
use super::stdio::{self, ChildStdio, Stdio};
use super::{command, sys};
use crate::capabilities;
use crate::cgroup::Cgroup;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{CONFIG_FILE, ExecProcess, ShimSpec};

/// A container whose memory is exhausted or that is frozen may not hold the shim for ever.
const START_MS_MAX: i32 = 10_000;

/// Starts the process; returns when it has executed its command.
pub fn start(spec: &ShimSpec, init: i32, process: &ExecProcess) -> Result<Made> {
    let failed = |e: io::Error| Error::system("exec not started", e);
    let (report_read, report) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let (mut ours, theirs) = if process.tty {
        (Stdio::default(), stdio::nothing().map_err(failed)?)
    } else {
        stdio::pipes(process.stdin, process.user.uid).map_err(failed)?
    };
    let terminal = if process.tty { Some(socket_pair().map_err(failed)?) } else { None };
    let target = sys::open_pid(init).map_err(failed)?;
    let own = sys::open_pid(std::process::id() as i32).map_err(failed)?;
    // Only children enter a pid namespace: the shim points there for the one fork, then back.
    sys::enter(&target, libc::CLONE_NEWPID).map_err(failed)?;
    let forked = sys::fork();
    if let Ok(None) = forked {
        let side = terminal.as_ref().map(|(_, child)| child);
        let text = match in_child(spec, process, &target, &theirs, side) {
            Err(text) => text,
            Ok(never) => match never {},
        };
        let _ = std::fs::File::from(report).write_all(text.as_bytes());
        sys::exit_now(1);
    }
    sys::enter(&own, libc::CLONE_NEWPID).map_err(failed)?;
    let Some(pid) = forked.map_err(failed)? else {
        return Err(Error::new(ErrorKind::System, "exec not started"));
    };
    drop((report, theirs));
    if let Err(error) = outcome(report_read) {
        let _ = sys::kill(pid, libc::SIGKILL);
        let _ = sys::wait_for(pid);
        return Err(error);
    }
    if let Some((side, _)) = terminal {
        let master = sys::receive_fd(&side).map_err(failed)?;
        ours = stdio::terminal(master, process.stdin).map_err(failed)?;
    }
    Ok(Made { pid, stdio: ours, executed: None })
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// End of file: the command runs. Text: why it does not.
fn outcome(report: OwnedFd) -> Result<()> {
    let mut waiting = [rustix::event::PollFd::new(&report, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: i64::from(START_MS_MAX / 1000), tv_nsec: 0 };
    if !matches!(rustix::event::poll(&mut waiting, Some(&limit)), Ok(1..)) {
        return Err(Error::new(
            ErrorKind::System,
            "exec failed: the process did not start in 10 s",
        ));
    }
    let mut text = String::new();
    std::fs::File::from(report)
        .read_to_string(&mut text)
        .map_err(|e| Error::system("exec failed", e))?;
    if text.is_empty() {
        return Ok(());
    }
    let kind = command::kind_of(&text);
    Err(Error::new(
        kind,
        format!(
            "OCI runtime exec failed: exec failed: unable to start container process: {text}: unknown"
        ),
    ))
}

enum Never {}

/// The forked child, up to execve.
fn in_child(
    spec: &ShimSpec,
    process: &ExecProcess,
    target: &OwnedFd,
    theirs: &ChildStdio,
    terminal: Option<&OwnedFd>,
) -> std::result::Result<Never, String> {
    let at = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    sys::reset_signals();
    theirs.install().map_err(at("stdio"))?;
    rustix::process::setsid().map_err(|e| format!("setsid: {e}"))?;
    let oci = Spec::load(CONFIG_FILE).map_err(|e| format!("container's configuration: {e}"))?;
    let container = oci.process().as_ref().ok_or("container's configuration: no process")?;
    for dir in Cgroup::at(&spec.cgroup).dirs() {
        // A controller the container was not put in has no such group.
        if dir.exists() {
            std::fs::write(dir.join("cgroup.procs"), "0").map_err(at("control group"))?;
        }
    }
    let score = container.oom_score_adj().unwrap_or(0).to_string();
    let _ = std::fs::write("/proc/self/oom_score_adj", score);
    let kinds = libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWNS;
    sys::enter(target, kinds).map_err(at("namespaces of the container"))?;
    if let Some(side) = terminal {
        open_terminal(side, process).map_err(at("terminal"))?;
    }
    let syscall = create_syscall();
    for limit in container.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(|e| format!("ulimit: {e}"))?;
    }
    if let Some(profile) = container.apparmor_profile().as_ref().filter(|_| !process.privileged) {
        libcontainer::apparmor::apply_profile(profile).map_err(|e| format!("AppArmor: {e}"))?;
    }
    sys::close_on_exec_from(3);
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    std::env::set_current_dir(cwd).map_err(|e| {
        format!("chdir to cwd (\"{cwd}\") set in config.json failed: {}", command::errno_text(&e))
    })?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    drop_rights(process, &oci, &*syscall)?;
    let name = process.args.first().map(String::as_str).unwrap_or("");
    let path = command::find(name, &process.env)?;
    let error = sys::execute(&path, &process.args, &process.env);
    Err(format!("exec {path}: {}", command::errno_text(&error)))
}

/// A terminal of the container's own devpts, controlling this session, on descriptors 0 to 2.
fn open_terminal(side: &OwnedFd, process: &ExecProcess) -> io::Result<()> {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    if process.console_size != (0, 0) {
        sys::set_window(&master, process.console_size.0, process.console_size.1)?;
    }
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(process.user.uid)), None)?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    for number in 0..3 {
        sys::duplicate_to(slave.as_raw_fd(), number)?;
    }
    sys::send_fd(side, &master)
}

/// Groups, user, capabilities and the seccomp filter, in the order in which each is still allowed.
fn drop_rights(
    process: &ExecProcess,
    oci: &Spec,
    syscall: &dyn libcontainer::syscall::Syscall,
) -> std::result::Result<(), String> {
    let container = oci.process().as_ref().ok_or("container's configuration: no process")?;
    let filter = oci.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let load = || match filter {
        Some(filter) => libcontainer::seccomp::initialize_seccomp(filter)
            .map(drop)
            .map_err(|e| format!("seccomp: {e}")),
        None => Ok(()),
    };
    let no_new_privileges = container.no_new_privileges().unwrap_or(false);
    let user = &process.user;
    let mut groups = vec![user.gid];
    groups.extend(&user.groups);
    // SAFETY: the pointer and length describe the vector; plain system calls otherwise.
    unsafe {
        if libc::setgroups(groups.len(), groups.as_ptr()) < 0 {
            return Err(format!("setgroups: {}", io::Error::last_os_error()));
        }
        if no_new_privileges && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            return Err(format!("no-new-privileges: {}", io::Error::last_os_error()));
        }
    }
    if !no_new_privileges {
        load()?;
    }
    sys::become_user(user.uid, user.gid)
        .map_err(|e| format!("user {}:{}: {e}", user.uid, user.gid))?;
    let all = capability_sets(
        &capabilities::supported().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
    );
    libcontainer::capabilities::reset_effective(syscall)
        .map_err(|e| format!("capabilities: {e}"))?;
    let wanted = if process.privileged { all.as_ref() } else { container.capabilities().as_ref() };
    if let Some(wanted) = wanted {
        libcontainer::capabilities::drop_privileges(wanted, syscall)
            .map_err(|e| format!("capabilities: {e}"))?;
    }
    if no_new_privileges { load() } else { Ok(()) }
}

fn capability_sets(names: &[String]) -> Option<LinuxCapabilities> {
    serde_json::from_value(json!({ "bounding": names, "effective": names, "permitted": names }))
        .ok()
}

/// The exec as an OCI process, for a runtime's binary: the container's own with what the exec changes.
pub fn oci_process(process: &ExecProcess) -> Result<Value> {
    let failed = |e: &dyn std::fmt::Display| Error::system("container's configuration not read", e);
    let text = std::fs::read_to_string(Path::new(CONFIG_FILE)).map_err(|e| failed(&e))?;
    let config: Value = serde_json::from_str(&text).map_err(|e| failed(&e))?;
    let mut document = config["process"].clone();
    let user = &process.user;
    document["terminal"] = json!(process.tty);
    document["args"] = json!(process.args);
    document["env"] = json!(process.env);
    document["cwd"] = json!(if process.cwd.is_empty() { "/" } else { &process.cwd });
    document["user"] = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups });
    if process.privileged {
        let all = capabilities::supported();
        document["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    }
    Ok(document)
}

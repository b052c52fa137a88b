//! Making the container: libcontainer in a forked single-threaded child, or an OCI runtime's binary.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Inherit};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::MountPropagationFlags;

use super::stdio::{self, ChildStdio, Stdio};
use super::{command, sys};
use crate::cgroup::Cgroup;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{CONFIG_FILE, ExecProcess, OCI_DIR, ShimSpec};
use crate::spec::{OciRuntime, Propagation, Resources};

const CONSOLE_SOCKET: &str = "console.sock";
/// Name of libcontainer's socket on which a created container waits for its start.
const NOTIFY_SOCKET: &str = "notify.sock";
/// From the word to start until the command is executed; longer only on a host that is stuck.
const EXECUTED_MAX: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The made container: its process 1, waiting to execute the command.
pub struct Made {
    pub pid: i32,
    pub stdio: Stdio,
    /// Ends when the process has executed its command; none where an OCI runtime waits for that itself.
    pub executed: Option<OwnedFd>,
}

/// Makes the container of the bundle in the current directory.
pub fn create(spec: &ShimSpec, bundle: &Path) -> Result<Made> {
    let failed = |e: io::Error| Error::system("stdio of the container not made", e);
    let console =
        if spec.tty { Some(console_listener(CONSOLE_SOCKET).map_err(failed)?) } else { None };
    let (mut ours, theirs) = if spec.tty {
        (Stdio::default(), stdio::nothing().map_err(failed)?)
    } else {
        stdio::pipes(spec.open_stdin, spec.uid).map_err(failed)?
    };
    let (pid, executed) = match &spec.runtime {
        OciRuntime::BuiltIn => {
            let (pid, executed) = create_built_in(spec, bundle, &theirs)?;
            (pid, Some(executed))
        }
        OciRuntime::Binary { path, args } => {
            (create_by_binary(spec, bundle, path, args, theirs)?, None)
        }
    };
    if let Some(listener) = console {
        let master = accept_console(&listener).map_err(failed)?;
        if spec.console_size != (0, 0) {
            let _ = sys::set_window(&master, spec.console_size.0, spec.console_size.1);
        }
        ours = stdio::terminal(master, spec.open_stdin).map_err(failed)?;
    }
    Ok(Made { pid, stdio: ours, executed })
}

/// Lets the made container execute its command, and returns when it has.
pub fn start(spec: &ShimSpec, executed: Option<OwnedFd>) -> Result<()> {
    match &spec.runtime {
        OciRuntime::BuiltIn => {
            let socket = Path::new(OCI_DIR).join(&spec.id).join(NOTIFY_SOCKET);
            let mut stream = connect_short(&socket).map_err(|e| {
                Error::system("the created container does not wait for its start", e)
            })?;
            stream
                .write_all(b"start container")
                .map_err(|e| Error::system("container not started", e))?;
            // The process reads to the end of the word before it goes on.
            drop(stream);
            executed.map_or(Ok(()), |pipe| wait_for_end(&pipe, EXECUTED_MAX))
        }
        OciRuntime::Binary { path, args } => {
            let mut start = runtime_command(path, args);
            start.arg("start").arg(&spec.id).stdout(Inherit::null());
            run(start).map(drop)
        }
    }
}

/// Until the other end of a pipe is closed.
fn wait_for_end(pipe: &OwnedFd, limit: Timespec) -> Result<()> {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit)));
    match ready.map_err(|e| Error::system("container not started", e))? {
        0 => Err(Error::new(
            ErrorKind::System,
            format!(
                "container not started: its process has not executed its command within {} s; look for what holds this host up (its disk, its memory) and start the container again",
                limit.tv_sec
            ),
        )),
        _ => Ok(()),
    }
}

/// A unix socket below a directory whose path may be longer than a socket address allows.
fn connect_short(path: &Path) -> io::Result<UnixStream> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(
        dir,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    UnixStream::connect(crate::runtime::fd_path(&dir, Path::new(name)))
}

fn console_listener(name: &str) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(name);
    UnixListener::bind(name)
}

fn accept_console(listener: &UnixListener) -> io::Result<OwnedFd> {
    // The runtime has connected and sent before it reported success, so this never waits.
    listener.set_nonblocking(true)?;
    let (stream, _) = listener.accept()?;
    sys::receive_fd(&OwnedFd::from(stream))
}

/// The process, and the pipe that it closes when it executes its command.
fn create_built_in(spec: &ShimSpec, bundle: &Path, theirs: &ChildStdio) -> Result<(i32, OwnedFd)> {
    let failed = |e: io::Error| Error::system("container process not started", e);
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let Some(child) = sys::fork().map_err(failed)? else {
        let code = in_child(spec, bundle, theirs, write);
        sys::exit_now(code);
    };
    drop(write);
    // Process 1 holds the pipe too, so its end is not awaited; the child's is, and its words fit the pipe.
    sys::wait_for(child).map_err(failed)?;
    sys::nonblocking(&read).map_err(failed)?;
    let mut text = String::new();
    let mut read = std::fs::File::from(read);
    let _ = read.read_to_string(&mut text);
    match text.split_once(' ') {
        Some(("pid", number)) => {
            let pid = number.trim().parse();
            pid.map(|pid| (pid, OwnedFd::from(read)))
                .map_err(|e| Error::system("container process not started", e))
        }
        Some(("error", text)) => Err(creation_error(text.trim_end())),
        _ => Err(Error::new(
            ErrorKind::System,
            "OCI runtime create failed: the creating process died",
        )),
    }
}

/// The forked child; whatever happens is one line in the pipe.
fn in_child(spec: &ShimSpec, bundle: &Path, theirs: &ChildStdio, report: OwnedFd) -> i32 {
    sys::reset_signals();
    let kept = theirs.install().and_then(|()| sys::keep_only(&report));
    // Its number is closed. Had the container's process 1 the daemon's connection while it waits for its start, a shim
    // that is killed would go unnoticed.
    std::mem::forget(report);
    let Ok(report) = kept else { return 1 };
    let result = build(spec, bundle);
    let line = match &result {
        Ok(pid) => format!("pid {pid}\n"),
        Err(text) => format!("error {}\n", text.chars().take(8_000).collect::<String>()),
    };
    let written = std::fs::File::from(report).write_all(line.as_bytes());
    i32::from(result.is_err() || written.is_err())
}

fn build(spec: &ShimSpec, bundle: &Path) -> std::result::Result<i32, String> {
    let console = spec.tty.then(|| bundle.join(CONSOLE_SOCKET));
    let container = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
        .with_executor(DockerExecutor)
        .with_root_path(bundle.join(OCI_DIR))
        .map_err(chain)?
        .with_console_socket(console)
        .validate_id()
        .map_err(chain)?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(chain)?;
    let pid = container.pid().map(|p| p.as_raw()).ok_or_else(|| "no process".to_owned())?;
    // It waits for its start: nothing of the image has run yet. The second step leaves this process
    // in the container's mount namespace, so it is the last.
    confine_devices(spec)
        .and_then(|()| limit_pids(spec))
        .and_then(|()| propagate(pid, &spec.propagation))
        .inspect_err(|_| drop(sys::kill(pid, libc::SIGKILL)))?;
    Ok(pid)
}

/// On cgroup v2; on v1 libcontainer has written the rules.
fn confine_devices(spec: &ShimSpec) -> std::result::Result<(), String> {
    let cgroup = Cgroup::at(&spec.cgroup);
    let Some(group) = cgroup.dir("devices").filter(|_| cgroup.is_v2()) else { return Ok(()) };
    let read = std::fs::read(CONFIG_FILE).map_err(|e| e.to_string());
    let document = read.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
    let rules = document.map_err(|e| format!("{CONFIG_FILE}: {e}"))?;
    super::devices::confine(group, &rules).map_err(|e| format!("devices not confined: {e}"))
}

fn limit_pids(spec: &ShimSpec) -> std::result::Result<(), String> {
    let Some(pids_limit) = spec.pids_limit else { return Ok(()) };
    let limit = Resources { pids_limit, ..Resources::default() };
    Cgroup::at(&spec.cgroup).update(&limit).map_err(|e| e.to_string())
}

/// Sets how mounts propagate, inside the container's mount namespace: libcontainer 0.7 leaves that
/// out. Called in the creating child, which ends after it.
fn propagate(pid: i32, mounts: &[(String, Propagation)]) -> std::result::Result<(), String> {
    if mounts.is_empty() {
        return Ok(());
    }
    let entered = sys::open_pid(pid).and_then(|pid| sys::enter(&pid, libc::CLONE_NEWNS));
    entered.map_err(|error| format!("mount namespace of the container: {error}"))?;
    for (destination, propagation) in mounts {
        rustix::mount::mount_change(destination.as_str(), flags(*propagation))
            .map_err(|error| format!("set the propagation of mount {destination}: {error}"))?;
    }
    Ok(())
}

fn flags(propagation: Propagation) -> MountPropagationFlags {
    match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::RPrivate => MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::RSlave => MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::RShared => MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    }
}

/// An error with its causes, each once.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// In Docker's words, with the part that matters to its user and not the way it came.
fn creation_error(text: &str) -> Error {
    let cause = text.find("exec: \"").map_or(text, |at| &text[at..]);
    // libcontainer adds what it could not tidy up at once; the group is removed later on anyway.
    let cause = cause.split(". error during cleanup").next().unwrap_or(cause);
    let text =
        format!("OCI runtime create failed: unable to start container process: {cause}: unknown");
    Error::new(command::kind_of(cause), text)
}

/// Executes the command as runc does: Docker's error texts, the environment in its order.
#[derive(Clone)]
struct DockerExecutor;

impl Executor for DockerExecutor {
    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        let (args, env) = args_env(spec);
        let name = args.first().map(String::as_str).unwrap_or("");
        command::find(name, &env).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(
        &self,
        _envs: HashMap<String, String>,
    ) -> std::result::Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve as it is in the spec.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let (args, env) = args_env(spec);
        let name = args.first().map(String::as_str).unwrap_or("");
        let path = command::find(name, &env).map_err(ExecutorError::Other)?;
        let error = sys::execute(&path, &args, &env);
        // The start was answered already: this is for the container's log.
        let _ = writeln!(io::stderr(), "exec {path}: {}", command::errno_text(&error));
        sys::exit_now(255)
    }
}

fn args_env(spec: &Spec) -> (Vec<String>, Vec<String>) {
    let Some(process) = spec.process() else { return (Vec::new(), Vec::new()) };
    (process.args().clone().unwrap_or_default(), process.env().clone().unwrap_or_default())
}

fn create_by_binary(
    spec: &ShimSpec,
    bundle: &Path,
    path: &Path,
    args: &[String],
    theirs: ChildStdio,
) -> Result<i32> {
    let mut create = runtime_command(path, args);
    create.arg("create").arg("--bundle").arg(bundle).arg("--pid-file").arg("pid");
    if spec.tty {
        create.arg("--console-socket").arg(short(CONSOLE_SOCKET));
    }
    create.arg(&spec.id).stdin(theirs.stdin).stdout(theirs.stdout).stderr(theirs.stderr);
    run(create)?;
    read_pid(Path::new("pid"))
}

/// A name in the bundle as another process may use it: socket addresses are short, bundles lie deep.
fn short(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/cwd/{name}", std::process::id()))
}

fn read_pid(file: &Path) -> Result<i32> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Error::system("the OCI runtime wrote no pid", e))?;
    text.trim().parse().map_err(|e| Error::system("the OCI runtime wrote no pid", e))
}

/// `<runtime> --root oci --log runtime.log ...` in the bundle.
fn runtime_command(path: &Path, args: &[String]) -> Command {
    let mut command = Command::new(path);
    command
        .args(args)
        .arg("--root")
        .arg(OCI_DIR)
        .arg("--log")
        .arg("runtime.log")
        .stdin(Inherit::null());
    command
}

/// Runs a step of the OCI runtime; its own log says why it failed.
fn run(mut command: Command) -> Result<()> {
    let _ = std::fs::remove_file("runtime.log");
    let mut child = command.spawn().map_err(|e| {
        Error::new(
            ErrorKind::Invalid,
            format!("OCI runtime {}: {e}", command.get_program().to_string_lossy()),
        )
    })?;
    // Its own wait, not the shim's: SIGCHLD is blocked and reaped only in the loop.
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            let log = std::fs::read_to_string("runtime.log").unwrap_or_default();
            let text = log
                .lines()
                .rev()
                .find_map(log_message)
                .unwrap_or_else(|| "no reason given".to_owned());
            Err(creation_error(&text))
        }
        Err(e) => Err(Error::system("OCI runtime not waited for", e)),
    }
}

/// The text of `time=... level=error msg="..."`.
fn log_message(line: &str) -> Option<String> {
    let message = line.split_once("msg=\"")?.1;
    Some(message.trim_end_matches('"').replace("\\\"", "\"").replace("\\\\", "\\"))
}

/// An exec through the OCI runtime's binary.
pub fn exec_by_binary(spec: &ShimSpec, process: &ExecProcess) -> Result<Made> {
    let failed = |e: io::Error| Error::system("stdio of the exec not made", e);
    let OciRuntime::Binary { path, args } = &spec.runtime else {
        return Err(Error::new(ErrorKind::System, "not an OCI runtime's binary"));
    };
    let file = PathBuf::from(format!("exec-{}.json", process.id));
    let pid_file = PathBuf::from(format!("exec-{}.pid", process.id));
    let document = super::exec::oci_process(process)?;
    std::fs::write(&file, document.to_string()).map_err(failed)?;
    let socket = format!("exec-{}.sock", &process.id.chars().take(12).collect::<String>());
    let console = if process.tty { Some(console_listener(&socket).map_err(failed)?) } else { None };
    let (mut ours, theirs) = if process.tty {
        (Stdio::default(), stdio::nothing().map_err(failed)?)
    } else {
        stdio::pipes(process.stdin, process.user.uid).map_err(failed)?
    };
    let mut exec = runtime_command(path, args);
    exec.arg("exec").arg("--detach").arg("--process").arg(&file).arg("--pid-file").arg(&pid_file);
    if process.tty {
        exec.arg("--console-socket").arg(short(&socket));
    }
    exec.arg(&spec.id).stdin(theirs.stdin).stdout(theirs.stdout).stderr(theirs.stderr);
    let result = run(exec).and_then(|()| read_pid(&pid_file));
    let master = match (&result, &console) {
        (Ok(_), Some(listener)) => Some(accept_console(listener).map_err(failed)?),
        _ => None,
    };
    for leftover in [&file, &pid_file, &PathBuf::from(&socket)] {
        let _ = std::fs::remove_file(leftover);
    }
    if let Some(master) = master {
        ours = stdio::terminal(master, process.stdin).map_err(failed)?;
    }
    Ok(Made { pid: result?, stdio: ours, executed: None })
}

/// Lets the OCI runtime forget an ended container.
pub fn forget(spec: &ShimSpec) {
    if let OciRuntime::Binary { path, args } = &spec.runtime {
        let mut delete = runtime_command(path, args);
        delete
            .arg("delete")
            .arg("--force")
            .arg(&spec.id)
            .stdout(Inherit::null())
            .stderr(Inherit::null());
        let _ = run(delete);
    }
}

/// Takes descriptor 0, the daemon's connection, and puts /dev/null there.
pub fn take_control() -> io::Result<OwnedFd> {
    let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = sys::open_null()?;
    for number in 0..3 {
        use std::os::fd::AsRawFd;
        sys::duplicate_to(null.as_raw_fd(), number)?;
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_that_runs_out_is_told_and_a_closed_pipe_is_not_waited_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let error = wait_for_end(&read, Timespec { tv_sec: 0, tv_nsec: 1_000_000 }).unwrap_err();
        assert!(error.text.contains("has not executed its command"), "{error}");
        drop(write);
        wait_for_end(&read, EXECUTED_MAX).unwrap();
    }
}

//! The shim: one small single-threaded process per container, which outlives the daemon.
//!
//! It owns the container's stdio, logs and exit status. No tokio, no threads: one poll loop, so that it
//! may fork, and stays small.

mod command;
mod connection;
mod create;
mod devices;
mod exec;
mod exit;
mod log;
mod oom;
mod serve;
mod stdio;
pub(crate) mod sys;

pub(crate) use command::errno_text;

use std::ffi::OsString;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::limits;
use crate::protocol::{SHIM_FILE, SOCKET_FILE, ShimSpec};
use crate::steps;

/// `skep shim <bundle>`; call it before any thread exists. Returns the exit code of this process.
///
/// Descriptor 0 is the daemon's first control connection.
pub fn main(args: &[OsString]) -> i32 {
    let Some(bundle) = args.first() else {
        eprintln!("usage: shim <bundle directory>; started by the daemon only");
        return 2;
    };
    match run(Path::new(bundle)) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("shim {}: {e}", Path::new(bundle).display());
            1
        }
    }
}

fn run(bundle: &Path) -> std::io::Result<()> {
    // The bundle is the working directory: socket names stay short however deep it lies.
    std::env::set_current_dir(bundle)?;
    let spec: ShimSpec = serde_json::from_slice(&std::fs::read(SHIM_FILE)?)?;
    spec.open_files.into_iter().for_each(limits::lower_open_files);
    if sys::fork()?.is_some() {
        // The daemon waits for this process only; its child belongs to nobody.
        sys::exit_now(0);
    }
    rustix::process::setsid()?;
    steps::of_shim("shim: began");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::become_subreaper()?;
    sys::ignore_stop_signals();
    let signals = sys::child_signals()?;
    let control = create::take_control()?;
    let _ = std::fs::remove_file(SOCKET_FILE);
    let listener = UnixListener::bind(SOCKET_FILE)?;
    listener.set_nonblocking(true)?;
    let bundle: PathBuf = bundle.to_owned();
    serve::Shim::new(bundle, spec, signals, listener.into(), control).run();
    Ok(())
}

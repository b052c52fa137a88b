//! Ctrl-C and SIGTERM: what runs is ended, every further step fails, and so all unwinds to the clean-up.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Programs that a step waits for. A handle, for a number may be another's by the time it is used.
static RUNNING: Mutex<BTreeMap<u32, OwnedFd>> = Mutex::new(BTreeMap::new());

/// From now on an interrupt ends the current step rather than this process.
pub fn listen() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen for Ctrl-C")?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if !INTERRUPTED.swap(true, Ordering::SeqCst) {
                eprintln!("\ninterrupted: removing what was made");
            }
            for (program, handle) in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                end(*program, handle);
            }
        }
    });
    Ok(())
}

/// Was this process told to end?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// # Errors
/// When this process was told to end.
pub fn check() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// A program that an interrupt ends, until this is dropped.
pub struct Running(u32);

impl Running {
    /// `child` must not have been waited for yet.
    pub fn new(child: &Child) -> Result<Running> {
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if interrupted() {
            end(child.id(), &handle);
        }
        running.insert(child.id(), handle);
        Ok(Running(child.id()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

fn end(program: u32, handle: &OwnedFd) {
    match pidfd_send_signal(handle, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => eprintln!("cannot end process {program}: {error}"),
    }
}

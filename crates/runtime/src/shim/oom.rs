//! Hearing from the kernel that a container ran out of memory, on v1 and v2.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFlags};

use crate::cgroup::Cgroup;

/// A descriptor that becomes ready at an out-of-memory kill.
pub struct OomWatch {
    cgroup: Cgroup,
    fd: OwnedFd,
    /// v1 wants the watched file kept open.
    _control: Option<File>,
    seen: u64,
}

impl OomWatch {
    /// `None` where the memory controller is not there.
    pub fn open(cgroup: Cgroup) -> Option<OomWatch> {
        let dir = cgroup.dir("memory")?;
        if cgroup.is_v2() {
            let fd = File::open(dir.join("memory.events")).ok()?.into();
            let seen = cgroup.oom_kills();
            return Some(OomWatch { cgroup, fd, _control: None, seen });
        }
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let control = File::open(dir.join("memory.oom_control")).ok()?;
        let registration = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        std::fs::write(dir.join("cgroup.event_control"), registration).ok()?;
        Some(OomWatch { cgroup, fd, _control: Some(control), seen: 0 })
    }

    pub fn poll(&self) -> (&OwnedFd, PollFlags) {
        (&self.fd, if self.cgroup.is_v2() { PollFlags::PRI } else { PollFlags::IN })
    }

    /// After readiness: has something been killed since the last look?
    pub fn check(&mut self) -> bool {
        let mut counter = [0; 8];
        if !self.cgroup.is_v2() {
            let _ = rustix::io::read(&self.fd, &mut counter);
        } else {
            // Reading from the start arms the next notification.
            let _ = rustix::io::pread(&self.fd, &mut counter, 0);
        }
        let kills = self.cgroup.oom_kills();
        let more = kills > self.seen;
        self.seen = kills;
        more
    }
}

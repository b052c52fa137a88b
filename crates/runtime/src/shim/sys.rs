//! The few system calls that rustix does not offer: fork, signalfd, wait, file descriptors over sockets.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};

/// Splits the process; `None` in the child. Only ever called in this single-threaded process.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the process has one thread, so the child may use everything the parent could.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Leaves without running destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable instead.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use and lives through the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// The shim outlives requests to stop that are meant for the daemon.
pub fn ignore_stop_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGQUIT] {
        // SAFETY: sets a disposition to SIG_IGN.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// What a new program expects: nothing blocked, nothing ignored (Rust ignores SIGPIPE).
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: sets a disposition to the default; fails harmlessly for SIGKILL, SIGSTOP and libc's own.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty set is installed as the mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: prctl with integer arguments.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Collects one ended child: pid and Docker's exit code. `None`: no further one has ended.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: status is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then(|| (pid, exit_code(status)))
}

/// Waits for one child.
pub fn wait_for(pid: i32) -> io::Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: status is a valid place for the result.
        if unsafe { libc::waitpid(pid, &mut status, 0) } >= 0 {
            return Ok(exit_code(status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn exit_code(status: i32) -> i32 {
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain system call. The pid is a child not yet waited for, so it cannot be another's.
    match unsafe { libc::kill(pid, signal) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes `fd` the descriptor `to` of this process, without close-on-exec.
pub fn duplicate_to(fd: RawFd, to: RawFd) -> io::Result<()> {
    if fd == to {
        // SAFETY: clears the flags of an open descriptor.
        let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        return if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    }
    // SAFETY: both are plain numbers; 0, 1 and 2 are owned by nobody here.
    match unsafe { libc::dup2(fd, to) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Everything above stderr closes when a program is executed.
pub fn close_on_exec_from(first: u32) {
    // SAFETY: only sets a flag on descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

pub fn open_null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

pub fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

pub fn set_window(fd: &OwnedFd, height: u16, width: u16) -> io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(fd, size)?)
}

/// Sends one descriptor with one byte.
pub fn send_fd(socket: &OwnedFd, fd: &OwnedFd) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[io::IoSlice::new(b"t")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one descriptor.
pub fn receive_fd(socket: &OwnedFd) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    recvmsg(socket, &mut [io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptor came over the socket"))
}

/// Moves this process (for the pid namespace: its next children) into a namespace.
pub fn enter(namespace: &OwnedFd, kinds: i32) -> io::Result<()> {
    // SAFETY: plain system call on an open descriptor.
    match unsafe { libc::setns(namespace.as_raw_fd(), kinds) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

pub fn open_pid(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: returns a new descriptor or -1.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor was just made and belongs to nobody else.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
    }
}

/// Replaces this process; returns only on failure.
pub fn execute(path: &str, args: &[String], env: &[String]) -> io::Error {
    let strings = |list: &[String]| {
        list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let (Ok(path), Ok(args), Ok(env)) = (CString::new(path), strings(args), strings(env)) else {
        return io::Error::new(
            io::ErrorKind::InvalidInput,
            "a zero byte in the command or environment",
        );
    };
    let pointers = |list: &[CString]| {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    // SAFETY: both arrays end with a null pointer and their strings live until the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// A program with its libraries has about thirty.
const MAPPINGS_MAX: usize = 64;

/// Gives back what an idle shim does not need: freed memory, and pages of the program that are in the file
/// anyway and come back by themselves at their next use.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's own function, no arguments that could be wrong.
    unsafe {
        libc::malloc_trim(0);
    }
    let mut ranges = [(0, 0); MAPPINGS_MAX];
    let count = clean_file_mappings(&mut ranges).unwrap_or(0);
    // From here to the next wait as little as possible is touched: it would come back.
    for &(start, length) in &ranges[..count] {
        // Without the first advice one needed page brings 2 MiB with it.
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTNEED] {
            // SAFETY: the range is one read-only mapping of a file without a changed page, so that the kernel
            // reads the same bytes again when they are needed.
            unsafe { libc::madvise(start as *mut libc::c_void, length, advice) };
        }
    }
}

/// Read-only mappings of files in which this process has changed nothing (relocated pages count as changed).
fn clean_file_mappings(found: &mut [(usize, usize); MAPPINGS_MAX]) -> io::Result<usize> {
    use std::io::BufRead;
    let mut count = 0;
    let mut candidate = None;
    for line in io::BufReader::with_capacity(4096, std::fs::File::open("/proc/self/smaps")?).lines()
    {
        let line = line?;
        if let Some(changed) = line.strip_prefix("Anonymous:") {
            if let (Some(range), "0 kB") = (candidate.take(), changed.trim())
                && let Some(place) = found.get_mut(count)
            {
                *place = range;
                count += 1;
            }
        } else if let Some(range) = read_only_file(&line) {
            candidate = range;
        }
    }
    Ok(count)
}

/// `None` for a line that is no mapping's first; else its range if it is a file's and not writable.
fn read_only_file(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) =
        (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let access = words.next()?;
    let file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((file && access.starts_with('r') && !access.contains('w')).then_some((start, end - start)))
}

/// Changes user and group for good; the capabilities stay until they are set.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain system calls with integers, in a process of one thread.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0
            || libc::setresgid(gid, gid, gid) < 0
            || libc::setresuid(uid, uid, uid) < 0
            || libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_read_only_files_are_given_back() {
        let check = |line: &str, expected| assert_eq!(read_only_file(line), expected, "{line}");
        check("1000-3000 r-xp 00000000 00:01 5   /bin/skep", Some(Some((0x1000, 0x2000))));
        check("1000-3000 rw-p 00000000 00:01 5   /bin/skep", Some(None));
        check("1000-3000 r--p 00000000 00:00 0   [vvar]", Some(None));
        check("Rss:                 4 kB", None);
        // The test's own program goes on after it has lost its pages.
        trim_memory();
        assert!(clean_file_mappings(&mut [(0, 0); MAPPINGS_MAX]).is_ok_and(|count| count > 0));
    }
}

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

/// Closes every descriptor from this one on. For a forked child only, which drops none of their owners.
pub fn close_from(first: u32) {
    // SAFETY: nothing in this process uses them any more: it ends by `exit_now`.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Keeps of all descriptors the first three and this one, under another number. For a forked child only: what else is
/// open there, its owners in the parent keep.
pub fn keep_only(fd: &OwnedFd) -> io::Result<OwnedFd> {
    duplicate_to(fd.as_raw_fd(), 3)?;
    // SAFETY: descriptor 3 is open since the last line; the others have no owner that is dropped in this process,
    // which ends by `exit_now`.
    unsafe {
        libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
        Ok(OwnedFd::from_raw_fd(3))
    }
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

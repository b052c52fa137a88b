//! Process 1 of a container with `--init`: starts the command, passes signals on, collects orphans.
//!
//! Freestanding: no C library, so that it runs in every root file system. Usage: `init -- command args...`.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const FORK: usize = 57;
    pub const EXECVE: usize = 59;
    pub const EXIT: usize = 60;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETPGID: usize = 109;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const IOCTL: usize = 16;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const RT_SIGPROCMASK: usize = 135;
    /// There is no fork: clone with SIGCHLD alone.
    pub const FORK: usize = 220;
    pub const EXECVE: usize = 221;
    pub const EXIT: usize = 93;
    pub const WAIT4: usize = 260;
    pub const KILL: usize = 129;
    pub const SETPGID: usize = 154;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const IOCTL: usize = 29;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "and sp, x0, #-16", "bl {main}", "brk #1", main = sym main);

const SIGCHLD: i32 = 17;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;
const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const TIOCSPGRP: usize = 0x5410;
const ENOENT: isize = -2;
const EACCES: isize = -13;
const PATH_BYTES: usize = 4096;
/// All signals but those a faulting program raises in itself: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const PASSED_ON: u64 = !(bit(4) | bit(5) | bit(6) | bit(7) | bit(8) | bit(11) | bit(31));

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// A raw system call.
unsafe fn call(n: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps all registers but those named; memory arguments are the callers' affair.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") n as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            out("rcx") _, out("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") n, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") 0, options(nostack));
    }
    result
}

/// `stack`: argc, argv..., null, envp..., null.
unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel lays the stack out so; every pointer in it ends with a zero byte.
    unsafe {
        let argc = *stack;
        let argv = stack.add(1).cast::<*const u8>();
        let envp = argv.add(argc + 1);
        let mut first = 1;
        if argc > 1 && equals(*argv.add(1), b"--\0") {
            first = 2;
        }
        if argc <= first {
            fail(b"init: no command\n", 1);
        }
        let old: u64 = 0;
        let mask: u64 = PASSED_ON;
        call(number::RT_SIGPROCMASK, SIG_BLOCK, &raw const mask as usize, &raw const old as usize, 8);
        let child = fork();
        if child < 0 {
            fail(b"init: fork failed\n", 1);
        }
        if child == 0 {
            // A group of its own, and the terminal if there is one.
            call(number::SETPGID, 0, 0, 0, 0);
            let own: i32 = call_getpid();
            call(number::IOCTL, 0, TIOCSPGRP, &raw const own as usize, 0);
            call(number::RT_SIGPROCMASK, SIG_SETMASK, &raw const old as usize, 0, 8);
            execute(argv.add(first), envp);
        }
        watch(child as i32, mask)
    }
}

unsafe fn fork() -> isize {
    // SAFETY: one thread; with aarch64's clone only the exit signal is given.
    unsafe { call(number::FORK, if cfg!(target_arch = "aarch64") { SIGCHLD as usize } else { 0 }, 0, 0, 0) }
}

unsafe fn call_getpid() -> i32 {
    #[cfg(target_arch = "x86_64")]
    const GETPID: usize = 39;
    #[cfg(target_arch = "aarch64")]
    const GETPID: usize = 172;
    // SAFETY: no arguments.
    unsafe { call(GETPID, 0, 0, 0, 0) as i32 }
}

/// Passes signals to the child and collects the dead, until the child itself ends.
unsafe fn watch(child: i32, mask: u64) -> ! {
    loop {
        // SAFETY: the mask lives on this stack; no information about the signal is asked for.
        let signal = unsafe { call(number::RT_SIGTIMEDWAIT, &raw const mask as usize, 0, 0, 8) } as i32;
        if signal > 0 && signal != SIGCHLD && signal != SIGTTIN && signal != SIGTTOU {
            // SAFETY: integers only.
            unsafe { call(number::KILL, child as usize, signal as usize, 0, 0) };
        }
        loop {
            let status: i32 = 0;
            // SAFETY: status lives on this stack.
            let pid = unsafe { call(number::WAIT4, usize::MAX, &raw const status as usize, WNOHANG, 0) } as i32;
            if pid <= 0 {
                break;
            }
            if pid == child {
                // SAFETY: volatile, as the kernel has written it behind the compiler's back.
                let status = unsafe { core::ptr::read_volatile(&raw const status) };
                let code = if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
                exit(code)
            }
        }
    }
}

/// Executes the command, searched in PATH when it has no slash.
unsafe fn execute(argv: *const *const u8, envp: *const *const u8) -> ! {
    // SAFETY: pointers from the kernel's own stack layout.
    unsafe {
        let name = *argv;
        let mut failure = ENOENT;
        if contains_slash(name) {
            failure = call(number::EXECVE, name as usize, argv as usize, envp as usize, 0);
        } else {
            let mut path = find_path(envp);
            while *path != 0 {
                let mut candidate = [0u8; PATH_BYTES];
                let mut length = 0;
                while *path != 0 && *path != b':' {
                    length = append(&mut candidate, length, *path);
                    path = path.add(1);
                }
                length = append(&mut candidate, length, b'/');
                let mut from = name;
                while *from != 0 {
                    length = append(&mut candidate, length, *from);
                    from = from.add(1);
                }
                let _ = length;
                let result = call(number::EXECVE, candidate.as_ptr() as usize, argv as usize, envp as usize, 0);
                if result != ENOENT {
                    failure = result;
                }
                if *path == b':' {
                    path = path.add(1);
                }
            }
        }
        fail(b"init: the command could not be executed\n", if failure == EACCES { 126 } else { 127 })
    }
}

/// One more byte, keeping room for the final zero.
fn append(buffer: &mut [u8; PATH_BYTES], length: usize, byte: u8) -> usize {
    match buffer.get_mut(length) {
        Some(place) if length < PATH_BYTES - 1 => {
            *place = byte;
            length + 1
        }
        _ => length,
    }
}

unsafe fn find_path(mut envp: *const *const u8) -> *const u8 {
    // SAFETY: the list ends with a null pointer, its strings with zero bytes.
    unsafe {
        while !(*envp).is_null() {
            let entry = *envp;
            if starts_with(entry, b"PATH=") {
                return entry.add(5);
            }
            envp = envp.add(1);
        }
    }
    c"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr().cast()
}

unsafe fn starts_with(text: *const u8, prefix: &[u8]) -> bool {
    let mut n = 0;
    while n < prefix.len() {
        // SAFETY: stops at the first difference, so never behind the final zero.
        if unsafe { *text.add(n) } != prefix[n] {
            return false;
        }
        n += 1;
    }
    true
}

unsafe fn equals(text: *const u8, with_zero: &[u8]) -> bool {
    // SAFETY: as above; the zero is part of what is compared.
    unsafe { starts_with(text, with_zero) }
}

unsafe fn contains_slash(mut text: *const u8) -> bool {
    // SAFETY: stops at the final zero.
    unsafe {
        while *text != 0 {
            if *text == b'/' {
                return true;
            }
            text = text.add(1);
        }
    }
    false
}

fn fail(text: &[u8], code: i32) -> ! {
    // SAFETY: the text lives through the call.
    unsafe { call(number::WRITE, 2, text.as_ptr() as usize, text.len(), 0) };
    exit(code)
}

fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { call(number::EXIT, code as usize, 0, 0, 0) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(255)
}

/// The compiler may call it for large arrays.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    let mut n = 0;
    while n < count {
        // SAFETY: the caller gives `count` writable bytes; volatile keeps this from becoming a call to itself.
        unsafe { core::ptr::write_volatile(to.add(n), byte as u8) };
        n += 1;
    }
    to
}

//! The shim: one small single-threaded process per container.

/// `skep shim ...`; call it before any thread exists. Returns the exit code of this process.
pub fn main(_args: &[std::ffi::OsString]) -> i32 {
    eprintln!("skep shim: not supported by skep yet");
    1
}

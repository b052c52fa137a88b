//! Finding the program to execute inside a container, with the error texts Docker's users know.

use std::os::unix::fs::PermissionsExt;

use crate::error::ErrorKind;

/// The path to execute for `args[0]`, searched in the PATH of `env`, relative to the current root.
pub fn find(name: &str, env: &[String]) -> Result<String, String> {
    if name.is_empty() {
        return Err("exec: \"\": executable file not found in $PATH".to_owned());
    }
    if name.contains('/') {
        return match check(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(text) => Err(format!("exec: \"{name}\": {text}")),
        };
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("");
    for dir in path.split(':') {
        let candidate = if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
        if check(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(format!("exec: \"{name}\": executable file not found in $PATH"))
}

fn check(path: &str) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() || meta.permissions().mode() & 0o111 == 0 => {
            Err("permission denied".to_owned())
        }
        Ok(_) => Ok(()),
        Err(e) => Err(match e.raw_os_error() {
            Some(libc::ENOENT) => format!("stat {path}: no such file or directory"),
            Some(libc::EACCES) => "permission denied".to_owned(),
            Some(libc::ENOTDIR) => format!("stat {path}: not a directory"),
            _ => format!("stat {path}: {e}"),
        }),
    }
}

/// The text of a failed execve as the C library says it, in lower case as Go does.
pub fn errno_text(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOMEM) => "cannot allocate memory".to_owned(),
        Some(libc::E2BIG) => "argument list too long".to_owned(),
        _ => error.to_string(),
    }
}

/// Docker's rule for exit codes 127 and 126, by the text of the failure.
pub fn kind_of(text: &str) -> ErrorKind {
    if text.contains("executable file not found") || text.contains("no such file or directory") {
        ErrorKind::CommandNotFound
    } else if text.contains("permission denied") || text.contains("not a directory") {
        ErrorKind::CommandNotExecutable
    } else {
        ErrorKind::System
    }
}

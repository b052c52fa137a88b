//! skep: the command line; everything else is a room of its own.

mod daemon;
mod cluster;
mod manual;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let called_as = arguments
        .first()
        .and_then(|path| std::path::Path::new(path).file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if called_as == "dockerd" {
        return daemon::main(arguments);
    }
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some("daemon") => {
            arguments.remove(1);
            daemon::main(arguments)
        }
        // These run before any thread exists: they fork, change namespaces or live for years.
        Some("shim") => exit_code(runtime::shim::main(&arguments[2..])),
        Some("resolver") => run_resolver(&arguments[2..]),
        Some("completion" | "man") => manual::main(&arguments),
        Some("--version" | "-v" | "version") => {
            println!("skep version {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(125)
        }
    }
}

const USAGE: &str = "usage: skep daemon [OPTIONS]
       skep completion bash|zsh|fish|elvish|powershell
       skep man [daemon]
       skep version

The daemon takes dockerd's options (see `skep daemon --help`); everything else is done with the
docker command, for example `docker -H unix:///run/skep/skep.sock info`.";

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// `skep resolver --exec-root <directory>`.
fn run_resolver(arguments: &[std::ffi::OsString]) -> ExitCode {
    let [flag, exec_root] = arguments else {
        eprintln!("usage: skep resolver --exec-root <directory>");
        return ExitCode::from(125);
    };
    if flag != "--exec-root" {
        eprintln!("usage: skep resolver --exec-root <directory>");
        return ExitCode::from(125);
    }
    let done = daemon::log::start_plain().and_then(|()| {
        let caches = std::sync::Arc::new(netlink::names::KernelCaches::default());
        Ok(resolver::run(std::path::Path::new(exec_root), caches)?)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("resolver: {error}");
            ExitCode::FAILURE
        }
    }
}

//! skep: the command line; everything else is a room of its own.

mod daemon;

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
        _ => {
            eprintln!("usage: skep daemon [OPTIONS]");
            ExitCode::from(125)
        }
    }
}

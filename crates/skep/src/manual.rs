//! What a package ships beside the program: completions for shells and pages for man, from the options.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Arg, Command, value_parser};
use clap_complete::Shell;

use crate::daemon;

/// `skep completion SHELL`, `skep man [daemon]`.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let outcome = match command().try_get_matches_from(arguments) {
        Err(error) => error.exit(),
        Ok(matches) => match matches.subcommand() {
            Some(("completion", matches)) => match matches.get_one::<Shell>("SHELL") {
                Some(shell) => completion(*shell),
                None => Ok(()),
            },
            Some(("man", matches)) => page(matches.get_one::<String>("COMMAND").is_some()),
            _ => Ok(()),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads may have read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skep: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The commands that a user may type; what the daemon starts itself is not among them.
fn command() -> Command {
    let completion = Command::new("completion")
        .about("Print a completion script")
        .arg(Arg::new("SHELL").required(true).value_parser(value_parser!(Shell)));
    let man = Command::new("man")
        .about("Print the manual page of skep, or of skep daemon")
        .arg(Arg::new("COMMAND").value_parser(["daemon"]));
    Command::new("skep")
        .about("A swarm-mode container engine for the docker command")
        .version(env!("CARGO_PKG_VERSION"))
        .long_about(
            "skep makes Linux hosts members of a swarm: containers, overlay networks, services and a routing mesh, driven by the unmodified docker command and in Docker's own protocols. `skep daemon` takes dockerd's options and daemon.json, /etc/skep/daemon.json unless --config-file names another; everything else is done with the docker command, for example `docker -H unix:///run/skep.sock info`.",
        )
        .subcommand_required(true)
        .subcommand(daemon::command().about("Run the engine, with dockerd's options"))
        .subcommand(completion)
        .subcommand(man)
}

fn completion(shell: Shell) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "skep", &mut text);
    io::stdout().write_all(&text)
}

fn page(daemon: bool) -> io::Result<()> {
    let page = if daemon { daemon::command().display_name("skep-daemon") } else { command() };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).section("8").render(&mut text)?;
    io::stdout().write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_and_the_daemon_s_options_are_described_without_contradiction() {
        command().debug_assert();
        let described = command();
        let daemon = described.find_subcommand("daemon").expect("the daemon");
        assert!(daemon.get_arguments().any(|arg| arg.get_long() == Some("data-root")));
    }
}

//! Programs that the lab runs, with an error that says which one failed and what it said.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// Runs to the end; the answer is what it printed, trimmed.
///
/// # Errors
/// When the program is missing or ends with another status than 0.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout).trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Runs to the end and gives status and output, whatever they are.
///
/// # Errors
/// When the program is missing, or this process was told to end.
pub fn output(command: &mut Command) -> Result<Output> {
    interrupt::check()?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    let running = interrupt::Running::new(&child)?;
    let output = child.wait_with_output()?;
    drop(running);
    interrupt::check()?;
    Ok(output)
}

/// A program with its arguments, split at spaces.
pub fn words(line: &str) -> Command {
    let mut parts = line.split_whitespace();
    let mut command = Command::new(parts.next().unwrap_or("true"));
    command.args(parts);
    command
}

/// Runs a line of words; see [`run`].
pub fn sh(line: &str) -> Result<String> {
    run(&mut words(line))
}

/// The command as a user would type it.
pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        let word = word.to_string_lossy();
        line.push(' ');
        if word.contains([' ', '"', '{', '$']) || word.is_empty() {
            line.push_str(&format!("'{word}'"));
        } else {
            line.push_str(&word);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error =
            run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c 'echo out"), "{text}");
        assert!(text.contains("out") && text.contains("err") && text.contains('3'), "{text}");
    }
}

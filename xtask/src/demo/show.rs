//! Commands and answers on the screen, as in the document.

use std::io::IsTerminal;

use anyhow::{Result, bail};
use lab::Host;

pub fn title(number: usize, text: &str) {
    println!("\n=== {number}. {text}");
}

/// Runs a docker command on a host and shows both.
pub fn docker(host: &Host, line: &str) -> Result<String> {
    println!("\n{}# docker {line}", host.name);
    let answer = host.dk(line)?;
    println!("{answer}");
    Ok(answer)
}

/// Runs a docker command with words that hold spaces.
pub fn docker_words(host: &Host, words: &[&str]) -> Result<String> {
    println!("\n{}# {}", host.name, lab::command::shown(&host.cli(words)));
    let answer = host.docker(words)?;
    println!("{answer}");
    Ok(answer)
}

/// Runs a docker command at a terminal of its own and shows what stood there at the end: progress
/// is drawn in place, as a user sees it.
pub fn docker_at_terminal(host: &Host, line: &str) -> Result<String> {
    println!("\n{}# docker {line}", host.name);
    let words: Vec<&str> = line.split_whitespace().collect();
    let screen = lab::terminal::run(&mut host.cli(&words))?;
    if !std::io::stdout().is_terminal() {
        println!("{screen}");
    }
    Ok(screen)
}

/// A fact that must hold; the error says what was seen instead.
pub fn must(holds: bool, fact: &str, seen: &str) -> Result<()> {
    if !holds {
        bail!("not so: {fact}\nseen:\n{seen}");
    }
    held(fact);
    Ok(())
}

/// A fact that did hold, or this would not have been reached.
pub fn held(fact: &str) {
    println!("  [ok] {fact}");
}

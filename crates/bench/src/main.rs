//! Benchmarks: skep and the Docker Engine side by side on lab hosts, measured in turns.
//!
//! Only the ratio within one run counts: machines differ, and a busy one slows both alike.

mod figures;
mod engine;
mod swarm;
mod overlay;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use figures::Report;

/// The benchmarks by name, in the order of the page.
const PARTS: &[(&str, fn(&Path, &mut Report) -> Result<()>)] = &[
    ("engine", engine::run),
    ("swarm", swarm::run),
    ("overlay", overlay::run),
    ("growth", overlay::growth),
];

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let skep = PathBuf::from(
        words
            .next()
            .context("usage: bench SKEP_BINARY REPORT [engine|swarm|overlay|growth ...]")?,
    );
    let report_file = PathBuf::from(words.next().context("where should the report go?")?);
    let mut parts: Vec<String> = words.collect();
    if parts.is_empty() {
        parts = PARTS.iter().map(|part| part.0.to_owned()).collect();
    }
    if let Some(word) = parts.iter().find(|word| !PARTS.iter().any(|part| part.0 == *word)) {
        bail!("no benchmark is called {word}");
    }
    lab::interrupt::listen()?;
    let mut report = Report::default();
    for (name, run) in PARTS.iter().filter(|part| parts.iter().any(|word| word == part.0)) {
        eprintln!("== {name}");
        // What was measured before and what comes after still counts.
        if let Err(error) = run(&skep, &mut report) {
            lab::interrupt::check()?;
            eprintln!("{name}: {error:#}");
            report.fail(name, &error);
        }
    }
    let text = report.markdown()?;
    println!("{text}");
    fs::write(&report_file, text).with_context(|| report_file.display().to_string())?;
    match report.failures() {
        0 => Ok(()),
        count => bail!("{count} of the benchmarks failed; {} says why", report_file.display()),
    }
}

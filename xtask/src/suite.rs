//! `cargo xtask test`: everything that must hold before a change lands, the quick checks first.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{demo, setup, tidy};

/// Cargo, the quick checks first.
const STEPS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("build", &["build", "--quiet", "--workspace", "--bins", "--examples"]),
    (
        "unit, simulation and namespace tests",
        &["test", "--quiet", "--workspace", "--exclude", "e2e", "--lib", "--bins", "--tests"],
    ),
];

/// Last, so that its closing lines are the suite's.
const END_TO_END: &[&str] = &["test", "--package", "e2e", "--test", "e2e"];

pub fn main(words: &[String]) -> Result<()> {
    if let Some(word) = words.first() {
        bail!("test takes no arguments, got {word}");
    }
    setup::install()?;
    timed("tidy", tidy::main)?;
    for (name, arguments) in STEPS {
        timed(name, || cargo(arguments))?;
    }
    timed("walk-through", || demo::main(&[]))?;
    timed("end-to-end tests", || cargo(END_TO_END))
}

/// Figures go to standard error, so that the runner's closing lines stay the last of the output.
fn timed(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let start = Instant::now();
    step().with_context(|| name.to_owned())?;
    eprintln!("== {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs cargo with the user's toolchain.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {}: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Where cargo puts the binaries: beside this one.
pub fn target_folder() -> Result<std::path::PathBuf> {
    lab::plan::binaries()
}

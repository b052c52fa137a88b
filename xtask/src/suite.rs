//! `cargo xtask test`: everything that must hold before a change lands, the quick checks first.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{demo, installed, machine, setup, tidy};

/// Cargo, the quick checks first.
const STEPS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("build", &["build", "--quiet", "--workspace", "--bins", "--examples"]),
    (
        "unit-simulation-namespace",
        &["test", "--quiet", "--workspace", "--exclude", "e2e", "--lib", "--bins", "--tests"],
    ),
];

/// Last, so that its closing lines are the suite's.
const END_TO_END: &[&str] = &["test", "--package", "e2e", "--test", "e2e"];

/// Steps that run only when they are named: one builds everything once more, one needs qemu.
const NAMED: &[&str] = &["fresh-machine", "virtual-machine"];

/// Everything, or the steps that are named (`cargo xtask test walk-throughs`).
pub fn main(words: &[String]) -> Result<()> {
    setup::install()?;
    let mut steps: Vec<(&str, Box<dyn FnOnce() -> Result<()>>)> =
        vec![("tidy", Box::new(tidy::main))];
    for (name, arguments) in STEPS {
        steps.push((name, Box::new(|| cargo(arguments))));
    }
    steps.push(("walk-throughs", Box::new(demo::promises::main)));
    steps.push(("installed-package", Box::new(installed::main)));
    steps.push(("fresh-machine", Box::new(installed::fresh)));
    steps.push(("virtual-machine", Box::new(machine::main)));
    steps.push(("end-to-end", Box::new(|| cargo(END_TO_END))));
    if let Some(word) = words.iter().find(|word| !steps.iter().any(|step| step.0 == *word)) {
        let names: Vec<&str> = steps.iter().map(|step| step.0).collect();
        bail!("test has no step {word}; the steps are {}", names.join(" "));
    }
    for (name, step) in steps {
        let named = words.iter().any(|word| word == name);
        if named || (words.is_empty() && !NAMED.contains(&name)) {
            timed(name, step)?;
        }
    }
    Ok(())
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
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Of this package, set by the cargo that runs it. Build scripts that look at them would run again at each
    // change between `cargo xtask` and plain cargo, and all that depends on theirs be built anew.
    for name in std::env::vars_os().map(|variable| variable.0) {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    // What an error says is its chain; hundreds of lines of frames after it hide what the next test said.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        cargo.env("RUST_LIB_BACKTRACE", "0");
    }
    let status = cargo.args(arguments).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {}: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Where cargo puts the binaries: beside this one.
pub fn target_folder() -> Result<std::path::PathBuf> {
    lab::plan::binaries()
}

//! `cargo xtask bench`: every benchmark beside the Docker Engine, written to docs/benchmarks.md.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{setup, suite, tidy};

pub fn main(words: &[String]) -> Result<()> {
    setup::install()?;
    // All of it: a client that was built for debugging is slower than what it measures.
    let programs = ["--package", "skep", "--package", "bench", "--package", "lab", "--bins"];
    suite::cargo(&[&["build", "--release"], programs.as_slice()].concat())?;
    for (package, example) in
        [("netlink", "endpoints"), ("resolver", "load"), ("resolver", "process")]
    {
        suite::cargo(&["build", "--release", "--package", package, "--example", example])?;
    }
    let folder = suite::target_folder()?;
    let release = folder.parent().context("no target folder")?.join("release");
    let report = tidy::workspace().join("docs/benchmarks.md");
    let status = Command::new(release.join("bench"))
        .arg(release.join("skep"))
        .arg(report)
        .args(words)
        .status()?;
    if !status.success() {
        bail!("bench: {status}");
    }
    Ok(())
}

//! `cargo xtask bench`: every benchmark beside the Docker Engine, written to docs/benchmarks.md.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{setup, suite, tidy};

pub fn main(words: &[String]) -> Result<()> {
    setup::install()?;
    suite::cargo(&["build", "--release", "--package", "skep"])?;
    suite::cargo(&["build", "--package", "bench", "--package", "lab", "--bins"])?;
    let folder = suite::target_folder()?;
    let release = folder.parent().context("no target folder")?.join("release/skep");
    let report = tidy::workspace().join("docs/benchmarks.md");
    let status =
        Command::new(folder.join("bench")).arg(release).arg(report).args(words).status()?;
    if !status.success() {
        bail!("bench: {status}");
    }
    Ok(())
}

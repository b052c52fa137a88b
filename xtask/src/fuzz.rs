//! `cargo xtask fuzz TARGET`: a long, coverage-guided run of one fuzz target on the stable compiler.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::tidy;

/// The first word names the target; the rest goes to libFuzzer, for example `-max_total_time=600`.
pub fn main(words: &[String]) -> Result<()> {
    let room = tidy::workspace().join("crates/fuzz");
    let Some((name, options)) = words.split_first() else {
        bail!("which target? {}", targets(&room)?.join(", "));
    };
    let known = targets(&room)?;
    if !known.contains(name) {
        bail!("no target is called {name}; there are {}", known.join(", "));
    }
    let there = Command::new("cargo").args(["fuzz", "--version"]).stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        bail!("cargo-fuzz is missing: cargo install cargo-fuzz");
    }
    // The same versions as the workspace's.
    fs::copy(tidy::workspace().join("Cargo.lock"), room.join("libfuzzer/Cargo.lock"))?;
    // What is found goes here, and only what is worth it into the committed corpus.
    let found = tidy::workspace().join("target/fuzz").join(name);
    fs::create_dir_all(&found)?;
    let status = Command::new("cargo")
        .args(["fuzz", "run", "--sanitizer", "none", "--fuzz-dir"])
        .arg(room.join("libfuzzer"))
        .arg(name)
        .arg(&found)
        .arg(room.join("corpus").join(name))
        .arg("--")
        .arg(format!("-dict={}", room.join("dictionaries").join(format!("{name}.dict")).display()))
        .args(options)
        .current_dir(tidy::workspace())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!(
            "fuzz {name}: {status}; add the input to crates/fuzz/corpus/{name} with what mends it"
        );
    }
    Ok(())
}

/// One for each committed corpus but that of the driver's own test.
fn targets(room: &std::path::Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(room.join("corpus")).context("crates/fuzz/corpus")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "driver-self-test" {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

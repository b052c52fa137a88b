//! Benchmarks: skep and the Docker Engine side by side on lab hosts, measured in turns.
//!
//! Only the ratio within one run counts: machines differ, and a busy one slows both alike.

mod figures;
mod engine;
mod swarm;
mod overlay;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use figures::Report;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let skep = PathBuf::from(
        words.next().context("usage: bench SKEP_BINARY REPORT [engine|swarm|overlay ...]")?,
    );
    let report_file = PathBuf::from(words.next().context("where should the report go?")?);
    let mut parts: Vec<String> = words.collect();
    if parts.is_empty() {
        parts = ["engine", "swarm", "overlay"].map(str::to_owned).to_vec();
    }
    let mut report = Report::default();
    for part in &parts {
        eprintln!("== {part}");
        match part.as_str() {
            "engine" => engine::run(&skep, &mut report)?,
            "swarm" => swarm::run(&skep, &mut report)?,
            "overlay" => overlay::run(&skep, &mut report)?,
            other => bail!("no benchmark is called {other}"),
        }
    }
    let text = report.markdown()?;
    println!("{text}");
    fs::write(&report_file, text).with_context(|| report_file.display().to_string())
}

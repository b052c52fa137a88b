//! What many endpoints cost the kernel's network of one host.

use anyhow::Result;
use lab::command::run as run_command;
use serde_json::Value;

use super::number;
use crate::figures::Report;

const ALONE: &str = "it has no way to be measured alone";

/// What it takes to have so many endpoints of other hosts in the kernel, and one more.
pub(super) fn applied(report: &mut Report) -> Result<()> {
    let program = lab::plan::binaries()?.join("examples/endpoints").display().to_string();
    let mut runs = Vec::new();
    for _ in 0..super::ROUNDS {
        let said = run_command(&mut lab::command::words(&program))?;
        runs.push(serde_json::from_str::<Value>(&said)?);
    }
    for count in [10, 100, 1_000] {
        for (name, what) in [("all", "endpoints applied"), ("one", "endpoints, one more applied")] {
            let samples = runs.iter().map(|run| number(run, &format!("{name}_{count}")));
            let samples = samples.collect::<Result<Vec<f64>>>()?;
            report.add(&format!("{count} {what}"), "ms", samples, Err(ALONE.into()));
        }
    }
    Ok(())
}

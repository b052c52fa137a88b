//! `fuzz seeds` writes the seeds that are made by our own encoders; `fuzz run TARGET FILE...` shows a finding again.

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["seeds"] => fuzz::seeds::write(),
        ["run", name, files @ ..] => {
            let target = fuzz::target(name).with_context(|| format!("no target {name}"))?;
            for file in files {
                eprintln!("{file}");
                (target.run)(&std::fs::read(file).with_context(|| (*file).to_owned())?);
            }
            Ok(())
        }
        _ => bail!("usage: fuzz seeds | fuzz run TARGET FILE..."),
    }
}

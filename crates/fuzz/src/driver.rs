//! Runs a target over its corpus and over mutations of it: the same inputs for the same seed, everywhere.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::mutate::mutate;
use crate::{Target, corpus, dictionary};

/// How much to try.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Mutations; the corpus itself comes first in any case.
    pub rounds: u32,
    /// Where an input that made the target panic is kept.
    pub findings: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub runs: u32,
    /// Files with inputs that made the target panic.
    pub findings: Vec<PathBuf>,
}

/// Runs the corpus and then mutations of it. An input that panics is written down and the run goes on.
pub fn run(target: &Target, plan: &Plan) -> Result<Outcome> {
    let inputs = inputs(target.name)?;
    let words = words(target.name)?;
    let mut outcome = Outcome::default();
    for input in &inputs {
        attempt(target, plan, input, &mut outcome)?;
    }
    let mut dice = ChaCha8Rng::seed_from_u64(plan.seed);
    for _ in 0..plan.rounds {
        let mut data = inputs.choose(&mut dice).cloned().unwrap_or_default();
        mutate(&mut dice, &mut data, &inputs, &words);
        attempt(target, plan, &data, &mut outcome)?;
    }
    Ok(outcome)
}

fn attempt(target: &Target, plan: &Plan, data: &[u8], outcome: &mut Outcome) -> Result<()> {
    outcome.runs += 1;
    if catch_unwind(AssertUnwindSafe(|| (target.run)(data))).is_ok() {
        return Ok(());
    }
    let file = plan.findings.join(format!("{}-{:08x}", target.name, sum(data)));
    fs::create_dir_all(&plan.findings).context("folder of findings")?;
    fs::write(&file, data).with_context(|| file.display().to_string())?;
    outcome.findings.push(file);
    Ok(())
}

/// A name for an input (FNV-1a, 32 bits).
fn sum(data: &[u8]) -> u32 {
    data.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The committed inputs, in the order of their names.
fn inputs(name: &str) -> Result<Vec<Vec<u8>>> {
    let folder = corpus(name);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "{}: no inputs; see CONTRIBUTING.md", folder.display());
    files.iter().map(|file| Ok(fs::read(file)?)).collect()
}

/// The words of a libFuzzer dictionary: `"text"` or `name="text"`, with `\xNN`, `\\` and `\"`.
fn words(name: &str) -> Result<Vec<Vec<u8>>> {
    let file = dictionary(name);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| word(line).with_context(|| format!("{}: {line}", file.display()))).collect()
}

fn word(line: &str) -> Option<Vec<u8>> {
    let (_, quoted) = line.split_once('"')?;
    let mut bytes = quoted.strip_suffix('"')?.bytes();
    let mut word = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next()? {
                b'x' => {
                    let digits = [bytes.next()?, bytes.next()?];
                    word.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                }
                escaped => word.push(escaped),
            },
            byte => word.push(byte),
        }
    }
    Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics_at_magic(data: &[u8]) {
        assert!(!data.windows(4).any(|part| part == b"IHDR"), "found");
    }

    #[test]
    fn a_planted_fault_is_found_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let findings = folder.path().to_owned();
        // No seed holds the word: only a mutation can make it.
        let target = Target { name: "driver-self-test", run: panics_at_magic, rounds: 0 };
        let plan = Plan { seed: 1, rounds: 3_000, findings };
        let outcome = run(&target, &plan).expect("a run");
        assert!(!outcome.findings.is_empty(), "3,000 rounds found nothing");
        let input = fs::read(&outcome.findings[0]).expect("the input");
        assert!(input.windows(4).any(|part| part == b"IHDR"));
        assert_eq!(run(&target, &plan).expect("a run"), outcome, "the same seed, the same inputs");
    }

    #[test]
    fn a_dictionary_s_words_are_bytes() {
        assert_eq!(word(r#"a="x\x00\"\\""#), Some(b"x\0\"\\".to_vec()));
        assert_eq!(word("nothing"), None);
    }
}

//! The checks that no compiler makes: the arrows between rooms, the fences, and how files read.
//!
//! A rule that the code does not keep everywhere yet has a list in `xtask/tidy/` of the places that
//! break it. The list only shrinks: a place that is mended must leave it.

mod arrows;
mod source;
mod ratchet;
mod flows;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Checks the whole workspace.
///
/// # Errors
/// All that is wrong, a line each.
pub fn main() -> Result<()> {
    let root = workspace();
    let mut faults = arrows::check(&root)?;
    let mut files = Vec::new();
    for folder in ["crates", "xtask"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut sources = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&root)?.to_string_lossy().into_owned();
        let text = fs::read_to_string(file).with_context(|| name.clone())?;
        sources.push((name, text));
    }
    let broken = sources.iter().flat_map(|(name, text)| source::check(name, text)).collect();
    faults.extend(flows::check(&root, &sources)?);
    faults.extend(ratchet::judge(&root, broken)?);
    if faults.is_empty() {
        println!("tidy: {} files in order", files.len());
        return Ok(());
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    bail!("{} faults", faults.len());
}

/// The folder of the workspace's Cargo.toml.
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, found)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

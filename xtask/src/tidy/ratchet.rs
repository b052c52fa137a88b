//! Rules that are not kept everywhere yet: lists of the places that break them, which only shrink.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::source::Fault;

/// Rules that may have a list, `xtask/tidy/<rule>.txt`; all others are strict.
const RATCHETS: &[&str] = &["function-length", "file-length"];

/// What is left to complain about. With `UPDATE_EXPECT=1` the lists are written anew.
pub fn judge(root: &Path, broken: Vec<Fault>) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for rule in RATCHETS {
        let file = root.join(format!("xtask/tidy/{rule}.txt"));
        let found: BTreeSet<&str> = broken
            .iter()
            .filter(|fault| fault.rule == *rule)
            .map(|fault| fault.place.as_str())
            .collect();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::create_dir_all(root.join("xtask/tidy"))?;
            let text: String = found.iter().map(|place| format!("{place}\n")).collect();
            fs::write(&file, text)?;
        }
        let known = fs::read_to_string(&file).unwrap_or_default();
        let known: BTreeSet<&str> = known.lines().collect();
        for mended in known.difference(&found) {
            faults.push(format!(
                "{mended}: keeps the rule {rule} again, take it off {}",
                file.display()
            ));
        }
        for fault in broken.iter().filter(|f| f.rule == *rule && !known.contains(f.place.as_str()))
        {
            faults.push(format!("{}: {rule}: {}", fault.place, fault.text));
        }
    }
    let strict = broken.iter().filter(|fault| !RATCHETS.contains(&fault.rule));
    faults.extend(strict.map(|fault| format!("{}: {}: {}", fault.place, fault.rule, fault.text)));
    Ok(faults)
}

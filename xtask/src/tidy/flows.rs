//! docs/flows must not rot: the functions and tests that they name exist, and no step is without both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What a room has: functions with the module they are in, and tests.
#[derive(Default)]
pub struct Room {
    /// `module::sub::function`; the crate's root has no module.
    functions: BTreeSet<String>,
    tests: BTreeSet<String>,
}

pub type Rooms = BTreeMap<String, Room>;

/// Everything that is wrong with the pages in docs/flows. `files` are the workspace's sources by
/// their path below the root.
pub fn check(root: &Path, files: &[(String, String)]) -> Result<Vec<String>> {
    let mut rooms = Rooms::new();
    for (name, text) in files {
        take_in(&mut rooms, name, text);
    }
    let mut faults = Vec::new();
    for entry in fs::read_dir(root.join("docs/flows")).context("docs/flows")? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root)?.display().to_string();
        faults
            .extend(check_page(&rooms, &text).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    faults.sort();
    Ok(faults)
}

fn take_in(rooms: &mut Rooms, name: &str, text: &str) {
    let Some((room, rest)) = name.strip_prefix("crates/").and_then(|rest| rest.split_once('/'))
    else {
        return;
    };
    let room = rooms.entry(room.to_owned()).or_default();
    let path = rest.trim_start_matches("src/").trim_end_matches(".rs");
    let parts: Vec<&str> =
        path.split('/').filter(|p| !["lib", "main", "mod"].contains(p)).collect();
    let mut test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            test = true;
        } else if let Some(function) = super::source::function_name(line) {
            if test {
                room.tests.insert(function);
            } else {
                let place = [parts.as_slice(), &[function.as_str()]].concat();
                room.functions.insert(place.join("::"));
            }
            test = false;
        }
    }
}

fn check_page(rooms: &Rooms, page: &str) -> Vec<String> {
    let mut faults = Vec::new();
    // (first words, functions, tests) of the steps so far.
    let mut steps: Vec<(String, usize, usize)> = Vec::new();
    for line in page.lines() {
        let number = line.split_once(". ").map(|parts| parts.0.parse::<u32>());
        if matches!(number, Some(Ok(_))) {
            steps.push((line.chars().take(40).collect(), 0, 0));
        }
        for word in line.split('`').skip(1).step_by(2) {
            let Some(step) = steps.last_mut() else { continue };
            if let Some((room, function)) = reference(rooms, word, "::") {
                step.1 += 1;
                if !room.functions.contains(function) {
                    faults.push(format!("there is no function {word}"));
                }
            } else if let Some((room, test)) = reference(rooms, word, "/") {
                step.2 += 1;
                if !room.tests.contains(test) {
                    faults.push(format!("there is no test {word}"));
                }
            }
        }
    }
    for (step, functions, tests) in &steps {
        if *functions == 0 || *tests == 0 {
            faults.push(format!(
                "the step \"{step}...\" must name a function and the test that pins it"
            ));
        }
    }
    if steps.is_empty() {
        faults.push("no steps".into());
    }
    faults
}

/// `room::a::b` or `room/b`, when there is such a room.
fn reference<'a, 'b>(
    rooms: &'a Rooms,
    word: &'b str,
    between: &str,
) -> Option<(&'a Room, &'b str)> {
    let (room, rest) = word.split_once(between)?;
    Some((rooms.get(room)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms() -> Rooms {
        let mut rooms = Rooms::new();
        let text = "//! x\npub fn answer() {}\n#[test]\nfn known_names() {}\n";
        take_in(&mut rooms, "crates/dns/src/lookup.rs", text);
        take_in(
            &mut rooms,
            "crates/dns/src/lib.rs",
            "//! x\nimpl A {\n    pub fn plan(&self) {}\n}\n",
        );
        rooms
    }

    #[test]
    fn a_step_names_a_function_and_a_test_that_exist() {
        let page = "# A\n1. `dns::lookup::answer` decides,\n   `--flag` or not. Pinned by `dns/known_names`.\n2. `dns::plan`: `dns/known_names`.\n";
        assert_eq!(check_page(&rooms(), page), Vec::<String>::new());
    }

    #[test]
    fn what_was_renamed_is_found() {
        let page = "# A\n1. `dns::lookup::gone`, pinned by `dns/gone`.\n2. `dns::plan` alone.\n";
        let faults = check_page(&rooms(), page);
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].contains("function dns::lookup::gone") && faults[1].contains("test dns/gone")
        );
        assert!(faults[2].contains("2. `dns::plan` alone"));
    }
}

//! Which room may know which: vocabulary <- core <- edge <- engine <- docker-api <- skep.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const VOCABULARY: &[&str] = &["model", "wire"];
const CORES: &[&str] = &[
    "store",
    "consensus",
    "allocator",
    "orchestrator",
    "scheduler",
    "ca",
    "manager",
    "gossip",
    "netplan",
    "dns",
    "agent",
];
const EDGES: &[&str] = &["disk", "transport", "netlink", "image", "runtime", "resolver"];
const ENGINE: &[&str] = &["engine"];
const API: &[&str] = &["docker-api"];
const TOOLS: &[&str] = &["lab", "sim", "fuzz", "e2e", "bench", "xtask"];

/// What a core may not depend on: whatever reads a clock, a file or a socket.
const NOT_IN_CORES: &[&str] =
    &["tokio", "rustix", "libc", "tempfile", "tonic", "hyper", "axum", "tracing"];

/// Every dependency that an arrow does not allow.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for entry in fs::read_dir(root.join("crates"))? {
        let folder = entry?.path();
        let file = folder.join("Cargo.toml");
        if !file.exists() {
            continue;
        }
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let text = fs::read_to_string(&file).with_context(|| name.clone())?;
        let needs = dependencies(&text);
        faults.extend(check_one(&name, &needs));
    }
    faults.sort();
    Ok(faults)
}

/// The names under `[dependencies]`; what only tests and build scripts need is free.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim() == "[dependencies]";
        } else if inside && let Some(end) = line.find(['.', ' ', '=']) {
            names.insert(line[..end].to_owned());
        }
    }
    names
}

fn check_one(name: &str, needs: &BTreeSet<String>) -> Vec<String> {
    let rooms: Vec<&str> = [VOCABULARY, CORES, EDGES, ENGINE, API, TOOLS].concat();
    let allowed = allowed(name);
    let mut faults = Vec::new();
    for need in needs {
        if rooms.contains(&need.as_str()) && !allowed.contains(&need.as_str()) {
            faults.push(format!("crates/{name}: must not know the room {need}"));
        }
        if CORES.contains(&name) && NOT_IN_CORES.contains(&need.as_str()) {
            faults.push(format!("crates/{name}: a core must not depend on {need}"));
        }
    }
    faults
}

fn allowed(name: &str) -> Vec<&'static str> {
    if VOCABULARY.contains(&name) {
        VOCABULARY.to_vec()
    } else if CORES.contains(&name) || EDGES.contains(&name) || name == "sim" {
        [VOCABULARY, CORES].concat()
    } else if ENGINE.contains(&name) {
        [VOCABULARY, CORES, EDGES].concat()
    } else if API.contains(&name) {
        [VOCABULARY, CORES, ENGINE].concat()
    } else if name == "skep" || name == "fuzz" {
        [VOCABULARY, CORES, EDGES, ENGINE, API].concat()
    } else {
        vec!["lab"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_edge_never_uses_an_edge() {
        assert_eq!(check_one("image", &needs(&["model", "netplan"])), Vec::<String>::new());
        assert_eq!(
            check_one("image", &needs(&["runtime"])),
            ["crates/image: must not know the room runtime"]
        );
    }

    #[test]
    fn a_core_has_no_runtime() {
        assert_eq!(
            check_one("dns", &needs(&["tokio"])),
            ["crates/dns: a core must not depend on tokio"]
        );
    }

    #[test]
    fn only_the_product_s_own_dependencies_count() {
        let manifest = "[dependencies]\nmodel.workspace = true\n\n[dev-dependencies]\nruntime.workspace = true\n";
        assert_eq!(dependencies(manifest), needs(&["model"]));
    }
}

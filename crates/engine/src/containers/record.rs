//! A container's two files: `config.json` (durable before it is acknowledged) and `state.json`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::container::{Spec, State};
use crate::error::{IoContext, Result};

const SPEC: &str = "config.json";
const STATE: &str = "state.json";

/// Survives a power cut once this returns.
pub(crate) fn write_spec(directory: &Path, spec: &Spec) -> Result<()> {
    write(directory, SPEC, spec, true)
}

/// Atomic, but not forced to the disk: after a power cut no container runs, whatever it says.
pub(crate) fn write_state(directory: &Path, state: &State) -> Result<()> {
    write(directory, STATE, state, false)
}

fn write<T: Serialize>(directory: &Path, name: &str, value: &T, durable: bool) -> Result<()> {
    let text = serde_json::to_vec(value).during(format_args!("write {name}"))?;
    replace(directory, name, &text, 0o600, durable)
}

/// Replaces a file as a whole: the old one or the new one, never a mixture.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    text: &[u8],
    mode: u32,
    durable: bool,
) -> Result<()> {
    let path = directory.join(name);
    let draft = directory.join(format!(".{name}.new"));
    let attempt = || -> std::io::Result<()> {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        file.write_all(text)?;
        if durable {
            file.sync_all()?;
        }
        std::fs::rename(&draft, &path)?;
        if durable {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    attempt().during(format_args!("write {}", path.display()))
}

/// `None` where there is no such file: a crash before the container was acknowledged.
pub(crate) fn read(directory: &Path) -> Result<Option<(Spec, State)>> {
    let Some(spec) = read_file::<Spec>(&directory.join(SPEC))? else { return Ok(None) };
    let state = match read_file::<State>(&directory.join(STATE)) {
        Ok(state) => state.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(container = %spec.id, %error, "state unreadable, taken as exited");
            State { phase: super::container::Phase::Exited, ..Default::default() }
        }
    };
    Ok(Some((spec, state)))
}

fn read_file<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause).during(format_args!("read {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).during(format_args!("read {}", path.display()))
}

/// Every directory below, whether it holds a container or only the beginnings of one.
pub(crate) fn list(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).during(format_args!("list {}", root.display()))? {
        let entry = entry.during(format_args!("list {}", root.display()))?;
        if entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Phase;

    #[test]
    fn only_a_directory_with_a_spec_is_a_container() {
        let folder = tempfile::tempdir().expect("a folder");
        write_state(folder.path(), &State::default()).expect("state");
        assert!(read(folder.path()).expect("readable").is_none(), "the create was never told");
    }

    #[test]
    fn a_broken_state_is_an_exited_container_and_a_broken_spec_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = r#"{"id":"a","name":"n","created":"2026-01-01T00:00:00Z","image":"i",
            "config":{},"host_config":{},"log":{}}"#;
        std::fs::write(folder.path().join(SPEC), text).expect("spec");
        std::fs::write(folder.path().join(STATE), "{").expect("state");
        let (spec, state) = read(folder.path()).expect("readable").expect("a container");
        assert_eq!((spec.name.as_str(), state.phase), ("n", Phase::Exited));
        std::fs::write(folder.path().join(SPEC), "{").expect("spec");
        assert!(read(folder.path()).is_err());
    }
}

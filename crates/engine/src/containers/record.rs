//! A container's two files: `config.json` (durable before it is acknowledged) and `state.json`.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::container::{Spec, State};
use crate::error::{IoContext, Result};

const SPEC: &str = "config.json";
const STATE: &str = "state.json";
/// One block of most file systems: room that a state written over another has for sure.
const STATE_BYTES: usize = 4096;

/// Survives a power cut once this returns.
pub(crate) fn write_spec(directory: &Path, spec: &Spec) -> Result<()> {
    let text = serde_json::to_vec(spec).during("write the configuration")?;
    replace(directory, SPEC, &text, 0o600, true)
}

/// Atomic, but forced to the disk only when asked: after a power cut no container runs, whatever the
/// phase says, but what its user decided about it still counts.
pub(crate) fn write_state(directory: &Path, state: &State, durable: bool) -> Result<()> {
    let text = serde_json::to_vec(state).during("write the state")?;
    let path = directory.join(STATE);
    match try_replace(directory, STATE, &text, 0o600, durable) {
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            overwrite(&path, &text)
        }
        done => done,
    }
    .during(format_args!("write {}", path.display()))
}

/// Replaces a file as a whole: the old one or the new one, never a mixture.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    text: &[u8],
    mode: u32,
    durable: bool,
) -> Result<()> {
    try_replace(directory, name, text, mode, durable)
        .during(format_args!("write {}", directory.join(name).display()))
}

fn try_replace(
    directory: &Path,
    name: &str,
    text: &[u8],
    mode: u32,
    durable: bool,
) -> std::io::Result<()> {
    let draft = directory.join(format!(".{name}.new"));
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
    file.write_all(text)?;
    if durable {
        file.sync_all()?;
    }
    std::fs::rename(&draft, directory.join(name))?;
    if durable {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// On a full disk: over the old text, within the blocks that the file has. No crash-proof
/// replacement, but better than what was true before.
fn overwrite(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut padded = text.to_vec();
    // White space after a JSON document means nothing, and a shorter text leaves no rest.
    padded.resize(text.len().max(length.min(STATE_BYTES)), b' ');
    file.write_all(&padded)?;
    file.set_len(padded.len() as u64)
}

const NEW_VOLUMES: &str = "new-volumes";

/// Notes the name of an anonymous volume before it is made: until the container is written, a
/// crash would leave a volume that nobody knows of.
pub(crate) fn note_volume(directory: &Path, name: &str) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(directory.join(NEW_VOLUMES))
        .during("note a new volume")?;
    file.write_all(format!("{name}\n").as_bytes()).during("note a new volume")
}

/// The volumes that were noted and not forgotten.
pub(crate) fn new_volumes(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join(NEW_VOLUMES)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The container is written: its volumes are its own now.
pub(crate) fn forget_volumes(directory: &Path) -> Result<()> {
    match std::fs::remove_file(directory.join(NEW_VOLUMES)) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(cause).during(format_args!("forget new volumes in {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a container's directory, what makes it a container first: a crash in between leaves
/// the beginnings of one, which the next daemon clears away.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let removing = format!("remove {}", directory.display());
    match std::fs::remove_file(directory.join(SPEC)) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            return Err(cause).during(&removing);
        }
        _ => {}
    }
    tracing::trace!(target: "step", "container unwritten");
    std::fs::remove_dir_all(directory).during(&removing)
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

/// What can be told of a container whose spec cannot be read: its name, and whether it may have the volume of a name.
pub(crate) struct Trace {
    pub name: Option<String>,
    text: Option<String>,
}

impl Trace {
    pub fn of(directory: &Path) -> Self {
        let text = std::fs::read_to_string(directory.join(SPEC)).ok();
        // A spec of a newer daemon is JSON still; of a damaged one nothing is certain.
        let parsed = text.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let name = parsed.as_ref().and_then(|spec: &serde_json::Value| spec["name"].as_str());
        Self { name: name.map(str::to_owned), text: text.filter(|_| parsed.is_some()) }
    }

    pub fn may_have(&self, volume: &str) -> bool {
        self.text.as_ref().is_none_or(|text| text.contains(volume))
    }
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
        write_state(folder.path(), &State::default(), false).expect("state");
        assert!(read(folder.path()).expect("readable").is_none(), "the create was never told");
    }

    #[test]
    fn a_state_written_over_another_leaves_nothing_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let long = State { error: "e".repeat(500), ..Default::default() };
        write_state(folder.path(), &long, false).expect("state");
        let short = State { exit_code: 7, ..Default::default() };
        let text = serde_json::to_vec(&short).expect("JSON");
        overwrite(&folder.path().join(STATE), &text).expect("written over");
        let read: State = read_file(&folder.path().join(STATE)).expect("valid").expect("there");
        assert_eq!((read.exit_code, read.error.as_str()), (7, ""));
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

    #[test]
    fn a_spec_that_cannot_be_read_keeps_its_name_and_volumes() {
        let folder = tempfile::tempdir().expect("a folder");
        let newer = r#"{"id":"a","name":"web","phase":9,"mounts":[{"name":"data"}]}"#;
        std::fs::write(folder.path().join(SPEC), newer).expect("spec");
        assert!(read(folder.path()).is_err());
        let trace = Trace::of(folder.path());
        assert_eq!(trace.name.as_deref(), Some("web"));
        assert_eq!((trace.may_have("data"), trace.may_have("other")), (true, false));
        std::fs::write(folder.path().join(SPEC), "{").expect("spec");
        let trace = Trace::of(folder.path());
        assert_eq!((trace.name.as_deref(), trace.may_have("other")), (None, true));
    }
}

//! The tasks of this node as they are kept on disk.

use std::io::ErrorKind;

use agent::Record;
use prost::Message as _;
use wire::swarmkit as pb;

use super::saved::Folder;

/// A record on disk: the length of the task in eight bytes, the task, the status.
pub fn write_record(record: &Record) -> Vec<u8> {
    let task = record.task.encode_to_vec();
    let mut bytes = (task.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&task);
    bytes.extend_from_slice(&record.status.encode_to_vec());
    bytes
}

fn read_record(bytes: &[u8]) -> Option<Record> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (task, status) =
        rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some(Record {
        task: pb::Task::decode(task).ok()?,
        status: pb::TaskStatus::decode(status).ok()?,
    })
}

/// # Errors
/// When a record is there and cannot be read: a task that is not known is ended, and this one may run.
pub fn read_records(folder: &Folder) -> std::io::Result<Vec<Record>> {
    let entries = match std::fs::read_dir(folder.tasks()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // A leftover of a write that a crash cut short.
        if path.extension().is_some() {
            continue;
        }
        match read_record(&std::fs::read(&path)?) {
            Some(record) => records.push(record),
            None => tracing::warn!(path = %path.display(), "record of a task is damaged"),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record {
            task: pb::Task { id: "t1".into(), slot: 3, ..Default::default() },
            status: pb::TaskStatus { message: "running".into(), ..Default::default() },
        };
        let bytes = write_record(&record);
        assert!(read_record(&bytes) == Some(record));
        assert!(read_record(&bytes[..7]).is_none());
        assert!(read_record(&bytes[..9]).is_none());
    }

    #[test]
    fn records_that_cannot_be_read_are_not_taken_for_none() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::below(root.path());
        assert!(read_records(&folder).unwrap().is_empty(), "a node that was never in a swarm");
        folder.create().unwrap();
        std::fs::write(folder.tasks().join("damaged"), [1]).unwrap();
        assert!(read_records(&folder).unwrap().is_empty());
        std::fs::create_dir(folder.tasks().join("t1")).unwrap();
        assert!(read_records(&folder).is_err());
        std::fs::remove_dir_all(folder.tasks()).unwrap();
        std::fs::write(folder.tasks(), "").unwrap();
        assert!(read_records(&folder).is_err());
    }
}

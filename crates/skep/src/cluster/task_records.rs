//! The tasks of this node as they are kept on disk.

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

pub fn read_records(folder: &Folder) -> Vec<Record> {
    let Ok(entries) = std::fs::read_dir(folder.tasks()) else { return Vec::new() };
    let mut records = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        // A leftover of a write that a crash cut short.
        if entry.path().extension().is_some() {
            continue;
        }
        match std::fs::read(entry.path()).ok().as_deref().and_then(read_record) {
            Some(record) => records.push(record),
            None => tracing::warn!(path = %entry.path().display(), "record of a task not readable"),
        }
    }
    records
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
}

//! The raft log: one record per write, appended and synchronised; snapshots beside it; all sealed.
//!
//! A record is `length, checksum, sealed body`. Its number in the file is part of the seal, so
//! records cannot be exchanged. What a crash left at the end is cut off; anything else that does
//! not read is an error, never silently dropped.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use consensus::{Recovered, Write};
use prost::Message as _;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::checksum::Prefixes;
use crate::seal::{DataKey, OVERHEAD_BYTES};
use crate::{Error, io, records};

/// More than any write: a snapshot goes to its own file, entries are at most 1.5 MiB each.
const RECORD_BYTES_MAX: usize = 1 << 30;
const HEAD_BYTES: usize = 8;
const LOG: &str = "log";
const SNAPSHOT: &str = "snapshot";
/// What a prepared snapshot's name begins with.
const PREPARED: &str = "prepared-";

/// The body of a record.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(message, optional, tag = "1")]
    identity: Option<pb::RaftMember>,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<raftpb::Entry>,
    #[prost(message, optional, tag = "3")]
    hard_state: Option<raftpb::HardState>,
    #[prost(message, optional, tag = "4")]
    membership: Option<pb::ClusterSnapshot>,
}

/// A snapshot that is on the disk beside the one in force, until [`RaftLog::write`] wants it.
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    index: u64,
    term: u64,
}

impl Prepared {
    fn is(&self, snapshot: &raftpb::Snapshot) -> bool {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        (metadata.index(), metadata.term()) == (self.index, self.term)
    }
}

/// Seals a snapshot and brings it to the disk while the log goes on.
pub struct SnapshotWriter {
    folder: PathBuf,
    key: DataKey,
}

impl SnapshotWriter {
    pub fn prepare(&self, snapshot: &raftpb::Snapshot) -> Result<Prepared, Error> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        let (index, term) = (metadata.index(), metadata.term());
        let path = self.folder.join(format!("{PREPARED}{index}"));
        let sealed = self.key.seal(&snapshot.encode_to_vec(), SNAPSHOT.as_bytes())?;
        records::write_new(&path, &sealed, 0o600)?;
        Ok(Prepared { path, index, term })
    }
}

/// One member's log, open for appending.
pub struct RaftLog {
    folder: PathBuf,
    key: DataKey,
    prepared: Option<Prepared>,
    file: File,
    length: u64,
    records: u64,
}

impl RaftLog {
    /// Opens the log in a folder, or begins one. `None` when no member was ever written here.
    pub fn open(folder: &Path, key: DataKey) -> Result<(Self, Option<Recovered>), Error> {
        fs::create_dir_all(folder).map_err(io(folder, "create"))?;
        let path = folder.join(LOG);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io(&path, "open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io(&path, "read"))?;
        let (bodies, length) = read_records(&path, &bytes, &key)?;
        if length < bytes.len() as u64 {
            file.set_len(length).map_err(io(&path, "cut"))?;
            file.sync_all().map_err(io(&path, "synchronise"))?;
        }
        records::sync_folder_of(&path)?;
        remove_prepared(folder)?;
        let snapshot = read_snapshot(&folder.join(SNAPSHOT), &key)?;
        let records = bodies.len() as u64;
        let recovered = recover(bodies, snapshot);
        let folder = folder.to_owned();
        Ok((Self { folder, key, prepared: None, file, length, records }, recovered))
    }

    pub fn snapshot_writer(&self) -> SnapshotWriter {
        SnapshotWriter { folder: self.folder.clone(), key: self.key.clone() }
    }

    /// The snapshot that will be written next is on the disk already.
    pub fn adopt(&mut self, prepared: Prepared) {
        self.drop_prepared();
        self.prepared = Some(prepared);
    }

    fn drop_prepared(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            // A leftover goes when the log is opened again.
            let _best_effort = records::remove(&prepared.path);
        }
    }

    fn put_snapshot(&mut self, snapshot: &raftpb::Snapshot) -> Result<(), Error> {
        let path = self.folder.join(SNAPSHOT);
        if let Some(prepared) = self.prepared.take_if(|prepared| prepared.is(snapshot)) {
            fs::rename(&prepared.path, &path).map_err(io(&path, "rename"))?;
            return records::sync_folder_of(&path);
        }
        self.drop_prepared();
        let sealed = self.key.seal(&snapshot.encode_to_vec(), SNAPSHOT.as_bytes())?;
        records::replace(&path, &sealed, 0o600)
    }

    /// Writes and synchronises; when it returns an error nothing may rely on any part of it, and
    /// the log must be opened anew.
    pub fn write(&mut self, write: &Write) -> Result<(), Error> {
        if let Some(snapshot) = &write.snapshot {
            self.put_snapshot(snapshot)?;
            self.rewrite(write)?;
            return Ok(());
        }
        let body = Body {
            identity: write.identity.clone(),
            entries: write.entries.clone(),
            hard_state: write.hard_state,
            membership: write.membership.clone(),
        };
        if body == Body::default() {
            return Ok(());
        }
        let record = make_record(&self.key, self.records, &body)?;
        let path = self.folder.join(LOG);
        if let Err(error) = self.append(&path, &record) {
            // A record that is half there must not be followed by another one.
            let _best_effort = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += record.len() as u64;
        self.records += 1;
        Ok(())
    }

    fn append(&self, path: &Path, record: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(record, self.length).map_err(io(path, "write"))?;
        self.file.sync_data().map_err(io(path, "synchronise"))
    }

    /// After a snapshot: a new file with what is still needed replaces the old one.
    fn rewrite(&mut self, write: &Write) -> Result<(), Error> {
        let path = self.folder.join(LOG);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(io(&path, "read"))?;
        let (mut bodies, _) = read_records(&path, &bytes, &self.key)?;
        let Write { identity, membership, entries, hard_state, .. } = write.clone();
        bodies.push(Body { identity, entries: Vec::new(), hard_state, membership });
        let mut kept = merge(bodies);
        kept.entries.retain(|entry| entry.index() > write.compact_to);
        put_entries(&mut kept.entries, entries);
        let record = make_record(&self.key, 0, &kept)?;
        records::replace(&path, &record, 0o600)?;
        self.file = OpenOptions::new().write(true).open(&path).map_err(io(&path, "open"))?;
        self.length = record.len() as u64;
        self.records = 1;
        Ok(())
    }

    /// Seals everything with another key: first under a new name, then in place of the old files.
    pub fn change_key(folder: &Path, old: &DataKey, new: &DataKey) -> Result<(), Error> {
        let path = folder.join(LOG);
        let bytes = records::read(&path)?.unwrap_or_default();
        let (bodies, _) = read_records(&path, &bytes, old)?;
        let snapshot = read_snapshot(&folder.join(SNAPSHOT), old)?;
        if let Some(snapshot) = snapshot {
            let sealed = new.seal(&snapshot.encode_to_vec(), SNAPSHOT.as_bytes())?;
            records::replace(&folder.join(SNAPSHOT), &sealed, 0o600)?;
        }
        records::replace(&path, &make_record(new, 0, &merge(bodies))?, 0o600)
    }

    /// The member is no more: its log and its snapshot are worthless.
    pub fn remove(folder: &Path) -> Result<(), Error> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io(folder, "remove")(error))
            }
            _ => Ok(()),
        }
    }
}

/// What was prepared before a crash and never wanted.
fn remove_prepared(folder: &Path) -> Result<(), Error> {
    let names = fs::read_dir(folder).map_err(io(folder, "read"))?.flatten();
    let mut left = names.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREPARED));
    left.try_for_each(|entry| records::remove(&entry.path()))
}

fn make_record(key: &DataKey, number: u64, body: &Body) -> Result<Vec<u8>, Error> {
    let sealed = key.seal(&body.encode_to_vec(), &number.to_be_bytes())?;
    let mut record = Vec::with_capacity(HEAD_BYTES + sealed.len());
    record.extend_from_slice(&(sealed.len() as u32).to_be_bytes());
    record.extend_from_slice(&crc32fast::hash(&sealed).to_be_bytes());
    record.extend_from_slice(&sealed);
    Ok(record)
}

/// The good records and where they end.
fn read_records(path: &Path, bytes: &[u8], key: &DataKey) -> Result<(Vec<Body>, u64), Error> {
    let mut bodies = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let damaged = || Error::Damaged { path: path.to_owned(), offset: at as u64 };
        let Some((sealed, next)) = frame(bytes, at) else {
            // A crash can only have torn the last record: what stands before a good one was
            // damaged later, its length perhaps, so that the good one may be anywhere.
            if holds_record(&bytes[at + 1..]) {
                return Err(damaged());
            }
            break;
        };
        let number = (bodies.len() as u64).to_be_bytes();
        // The checksum is right: it is not torn. Another key, or another file's record.
        let text = key.open(sealed, &number).map_err(|_| match at {
            0 => Error::WrongKey,
            _ => damaged(),
        })?;
        bodies.push(Body::decode(text.as_slice()).map_err(|_| damaged())?);
        at = next;
    }
    Ok((bodies, at as u64))
}

/// The sealed body of the record at an offset, and where the next one begins. `None` when no whole
/// record with the right checksum is there.
fn frame(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (sealed, checksum) = head(bytes, at)?;
    let next = sealed.end;
    let sealed = &bytes[sealed];
    (crc32fast::hash(sealed) == checksum).then_some((sealed, next))
}

/// Where the sealed body would be if a record began at an offset, and the checksum that it would have.
fn head(bytes: &[u8], at: usize) -> Option<(Range<usize>, u32)> {
    let head = bytes.get(at..at + HEAD_BYTES)?;
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let checksum = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let start = at + HEAD_BYTES;
    let fits = (OVERHEAD_BYTES..=RECORD_BYTES_MAX).contains(&length)
        && length <= bytes.len().saturating_sub(start);
    fits.then(|| (start..start + length, checksum))
}

/// Whether a good record begins at any offset. Of 16 MiB that are random to the eye every 512th offset or so claims a
/// length that fits, which is megabytes each: every byte is summed up once, whatever is claimed.
fn holds_record(bytes: &[u8]) -> bool {
    let claims: Vec<_> = (0..bytes.len()).filter_map(|at| head(bytes, at)).collect();
    let sums = Prefixes::of(bytes, claims.iter().flat_map(|(body, _)| [body.start, body.end]));
    claims.into_iter().any(|(body, checksum)| sums.checksum(body) == Some(checksum))
}

fn read_snapshot(path: &Path, key: &DataKey) -> Result<Option<raftpb::Snapshot>, Error> {
    let Some(sealed) = records::read(path)? else { return Ok(None) };
    let text = key.open(&sealed, SNAPSHOT.as_bytes()).map_err(|_| Error::WrongKey)?;
    raftpb::Snapshot::decode(text.as_slice())
        .map(Some)
        .map_err(|error| Error::Unreadable { path: path.to_owned(), detail: error.to_string() })
}

fn merge(bodies: Vec<Body>) -> Body {
    let mut merged = Body::default();
    for body in bodies {
        merged.identity = body.identity.or(merged.identity);
        merged.hard_state = body.hard_state.or(merged.hard_state);
        merged.membership = body.membership.or(merged.membership);
        put_entries(&mut merged.entries, body.entries);
    }
    merged
}

fn put_entries(held: &mut Vec<raftpb::Entry>, new: Vec<raftpb::Entry>) {
    if let Some(first) = new.first() {
        let keep = held.partition_point(|entry| entry.index() < first.index());
        held.truncate(keep);
    }
    held.extend(new);
}

fn recover(bodies: Vec<Body>, snapshot: Option<raftpb::Snapshot>) -> Option<Recovered> {
    let merged = merge(bodies);
    // Only its name was written: it has promised nothing yet, and knows nobody. It joins anew.
    let nothing = merged.membership.is_none() && merged.hard_state.is_none();
    if merged.entries.is_empty() && nothing && snapshot.is_none() {
        return None;
    }
    let mut recovered = Recovered {
        identity: merged.identity?,
        membership: merged.membership.unwrap_or_default(),
        hard_state: merged.hard_state.unwrap_or_default(),
        entries: merged.entries,
        snapshot,
    };
    recovered.forget_what_a_snapshot_replaced();
    Some(recovered)
}

#[cfg(test)]
mod tests;

//! The reading side of container logs: what `docker logs` shows, also while the shim writes and rotates.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::inotify;
use serde::Deserialize;
use tokio::io::unix::AsyncFd;

use super::write::{compressed, numbered};
use super::{LogConfig, LogDriver, LogEntry, LogOptions, LogStream, local};
use crate::error::{Error, ErrorKind, Result};

const CHUNK: usize = 64 * 1024;
/// A json-file line without an end for this long is damage, not a line.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Pieces that are read before the thread that does it looks whether anybody still waits.
const PIECES_AT_ONCE: usize = 64;

/// Reads a container's log files, oldest line first. Files are read on threads of their own: whoever asks for the next
/// line of a long log, or of one from long ago, holds up no other.
pub struct LogReader {
    options: LogOptions,
    ended: tokio::sync::watch::Receiver<bool>,
    watch: Option<AsyncFd<std::os::fd::OwnedFd>>,
    /// Not here while they are read.
    files: Option<Box<Files>>,
    reading: Option<tokio::task::JoinHandle<(Box<Files>, Result<Found>)>>,
    ready: VecDeque<LogEntry>,
    finished: bool,
}

/// What one look into the files gave.
struct Found {
    wanted: VecDeque<LogEntry>,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// There is more to be read.
    Goes,
    /// Nothing more has been written yet.
    Waits,
    /// What follows is later than what is asked for.
    Ends,
}

/// A log's files and how far they are read.
struct Files {
    log: LogConfig,
    options: LogOptions,
    /// Rotated files still to be read, oldest first, with the offset to start from; `None` before the first look.
    older: Option<VecDeque<(File, u64)>>,
    current: Option<Current>,
    buffer: Vec<u8>,
    start: usize,
}

struct Current {
    file: File,
    inode: u64,
    offset: u64,
    live: bool,
}

#[derive(Deserialize)]
struct JsonLine {
    #[serde(default)]
    log: String,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
    #[serde(with = "time::serde::rfc3339")]
    time: time::OffsetDateTime,
}

impl LogReader {
    /// `ended` becomes true (or its sender is dropped) when the container has ended: following stops then.
    pub fn open(
        log: &LogConfig,
        options: LogOptions,
        ended: tokio::sync::watch::Receiver<bool>,
    ) -> Result<LogReader> {
        if log.driver == LogDriver::None {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "configured logging driver does not support reading",
            ));
        }
        // The watch comes before the first look, so that nothing between the two is missed.
        let watch = if options.follow { Some(watch_directory(&log.path)?) } else { None };
        let files = Files {
            log: log.clone(),
            options: options.clone(),
            older: None,
            current: None,
            buffer: Vec::new(),
            start: 0,
        };
        Ok(LogReader {
            options,
            ended,
            watch,
            files: Some(Box::new(files)),
            reading: None,
            ready: VecDeque::new(),
            finished: false,
        })
    }

    /// The next line; `None` at the end. One that is given up half-way loses nothing.
    pub async fn next(&mut self) -> Result<Option<LogEntry>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if self.finished {
                return Ok(None);
            }
            // Asked before reading: what is written before the end is then surely read.
            let ended = *self.ended.borrow() || self.ended.has_changed().is_err();
            let found = self.read().await?;
            self.ready = found.wanted;
            match found.then {
                Then::Goes => {}
                Then::Waits if self.options.follow && !ended => {
                    if self.ready.is_empty() {
                        self.wait().await?;
                    }
                }
                Then::Waits | Then::Ends => self.finished = true,
            }
        }
    }

    async fn read(&mut self) -> Result<Found> {
        if let Some(files) = self.files.take() {
            self.reading = Some(tokio::task::spawn_blocking(move || files.read()));
        }
        let given_up = || Error::new(ErrorKind::System, "log file not read: its reader has failed");
        let reading = self.reading.as_mut().ok_or_else(given_up)?;
        let read = reading.await;
        self.reading = None;
        let (files, found) = read.map_err(|e| Error::system("log file not read", e))?;
        self.files = Some(files);
        found
    }

    /// Until the directory changes or the container ends.
    async fn wait(&mut self) -> Result<()> {
        let Some(watch) = &self.watch else { return Ok(()) };
        let until =
            self.options.until.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let deadline = async move {
            match until {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.ended.changed() => {}
            _ = deadline => self.finished = true,
            ready = watch.readable() => {
                let mut guard = ready.map_err(|e| Error::system("log watch failed", e))?;
                let mut space = [std::mem::MaybeUninit::uninit(); 4096];
                let mut events = inotify::Reader::new(guard.get_inner(), &mut space);
                while events.next().is_ok() {}
                guard.clear_ready();
            }
        }
        Ok(())
    }
}

impl Files {
    /// Blocks: the lines of a few pieces that are asked for.
    fn read(mut self: Box<Self>) -> (Box<Self>, Result<Found>) {
        let found = self.look();
        (self, found)
    }

    fn look(&mut self) -> Result<Found> {
        let mut wanted = VecDeque::new();
        for _ in 0..PIECES_AT_ONCE {
            let more = self.fill()?;
            let all = !more && !self.options.follow;
            while let Some(entry) = self.take_entry(all) {
                if self.options.until.is_some_and(|until| entry.at > until) {
                    return Ok(Found { wanted, then: Then::Ends });
                }
                let asked = match entry.stream {
                    LogStream::Stdout => self.options.stdout,
                    LogStream::Stderr => self.options.stderr,
                };
                if asked && self.options.since.is_none_or(|since| entry.at >= since) {
                    wanted.push_back(entry);
                }
            }
            if !more {
                return Ok(Found { wanted, then: Then::Waits });
            }
            if !wanted.is_empty() {
                break;
            }
        }
        Ok(Found { wanted, then: Then::Goes })
    }

    /// Reads a further piece; false when there is nothing more yet.
    fn fill(&mut self) -> Result<bool> {
        let failed = |e: std::io::Error| Error::system("log file not read", e);
        let older = match &mut self.older {
            Some(older) => older,
            none => none.insert(open_files(&self.log, self.options.tail)?),
        };
        loop {
            if self.current.is_none() {
                let (mut file, offset, live) = match older.pop_front() {
                    Some((file, offset)) => (file, offset, older.is_empty()),
                    None => match File::open(&self.log.path) {
                        Ok(file) => (file, 0, true),
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                        Err(e) => return Err(failed(e)),
                    },
                };
                file.seek(SeekFrom::Start(offset)).map_err(failed)?;
                let inode = file.metadata().map_err(failed)?.ino();
                self.current = Some(Current { file, inode, offset, live });
            }
            let Some(current) = &mut self.current else { return Ok(false) };
            if self.start > 0 {
                self.buffer.drain(..self.start);
                self.start = 0;
            }
            if self.buffer.len() > ENTRY_BYTES_MAX {
                self.buffer.clear();
            }
            let old = self.buffer.len();
            self.buffer.resize(old + CHUNK, 0);
            let read = current.file.read(&mut self.buffer[old..]);
            let count = *read.as_ref().unwrap_or(&0);
            self.buffer.truncate(old + count);
            read.map_err(failed)?;
            current.offset += count as u64;
            if count > 0 {
                return Ok(true);
            }
            if !current.live {
                self.current = None;
                self.buffer.clear();
                continue;
            }
            match std::fs::metadata(&self.log.path) {
                // Rotated away: the rest of the old file has been read above.
                Ok(meta) if meta.ino() != current.inode => {
                    self.current = None;
                    self.buffer.clear();
                }
                Ok(meta) if meta.len() < current.offset => {
                    current.file.seek(SeekFrom::Start(0)).map_err(failed)?;
                    current.offset = 0;
                    self.buffer.clear();
                }
                _ => return Ok(false),
            }
        }
    }

    /// A complete entry from the buffer; damaged ones are passed over. When that is all there is, no further bytes will
    /// complete what is not.
    fn take_entry(&mut self, all: bool) -> Option<LogEntry> {
        loop {
            let data = &self.buffer[self.start..];
            match self.log.driver {
                LogDriver::Local => match local::decode(data) {
                    Ok(Some((used, stream, at, line))) => {
                        self.start += used;
                        return Some(LogEntry { stream, at, line, attrs: BTreeMap::new() });
                    }
                    Ok(None) if !all || data.is_empty() => return None,
                    Ok(None) | Err(()) => self.start += 1,
                },
                _ => {
                    let end = data.iter().position(|b| *b == b'\n')?;
                    let parsed = serde_json::from_slice::<JsonLine>(&data[..end]);
                    self.start += end + 1;
                    let Ok(line) = parsed else { continue };
                    let stream =
                        if line.stream == "stderr" { LogStream::Stderr } else { LogStream::Stdout };
                    return Some(LogEntry {
                        stream,
                        at: line.time.into(),
                        line: line.log.into_bytes(),
                        attrs: line.attrs,
                    });
                }
            }
        }
    }
}

fn watch_directory(path: &Path) -> Result<AsyncFd<std::os::fd::OwnedFd>> {
    let failed = |e: std::io::Error| Error::system("log directory not watched", e);
    let dir = path.parent().unwrap_or(Path::new("/"));
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|e| failed(e.into()))?;
    let what =
        inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&fd, dir, what).map_err(|e| failed(e.into()))?;
    // SAFETY: the descriptor is owned by the AsyncFd and open for as long as it lives.
    unsafe { AsyncFd::register(fd) }.map_err(|e| failed(e.into_parts().1))
}

/// The files to read, oldest first, each with its offset; with `tail` only as far back as needed.
fn open_files(log: &LogConfig, tail: Option<usize>) -> Result<VecDeque<(File, u64)>> {
    let mut files = VecDeque::new();
    let mut left = tail.unwrap_or(usize::MAX);
    for n in 0..log.max_file.max(1) {
        let path = if n == 0 { log.path.clone() } else { numbered(&log.path, n) };
        let opened = open_any(&path)
            .map_err(|e| Error::system(format!("log file {} not opened", path.display()), e))?;
        let Some(mut file) = opened else { continue };
        let offset = if tail.is_some() {
            let (offset, found) = match log.driver {
                LogDriver::Local => local::tail(&file, left)
                    .map(|(starts, end)| (starts.front().copied().unwrap_or(end), starts.len())),
                _ => tail_lines(&mut file, left),
            }
            .map_err(|e| Error::system("log file not read", e))?;
            left -= found.min(left);
            offset
        } else {
            0
        };
        files.push_front((file, offset));
        if tail.is_some() && left == 0 {
            break;
        }
    }
    Ok(files)
}

/// The file, or what its compressed form holds, in a file without a name.
fn open_any(path: &Path) -> std::io::Result<Option<File>> {
    use rustix::fs::{Mode, OFlags};
    let found = |opened: std::io::Result<File>| match opened {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    };
    if let Some(file) = found(File::open(path))? {
        return Ok(Some(file));
    }
    let Some(packed) = found(File::open(compressed(path)))? else { return Ok(None) };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let plain = rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600))?;
    let mut plain = File::from(plain);
    // A shim that was killed may have left half a file: what is whole of it is shown.
    match std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut plain) {
        Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => return Err(e),
        _ => {}
    }
    plain.seek(SeekFrom::Start(0))?;
    Ok(Some(plain))
}

/// Offset of the last `want` lines, and how many there are from it on.
fn tail_lines(file: &mut File, want: usize) -> std::io::Result<(u64, usize)> {
    let end = file.seek(SeekFrom::End(0))?;
    let mut position = end;
    let mut newlines = 0;
    let mut chunk = vec![0; CHUNK];
    if want == 0 {
        return Ok((end, 0));
    }
    while position > 0 {
        let size = position.min(CHUNK as u64);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let piece = &mut chunk[..size as usize];
        file.read_exact(piece)?;
        for at in (0..piece.len()).rev() {
            if piece[at] == b'\n' {
                newlines += 1;
                if newlines == want + 1 {
                    return Ok((position + at as u64 + 1, want));
                }
            }
        }
    }
    Ok((0, newlines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_while_a_long_log_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let line =
            |time| format!("{{\"log\":\"l\\n\",\"stream\":\"stdout\",\"time\":\"{time}\"}}\n");
        let old = line("2001-01-01T00:00:00Z").repeat(200_000);
        std::fs::write(&path, old + &line("2002-01-01T00:00:00Z")).unwrap();
        let log = LogConfig { path, ..LogConfig::default() };
        let since = time::OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap();
        let options =
            LogOptions { stdout: true, since: Some(since.into()), ..LogOptions::default() };
        let ended = tokio::sync::watch::channel(true).1;
        let mut reader = LogReader::open(&log, options, ended).unwrap();
        tokio::select! {
            biased;
            _ = reader.next() => panic!("it was read at once"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(reader.next().await.unwrap().unwrap().line, b"l\n");
        assert!(reader.next().await.unwrap().is_none());
    }

    /// The shim was killed, or the disk was full, in the middle of a write: its container is started again.
    #[tokio::test]
    async fn what_follows_a_torn_entry_is_read() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = LogConfig { driver: LogDriver::Local, path, ..LogConfig::default() };
        let write = |line: &[u8]| {
            let mut writer = crate::logs::write::LogWriter::open(&log).unwrap();
            writer.entry(LogStream::Stdout, line, SystemTime::now());
            writer.flush();
        };
        let read = async |tail| {
            let options = LogOptions { stdout: true, tail, ..LogOptions::default() };
            let ended = tokio::sync::watch::channel(true).1;
            let mut reader = LogReader::open(&log, options, ended).unwrap();
            let mut text = Vec::new();
            while let Some(entry) = reader.next().await.unwrap() {
                text.extend(entry.line);
            }
            String::from_utf8(text).unwrap()
        };
        write(b"one\n");
        let whole = std::fs::read(&log.path).unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(&log.path).unwrap();
        file.write_all(&whole[..whole.len() / 2]).unwrap();
        assert_eq!(read(Some(1)).await, "one\n", "while nobody writes");
        write(b"two\n");
        assert_eq!(read(None).await, "one\ntwo\n");
        assert_eq!(read(Some(5)).await, "one\ntwo\n");
        // As a version that did not cut it off has left it.
        file.write_all(&whole[..whole.len() / 2]).unwrap();
        file.write_all(&whole).unwrap();
        assert_eq!(read(None).await, "one\ntwo\none\n");
    }
}

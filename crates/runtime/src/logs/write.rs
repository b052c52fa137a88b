//! The writing side of container logs: lines into files, rotated by size. Runs inside the shim, or in its log process.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{LogConfig, LogDriver, LogStream, local};
use crate::shim::sys;

/// Docker cuts lines at this length; the rest is a further entry without the newline before it.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Makes lines of what was read: an entry of a log is a line, or a piece of one that is too long.
#[derive(Default)]
pub struct Lines {
    partial: [Vec<u8>; 2],
}

impl Lines {
    /// Gives every line that is complete with this.
    pub fn split(&mut self, stream: LogStream, mut data: &[u8], mut entry: impl FnMut(&[u8])) {
        let partial = &mut self.partial[stream as usize];
        while !data.is_empty() {
            let room = LINE_BYTES_MAX - partial.len();
            let window = &data[..data.len().min(room)];
            let (take, ends) = match window.iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (window.len(), window.len() == room),
            };
            let (head, rest) = data.split_at(take);
            data = rest;
            if !ends {
                partial.extend_from_slice(head);
            } else if partial.is_empty() {
                entry(head);
            } else {
                let mut line = std::mem::take(partial);
                line.extend_from_slice(head);
                entry(&line);
            }
        }
    }

    /// The stream has ended: what is left without a newline.
    pub fn rest(&mut self, stream: LogStream) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.partial[stream as usize])).filter(|line| !line.is_empty())
    }
}

/// Takes a container's lines and keeps them.
pub struct LogWriter {
    driver: LogDriver,
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_size: u64,
    max_file: u32,
    compress: bool,
    /// The process that compresses the file rotated last.
    compressing: Option<i32>,
    /// `"attrs":{...},` or nothing.
    attrs: String,
    out: Vec<u8>,
}

impl LogWriter {
    pub fn open(config: &LogConfig) -> io::Result<LogWriter> {
        let attrs = if config.attrs.is_empty() {
            String::new()
        } else {
            format!(
                "\"attrs\":{},",
                serde_json::to_string(&config.attrs).map_err(io::Error::other)?
            )
        };
        let mut writer = LogWriter {
            driver: config.driver,
            path: config.path.clone(),
            file: None,
            size: 0,
            max_size: config.max_size,
            max_file: config.max_file.max(1),
            compress: config.compress,
            compressing: None,
            attrs,
            out: Vec::new(),
        };
        if writer.driver != LogDriver::None {
            if let Some(dir) = writer.path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            writer.reopen()?;
        }
        Ok(writer)
    }

    /// One entry; [`LogWriter::flush`] brings it to the file.
    pub fn entry(&mut self, stream: LogStream, line: &[u8], at: SystemTime) {
        if self.max_size > 0 && self.size + self.out.len() as u64 >= self.max_size {
            self.flush();
            // A log that cannot be rotated goes on in the old file.
            let _ = self.rotate();
        }
        match self.driver {
            LogDriver::JsonFile => json_entry(&mut self.out, stream, line, at, &self.attrs),
            LogDriver::Local => local::encode(&mut self.out, stream, line, at),
            LogDriver::None => {}
        }
    }

    /// One write for what was read at once keeps a busy container's log cheap.
    pub fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if let Some(file) = &mut self.file {
            match file.write_all(&self.out) {
                Ok(()) => self.size += self.out.len() as u64,
                // A full disk must not stop the container: the lines are lost, as in Docker. Half a line must not
                // stay either: it would spoil the first one after there is room again.
                Err(_) => drop(file.set_len(self.size)),
            }
        }
        self.out.clear();
        if self.out.capacity() > 4096 {
            self.out = Vec::new();
        }
    }

    /// A child of this process has ended and was waited for: its number may be another's from now on.
    pub fn reaped(&mut self, process: i32) {
        self.compressing = self.compressing.filter(|compressing| *compressing != process);
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.max_file > 1 {
            // Its file gets another name now.
            if let Some(process) = self.compressing.take() {
                let _ = sys::wait_for(process);
            }
            for n in (1..self.max_file - 1).rev() {
                rotate_file(&self.path, n)?;
            }
            let rotated = numbered(&self.path, 1);
            rename_if_there(&self.path, &rotated)?;
            if let Err(error) = self.reopen() {
                rename_if_there(&rotated, &self.path)?;
                return Err(error);
            }
            if self.compress {
                // Without a process for it the file stays as it is.
                self.compressing = compress_apart(&rotated).ok();
            }
            Ok(())
        } else {
            // Readers that follow see the file shrink.
            OpenOptions::new().write(true).truncate(true).open(&self.path)?;
            self.reopen()
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.create(true).read(true).append(true).mode(0o640).open(&self.path)?;
        match self.driver {
            LogDriver::JsonFile => cut_torn_line(&file)?,
            LogDriver::Local => cut_torn_entry(&file)?,
            LogDriver::None => {}
        }
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}

/// `<path>.<n>`: a rotated log's n-th file, 1 being the newest.
pub fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

/// The n-th rotated file becomes the next one, compressed or not; what has that name goes.
fn rotate_file(path: &Path, n: u32) -> io::Result<()> {
    let (from, to) = (numbered(path, n), numbered(path, n + 1));
    // After a rotation that failed there is a gap, which must not travel up to the oldest file.
    if !from.exists() && !compressed(&from).exists() {
        return Ok(());
    }
    for stale in [&to, &compressed(&to)] {
        remove_if_there(stale)?;
    }
    rename_if_there(&from, &to)?;
    rename_if_there(&compressed(&from), &compressed(&to))
}

/// `<file>.gz`
pub fn compressed(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    PathBuf::from(name)
}

/// In a process of its own: the container's output is not to wait for it.
fn compress_apart(file: &Path) -> io::Result<i32> {
    match sys::fork()? {
        Some(process) => Ok(process),
        None => {
            // Whoever waits for the end of what the shim holds is not to wait for this.
            sys::close_from(3);
            sys::exit_now(i32::from(compress(file).is_err()))
        }
    }
}

/// Replaces a file by its compressed form, which appears as a whole.
fn compress(file: &Path) -> io::Result<()> {
    let (whole, partial) = (compressed(file), compressed(&file.with_extension("partial")));
    let to =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&partial)?;
    let mut to = flate2::write::GzEncoder::new(to, flate2::Compression::default());
    io::copy(&mut File::open(file)?, &mut to)?;
    to.finish()?;
    std::fs::rename(partial, whole)?;
    std::fs::remove_file(file)
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A shim that was killed in the middle of a write may have left half an entry.
fn cut_torn_entry(file: &File) -> io::Result<()> {
    let end = local::tail(file, 1)?.1;
    if end < file.metadata()?.len() { file.set_len(end) } else { Ok(()) }
}

/// What a shim that was killed, or a host that lost power, left of its last line.
fn cut_torn_line(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    // The longest line, each of its bytes escaped, and what stands around it.
    let look = length.min(8 * LINE_BYTES_MAX as u64);
    let mut tail = vec![0; look as usize];
    file.read_exact_at(&mut tail, length - look)?;
    match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => file.set_len(length - look + at as u64 + 1),
        None if look == length => file.set_len(0),
        None => Ok(()),
    }
}

/// One line of the json-file format.
fn json_entry(out: &mut Vec<u8>, stream: LogStream, line: &[u8], at: SystemTime, attrs: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, line);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",");
    out.extend_from_slice(attrs.as_bytes());
    out.extend_from_slice(b"\"time\":\"");
    rfc3339_nano(out, at);
    out.extend_from_slice(b"\"}\n");
}

/// JSON string contents as Go's encoder writes them: HTML characters and U+2028/9 escaped, bad UTF-8 replaced.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                    let _ = write!(out, "\\u{:04x}", c as u32);
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for _ in 0..chunk.invalid().len() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

/// RFC 3339 with as many digits as needed, in UTC, as Go's RFC3339Nano.
pub fn rfc3339_nano(out: &mut Vec<u8>, at: SystemTime) {
    let t = time::OffsetDateTime::from(at);
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    );
    if t.nanosecond() > 0 {
        let digits = format!(".{:09}", t.nanosecond());
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
    out.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_somebody_else_has_waited_for_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut writer = LogWriter::open(&LogConfig { path, ..Default::default() }).unwrap();
        writer.compressing = Some(7);
        writer.reaped(8);
        assert_eq!(writer.compressing, Some(7));
        writer.reaped(7);
        assert_eq!(
            writer.compressing, None,
            "another child may have its number at the next rotation"
        );
    }

    #[test]
    fn a_rotation_that_failed_costs_no_older_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(numbered(&path, 2), "old").unwrap();
        std::fs::write(compressed(&numbered(&path, 3)), "older").unwrap();
        // Nothing has become the first one: it is still under the log's own name.
        rotate_file(&path, 1).unwrap();
        assert_eq!(std::fs::read_to_string(numbered(&path, 2)).unwrap(), "old");
        rotate_file(&path, 3).unwrap();
        rotate_file(&path, 2).unwrap();
        assert_eq!(std::fs::read_to_string(numbered(&path, 3)).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(compressed(&numbered(&path, 4))).unwrap(), "older");
    }
}

//! The `local` driver's entries: length, protobuf `LogEntry`, length again, as Docker writes them.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::LogStream;

/// Larger than any entry the writer makes; guards the reader against damaged files.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// source = 1, time_nano = 2, line = 3, partial = 4. The line is kept without its newline.
pub fn encode(out: &mut Vec<u8>, stream: LogStream, line: &[u8], at: SystemTime) {
    let whole = line.last() == Some(&b'\n');
    let text = if whole { &line[..line.len() - 1] } else { line };
    let nanos = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let mut message = Vec::with_capacity(text.len() + 32);
    field_bytes(&mut message, 1, stream.name().as_bytes());
    message.push(2 << 3);
    varint(&mut message, nanos);
    field_bytes(&mut message, 3, text);
    if !whole {
        message.extend_from_slice(&[4 << 3, 1]);
    }
    let length = (message.len() as u32).to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&message);
    out.extend_from_slice(&length);
}

/// The first byte of every entry's message: the key of `source`.
const FIRST: u8 = 1 << 3 | 2;

/// One entry from the front: (bytes used, stream, time, line). `Ok(None)`: not complete yet. An error: no entry begins
/// here; the next one may begin a byte further on, as both lengths and the message make sure of it.
pub fn decode(data: &[u8]) -> Result<Option<(usize, LogStream, SystemTime, Vec<u8>)>, ()> {
    let Some(head) = data.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if !(2..=ENTRY_BYTES_MAX).contains(&length) || data.get(4).is_some_and(|key| *key != FIRST) {
        return Err(());
    }
    if data.len() < length + 8 {
        return Ok(None);
    }
    if data[4 + length..length + 8] != *head {
        return Err(());
    }
    let mut rest = &data[4..4 + length];
    let (mut stream, mut nanos, mut line, mut partial) = (LogStream::Stdout, 0, Vec::new(), false);
    while !rest.is_empty() {
        let key = read_varint(&mut rest)?;
        match (key >> 3, key & 7) {
            (number, 2) => {
                let size = read_varint(&mut rest)? as usize;
                let bytes = rest.get(..size).ok_or(())?;
                rest = &rest[size..];
                match number {
                    1 if bytes == b"stderr" => stream = LogStream::Stderr,
                    3 => line = bytes.to_vec(),
                    _ => {}
                }
            }
            (number, 0) => {
                let value = read_varint(&mut rest)?;
                match number {
                    2 => nanos = value,
                    4 => partial = value != 0,
                    _ => {}
                }
            }
            _ => return Err(()),
        }
    }
    if !partial {
        line.push(b'\n');
    }
    Ok(Some((length + 8, stream, UNIX_EPOCH + Duration::from_nanos(nanos), line)))
}

/// Where the last `want` entries of a file begin, and where the last one ends. What is torn (the host lost power, the
/// disk was full) is passed over.
pub fn tail(file: &File, want: usize) -> std::io::Result<(VecDeque<u64>, u64)> {
    let end = file.metadata()?.len();
    let mut starts = VecDeque::new();
    let mut position = end;
    while starts.len() < want && position > 0 {
        match entry_before(file, position)? {
            Some(start) => position = start,
            None => return tail_from_beginning(file, want),
        }
        starts.push_front(position);
    }
    Ok((starts, end))
}

/// The beginning of the entry that ends there, by its lengths.
fn entry_before(file: &File, end: u64) -> std::io::Result<Option<u64>> {
    let (mut head, mut foot) = ([0; 5], [0; 4]);
    let Some(at) = end.checked_sub(4) else { return Ok(None) };
    file.read_exact_at(&mut foot, at)?;
    let length = u32::from_be_bytes(foot);
    let start = at.checked_sub(u64::from(length) + 4).filter(|_| length >= 2);
    let Some(start) = start else { return Ok(None) };
    file.read_exact_at(&mut head, start)?;
    Ok((head[..4] == foot && head[4] == FIRST).then_some(start))
}

fn tail_from_beginning(file: &File, want: usize) -> std::io::Result<(VecDeque<u64>, u64)> {
    let (mut starts, mut end) = (VecDeque::new(), 0);
    let (mut offset, mut buffer, mut chunk) = (0, Vec::new(), vec![0; 64 * 1024]);
    loop {
        let count = file.read_at(&mut chunk, offset + buffer.len() as u64)?;
        buffer.extend_from_slice(&chunk[..count]);
        let mut at = 0;
        while at < buffer.len() {
            match decode(&buffer[at..]) {
                Ok(Some((used, ..))) => {
                    starts.push_back(offset + at as u64);
                    if starts.len() > want {
                        starts.pop_front();
                    }
                    at += used;
                    end = offset + at as u64;
                }
                Ok(None) if count > 0 => break,
                Ok(None) | Err(()) => at += 1,
            }
        }
        if count == 0 {
            return Ok((starts, end));
        }
        buffer.drain(..at);
        offset += at as u64;
    }
}

fn field_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varint(data: &mut &[u8]) -> Result<u64, ()> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = data.split_first().ok_or(())?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn entry(line: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, LogStream::Stdout, line.as_bytes(), SystemTime::now());
        out
    }

    #[test]
    fn whole_entries_are_found_around_torn_ones() {
        let mut file = tempfile::tempfile().expect("a file");
        let mut begins = Vec::new();
        let mut end = 0;
        // Cut in its message, in its last length, in its first one; a block that the disk lost.
        for torn in [&entry("cut\n")[..9], &entry("cut\n")[..20], &[0, 0], &[0; 4096]] {
            for line in ["one\n", "two\n"] {
                begins.push(end);
                file.write_all(&entry(line)).expect("written");
                end = file.metadata().expect("known").len();
            }
            file.write_all(torn).expect("written");
            assert_eq!(tail(&file, 100).expect("read"), (begins.clone().into(), end));
            assert_eq!(tail(&file, 1).expect("read"), ([begins[begins.len() - 1]].into(), end));
            end = file.metadata().expect("known").len();
        }
    }
}

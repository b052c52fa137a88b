//! The `local` driver's entries: length, protobuf `LogEntry`, length again, as Docker writes them.

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

/// One entry from the front: (bytes used, stream, time, line). `Ok(None)`: not complete yet.
pub fn decode(data: &[u8]) -> Result<Option<(usize, LogStream, SystemTime, Vec<u8>)>, ()> {
    let Some(head) = data.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > ENTRY_BYTES_MAX {
        return Err(());
    }
    if data.len() < length + 8 {
        return Ok(None);
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

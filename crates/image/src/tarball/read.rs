//! Reads a tar stream entry by entry: ustar, GNU long names, PAX; sizes and checksums are believed only after a check.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind, SPECIAL_BYTES_MAX};

/// Takes every byte of the stream that is not file content, in order.
pub trait RawSink {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl RawSink for () {
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Takes a file's content.
pub trait PayloadSink {
    fn payload(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl<W: Write> PayloadSink for W {
    fn payload(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
}

pub struct Reader<R, S> {
    from: R,
    pub sink: S,
    /// Content of the present entry not read yet.
    left: u64,
    padding: usize,
    ended: bool,
    buffer: Vec<u8>,
}

/// Extended header values that replace the next header's.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

impl<R: Read, S: RawSink> Reader<R, S> {
    pub fn new(from: R, sink: S) -> Self {
        Self { from, sink, left: 0, padding: 0, ended: false, buffer: vec![0; 128 << 10] }
    }

    /// The next entry; what was left of the last one's content goes to the raw sink.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        self.skip_rest()?;
        if self.ended {
            return Ok(None);
        }
        let mut extended = Extended::default();
        // Of all extended headers before one entry: there may be any number.
        let mut room = SPECIAL_BYTES_MAX;
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let size =
                number(&header[124..136]).ok_or_else(|| bad("tar: invalid size in a header"))?;
            match header[156] {
                b'g' => drop(self.special(size, &mut room)?),
                b'x' => read_pax(&self.special(size, &mut room)?, &mut extended)?,
                b'L' => extended.path = Some(until_nul(&self.special(size, &mut room)?)),
                b'K' => extended.link = Some(until_nul(&self.special(size, &mut room)?)),
                b'S' => {
                    return Err(bad(
                        "tar: sparse files are not supported; write the archive without --sparse",
                    ));
                }
                _ => {
                    let entry = entry(&header, size, extended)?;
                    self.left = entry.size;
                    self.padding = padding(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The present entry's content.
    pub fn payload(&mut self, to: &mut impl PayloadSink) -> io::Result<()> {
        while self.left > 0 {
            let want = self.left.min(self.buffer.len() as u64) as usize;
            let count = self.from.read(&mut self.buffer[..want])?;
            if count == 0 {
                return Err(unexpected_end());
            }
            to.payload(&self.buffer[..count])?;
            self.left -= count as u64;
        }
        Ok(())
    }

    /// A part of the present entry's content; 0 at its end.
    pub fn read_payload(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        match self.from.read(&mut buffer[..want])? {
            0 => Err(unexpected_end()),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }

    /// Everything after the last entry: padding that belongs to the stream's digest.
    pub fn finish(mut self) -> io::Result<(R, S)> {
        self.skip_rest()?;
        loop {
            match self.from.read(&mut self.buffer)? {
                0 => return Ok((self.from, self.sink)),
                count => self.sink.raw(&self.buffer[..count])?,
            }
        }
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let mut rest = self.left + self.padding as u64;
        (self.left, self.padding) = (0, 0);
        while rest > 0 {
            let want = rest.min(self.buffer.len() as u64) as usize;
            let count = self.from.read(&mut self.buffer[..want])?;
            if count == 0 {
                return Err(unexpected_end());
            }
            self.sink.raw(&self.buffer[..count])?;
            rest -= count as u64;
        }
        Ok(())
    }

    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.block(true)? else {
            self.ended = true;
            return Ok(None);
        };
        if block.iter().all(|&byte| byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let stored = number(&block[148..156]).ok_or_else(|| bad("tar: invalid header"))?;
        let unsigned: u64 = (0..BLOCK)
            .map(|at| if (148..156).contains(&at) { 32 } else { u64::from(block[at]) })
            .sum();
        let signed: i64 = (0..BLOCK)
            .map(|at| if (148..156).contains(&at) { 32 } else { i64::from(block[at] as i8) })
            .sum();
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return Err(bad("tar: invalid header: the checksum does not match"));
        }
        Ok(Some(block))
    }

    fn block(&mut self, may_end: bool) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.from.read(&mut block[filled..])? {
                0 if filled == 0 && may_end => return Ok(None),
                0 => return Err(unexpected_end()),
                count => filled += count,
            }
        }
        self.sink.raw(&block)?;
        Ok(Some(block))
    }

    /// A long name or an extended header.
    fn special(&mut self, size: u64, room: &mut u64) -> io::Result<Vec<u8>> {
        *room = room.checked_sub(size).ok_or_else(|| {
            bad(format!(
                "tar: the extended headers of one entry are larger than {SPECIAL_BYTES_MAX} bytes"
            ))
        })?;
        let mut content = Vec::with_capacity(size as usize);
        while (content.len() as u64) < size {
            match self.block(false)? {
                Some(block) => content.extend_from_slice(&block),
                None => return Err(unexpected_end()),
            }
        }
        content.truncate(size as usize);
        Ok(content)
    }
}

fn unexpected_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF")
}

fn padding(size: u64) -> usize {
    (BLOCK as u64 - size % BLOCK as u64) as usize % BLOCK
}

fn entry(header: &[u8; BLOCK], size: u64, extended: Extended) -> io::Result<Entry> {
    let ustar = &header[257..263] == b"ustar\0";
    let field = |range: std::ops::Range<usize>| number(&header[range]);
    let mut path = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    if ustar && !prefix.is_empty() {
        path = [prefix.as_slice(), b"/", &path].concat();
    }
    let path = extended.path.unwrap_or(path);
    let kind = match header[156] {
        b'0' | b'7' => Kind::File,
        0 if path.ends_with(b"/") => Kind::Directory,
        0 => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    };
    let id = |value: Option<u64>, what: &str| {
        value
            .and_then(|value| u32::try_from(value).ok())
            .ok_or_else(|| bad(format!("tar: invalid {what} in a header")))
    };
    let device = matches!(kind, Kind::Char | Kind::Block);
    let size = extended.size.unwrap_or(size);
    if size > i64::MAX as u64 {
        return Err(bad("tar: invalid size in a header"));
    }
    Ok(Entry {
        kind,
        link: extended.link.unwrap_or_else(|| until_nul(&header[157..257])),
        mode: (field(100..108).ok_or_else(|| bad("tar: invalid mode in a header"))? & 0o7777)
            as u32,
        uid: extended.uid.map_or_else(|| id(field(108..116), "owner"), Ok)?,
        gid: extended.gid.map_or_else(|| id(field(116..124), "group"), Ok)?,
        // A link carries no content whatever its size field says; some writers put the target's size there.
        size: if matches!(kind, Kind::File | Kind::Other(_)) { size } else { 0 },
        mtime: extended.mtime.unwrap_or((signed(&header[136..148]), 0)),
        major: if device { id(field(329..337), "device")? } else { 0 },
        minor: if device { id(field(337..345), "device")? } else { 0 },
        xattrs: extended.xattrs,
        path,
    })
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

/// Octal text, or base 256 when the top bit is set; an empty field is 0.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..].iter().try_fold(first, |value, &byte| {
            (value >> 55 == 0).then_some(value << 8 | u64::from(byte))
        });
    }
    let text: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|&byte| byte != 0 && byte != b' ')
        .collect();
    text.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'7' if value >> 61 == 0 => Some(value << 3 | u64::from(digit - b'0')),
        _ => None,
    })
}

/// A time; before 1970 it is a negative base-256 number. An unreadable time is 1970.
fn signed(field: &[u8]) -> i64 {
    if field[0] == 0xff {
        return field[1..].iter().fold(-1i64, |value, &byte| value << 8 | i64::from(byte));
    }
    number(field).and_then(|value| i64::try_from(value).ok()).unwrap_or(0)
}

/// Records of the form `<length> <key>=<value>\n`.
fn read_pax(mut content: &[u8], into: &mut Extended) -> io::Result<()> {
    let broken = || bad("tar: invalid extended header");
    while !content.is_empty() {
        let space = content.iter().position(|&byte| byte == b' ').ok_or_else(broken)?;
        let length: usize = text(&content[..space]).parse().map_err(|_| broken())?;
        if length <= space + 1 || length > content.len() || content[length - 1] != b'\n' {
            return Err(broken());
        }
        let record = &content[space + 1..length - 1];
        content = &content[length..];
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(broken)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => into.path = Some(value.to_vec()),
            b"linkpath" => into.link = Some(value.to_vec()),
            b"size" => into.size = Some(text(value).parse().map_err(|_| broken())?),
            b"uid" => into.uid = Some(text(value).parse().map_err(|_| broken())?),
            b"gid" => into.gid = Some(text(value).parse().map_err(|_| broken())?),
            b"mtime" => into.mtime = Some(pax_time(value).ok_or_else(broken)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(bad(
                    "tar: sparse files are not supported; write the archive without --sparse",
                ));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    into.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    let has_nul = |value: &Option<Vec<u8>>| value.as_ref().is_some_and(|value| value.contains(&0));
    if has_nul(&into.path) || has_nul(&into.link) {
        return Err(broken());
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let value = text(value);
    let (seconds, fraction) = value.split_once('.').unwrap_or((&value, ""));
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    Some(match negative && nanos > 0 {
        true => (seconds.checked_sub(1)?, 1_000_000_000 - nanos),
        false => (seconds, nanos),
    })
}

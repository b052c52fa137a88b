//! The little of msgpack that memberlist uses: flat maps, in the old specification, where strings
//! and bytes are both "raw". Written here because no crate writes the old form or reads raw bytes as text.

use super::Malformed;

/// No struct of memberlist has more than seven fields; later ones may add some.
const FIELDS_MAX: u32 = 64;
/// Values that are skipped may be nested this deep.
const DEPTH_MAX: u32 = 8;

/// A map's field values by name.
pub(super) struct Fields<'b>(Vec<(&'b [u8], Value<'b>)>);

#[derive(Clone, Copy)]
enum Value<'b> {
    Nil,
    Bool(bool),
    Number(u64),
    Raw(&'b [u8]),
    /// Of a kind that no field has: floats, negative numbers, arrays, maps.
    Other,
}

impl<'b> Fields<'b> {
    /// Of a name that is there twice the later one; there are too few to search otherwise.
    fn get(&self, name: &str) -> Option<Value<'b>> {
        let mut fields = self.0.iter().rev();
        fields.find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| *value)
    }

    /// A number; absent and nil are 0, as in Go.
    pub fn number<N: TryFrom<u64> + Default>(&self, name: &str) -> Result<N, Malformed> {
        match self.get(name) {
            None | Some(Value::Nil) => Ok(N::default()),
            Some(Value::Number(number)) => N::try_from(number).map_err(|_| Malformed),
            Some(_) => Err(Malformed),
        }
    }

    pub fn bool(&self, name: &str) -> Result<bool, Malformed> {
        match self.get(name) {
            None | Some(Value::Nil) => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(Malformed),
        }
    }

    pub fn raw(&self, name: &str) -> Result<&'b [u8], Malformed> {
        match self.get(name) {
            None | Some(Value::Nil) => Ok(&[]),
            Some(Value::Raw(bytes)) => Ok(bytes),
            Some(_) => Err(Malformed),
        }
    }

    pub fn text(&self, name: &str) -> Result<String, Malformed> {
        String::from_utf8(self.raw(name)?.to_vec()).map_err(|_| Malformed)
    }
}

/// Reads one map and moves behind it.
pub(super) fn read_map<'b>(input: &mut &'b [u8]) -> Result<Fields<'b>, Malformed> {
    let count = match byte(input)? {
        first @ 0x80..=0x8f => u32::from(first & 0x0f),
        0xde => number(input, 2)? as u32,
        0xdf => number(input, 4)? as u32,
        _ => return Err(Malformed),
    };
    if count > FIELDS_MAX {
        return Err(Malformed);
    }
    let mut fields = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let Value::Raw(name) = read_value(input, 0)? else { return Err(Malformed) };
        fields.push((name, read_value(input, 0)?));
    }
    Ok(Fields(fields))
}

fn read_value<'b>(input: &mut &'b [u8], depth: u32) -> Result<Value<'b>, Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed);
    }
    let first = byte(input)?;
    Ok(match first {
        0x00..=0x7f => Value::Number(u64::from(first)),
        0xc0 => Value::Nil,
        0xc2 => Value::Bool(false),
        0xc3 => Value::Bool(true),
        0xcc..=0xcf => Value::Number(number(input, 1 << (first - 0xcc))?),
        0xd0..=0xd3 => signed(number(input, 1 << (first - 0xd0))?, 8 << (first - 0xd0)),
        0xa0..=0xbf => Value::Raw(take(input, usize::from(first & 0x1f))?),
        0xd9 | 0xc4 => raw(input, 1)?,
        0xda | 0xc5 => raw(input, 2)?,
        0xdb | 0xc6 => raw(input, 4)?,
        0xe0..=0xff => Value::Other,
        0xca => skip_bytes(input, 4)?,
        0xcb => skip_bytes(input, 8)?,
        0x90..=0x9f => skip(input, u64::from(first & 0x0f), depth)?,
        0x80..=0x8f => skip(input, 2 * u64::from(first & 0x0f), depth)?,
        0xdc => skip_counted(input, 2, 1, depth)?,
        0xdd => skip_counted(input, 4, 1, depth)?,
        0xde => skip_counted(input, 2, 2, depth)?,
        0xdf => skip_counted(input, 4, 2, depth)?,
        _ => return Err(Malformed),
    })
}

/// A signed number of so many bits, if it is positive.
fn signed(number: u64, bits: u32) -> Value<'static> {
    if number >> (bits - 1) == 0 { Value::Number(number) } else { Value::Other }
}

fn raw<'b>(input: &mut &'b [u8], width: usize) -> Result<Value<'b>, Malformed> {
    let length = number(input, width)?;
    Ok(Value::Raw(take(input, usize::try_from(length).map_err(|_| Malformed)?)?))
}

fn skip_bytes<'b>(input: &mut &'b [u8], count: usize) -> Result<Value<'b>, Malformed> {
    take(input, count).map(|_| Value::Other)
}

fn skip_counted<'b>(
    input: &mut &'b [u8],
    width: usize,
    each: u64,
    depth: u32,
) -> Result<Value<'b>, Malformed> {
    let count = number(input, width)? * each;
    skip(input, count, depth)
}

fn skip<'b>(input: &mut &'b [u8], count: u64, depth: u32) -> Result<Value<'b>, Malformed> {
    // Every value is at least a byte, so a count beyond the input ends at its end.
    for _ in 0..count {
        read_value(input, depth + 1)?;
    }
    Ok(Value::Other)
}

fn byte(input: &mut &[u8]) -> Result<u8, Malformed> {
    let (first, rest) = input.split_first().ok_or(Malformed)?;
    *input = rest;
    Ok(*first)
}

fn take<'b>(input: &mut &'b [u8], count: usize) -> Result<&'b [u8], Malformed> {
    let (taken, rest) = input.split_at_checked(count).ok_or(Malformed)?;
    *input = rest;
    Ok(taken)
}

fn number(input: &mut &[u8], width: usize) -> Result<u64, Malformed> {
    let bytes = take(input, width)?;
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Writes one map; fields in the order given, which is alphabetical as Go's.
pub(super) struct MapWriter<'o>(&'o mut Vec<u8>);

impl<'o> MapWriter<'o> {
    pub fn new(output: &'o mut Vec<u8>, fields: u8) -> Self {
        output.push(0x80 | fields);
        Self(output)
    }

    pub fn number(self, name: &str, number: impl Into<u64>) -> Self {
        write_raw(self.0, name.as_bytes());
        let number = number.into();
        let bytes = number.to_be_bytes();
        let (marker, bytes): (Option<u8>, &[u8]) = match number {
            0..=0x7f => (None, &bytes[7..]),
            0x80..=0xff => (Some(0xcc), &bytes[7..]),
            0x100..=0xffff => (Some(0xcd), &bytes[6..]),
            0x1_0000..=0xffff_ffff => (Some(0xce), &bytes[4..]),
            _ => (Some(0xcf), &bytes),
        };
        self.0.extend(marker);
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn bool(self, name: &str, value: bool) -> Self {
        write_raw(self.0, name.as_bytes());
        self.0.push(if value { 0xc3 } else { 0xc2 });
        self
    }

    pub fn raw(self, name: &str, bytes: &[u8]) -> Self {
        write_raw(self.0, name.as_bytes());
        write_raw(self.0, bytes);
        self
    }
}

fn write_raw(output: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        length @ 0..=31 => output.push(0xa0 | length as u8),
        length @ 32..=0xffff => {
            output.push(0xda);
            output.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            output.push(0xdb);
            output.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
    output.extend_from_slice(bytes);
}

//! NetworkDB's most frequent messages, read in place: a row reaches a node dozens of times and is
//! news once, so nothing of it is copied before that is known.

use prost::encoding::{
    WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint,
};
use wire::networkdb::MessageType;

/// A field's value, as far as NetworkDB has kinds of them.
enum Field<'b> {
    Number(u64),
    Bytes(&'b [u8]),
    /// Of a width that no field has here.
    Other,
}

impl<'b> Field<'b> {
    fn number(&self) -> Option<u64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    fn bytes(&self) -> Option<&'b [u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    fn text(&self) -> Option<&'b str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// Gives every field of a message to `take`; `None` when one is malformed.
fn fields<'b>(
    mut bytes: &'b [u8],
    mut take: impl FnMut(u32, Field<'b>) -> Option<()>,
) -> Option<()> {
    while !bytes.is_empty() {
        let (tag, kind) = decode_key(&mut bytes).ok()?;
        let field = match kind {
            WireType::Varint => Field::Number(decode_varint(&mut bytes).ok()?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(value)
            }
            WireType::ThirtyTwoBit => skipped(&mut bytes, 4)?,
            WireType::SixtyFourBit => skipped(&mut bytes, 8)?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        take(tag, field)?;
    }
    Some(())
}

fn skipped<'b>(bytes: &mut &'b [u8], width: usize) -> Option<Field<'b>> {
    *bytes = bytes.get(width..)?;
    Some(Field::Other)
}

/// `GossipMessage`: kind and body.
pub(crate) fn open_envelope(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let (mut kind, mut data) = (0, [].as_slice());
    fields(bytes, |tag, field| {
        match tag {
            1 => kind = field.number()? as i32,
            2 => data = field.bytes()?,
            _ => {}
        }
        Some(())
    })?;
    Some((kind, data))
}

/// `CompoundMessage`: its messages, up to one that is malformed.
pub(crate) fn open_compound<'b>(bytes: &'b [u8], mut part: impl FnMut(&'b [u8])) -> Option<()> {
    fields(bytes, |tag, field| {
        if tag == 1 {
            let mut payload = [].as_slice();
            fields(field.bytes()?, |tag, field| {
                if tag == 1 {
                    payload = field.bytes()?;
                }
                Some(())
            })?;
            part(payload);
        }
        Some(())
    })
}

/// The same, written: the body follows its kind, copied once.
pub(crate) fn envelope_of(kind: MessageType, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 16);
    prost::encoding::int32::encode(1, &(kind as i32), &mut out);
    write(2, data, &mut out);
    out
}

pub(crate) fn compound_of(parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let size: usize = parts.iter().map(|part| part.as_ref().len() + 12).sum();
    let mut out = Vec::with_capacity(size);
    for part in parts.iter().map(AsRef::as_ref) {
        let width = 1 + encoded_len_varint(part.len() as u64);
        encode_key(1, WireType::LengthDelimited, &mut out);
        encode_varint((width + part.len()) as u64, &mut out);
        write(1, part, &mut out);
    }
    out
}

fn write(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// `TableEvent`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Heard<'b> {
    pub kind: i32,
    pub ltime: u64,
    pub owner: &'b str,
    pub network: &'b str,
    pub table: &'b str,
    pub key: &'b str,
    pub value: &'b [u8],
    /// Seconds.
    pub reap_after: i32,
}

impl<'b> Heard<'b> {
    pub fn read(bytes: &'b [u8]) -> Option<Self> {
        let mut event = Self::default();
        fields(bytes, |tag, field| {
            match tag {
                1 => event.kind = field.number()? as i32,
                2 => event.ltime = field.number()?,
                3 => event.owner = field.text()?,
                4 => event.network = field.text()?,
                5 => event.table = field.text()?,
                6 => event.key = field.text()?,
                7 => event.value = field.bytes()?,
                8 => event.reap_after = field.number()? as i32,
                _ => {}
            }
            Some(())
        })?;
        Some(event)
    }

    /// The event in its envelope.
    pub fn message(&self) -> Vec<u8> {
        let texts = [self.owner, self.network, self.table, self.key];
        let size: usize = texts.iter().map(|text| text.len() + 4).sum();
        let mut out = Vec::with_capacity(size + self.value.len() + 40);
        prost::encoding::int32::encode(1, &self.kind, &mut out);
        prost::encoding::uint64::encode(2, &self.ltime, &mut out);
        for (tag, text) in (3..).zip(texts) {
            write(tag, text.as_bytes(), &mut out);
        }
        write(7, self.value, &mut out);
        if self.reap_after != 0 {
            prost::encoding::int32::encode(8, &self.reap_after, &mut out);
        }
        envelope_of(MessageType::TableEvent, &out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use wire::networkdb as pb;

    use super::*;

    fn event() -> impl Strategy<Value = pb::TableEvent> {
        let numbers = (any::<i32>(), any::<u64>(), any::<i32>());
        (numbers, ".{0,9}", ".{0,9}", ".{0,9}", ".{0,9}", any::<Vec<u8>>()).prop_map(
            |((kind, l_time, residual), node_name, network_id, table_name, key, value)| {
                let residual_reap_time = residual;
                pb::TableEvent {
                    r#type: kind,
                    l_time,
                    node_name,
                    network_id,
                    table_name,
                    key,
                    value,
                    residual_reap_time,
                }
            },
        )
    }

    fn same(read: &Heard<'_>, event: &pb::TableEvent) -> bool {
        let texts = (read.owner, read.network, read.table, read.key);
        texts == (&event.node_name, &event.network_id, &event.table_name, &event.key)
            && (read.kind, read.ltime, read.reap_after)
                == (event.r#type, event.l_time, event.residual_reap_time)
            && read.value == event.value
    }

    proptest! {
        #[test]
        fn what_is_read_in_place_is_what_is_decoded(event in event(), cut in any::<usize>(), flip in any::<u8>()) {
            let mut bytes = event.encode_to_vec();
            let read = Heard::read(&bytes).unwrap();
            prop_assert!(same(&read, &event));
            let message = pb::GossipMessage::decode(read.message().as_slice()).unwrap();
            prop_assert_eq!(message.r#type, pb::MessageType::TableEvent as i32);
            prop_assert_eq!(pb::TableEvent::decode(message.data.as_slice()).unwrap(), event.clone());
            // Whatever becomes of the bytes, what is read is what a full decoder reads.
            if !bytes.is_empty() {
                let at = cut % bytes.len();
                bytes[at] ^= flip;
                bytes.truncate(bytes.len() - cut % 3);
            }
            if let Some(read) = Heard::read(&bytes) {
                let decoded = pb::TableEvent::decode(bytes.as_slice());
                prop_assert!(decoded.is_ok_and(|event| same(&read, &event)));
            }
        }

        #[test]
        fn parts_and_envelopes_are_read_in_place(parts in any::<Vec<Vec<u8>>>()) {
            let messages = parts.iter().cloned();
            let messages =
                messages.map(|payload| pb::compound_message::SimpleMessage { payload }).collect();
            let compound = pb::CompoundMessage { messages };
            let bytes = crate::database::envelope(pb::MessageType::Compound, &compound);
            let (kind, data) = open_envelope(&bytes).unwrap();
            prop_assert_eq!(kind, pb::MessageType::Compound as i32);
            let mut read = Vec::new();
            open_compound(data, |part| read.push(part.to_vec())).unwrap();
            prop_assert_eq!(read, parts);
        }
    }
}

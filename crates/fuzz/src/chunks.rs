//! Several messages in one input: `kind (1 byte), length (2 bytes, big endian), bytes`, again and again.

/// The messages of an input; the last one may be shorter than it says.
pub fn split(data: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    let mut rest = data;
    while let [kind, high, low, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (body, next) = tail.split_at(length);
        found.push((*kind, body));
        rest = next;
    }
    found
}

/// The input that holds these messages; each at most 65,535 bytes.
pub fn join<'a>(messages: impl IntoIterator<Item = (u8, &'a [u8])>) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, body) in messages {
        let body = &body[..body.len().min(usize::from(u16::MAX))];
        out.push(kind);
        out.extend_from_slice(&(body.len() as u16).to_be_bytes());
        out.extend_from_slice(body);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_come_back_as_they_went_in() {
        let messages = [(1, b"one".as_slice()), (9, b""), (2, b"three")];
        assert_eq!(super::split(&super::join(messages)), messages);
        assert_eq!(super::split(&[1, 0, 9, 7]), [(1, [7].as_slice())]);
    }
}

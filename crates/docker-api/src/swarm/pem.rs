//! Subject and public key of the first certificate of a PEM bundle, as raw DER.
//!
//! Only the few levels of DER that lead there are read; nothing is verified.

use base64::Engine;

pub fn subject_and_key(pem: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = std::str::from_utf8(pem).ok()?;
    let body = text.split("-----BEGIN CERTIFICATE-----").nth(1)?.split("-----END").next()?;
    let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).ok()?;
    let (_, certificate, _) = element(&der)?;
    let (_, tbs, _) = element(certificate)?;
    // [0] version, serial, signature, issuer, validity, subject, subjectPublicKeyInfo
    let mut rest = tbs;
    if *rest.first()? == 0xa0 {
        rest = element(rest)?.2;
    }
    for _ in 0..4 {
        rest = element(rest)?.2;
    }
    let (subject, _, rest) = element(rest)?;
    let (key, _, _) = element(rest)?;
    Some((subject.to_vec(), key.to_vec()))
}

/// The whole of the first element, its content, and what follows it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let first = *der.get(1)? as usize;
    let (header, length) = if first < 0x80 {
        (2, first)
    } else {
        let count = first & 0x7f;
        if count == 0 || count > 4 {
            return None;
        }
        let length =
            der.get(2..2 + count)?.iter().fold(0usize, |sum, byte| sum << 8 | *byte as usize);
        (2 + count, length)
    };
    let end = header.checked_add(length)?;
    Some((der.get(..end)?, der.get(header..end)?, der.get(end..)?))
}

//! PEM blocks, read strictly and written as Go writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Blocks that one file may hold; a bundle has two roots while the authority rotates.
pub const BLOCKS_MAX: usize = 64;

/// One block: its label, its headers, and its bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Block {
    pub label: String,
    pub headers: Vec<(String, String)>,
    pub der: Vec<u8>,
}

/// All blocks of a text; what stands between them is left out. `None` when a block is broken.
pub fn parse(text: &str) -> Option<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(label) = between(line.trim_end(), "-----BEGIN ", "-----") else { continue };
        if blocks.len() == BLOCKS_MAX {
            return None;
        }
        blocks.push(block(label, &mut lines)?);
    }
    Some(blocks)
}

fn block<'a>(label: &str, lines: &mut impl Iterator<Item = &'a str>) -> Option<Block> {
    let mut headers = Vec::new();
    let mut body = String::new();
    for line in lines {
        let line = line.trim();
        if let Some(end) = between(line, "-----END ", "-----") {
            let der = STANDARD.decode(body.as_bytes()).ok()?;
            return (end == label).then(|| Block { label: label.into(), headers, der });
        }
        match line.split_once(": ") {
            Some((name, value)) if body.is_empty() => headers.push((name.into(), value.into())),
            _ => body.push_str(line),
        }
    }
    None
}

fn between<'a>(line: &'a str, start: &str, end: &str) -> Option<&'a str> {
    line.strip_prefix(start)?.strip_suffix(end)
}

/// One block as text: headers in the order of their names, an empty line after them, 64 columns.
pub fn write(block: &Block) -> String {
    let mut text = format!("-----BEGIN {}-----\n", block.label);
    let mut headers = block.headers.clone();
    headers.sort();
    for (name, value) in &headers {
        text.push_str(&format!("{name}: {value}\n"));
    }
    if !headers.is_empty() {
        text.push('\n');
    }
    let body = STANDARD.encode(&block.der);
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {}-----\n", block.label));
    text
}

/// The certificates of a PEM text, in their order. `None` when there is anything else, or nothing.
pub fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    let blocks = parse(std::str::from_utf8(pem).ok()?)?;
    let certificates = blocks.iter().all(|block| block.label == "CERTIFICATE");
    (certificates && !blocks.is_empty())
        .then(|| blocks.into_iter().map(|block| block.der).collect())
}

pub fn certificate(der: &[u8]) -> String {
    write(&Block { label: "CERTIFICATE".into(), headers: Vec::new(), der: der.to_vec() })
}

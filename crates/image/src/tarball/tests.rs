//! What is written is read back, and no bytes make the reader fail otherwise than with an error.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;

struct Kept(Vec<u8>);
impl RawSink for Kept {
    fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn written(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        match entry.kind {
            Kind::File => writer.file(entry, &mut Cursor::new(content)).unwrap(),
            _ => writer.entry(entry).unwrap(),
        }
    }
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> std::io::Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(bytes, ());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        reader.payload(&mut content)?;
        entries.push((entry, content));
    }
    reader.finish()?;
    Ok(entries)
}

fn file(path: &str, content: &[u8]) -> (Entry, Vec<u8>) {
    let entry = Entry {
        path: path.into(),
        mode: 0o644,
        size: content.len() as u64,
        mtime: (1_700_000_000, 0),
        ..Entry::default()
    };
    (entry, content.to_vec())
}

#[test]
fn extended_headers_are_bounded_together() {
    let named = Entry { path: "n".repeat(400_000).into(), ..Entry::default() };
    let archive = |times| {
        let mut writer = Writer::new(Vec::new());
        writer.entry(&named).unwrap();
        let one = writer.finish().unwrap();
        // The extended header with its content, again and again before the entry itself.
        let header = one.len() - 3 * BLOCK;
        [one[..header].repeat(times), one[header..].to_vec()].concat()
    };
    assert_eq!(read(&archive(2)).unwrap()[0].0.path, named.path);
    let error = read(&archive(3)).unwrap_err();
    assert!(error.to_string().contains("of one entry are larger than 1048576"), "{error}");
}

#[test]
fn long_names_big_owners_and_attributes_survive() {
    let (mut odd, content) = file(&format!("{}/{}", "d".repeat(150), "n".repeat(140)), b"x");
    odd.uid = 70_000_000;
    odd.xattrs = vec![(b"user.key".to_vec(), b"a=b\n\0c".to_vec())];
    let link = Entry {
        path: "l".into(),
        kind: Kind::Symlink,
        link: "t".repeat(300).into(),
        mode: 0o777,
        ..Entry::default()
    };
    let umlaut = file("\u{fc}ber", b"");
    let split = file(&format!("{}/{}", "p".repeat(120), "q".repeat(60)), &[7; 1000]);
    let all = [(odd, content), (link, vec![]), umlaut, split];
    assert_eq!(read(&written(&all)).unwrap(), all);
}

#[test]
fn everything_but_content_reaches_the_raw_sink() {
    let bytes = written(&[file("a", &[1; 700]), file("b", b"")]);
    let mut reader = Reader::new(bytes.as_slice(), Kept(Vec::new()));
    let mut content = Vec::new();
    while reader.next_entry().unwrap().is_some() {
        reader.payload(&mut content).unwrap();
    }
    let (_, kept) = reader.finish().unwrap();
    assert_eq!(content.len(), 700);
    assert_eq!(kept.0.len() + content.len(), bytes.len());
}

#[test]
fn broken_archives_are_errors() {
    let good = written(&[file("a", b"hello")]);
    assert!(read(&good[..700]).is_err(), "cut inside the content");
    assert!(read(&good[..100]).is_err(), "cut inside a header");
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(read(&flipped).is_err(), "checksum");
    assert!(read(&[b'x'; 2048]).is_err(), "not a tar");
    assert_eq!(read(&[]).unwrap(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_end_in_entries_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0usize..2560, to: u8, mend: bool) {
        let mut bytes = written(&[file("dir/file", b"content"), file(&"n".repeat(200), b"more")]);
        let at = at % bytes.len();
        bytes[at] = to;
        if mend {
            let block = at / BLOCK * BLOCK;
            bytes[block + 148..block + 156].copy_from_slice(b"        ");
            let sum: u32 = bytes[block..block + BLOCK].iter().map(|&byte| u32::from(byte)).sum();
            bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let _ = read(&bytes);
    }
}

//! Layers, image archives, and what registries answer.

use std::fs;
use std::path::Path;

const BLOCK: usize = 512;

/// A layer from a registry: unpacked, or refused; nothing outside of its place changes, and one that was taken can be
/// given back byte for byte.
pub fn layer(data: &[u8]) {
    confined(data, |place, tar| {
        image::fuzz::layer(&place.join("layers"), tar);
        let target = place.join("container");
        if fs::create_dir_all(target.join("into")).is_ok() {
            let _ = std::os::unix::fs::symlink("../../outside", target.join("into/out"));
            let _ = image::copy::write(&target, "/into", tar, &Default::default());
        }
    });
}

/// What `docker load` gets.
pub fn archive(data: &[u8]) {
    confined(data, |place, tar| image::fuzz::load(&place.join("store"), tar));
}

/// Manifests, indexes, configurations, challenges, references: bytes of a registry and words of a user.
pub fn manifest(data: &[u8]) {
    image::fuzz::registry(data);
}

/// Runs with the bytes as they are and with checksums put right, beside a folder that must stay as it is.
fn confined(data: &[u8], unpack: impl Fn(&Path, &[u8])) {
    let mut mended = data.to_vec();
    mend_checksums(&mut mended);
    let inputs = [data, mended.as_slice()];
    for input in &inputs[usize::from(inputs[0] == inputs[1])..] {
        let Ok(folder) = tempfile::tempdir() else { return };
        let (outside, place) = (folder.path().join("outside"), folder.path().join("place"));
        let file = outside.join("file");
        let made = fs::create_dir(&outside)
            .and_then(|()| fs::create_dir(&place))
            .and_then(|()| fs::write(&file, "untouched"));
        if made.is_err() {
            return;
        }
        unpack(&place, input);
        assert_eq!(names(folder.path()), ["outside", "place"], "beside the place");
        assert_eq!(names(&outside), ["file"], "in another folder");
        assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some("untouched"));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Mutations break every checksum, and then nothing behind it is reached: puts those of all headers right.
fn mend_checksums(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        if header.iter().any(|&byte| byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = String::from_utf8_lossy(&header[124..135]).into_owned();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(BLOCK).saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
}

//! From a tar to a mounted root file system and back, on a real overlayfs.

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::tarball::{Entry, Kind, Writer};
use crate::{ChangeKind, Commit, Deleted, Error, Import, Options, Reference, Remove, Store, User};

pub(crate) fn tar(entries: &[(&str, Kind, &str)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, kind, text) in entries {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: *kind,
            mode: if *kind == Kind::Directory { 0o755 } else { 0o644 },
            mtime: (1_600_000_000, 0),
            ..Entry::default()
        };
        match kind {
            Kind::File => {
                let entry = Entry { size: text.len() as u64, ..entry };
                writer.file(&entry, &mut Cursor::new(text.as_bytes())).unwrap();
            }
            _ => writer.entry(&Entry { link: text.as_bytes().to_vec(), ..entry }).unwrap(),
        }
    }
    writer.finish().unwrap()
}

fn small() -> Vec<u8> {
    tar(&[
        ("bin/", Kind::Directory, ""),
        ("bin/sh", Kind::File, "#!"),
        ("etc/", Kind::Directory, ""),
        ("etc/passwd", Kind::File, "root:x:0:0::/:/bin/sh\n"),
        ("lib", Kind::Symlink, "usr/lib"),
        ("gone/", Kind::Directory, ""),
        ("gone/a", Kind::File, "a"),
    ])
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("image"), Options::default()).unwrap();
    (directory, store)
}

fn import(store: &Store, tar: &[u8], name: &str) -> crate::Result<std::sync::Arc<crate::Image>> {
    let reference = (!name.is_empty()).then(|| Reference::parse(name).unwrap());
    store.import(
        tar,
        &Import { reference, changes: vec!["CMD [\"sh\"]".into()], ..Import::default() },
    )
}

/// Unmounts also when the test fails.
struct Mounted<'a>(&'a Store, &'a str);
impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = self.0.remove_rootfs(self.1);
    }
}

#[test]
fn an_imported_image_becomes_a_root_file_system_and_its_changes_an_image() {
    let (_directory, store) = store();
    let image = import(&store, &small(), "base:1").unwrap();
    assert_eq!(image.repo_tags, ["base:1"]);
    assert_eq!(image.config.run().cmd.unwrap(), ["sh"]);
    store.prepare_rootfs("c1", &image).unwrap();
    let _mounted = Mounted(&store, "c1");
    let root = store.mount("c1").unwrap();
    assert_eq!(store.mount("c1").unwrap(), root, "a second mount changes nothing");
    assert_eq!(fs::read_to_string(root.join("etc/passwd")).unwrap(), "root:x:0:0::/:/bin/sh\n");
    assert!(root.join("etc/hosts").exists() && root.join(".dockerenv").exists());
    assert_eq!(store.diff("c1").unwrap(), []);

    fs::write(root.join("etc/new"), "n").unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::create_dir(root.join("gone")).unwrap();
    fs::write(root.join("gone/b"), "b").unwrap();
    fs::remove_file(root.join("bin/sh")).unwrap();
    symlink("/etc", root.join("link")).unwrap();
    let shown: Vec<String> =
        store.diff("c1").unwrap().iter().map(|c| format!("{}{}", kind(c.kind), c.path)).collect();
    assert_eq!(shown, ["C/bin", "D/bin/sh", "C/etc", "A/etc/new", "C/gone", "A/gone/b", "A/link"]);

    let commit =
        Commit { reference: Some(Reference::parse("base:2").unwrap()), ..Commit::default() };
    let next = store.commit("c1", &commit).unwrap();
    assert_eq!(next.parent, Some(image.id));
    store.prepare_rootfs("c2", &next).unwrap();
    let _mounted = Mounted(&store, "c2");
    let root = store.mount("c2").unwrap();
    assert!(!root.join("bin/sh").exists() && !root.join("gone/a").exists());
    assert_eq!(fs::read_to_string(root.join("gone/b")).unwrap(), "b");
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/etc"));
}

#[test]
fn a_commit_stands_on_the_layers_of_an_image_that_was_removed() {
    let (_directory, store) = store();
    let image = import(&store, &small(), "base").unwrap();
    let rootfs = store.prepare_rootfs("c1", &image).unwrap();
    fs::write(rootfs.upper.join("new"), "n").unwrap();
    store.remove("base", Remove { force: true, ..Remove::default() }, &[]).unwrap();
    assert!(store.image(&image.id).is_none());
    let next = store.commit("c1", &Commit::default()).unwrap();
    let layers = &next.config.rootfs.diff_ids;
    assert_eq!((layers.len(), layers[0]), (2, image.config.rootfs.diff_ids[0]));
    assert_eq!(next.config.history.len(), 2);
}

#[test]
fn directories_as_deep_as_a_path_are_told_and_packed_and_deeper_ones_refused() {
    let (_directory, store) = store();
    let image = import(&store, &small(), "base").unwrap();
    let rootfs = store.prepare_rootfs("c1", &image).unwrap();
    // 1,100 of them with a file in each: names of 2,200 bytes and more.
    crate::tree::tests::nest(&rootfs.upper.join("deep"), 1_100);
    crate::tree::tests::on_a_small_stack(move || {
        let changes = store.diff("c1").unwrap();
        assert_eq!(changes.iter().filter(|change| change.path.starts_with("/deep")).count(), 2_201);
        let (own, _) = store.rootfs_size("c1").unwrap();
        store.export("c1", std::io::sink()).unwrap();
        let next = store.commit("c1", &Commit::default()).unwrap();
        let deep = store.prepare_rootfs("c2", &next).unwrap();
        assert_eq!(own, crate::walk::bytes(&rootfs.upper));
        drop(deep);
        crate::tree::remove(&rootfs.upper.join("deep")).unwrap();
        crate::tree::tests::nest(&rootfs.upper.join("deep"), 2_200);
        let error = store.diff("c1").unwrap_err().to_string();
        assert!(error.contains("nested too deeply"), "{error}");
        let error = store.commit("c1", &Commit::default()).unwrap_err().to_string();
        assert!(error.contains("nested too deeply"), "{error}");
    });
}

fn kind(kind: ChangeKind) -> char {
    match kind {
        ChangeKind::Modified => 'C',
        ChangeKind::Added => 'A',
        ChangeKind::Deleted => 'D',
    }
}

#[test]
fn a_layer_s_tar_is_given_back_byte_for_byte() {
    let (_directory, store) = store();
    let mut odd = small();
    odd.extend_from_slice(&[0; 7_000]);
    let image = import(&store, &odd, "").unwrap();
    let mut out = Vec::new();
    store.inner.layers.write_tar(&image.config.rootfs.diff_ids[0], &mut out).unwrap();
    assert!(out == odd);
}

#[test]
fn packed_archives_are_unpacked() {
    let (_directory, store) = store();
    let plain = import(&store, &small(), "").unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&small()).unwrap();
    let gzip = import(&store, &gzip.finish().unwrap(), "").unwrap();
    let zstd = import(&store, &zstd::encode_all(small().as_slice(), 1).unwrap(), "").unwrap();
    assert_eq!(plain.config.rootfs, gzip.config.rootfs);
    assert_eq!(plain.config.rootfs, zstd.config.rootfs);
    assert!(matches!(import(&store, b"BZh91AY", ""), Err(Error::NotSupported(_))));
}

type Attack = (&'static str, Vec<(String, Kind, String)>, bool);

/// What the archive wants, its entries, and whether it is fine where it stays inside.
fn attacks(outside: &Path) -> Vec<Attack> {
    let (up, absolute) =
        (format!("{}{}", "../".repeat(20), outside.display()), outside.display().to_string());
    let (file, link, hard) = (Kind::File, Kind::Symlink, Kind::HardLink);
    let entry = |path: &str, kind: Kind, text: &str| (path.to_owned(), kind, text.to_owned());
    let within = |path: &str| format!("{absolute}/{path}");
    let above = |path: &str| format!("{up}/{path}");
    vec![
        ("dotdot", vec![entry(&above("file"), file, "x")], false),
        (
            "absolute link, then through it",
            vec![entry("l", link, &absolute), entry("l/file", file, "x")],
            false,
        ),
        (
            "relative link, then through it",
            vec![entry("l", link, &up), entry("l/evil", file, "x")],
            false,
        ),
        ("hard link above the root", vec![entry("h", hard, &above("file"))], false),
        ("hard link to an absolute name", vec![entry("h", hard, &within("file"))], false),
        (
            "hard link through a link",
            vec![entry("l", link, &absolute), entry("h", hard, "l/file")],
            false,
        ),
        ("whiteout above the root", vec![entry(&above(".wh.file"), file, "")], false),
        ("whiteout of the parent", vec![entry("a/.wh...", file, "")], false),
        (
            "whiteout through a link",
            vec![entry("l", link, &absolute), entry("l/.wh.file", file, "")],
            false,
        ),
        (
            "a file over a link",
            vec![entry("l", link, &within("file")), entry("l", file, "x")],
            true,
        ),
        (
            "a directory over a link",
            vec![entry("l", link, &absolute), entry("l/", Kind::Directory, "")],
            true,
        ),
        ("the same file twice", vec![entry("f", file, "1"), entry("f", file, "2")], false),
        ("an unknown kind", vec![entry("f", Kind::Other(b'Z'), "")], false),
    ]
}

/// What a hostile archive wants, what it is told, and that nothing happened outside.
#[test]
fn a_hostile_layer_changes_nothing_outside() {
    let (directory, store) = store();
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "untouched").unwrap();
    fs::set_permissions(outside.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let attacks = attacks(&outside);
    let before = fs::metadata(outside.join("file")).unwrap();
    for (what, entries, fine) in attacks {
        let entries: Vec<(&str, Kind, &str)> =
            entries.iter().map(|(p, k, t)| (p.as_str(), *k, t.as_str())).collect();
        let result = import(&store, &tar(&entries), "");
        assert_eq!(
            result.is_ok(),
            fine,
            "{what}: {:?}",
            result.err().map(|error| error.to_string())
        );
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "untouched", "{what}");
        let after = fs::metadata(outside.join("file")).unwrap();
        assert_eq!(
            (after.mode(), after.nlink(), after.mtime()),
            (before.mode(), 1, before.mtime()),
            "{what}"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{what}");
    }
    let left = fs::read_dir(store.root().join("layers")).unwrap();
    let left: Vec<_> = left
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with('.'))
        .collect();
    assert_eq!(left, [] as [String; 0], "a refused layer leaves nothing");
}

#[test]
fn overlay_orders_in_an_archive_are_not_obeyed() {
    let (_directory, store) = store();
    let mut writer = Writer::new(Vec::new());
    let xattrs = vec![
        (b"trusted.overlay.redirect".to_vec(), b"/etc".to_vec()),
        (b"user.fine".to_vec(), b"1".to_vec()),
    ];
    writer
        .entry(&Entry {
            path: b"d/".to_vec(),
            kind: Kind::Directory,
            mode: 0o2755,
            xattrs,
            ..Entry::default()
        })
        .unwrap();
    let image = import(&store, &writer.finish().unwrap(), "").unwrap();
    let directory = store.inner.layers.diff_dir(&image.config.rootfs.diff_ids[0]).join("d");
    let mut value = [0u8; 16];
    assert!(rustix::fs::lgetxattr(&directory, "trusted.overlay.redirect", &mut value[..]).is_err());
    assert_eq!(rustix::fs::lgetxattr(&directory, "user.fine", &mut value[..]), Ok(1));
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o2755);
}

#[test]
fn a_new_start_keeps_images_and_removes_what_a_crash_left() {
    let (directory, store) = store();
    let root = directory.path().join("image");
    let image = import(&store, &small(), "keep").unwrap();
    store.prepare_rootfs("c1", &image).unwrap();
    for junk in [
        "layers/.new-1-1",
        "images/.new-x",
        "rootfs/.new-c9",
        &format!("layers/{}", "a".repeat(64)),
    ] {
        fs::create_dir_all(root.join(junk)).unwrap();
    }
    fs::write(
        root.join(format!("layers/{}/layer.json", "a".repeat(64))),
        format!("{{\"diff_id\":\"sha256:{}\",\"size\":1,\"tar_size\":1}}", "a".repeat(64)),
    )
    .unwrap();
    drop(store);
    let store = Store::open(&root, Options::default()).unwrap();
    assert_eq!(*store.resolve("keep").unwrap(), *store.image(&image.id).unwrap());
    assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(root.join("images")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(root.join("rootfs")).unwrap().count(), 1);
    store.rootfs("c1").unwrap();
    assert_eq!(store.sweep_rootfs(&Default::default()).unwrap(), ["c1"]);
    assert_eq!(store.remove("keep", Remove::default(), &[]).unwrap().len(), 3);
    assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 0);
}

#[test]
fn what_a_container_wrote_outlives_a_damaged_record() {
    let (directory, store) = store();
    let root = directory.path().join("image");
    let image = import(&store, &small(), "base").unwrap();
    let rootfs = store.prepare_rootfs("c1", &image).unwrap();
    fs::write(rootfs.upper.join("precious"), "data").unwrap();
    store.remove("base", Remove { force: true, ..Remove::default() }, &[]).unwrap();
    let record = root.join("rootfs/c1/rootfs.json");
    let good = fs::read(&record).unwrap();
    fs::write(&record, "{").unwrap();
    drop(store);
    let store = Store::open(&root, Options::default()).unwrap();
    assert!(store.rootfs("c1").is_err());
    store.sweep_rootfs(&Default::default()).unwrap();
    assert_eq!(fs::read(rootfs.upper.join("precious")).unwrap(), b"data");
    drop(store);
    fs::write(&record, good).unwrap();
    let store = Store::open(&root, Options::default()).unwrap();
    assert_eq!(store.rootfs("c1").unwrap(), rootfs);
    assert!(rootfs.lower.iter().all(|lower| lower.is_dir()), "{rootfs:?}");
}

#[test]
fn removal_follows_docker_s_rules() {
    let (_directory, store) = store();
    let image = import(&store, &small(), "a:1").unwrap();
    store.tag(&image.id, &Reference::parse("b:1").unwrap()).unwrap();
    let none = Remove::default();
    let text = |result: crate::Result<Vec<Deleted>>| result.unwrap_err().to_string();
    assert_eq!(store.remove("a:1", none, &[]).unwrap(), [Deleted::Untagged("a:1".into())]);
    store.tag(&image.id, &Reference::parse("a:1").unwrap()).unwrap();
    assert_eq!(
        text(store.remove(&image.id.short(), none, &[])),
        format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
            image.id.short()
        )
    );
    let user = User { image: image.id, container: "c".repeat(64), running: true };
    store.remove("b:1", none, std::slice::from_ref(&user)).unwrap();
    assert_eq!(
        text(store.remove("a:1", none, std::slice::from_ref(&user))),
        format!(
            "conflict: unable to remove repository reference \"a:1\" (must force) - container cccccccccccc is using its referenced image {}",
            image.id.short()
        )
    );
    assert_eq!(
        text(store.remove(
            &image.id.hex(),
            Remove { force: true, ..none },
            std::slice::from_ref(&user)
        )),
        format!(
            "conflict: unable to delete {} (cannot be forced) - image is being used by running container cccccccccccc",
            image.id.short()
        )
    );
    assert_eq!(text(store.remove("nope", none, &[])), "No such image: nope:latest");
    let pruned = store.prune(false, &|_| true, &[]).unwrap();
    assert_eq!(pruned.bytes, image.size);
    assert!(store.list().is_empty());
}

#[test]
fn a_saved_image_loads_elsewhere_as_the_same_image() {
    let (_directory, from) = store();
    let one = import(&from, &small(), "one:1").unwrap();
    from.tag(&one.id, &Reference::parse("two").unwrap()).unwrap();
    let mut saved = Vec::new();
    from.save(&["one:1".into(), "two".into()], &mut saved).unwrap();
    let (_directory, to) = store();
    let (sender, mut messages) = tokio::sync::mpsc::channel(64);
    let loaded = to.load(saved.as_slice(), true, &crate::ProgressSender::new(sender)).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(to.resolve("two").unwrap().id, one.id);
    assert_eq!(to.resolve("one:1").unwrap().repo_tags, ["one:1", "two:latest"]);
    assert_eq!(messages.try_recv().unwrap().stream.unwrap(), "Loaded image: one:1\n");
    let mut again = Vec::new();
    to.save(&["one:1".into(), "two".into()], &mut again).unwrap();
    assert!(saved == again, "the same bytes");
}

#[test]
fn a_name_without_a_tag_saves_every_tag_of_its_repository() {
    let (_directory, from) = store();
    let one = import(&from, &small(), "one:1").unwrap();
    for tag in ["one:2", "one", "other"] {
        from.tag(&one.id, &Reference::parse(tag).unwrap().or_latest()).unwrap();
    }
    let mut saved = Vec::new();
    from.save(&["one".into()], &mut saved).unwrap();
    let (_directory, to) = store();
    to.load(saved.as_slice(), true, &crate::ProgressSender::nobody()).unwrap();
    let loaded = to.resolve("one:2").unwrap();
    assert_eq!(loaded.repo_tags, ["one:1", "one:2", "one:latest"]);
}

#[test]
fn an_image_that_is_saved_by_its_id_gets_no_name_from_it() {
    let (_directory, from) = store();
    let one = import(&from, &small(), "one:1").unwrap();
    for name in [one.id.to_string(), one.id.hex(), format!("sha256:{}", one.id.short())] {
        let mut saved = Vec::new();
        from.save(std::slice::from_ref(&name), &mut saved).unwrap();
        let (_directory, to) = store();
        to.load(saved.as_slice(), true, &crate::ProgressSender::nobody()).unwrap();
        assert_eq!(to.resolve(&one.id.hex()).unwrap().repo_tags, [] as [String; 0], "{name}");
    }
    let name = Reference::parse("sha256:abc").unwrap();
    let refused = from.tag(&one.id, &name).unwrap_err().to_string();
    assert!(refused.starts_with("refusing to create an ambiguous tag"), "{refused}");
}

#[test]
fn the_older_archive_form_loads_and_a_wrong_one_leaves_nothing() {
    let (_directory, store) = store();
    let layer = String::from_utf8(tar(&[("f", Kind::File, "x")])).unwrap();
    let diff_id = crate::Digest::of(layer.as_bytes());
    let config = format!(
        "{{\"os\":\"linux\",\"architecture\":\"amd64\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{diff_id}\",\"{diff_id}\"]}}}}"
    );
    let manifest =
        r#"[{"Config":"c.json","RepoTags":["old:1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let archive = |config: &str| {
        tar(&[
            ("a/layer.tar", Kind::File, &layer),
            ("b/layer.tar", Kind::Symlink, "../a/layer.tar"),
            ("c.json", Kind::File, config),
            ("manifest.json", Kind::File, manifest),
        ])
    };
    let nobody = crate::ProgressSender::nobody();
    let wrong = store.load(archive("{\"rootfs\":{\"diff_ids\":[]}}").as_slice(), true, &nobody);
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "layers from manifest don't match image configuration"
    );
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
    store.load(archive(&config).as_slice(), true, &nobody).unwrap();
    assert_eq!(store.resolve("old:1").unwrap().size, 2);
    assert!(store.load(tar(&[("x", Kind::File, "y")]).as_slice(), true, &nobody).is_err());
}

#[test]
fn files_are_copied_in_and_out_and_never_outside() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    fs::write(root.join("dir/sub/file"), "text").unwrap();
    fs::write(directory.path().join("secret"), "s").unwrap();
    symlink("/dir", root.join("absolute")).unwrap();
    symlink("../../../secret", root.join("out")).unwrap();
    let names = |path: &str| {
        let mut tar = Vec::new();
        crate::copy::read(&root, path, &mut tar).unwrap();
        let mut reader = crate::tarball::Reader::new(tar.as_slice(), ());
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(String::from_utf8(entry.path).unwrap());
        }
        names
    };
    assert_eq!(names("/dir"), ["dir/", "dir/sub/", "dir/sub/file"]);
    assert_eq!(names("/dir/."), ["./", "./sub/", "./sub/file"]);
    assert_eq!(names("absolute/sub/file"), ["file"]);
    assert_eq!(names("/absolute/"), ["absolute/", "absolute/sub/", "absolute/sub/file"]);
    assert_eq!(names("/absolute"), ["absolute"]);
    assert_eq!(crate::copy::stat(&root, "/absolute").unwrap().link_target, "/dir");
    assert_eq!(crate::copy::stat(&root, "/dir").unwrap().mode, 1 << 31 | 0o755);
    assert!(crate::copy::stat(&root, "/out/").is_err(), "a link leads to what is inside only");
    assert!(crate::copy::read(&root, "../../secret", Vec::new()).is_err());

    let options =
        &crate::copy::WriteOptions { no_overwrite_dir_non_dir: true, owner: Some((7, 8)) };
    let good = tar(&[("new", Kind::File, "n"), ("sub/", Kind::Directory, "")]);
    crate::copy::write(&root, "/absolute", good.as_slice(), options).unwrap();
    let made = fs::metadata(root.join("dir/new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (7, 8));
    let clash = tar(&[("sub", Kind::File, "n")]);
    assert!(
        crate::copy::write(&root, "/dir", clash.as_slice(), options)
            .unwrap_err()
            .to_string()
            .contains("cannot overwrite directory")
    );
    let up = tar(&[("../../../secret", Kind::File, "n")]);
    assert!(crate::copy::write(&root, "/dir", up.as_slice(), options).is_err());
    assert_eq!(fs::read_to_string(directory.path().join("secret")).unwrap(), "s");
    assert!(crate::copy::write(&root, "/dir/new", good.as_slice(), options).is_err());

    let volume = directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(crate::copy::populate(&root, "/absolute", &volume).unwrap());
    assert_eq!(fs::read_to_string(volume.join("sub/file")).unwrap(), "text");
    assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o7777, 0o1777);
    assert!(
        !crate::copy::populate(&root, "/dir", &volume).unwrap(),
        "what is filled stays as it is"
    );
    assert!(!crate::copy::populate(&root, "/nowhere", &volume).unwrap());
}

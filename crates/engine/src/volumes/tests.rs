//! Volumes on a disk: who keeps one, what is mounted for whom, which names and options are refused.

use super::*;

async fn volumes() -> (tempfile::TempDir, Volumes) {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::below(directory.path().join("data"), directory.path().join("exec"));
    let volumes = Volumes::open(&config, Arc::new(events::Bus::new())).await.unwrap();
    (directory, volumes)
}

fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn a_volume_in_use_stays_and_one_that_is_not_can_go() {
    let (_directory, volumes) = volumes().await;
    let volume =
        volumes.ensure(Some("data"), "local", options(&[]), options(&[("a", "b")])).unwrap();
    assert!(!volume.anonymous);
    assert_eq!(volumes.ensure(Some("data"), "", options(&[]), options(&[])).unwrap(), volume);
    let used = ["c1".to_owned()];
    assert_eq!(
        volumes.remove("data", || used.to_vec(), true).unwrap_err().message,
        "remove data: volume is in use - [c1]"
    );
    assert_eq!(volumes.prune(|_| true, |_| used.to_vec()).unwrap().deleted, [] as [String; 0]);
    fs::write(volume.mountpoint.join("f"), "12345").unwrap();
    let pruned = volumes.prune(|_| true, |_| Vec::new()).unwrap();
    assert_eq!((pruned.deleted, pruned.bytes), (vec!["data".to_owned()], 5));
    assert_eq!(volumes.find("data").unwrap_err().message, "get data: no such volume");
}

#[tokio::test]
async fn a_volume_stays_while_its_container_is_being_created() {
    let (_directory, volumes) = volumes().await;
    let made = volumes.ensure_for(Some("c1"), None, "", options(&[]), options(&[])).unwrap();
    volumes.ensure(Some("old"), "", options(&[]), options(&[])).unwrap();
    volumes.ensure_for(Some("c2"), Some("old"), "", options(&[]), options(&[])).unwrap();
    let error = volumes.remove("old", Vec::new, true).unwrap_err();
    assert_eq!(error.message, "remove old: volume is in use - [c2]");
    volumes.remove_anonymous(&made.name, Vec::new).unwrap();
    assert_eq!(volumes.prune(|_| true, |_| Vec::new()).unwrap().deleted, [] as [String; 0]);
    volumes.give_back("c2");
    volumes.remove_anonymous(&made.name, || vec!["c1".to_owned()]).unwrap();
    volumes.give_back("c1");
    let deleted = volumes.prune(|_| true, |_| Vec::new()).unwrap().deleted;
    assert_eq!(deleted.len(), 2, "{deleted:?}");
}

#[tokio::test]
async fn a_container_that_comes_while_unused_volumes_are_counted_keeps_its_own() {
    let (_directory, volumes) = volumes().await;
    volumes.ensure(Some("data"), "", options(&[]), options(&[])).unwrap();
    let asked = std::cell::Cell::new(0);
    let comes = |_: &str| {
        asked.set(asked.get() + 1);
        if asked.get() == 1 { Vec::new() } else { vec!["c1".to_owned()] }
    };
    assert_eq!(volumes.prune(|_| true, comes).unwrap().deleted, [] as [String; 0]);
    volumes.find("data").unwrap();
}

#[tokio::test]
async fn a_volume_with_a_device_is_mounted_while_somebody_runs() {
    let (_directory, volumes) = volumes().await;
    let tmpfs = options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,nosuid")]);
    let volume = volumes.ensure(Some("fast"), "local", tmpfs, options(&[])).unwrap();
    volumes.mount("fast", &User::running("c1")).unwrap();
    let look = User::looking("c1");
    volumes.mount("fast", &look).unwrap();
    volumes.unmount("fast", &User::running("c1")).unwrap();
    assert!(device::is_mounted(&volume.mountpoint).unwrap());
    volumes.unmount("fast", &look).unwrap();
    assert!(!device::is_mounted(&volume.mountpoint).unwrap());
}

#[tokio::test]
async fn a_server_that_does_not_answer_holds_up_its_own_volume_alone() {
    use std::sync::Barrier;
    static ASKED: Barrier = Barrier::new(2);
    static ANSWERS: Barrier = Barrier::new(2);
    let (_directory, mut volumes) = volumes().await;
    volumes.mount_device = |volume| {
        if volume.name == "far" {
            ASKED.wait();
            ANSWERS.wait();
        }
        Err(Error::internal("no device"))
    };
    let nfs = options(&[("type", "nfs"), ("device", ":/x")]);
    for name in ["far", "near"] {
        volumes.ensure(Some(name), "", nfs.clone(), options(&[])).unwrap();
    }
    let volumes = Arc::new(volumes);
    let waiting = volumes.clone();
    let mounting = std::thread::spawn(move || waiting.mount("far", &User::running("c1")));
    ASKED.wait();
    let going = volumes.clone();
    let others = std::thread::spawn(move || {
        let used = || vec!["c1".to_owned()];
        let error = going.remove("far", used, true).unwrap_err();
        assert_eq!(error.message, "remove far: volume is in use - [c1]");
        going.mount("near", &User::running("c2")).unwrap_err();
        going.remove("near", Vec::new, false).unwrap();
        going.ensure(Some("new"), "", options(&[]), options(&[])).unwrap();
        going.list().len()
    });
    assert_eq!(others.join().unwrap(), 2);
    ANSWERS.wait();
    assert_eq!(mounting.join().unwrap().unwrap_err().message, "no device");
}

#[tokio::test]
async fn bad_names_and_options_are_refused() {
    let (_directory, volumes) = volumes().await;
    for name in ["a", "../x", "a/b", ".hidden", "a b"] {
        assert!(volumes.ensure(Some(name), "local", options(&[]), options(&[])).is_err(), "{name}");
    }
    for bad in [&[("colour", "red")][..], &[("type", "tmpfs")], &[("size", "1g")]] {
        assert!(
            volumes.ensure(Some("good"), "local", options(bad), options(&[])).is_err(),
            "{bad:?}"
        );
    }
    assert_eq!(volumes.list(), []);
}

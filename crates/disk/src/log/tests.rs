//! The log survives whatever a crash leaves behind.

use super::*;

fn entry(index: u64, term: u64) -> raftpb::Entry {
    raftpb::Entry {
        r#type: Some(0),
        index: Some(index),
        term: Some(term),
        data: Some(format!("entry {index} of {term}").into_bytes().into()),
    }
}

fn state(term: u64, commit: u64) -> Option<raftpb::HardState> {
    Some(raftpb::HardState { term: Some(term), vote: Some(1), commit: Some(commit) })
}

fn first() -> Write {
    let identity = pb::RaftMember { raft_id: 7, node_id: "n".into(), ..Default::default() };
    Write {
        identity: Some(identity),
        entries: vec![entry(1, 1)],
        hard_state: state(1, 1),
        ..Write::default()
    }
}

fn entries(from: u64, to: u64, term: u64) -> Write {
    let entries = (from..=to).map(|index| entry(index, term)).collect();
    Write { entries, hard_state: state(term, from - 1), ..Write::default() }
}

fn snapshot(index: u64, compact_to: u64) -> Write {
    let metadata =
        raftpb::SnapshotMetadata { index: Some(index), term: Some(1), ..Default::default() };
    let snapshot = raftpb::Snapshot { data: Some(vec![1; 100].into()), metadata: Some(metadata) };
    Write { snapshot: Some(snapshot), compact_to, ..Write::default() }
}

fn indexes(recovered: &Recovered) -> Vec<(u64, u64)> {
    recovered.entries.iter().map(|entry| (entry.index(), entry.term())).collect()
}

#[test]
fn a_restart_finds_exactly_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, nothing) = RaftLog::open(folder.path(), key.clone()).unwrap();
    assert_eq!(nothing, None);
    log.write(&first()).unwrap();
    log.write(&entries(2, 5, 1)).unwrap();
    log.write(&entries(4, 4, 2)).unwrap();
    let (_, recovered) = RaftLog::open(folder.path(), key).unwrap();
    let recovered = recovered.unwrap();
    assert_eq!(indexes(&recovered), [(1, 1), (2, 1), (3, 1), (4, 2)]);
    assert_eq!(Some(recovered.hard_state), state(2, 3));
    assert_eq!(recovered.identity.raft_id, 7);
}

#[test]
fn a_member_that_wrote_only_its_name_was_never_there() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    let name = Write { entries: Vec::new(), hard_state: None, ..first() };
    log.write(&name).unwrap();
    let (mut log, nothing) = RaftLog::open(folder.path(), key.clone()).unwrap();
    assert_eq!(nothing, None);
    log.write(&first()).unwrap();
    let (_, recovered) = RaftLog::open(folder.path(), key).unwrap();
    assert_eq!(indexes(&recovered.unwrap()), [(1, 1)]);
}

#[test]
fn whom_a_joining_member_was_told_of_is_there_after_a_restart_and_after_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    let membership = Some(pb::ClusterSnapshot {
        members: vec![pb::RaftMember { raft_id: 1, ..Default::default() }],
        removed: vec![4],
    });
    let joined =
        Write { membership: membership.clone(), entries: Vec::new(), hard_state: None, ..first() };
    log.write(&joined).unwrap();
    drop(log);
    let (mut log, recovered) = RaftLog::open(folder.path(), key.clone()).unwrap();
    assert_eq!(Some(recovered.unwrap().membership), membership);
    log.write(&snapshot(50, 50)).unwrap();
    let (_, recovered) = RaftLog::open(folder.path(), key).unwrap();
    assert_eq!(Some(recovered.unwrap().membership), membership);
}

#[test]
fn a_torn_write_is_cut_at_every_byte_and_the_log_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    log.write(&first()).unwrap();
    let whole = log.length;
    log.write(&entries(2, 3, 1)).unwrap();
    let bytes = fs::read(folder.path().join(LOG)).unwrap();
    for length in whole as usize..bytes.len() {
        for tail in [0x00, 0xff] {
            let mut torn = bytes[..length].to_vec();
            // Blocks that were not written may read as anything.
            torn.resize(bytes.len(), tail);
            let torn = if tail == 0xff { &torn[..length] } else { &torn[..] };
            if torn == bytes {
                continue;
            }
            fs::write(folder.path().join(LOG), torn).unwrap();
            let (mut log, recovered) = RaftLog::open(folder.path(), key.clone()).unwrap();
            assert_eq!(indexes(&recovered.unwrap()), [(1, 1)], "torn at {length}");
            log.write(&entries(2, 2, 3)).unwrap();
            let (_, recovered) = RaftLog::open(folder.path(), key.clone()).unwrap();
            assert_eq!(indexes(&recovered.unwrap()), [(1, 1), (2, 3)], "torn at {length}");
        }
    }
}

#[test]
fn a_large_torn_write_is_cut_in_moments() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    log.write(&first()).unwrap();
    let large = raftpb::Entry { data: Some(vec![0; 16 << 20].into()), ..entry(2, 1) };
    log.write(&Write { entries: vec![large], ..Write::default() }).unwrap();
    let path = folder.path().join(LOG);
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let began = std::time::Instant::now();
    let (_, recovered) = RaftLog::open(folder.path(), key).unwrap();
    assert_eq!(indexes(&recovered.unwrap()), [(1, 1)]);
    // Summing up what every offset claims took minutes.
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn damage_in_the_middle_is_reported_not_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    log.write(&first()).unwrap();
    let second = log.length as usize;
    log.write(&entries(2, 3, 1)).unwrap();
    let third = log.length as usize;
    log.write(&entries(4, 5, 1)).unwrap();
    let fourth = log.length as usize;
    log.write(&entries(6, 7, 1)).unwrap();
    let whole = fs::read(folder.path().join(LOG)).unwrap();
    let reported = |damage: std::ops::Range<usize>, with: fn(&mut u8)| {
        let mut bytes = whole.clone();
        bytes[damage.clone()].iter_mut().for_each(with);
        fs::write(folder.path().join(LOG), &bytes).unwrap();
        let opened = RaftLog::open(folder.path(), key.clone());
        let right = matches!(opened, Err(Error::Damaged { offset, .. }) if offset == second as u64);
        assert!(right, "damaged at {damage:?}");
        assert!(fs::read(folder.path().join(LOG)).unwrap() == bytes, "nothing is cut");
    };
    // Its length and its checksum included.
    for at in second..third {
        reported(at..at + 1, |byte| *byte ^= 1);
        reported(at..at + 1, |byte| *byte ^= 0x80);
    }
    // A bad block that two records shared.
    reported(second..third + HEAD_BYTES + 20, |byte| *byte = 0);
    reported(second + 2..fourth, |byte| *byte = 0xff);
}

#[test]
fn another_key_opens_nothing_and_a_changed_key_everything() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (DataKey::generate().unwrap(), DataKey::generate().unwrap());
    let (mut log, _) = RaftLog::open(folder.path(), old.clone()).unwrap();
    log.write(&first()).unwrap();
    log.write(&entries(2, 9, 1)).unwrap();
    log.write(&snapshot(6, 4)).unwrap();
    drop(log);
    assert!(matches!(RaftLog::open(folder.path(), new.clone()), Err(Error::WrongKey)));
    RaftLog::change_key(folder.path(), &old, &new).unwrap();
    let (_, recovered) = RaftLog::open(folder.path(), new).unwrap();
    assert_eq!(indexes(&recovered.unwrap()).len(), 5);
    let plain = fs::read(folder.path().join(LOG)).unwrap();
    assert!(!plain.windows(5).any(|window| window == b"entry"));
}

#[test]
fn a_snapshot_shortens_the_log_and_one_from_the_leader_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    log.write(&first()).unwrap();
    log.write(&entries(2, 9, 1)).unwrap();
    log.write(&snapshot(6, 4)).unwrap();
    log.write(&entries(10, 11, 1)).unwrap();
    let (mut log, recovered) = RaftLog::open(folder.path(), key.clone()).unwrap();
    let recovered = recovered.unwrap();
    assert_eq!(indexes(&recovered).first(), Some(&(5, 1)));
    assert_eq!(indexes(&recovered).last(), Some(&(11, 1)));
    assert_eq!(recovered.snapshot.unwrap().metadata.unwrap().index(), 6);
    assert_eq!(recovered.identity.raft_id, 7);
    let from_leader =
        Write { entries: vec![entry(51, 3)], hard_state: state(3, 50), ..snapshot(50, 50) };
    log.write(&from_leader).unwrap();
    let (_, recovered) = RaftLog::open(folder.path(), key).unwrap();
    let recovered = recovered.unwrap();
    assert_eq!(indexes(&recovered), [(51, 3)]);
    assert_eq!(recovered.hard_state.commit(), 50);
}

#[test]
fn a_crash_between_snapshot_and_log_leaves_a_sound_pair() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    log.write(&first()).unwrap();
    log.write(&entries(2, 9, 1)).unwrap();
    let before = fs::read(folder.path().join(LOG)).unwrap();
    log.write(&snapshot(50, 50)).unwrap();
    fs::write(folder.path().join(LOG), before).unwrap();
    let (_, recovered) = RaftLog::open(folder.path(), key).unwrap();
    let recovered = recovered.unwrap();
    assert_eq!(indexes(&recovered), []);
    assert_eq!(recovered.snapshot.unwrap().metadata.unwrap().index(), 50);
}

#[test]
fn a_prepared_snapshot_is_put_in_place_by_its_write_and_by_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let key = DataKey::generate().unwrap();
    let (mut log, _) = RaftLog::open(folder.path(), key.clone()).unwrap();
    log.write(&first()).unwrap();
    log.write(&entries(2, 9, 1)).unwrap();
    let prepared = |log: &RaftLog, index| {
        let write = snapshot(index, 0);
        log.snapshot_writer().prepare(&write.snapshot.unwrap()).unwrap()
    };
    let files = || fs::read_dir(folder.path()).unwrap().count();
    let found = |key: &DataKey| {
        let (_, recovered) = RaftLog::open(folder.path(), key.clone()).unwrap();
        recovered.unwrap().snapshot.unwrap().metadata.unwrap().index()
    };

    let five = prepared(&log, 5);
    let there = five.path.clone();
    log.adopt(five);
    assert!(!folder.path().join(SNAPSHOT).exists(), "it is not in force yet");
    log.write(&snapshot(5, 2)).unwrap();
    assert!(!there.exists() && files() == 2, "renamed, not written again");
    assert_eq!(found(&key), 5);

    // The leader's came first: what was prepared goes.
    let six = prepared(&log, 6);
    log.adopt(six);
    log.write(&snapshot(8, 2)).unwrap();
    assert_eq!((found(&key), files()), (8, 2));

    // A crash before its write leaves the old one in force, and nothing behind.
    let _crashed = prepared(&log, 9);
    assert_eq!(files(), 3);
    assert_eq!((found(&key), files()), (8, 2));
}

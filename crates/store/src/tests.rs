//! The store's rules, each as one sentence.

use proptest::prelude::*;

use model::Instant;
use wire::swarmkit as pb;

use crate::{Change, Error, Object, Store, Transaction};

fn named(name: &str) -> Option<pb::Annotations> {
    Some(pb::Annotations { name: name.into(), ..Default::default() })
}

fn service(id: &str, name: &str) -> pb::Service {
    let spec = pb::ServiceSpec { annotations: named(name), ..Default::default() };
    pb::Service { id: id.into(), spec: Some(spec), ..Default::default() }
}

fn task(id: &str, service: &str, slot: u64, node: &str) -> pb::Task {
    pb::Task {
        id: id.into(),
        service_id: service.into(),
        slot,
        node_id: node.into(),
        ..Default::default()
    }
}

fn commit(store: &mut Store, version: u64, changes: Vec<Change>) -> Result<(), Error> {
    let mut transaction = Transaction::new(store);
    for change in changes {
        transaction.apply(change)?;
    }
    let actions = transaction.finish(Instant::from_nanos(version * 1_000_000_000), version);
    store.apply(actions);
    Ok(())
}

#[test]
fn a_created_object_bears_the_commit_index_and_the_time() {
    let mut store = Store::default();
    commit(&mut store, 7, vec![Change::create(service("s1", "web"))]).unwrap();
    let stored = store.get::<pb::Service>("s1").unwrap();
    assert_eq!(stored.version(), 7);
    let meta = stored.meta.as_ref().unwrap();
    assert_eq!(meta.created_at.as_ref().unwrap().seconds, 7);
    assert_eq!(meta.updated_at.as_ref().unwrap().seconds, 7);
}

#[test]
fn an_update_keeps_the_time_of_creation_and_needs_the_stored_version() {
    let mut store = Store::default();
    commit(&mut store, 7, vec![Change::create(service("s1", "web"))]).unwrap();
    let first = pb::Service::clone(store.get("s1").unwrap());
    commit(&mut store, 9, vec![Change::update(first.clone())]).unwrap();
    let stored = store.get::<pb::Service>("s1").unwrap();
    assert_eq!(stored.version(), 9);
    assert_eq!(stored.meta.as_ref().unwrap().created_at.as_ref().unwrap().seconds, 7);
    let stale = commit(&mut store, 11, vec![Change::update(first)]);
    assert_eq!(stale, Err(Error::SequenceConflict));
}

#[test]
fn names_are_unique_whatever_their_case_and_free_again_after_removal() {
    let mut store = Store::default();
    commit(&mut store, 1, vec![Change::create(service("s1", "web"))]).unwrap();
    let twice = commit(&mut store, 2, vec![Change::create(service("s2", "WEB"))]);
    assert_eq!(twice, Err(Error::NameConflict));
    let both = vec![Change::create(service("s3", "db")), Change::create(service("s4", "Db"))];
    assert_eq!(commit(&mut store, 2, both), Err(Error::NameConflict));
    let replaced = vec![Change::remove::<pb::Service>("s1"), Change::create(service("s2", "web"))];
    commit(&mut store, 3, replaced).unwrap();
    assert_eq!(store.by_name::<pb::Service>("Web").count(), 1);
}

#[test]
fn nodes_may_share_a_name() {
    let mut store = Store::default();
    let node = |id: &str| pb::Node {
        id: id.into(),
        spec: Some(pb::NodeSpec { annotations: named("host"), ..Default::default() }),
        ..Default::default()
    };
    commit(&mut store, 1, vec![Change::create(node("a")), Change::create(node("b"))]).unwrap();
    assert_eq!(store.by_name::<pb::Node>("host").count(), 2);
}

#[test]
fn what_is_missing_or_there_already_is_refused() {
    let mut store = Store::default();
    commit(&mut store, 1, vec![Change::create(service("s1", "web"))]).unwrap();
    let again = commit(&mut store, 2, vec![Change::create(service("s1", "other"))]);
    assert_eq!(again, Err(Error::Exists));
    let missing = commit(&mut store, 2, vec![Change::update(service("s9", "other"))]);
    assert_eq!(missing, Err(Error::NotFound));
    let missing = commit(&mut store, 2, vec![Change::remove::<pb::Service>("s9")]);
    assert_eq!(missing, Err(Error::NotFound));
}

#[test]
fn a_task_is_found_by_service_slot_and_node_also_after_it_moved() {
    let mut store = Store::default();
    let tasks = vec![
        Change::create(task("t1", "s1", 1, "")),
        Change::create(task("t2", "s1", 2, "n1")),
        Change::create(task("t3", "s2", 1, "n1")),
    ];
    commit(&mut store, 1, tasks).unwrap();
    let mut moved = pb::Task::clone(store.get("t1").unwrap());
    moved.node_id = "n1".into();
    commit(&mut store, 2, vec![Change::update(moved), Change::remove::<pb::Task>("t3")]).unwrap();
    let ids = |tasks: Vec<&std::sync::Arc<pb::Task>>| {
        tasks.iter().map(|task| task.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(store.tasks_of_service("s1").collect()), ["t1", "t2"]);
    assert_eq!(ids(store.tasks_of_slot("s1", 2).collect()), ["t2"]);
    assert_eq!(ids(store.tasks_of_node("n1").collect()), ["t1", "t2"]);
    assert_eq!(store.tasks_of_service("s2").count(), 0);
}

#[test]
fn references_are_found_in_task_and_service_specs() {
    let mut store = Store::default();
    let container = pb::ContainerSpec {
        secrets: vec![pb::SecretReference { secret_id: "sec".into(), ..Default::default() }],
        configs: vec![pb::ConfigReference { config_id: "cfg".into(), ..Default::default() }],
        ..Default::default()
    };
    let mut object = service("s1", "web");
    let spec = object.spec.as_mut().unwrap();
    spec.networks.push(pb::NetworkAttachmentConfig { target: "old".into(), ..Default::default() });
    spec.task = Some(pb::TaskSpec {
        runtime: Some(pb::task_spec::Runtime::Container(container)),
        networks: vec![pb::NetworkAttachmentConfig { target: "net".into(), ..Default::default() }],
        ..Default::default()
    });
    commit(&mut store, 1, vec![Change::create(object)]).unwrap();
    assert_eq!(store.services_using_secret("sec").count(), 1);
    assert_eq!(store.services_using_config("cfg").count(), 1);
    assert_eq!(store.services_using_network("old").count(), 1);
    assert_eq!(store.services_using_network("net").count(), 1);
    assert_eq!(store.services_using_network("other").count(), 0);
}

proptest! {
    /// Any sequence of commits: the indexes agree with a scan, and a snapshot gives the store back.
    #[test]
    fn indexes_and_snapshots_agree_with_the_objects(
        steps in proptest::collection::vec((0u8..3, 0u8..12, 0u8..4, 0u8..4, 0u8..4), 0..60)
    ) {
        let mut store = Store::default();
        for (at, (what, id, service_id, slot, node)) in steps.into_iter().enumerate() {
            let id = format!("t{id}");
            let wanted = task(&id, &format!("s{service_id}"), slot.into(), &format!("n{node}"));
            let change = match (what, store.get::<pb::Task>(&id)) {
                (0, _) => Change::create(wanted),
                (1, Some(old)) => Change::update(pb::Task { meta: old.meta, ..wanted }),
                (1, None) => Change::update(wanted),
                _ => Change::remove::<pb::Task>(id),
            };
            let before = store.clone();
            let done = commit(&mut store, at as u64 + 1, vec![change]);
            prop_assert_eq!(done.is_err(), before.changes_to(&store).is_empty());
        }
        for number in 0..4u64 {
            let service = format!("s{number}");
            let node = format!("n{number}");
            let all = || store.all::<pb::Task>();
            prop_assert_eq!(
                store.tasks_of_service(&service).count(),
                all().filter(|task| task.service_id == service).count()
            );
            prop_assert_eq!(
                store.tasks_of_node(&node).count(),
                all().filter(|task| task.node_id == node).count()
            );
        }
        let restored = Store::restore(store.save());
        prop_assert!(store.changes_to(&restored).is_empty());
        prop_assert_eq!(restored.save(), store.save());
        let frozen = store.freeze();
        let mut bytes = Vec::new();
        frozen.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), frozen.encoded_len());
        prop_assert_eq!(bytes, prost::Message::encode_to_vec(&store.save()));
    }
}

//! Objects and rounds that are larger than an entry of the log may be.

use std::time::Duration;

use store::access::{self, TaskState};
use wire::swarmkit as pb;

use super::calls::service;
use super::rig::{Rig, worker_of};
use super::streams::worker;
use crate::{Call, Code};

/// A service whose tasks have so many bytes of environment.
fn heavy(name: &str, replicas: u64, bytes: usize) -> pb::ServiceSpec {
    let mut spec = service(name, replicas);
    let task = spec.task.as_mut().unwrap();
    let Some(pb::task_spec::Runtime::Container(container)) = &mut task.runtime else {
        panic!("a container")
    };
    container.env = vec![format!("BLOB={}", "x".repeat(bytes))];
    spec
}

fn tasks_in(rig: &Rig, state: TaskState) -> usize {
    let store = rig.manager("node1").store();
    store.all::<pb::Task>().filter(|task| access::state(task) == state).count()
}

#[test]
fn a_service_of_many_large_tasks_runs_and_another_beside_it() {
    let mut rig = Rig::new(61);
    let (node, _, session_id) = worker(&mut rig);
    rig.control(pb::CreateServiceRequest { spec: Some(heavy("big", 300, 10_000)) }).unwrap();
    rig.control(pb::CreateServiceRequest { spec: Some(heavy("huge", 3, 600_000)) }).unwrap();
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 2)) }).unwrap();
    rig.run(Duration::from_secs(1));
    assert_eq!(tasks_in(&rig, TaskState::Assigned), 305);
    let own = |task: &&std::sync::Arc<pb::Task>| task.node_id == node;
    let tasks = rig.manager("node1").store().all::<pb::Task>().filter(own);
    let updates = tasks.map(|task| pb::update_task_status_request::TaskStatusUpdate {
        task_id: task.id.clone(),
        status: Some(pb::TaskStatus {
            state: TaskState::Running as i32,
            ..task.status.clone().unwrap()
        }),
    });
    let updates: Vec<_> = updates.collect();
    let count = updates.len();
    assert!(count > 100, "{count}");
    let report = pb::UpdateTaskStatusRequest { session_id, updates };
    rig.call("node1", worker_of(&node), Call::UpdateTaskStatus(report)).unwrap();
    rig.run(Duration::from_secs(1));
    assert_eq!(tasks_in(&rig, TaskState::Running), count);
    assert!(rig.complaints.is_empty(), "{:?}", rig.complaints);
}

#[test]
fn what_is_too_large_for_an_entry_is_refused_with_its_size_and_what_is_taken_runs() {
    let mut rig = Rig::new(62);
    let (_, _, _) = worker(&mut rig);
    let bytes = consensus::PROPOSAL_BYTES_MAX - 10_000;
    let spec = Some(heavy("vast", 1, bytes));
    let refused = rig.control(pb::CreateServiceRequest { spec }).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(refused.message.contains("at most 1507328 are possible"), "{}", refused.message);
    let spec = Some(heavy("most", 2, consensus::PROPOSAL_BYTES_MAX - 66_000));
    rig.control(pb::CreateServiceRequest { spec }).unwrap();
    rig.run(Duration::from_secs(1));
    assert_eq!(tasks_in(&rig, TaskState::Assigned), 2);
}

#[test]
fn what_cannot_be_stored_holds_nobody_up_and_is_told() {
    let mut rig = Rig::new(63);
    let (node, _, session_id) = worker(&mut rig);
    let description =
        Some(pb::NodeDescription { hostname: "h".repeat(1_600_000), ..Default::default() });
    let request = pb::SessionRequest { description, session_id };
    rig.open("node1", worker_of(&node), crate::Open::Session(request));
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 2)) }).unwrap();
    rig.run(Duration::from_secs(1));
    assert_eq!(tasks_in(&rig, TaskState::Assigned), 2);
    assert_eq!(rig.complaints.len(), 1, "{:?}", rig.complaints);
    assert!(rig.complaints[0].starts_with(&format!("Node {node} is not stored")));
    let stored = rig.manager("node1").store().get::<pb::Node>(&node).unwrap();
    let message = &stored.status.as_ref().unwrap().message;
    assert!(message.contains("cannot be stored"), "{message}");
}

#[test]
fn a_task_says_that_its_networks_make_it_too_large() {
    let mut rig = Rig::new(64);
    let (_, _, _) = worker(&mut rig);
    let networks = ["net1", "net2"].map(|name| {
        let labels = [("blob".to_owned(), "x".repeat(900_000))].into();
        let annotations = Some(pb::Annotations { name: name.into(), labels, ..Default::default() });
        let driver = Some(pb::Driver { name: "overlay".into(), ..Default::default() });
        let spec = pb::NetworkSpec { annotations, driver_config: driver, ..Default::default() };
        rig.control(pb::CreateNetworkRequest { spec: Some(spec) }).unwrap();
        rig.manager("node1").store().by_name::<pb::Network>(name).next().unwrap().id.clone()
    });
    let mut spec = service("wide", 2);
    let attached =
        networks.map(|target| pb::NetworkAttachmentConfig { target, ..Default::default() });
    spec.task.as_mut().unwrap().networks = attached.into();
    rig.control(pb::CreateServiceRequest { spec: Some(spec) }).unwrap();
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 2)) }).unwrap();
    rig.run(Duration::from_secs(5));
    assert_eq!(tasks_in(&rig, TaskState::Assigned), 2, "others run");
    let store = rig.manager("node1").store();
    let errs = store.all::<pb::Task>().map(|task| task.status.as_ref().unwrap().err.as_str());
    let told = errs.filter(|err| err.contains("cannot be stored"));
    assert_eq!(told.count(), 2);
    let versions = |rig: &Rig| -> Vec<_> {
        let tasks = rig.manager("node1").store().all::<pb::Task>();
        let wide = tasks.filter(|task| task.service_annotations.as_ref().unwrap().name == "wide");
        wide.map(|task| task.meta.unwrap().version).collect()
    };
    let before = versions(&rig);
    rig.run(Duration::from_secs(30));
    assert_eq!(before, versions(&rig), "it is said once");
}

#[test]
fn a_node_with_more_tasks_than_an_entry_holds_is_removed_and_all_of_them_are_told() {
    for (seed, bytes) in [(65, 100), (66, 20_000)] {
        let mut rig = Rig::new(seed);
        let (lost, _, _) = worker(&mut rig);
        let other = rig.manager("node1").store().get::<pb::Node>("node1").unwrap();
        let spec = Some(pb::NodeSpec {
            availability: pb::node_spec::Availability::Drain as i32,
            ..other.spec.clone().unwrap()
        });
        let node_version = other.meta.unwrap().version;
        let node_id = "node1".to_owned();
        rig.control(pb::UpdateNodeRequest { node_id, node_version, spec }).unwrap();
        rig.control(pb::CreateServiceRequest { spec: Some(heavy("big", 300, bytes)) }).unwrap();
        rig.run(Duration::from_secs(1));
        let tasks_of = |rig: &Rig| -> Vec<_> {
            rig.manager("node1").store().tasks_of_node(&lost).cloned().collect()
        };
        assert_eq!(tasks_of(&rig).len(), 300);
        rig.control(pb::RemoveNodeRequest { node_id: lost.clone(), force: true }).unwrap();
        rig.run(Duration::from_secs(1));
        let left: Vec<_> = tasks_of(&rig);
        let orphaned = |task: &std::sync::Arc<pb::Task>| access::state(task) == TaskState::Orphaned;
        assert!(
            left.iter().all(orphaned),
            "{} of {}",
            left.iter().filter(|t| orphaned(t)).count(),
            left.len()
        );
        let store = rig.manager("node1").store();
        let waiting = store.all::<pb::Task>().filter(|task| task.node_id.is_empty());
        assert_eq!(waiting.count(), 300, "each has a successor");
        assert!(rig.complaints.is_empty(), "{:?}", rig.complaints);
    }
}

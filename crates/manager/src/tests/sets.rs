//! Sets of managers: joining, losing a leader, demotion, restart.

use std::time::Duration;

use wire::swarmkit as pb;

use super::calls::service;
use super::rig::{Rig, manager_of};
use crate::{Answer, Call, Code, Event, Ticket};

fn demote(rig: &mut Rig, node: &str) -> Result<(), crate::Failure> {
    let leader = rig.leader().unwrap();
    let stored = pb::Node::clone(rig.manager(&leader).store().get::<pb::Node>(node).unwrap());
    let mut spec = stored.spec.unwrap();
    spec.desired_role = pb::NodeRole::Worker as i32;
    let request = pb::UpdateNodeRequest {
        node_id: node.into(),
        node_version: stored.meta.unwrap().version,
        spec: Some(spec),
    };
    rig.control(request).map(|_| ())
}

#[test]
fn three_managers_hold_the_same_and_survive_their_leader() {
    let mut rig = Rig::new(21);
    let second = rig.add_manager();
    let third = rig.add_manager();
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 1)) }).unwrap();
    rig.run(Duration::from_secs(3));
    rig.cut = Some("node1".into());
    rig.run(Duration::from_secs(45));
    let leader = rig.leader().expect("another one leads");
    assert!(leader == second || leader == third);
    rig.control(pb::CreateServiceRequest { spec: Some(service("db", 1)) }).unwrap();
    assert!(!rig.manager("node1").leads(), "cut off, it has stepped down");
    rig.cut = None;
    rig.run(Duration::from_secs(30));
    let saved = rig.manager(&second).store().save();
    assert_eq!(saved.services.len(), 2);
    assert!(saved == rig.manager("node1").store().save());
    assert!(saved == rig.manager(&third).store().save());
}

#[test]
fn a_restarted_manager_knows_what_it_knew() {
    let mut rig = Rig::new(22);
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 1)) }).unwrap();
    let before = rig.manager("node1").store().save();
    rig.restart("node1");
    assert_eq!(rig.leader().as_deref(), Some("node1"));
    assert!(before.services == rig.manager("node1").store().save().services);
    assert_eq!(rig.manager("node1").store().count::<pb::Cluster>(), 1);
    rig.control(pb::CreateServiceRequest { spec: Some(service("db", 1)) }).unwrap();
}

#[test]
fn the_last_manager_cannot_be_demoted() {
    let mut rig = Rig::new(23);
    let refused = demote(&mut rig, "node1").unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert_eq!(refused.message, "attempting to demote the last manager of the swarm");
}

#[test]
fn a_demoted_manager_leaves_the_set_before_it_becomes_a_worker() {
    let mut rig = Rig::new(24);
    let second = rig.add_manager();
    let third = rig.add_manager();
    demote(&mut rig, &third).unwrap();
    rig.run(Duration::from_secs(10));
    let node = rig.manager("node1").store().get::<pb::Node>(&third).unwrap();
    assert_eq!(node.role(), pb::NodeRole::Worker);
    assert_eq!(rig.manager("node1").members().count(), 2);
    demote(&mut rig, "node1").unwrap();
    rig.run(Duration::from_secs(40));
    assert_eq!(rig.leader().as_deref(), Some(second.as_str()), "the leader handed over first");
    assert!(rig.hosts["node1"].removed || rig.manager(&second).members().count() == 1);
}

#[test]
fn a_demoted_manager_does_not_come_back_with_its_old_certificate() {
    let mut rig = Rig::new(33);
    rig.add_manager();
    let third = rig.add_manager();
    demote(&mut rig, &third).unwrap();
    rig.run(Duration::from_secs(10));
    let again = Call::Join(pb::JoinRequest { addr: "10.0.0.3:2377".into() });
    let refused = rig.call("node1", manager_of(&third), again).err().unwrap();
    assert_eq!(refused.code, Code::PermissionDenied);
    assert_eq!(rig.manager("node1").members().count(), 2);
}

#[test]
fn a_joiner_that_asks_twice_is_one_member() {
    let mut rig = Rig::new(34);
    rig.add_manager();
    let token = rig.cluster().root_ca.unwrap().join_tokens.unwrap().manager;
    let (node, _) = rig.enroll(&token).unwrap();
    let tickets = [Ticket(9_001), Ticket(9_002), Ticket(9_003)];
    // None is committed before the other manager has it.
    for (ticket, port) in tickets.into_iter().zip([2377, 2377, 2378]) {
        let request = pb::JoinRequest { addr: format!("10.0.0.9:{port}") };
        let (caller, call) = (manager_of(&node), Box::new(Call::Join(request)));
        rig.step("node1", Event::Call { ticket, caller, call });
    }
    rig.settle();
    let ids = tickets.map(|ticket| match rig.replies.remove(&ticket) {
        Some(Ok(Answer::Join(response))) => response.raft_id,
        _ => panic!("it may join"),
    });
    assert_eq!(ids, [ids[0]; 3]);
    let members: Vec<_> = rig.manager("node1").members().filter(|m| m.node_id == node).collect();
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].addr, "10.0.0.9:2378", "where it was last");
}

#[test]
fn a_demotion_that_would_cost_the_quorum_is_refused() {
    let mut rig = Rig::new(25);
    let second = rig.add_manager();
    let third = rig.add_manager();
    rig.hosts.get_mut(&third).unwrap().manager = None;
    rig.run(Duration::from_secs(25));
    let refused = demote(&mut rig, &second).unwrap_err();
    assert_eq!(
        refused.message,
        "can't remove member from the raft: this would result in a loss of quorum"
    );
    demote(&mut rig, &third).unwrap();
    rig.run(Duration::from_secs(10));
    assert_eq!(rig.manager(&second).members().count(), 2);
}

#[test]
fn without_a_quorum_reads_are_answered_and_writes_say_why_not() {
    let mut rig = Rig::new(26);
    let second = rig.add_manager();
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 1)) }).unwrap();
    rig.run(Duration::from_secs(2));
    rig.hosts.get_mut("node1").unwrap().manager = None;
    rig.run(Duration::from_secs(60));
    let read = Call::Control(pb::ListServicesRequest::default().into());
    assert!(rig.call(&second, manager_of(&second), read).is_ok());
    let spec = Some(service("db", 1));
    let write = Call::Control(pb::CreateServiceRequest { spec }.into());
    let refused = rig.call(&second, manager_of(&second), write).err().unwrap();
    assert_eq!(refused.message, crate::NO_LEADER);
}

#[test]
fn one_manager_of_three_is_made_whole_again_by_force() {
    let mut rig = Rig::new(27);
    let second = rig.add_manager();
    let third = rig.add_manager();
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 1)) }).unwrap();
    rig.run(Duration::from_secs(3));
    for gone in ["node1", third.as_str()] {
        rig.hosts.get_mut(gone).unwrap().manager = None;
    }
    rig.run(Duration::from_secs(40));
    assert_eq!(rig.leader(), None);
    rig.force(&second, "10.7.7.7:2377");
    assert_eq!(rig.leader().as_deref(), Some(second.as_str()));
    let manager = rig.manager(&second);
    assert_eq!(
        manager.members().map(|member| member.addr.as_str()).collect::<Vec<_>>(),
        ["10.7.7.7:2377"]
    );
    assert_eq!(manager.store().count::<pb::Service>(), 1);
    rig.control(pb::CreateServiceRequest { spec: Some(service("db", 1)) }).unwrap();
    rig.add_manager();
}

#[test]
fn snapshots_are_taken_as_the_cluster_says_and_bring_late_managers_up() {
    let mut rig = Rig::new(28);
    let cluster = rig.cluster();
    let mut spec = cluster.spec.clone().unwrap();
    spec.raft = Some(pb::RaftConfig {
        snapshot_interval: 20,
        log_entries_for_slow_followers: 5,
        ..spec.raft.unwrap_or_default()
    });
    let request = pb::UpdateClusterRequest {
        cluster_id: cluster.id.clone(),
        cluster_version: cluster.meta.unwrap().version,
        spec: Some(spec),
        rotation: None,
    };
    rig.control(request).unwrap();
    for number in 0..50 {
        let spec = Some(service(&format!("s{number}"), 0));
        rig.control(pb::CreateServiceRequest { spec }).unwrap();
    }
    let recovered = &rig.hosts["node1"].disk.recovered;
    assert!(recovered.snapshot.is_some() && recovered.entries.len() <= 26);
    let late = rig.add_manager();
    assert!(rig.manager(&late).store().save() == rig.manager("node1").store().save());
    rig.restart("node1");
    rig.run(Duration::from_secs(30));
    assert_eq!(rig.manager("node1").store().count::<pb::Service>(), 50);
    assert_eq!(rig.manager("node1").members().count(), 2);
}

#[test]
fn a_dead_leader_is_replaced_within_seconds_and_a_cut_off_follower_keeps_still() {
    let mut rig = Rig::new(29);
    let second = rig.add_manager();
    let third = rig.add_manager();
    rig.run(Duration::from_secs(5));
    let term = rig.manager("node1").term();
    rig.cut = Some(third.clone());
    rig.run(Duration::from_secs(9));
    assert_eq!(rig.manager(&third).term(), term, "it found no quorum and did not stand");
    rig.cut = None;
    rig.run(Duration::from_secs(5));
    assert_eq!(rig.leader().as_deref(), Some("node1"));
    rig.hosts.get_mut("node1").unwrap().manager = None;
    rig.run(Duration::from_secs(7));
    let leader = rig.leader().expect("another one leads within seven seconds");
    assert!(leader == second || leader == third);
    rig.control(pb::CreateServiceRequest { spec: Some(service("web", 1)) }).unwrap();
}

#[test]
fn a_leader_that_was_restarted_leads_again_within_seconds() {
    let mut rig = Rig::new(30);
    let second = rig.add_manager();
    rig.add_manager();
    rig.run(Duration::from_secs(5));
    rig.restart("node1");
    assert_eq!(rig.leader(), None);
    rig.run(Duration::from_secs(6));
    assert_eq!(rig.leader().as_deref(), Some("node1"));
    let term = rig.manager("node1").term();
    rig.restart(&second);
    rig.run(Duration::from_secs(6));
    assert_eq!(rig.manager("node1").term(), term, "a restarted follower disturbs nobody");
}

#[test]
fn a_leader_that_is_about_to_end_hands_over() {
    let mut rig = Rig::new(31);
    rig.add_manager();
    rig.add_manager();
    rig.run(Duration::from_secs(5));
    rig.step("node1", Event::HandOver);
    rig.settle();
    assert!(rig.leader().is_some_and(|leader| leader != "node1"), "at once");
    let mut alone = Rig::new(32);
    alone.step("node1", Event::HandOver);
    alone.settle();
    assert_eq!(alone.leader().as_deref(), Some("node1"), "there is nobody else");
}

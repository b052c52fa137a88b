//! Workers at a manager: sessions, heartbeats, logs.

use std::time::Duration;

use wire::swarmkit as pb;

use super::calls::service;
use super::rig::{CLUSTER, Rig, manager_of, worker_of};
use crate::{Answer, Call, Caller, Code, Event, Message, Open, StreamId};

pub fn worker(rig: &mut Rig) -> (String, StreamId, String) {
    let token = rig.cluster().root_ca.unwrap().join_tokens.unwrap().worker;
    let (node, _) = rig.enroll(&token).unwrap();
    let description = pb::NodeDescription { hostname: "host".into(), ..Default::default() };
    let request = pb::SessionRequest { description: Some(description), session_id: String::new() };
    let leader = rig.leader().unwrap();
    let stream = rig.open(&leader, worker_of(&node), Open::Session(request));
    let Some(Message::Session(message)) = rig.messages[&stream].last() else {
        panic!("a session begins with a message")
    };
    (node, stream, message.session_id.clone())
}

fn state(rig: &Rig, node: &str) -> pb::node_status::State {
    let leader = rig.leader().unwrap();
    let node = rig.manager(&leader).store().get::<pb::Node>(node).unwrap();
    node.status.as_ref().unwrap().state()
}

#[test]
fn a_session_makes_a_node_ready_and_tells_it_managers_and_keys() {
    let mut rig = Rig::new(31);
    let (node, stream, _) = worker(&mut rig);
    assert_eq!(state(&rig, &node), pb::node_status::State::Ready);
    let Some(Message::Session(message)) = rig.messages[&stream].last() else { panic!("a session") };
    assert_eq!(message.network_bootstrap_keys.len(), 6);
    assert_eq!(message.managers[0].peer.as_ref().unwrap().addr, "10.0.0.1:2377");
    assert_eq!(message.root_ca, rig.cluster().root_ca.unwrap().ca_cert);
    assert_eq!(message.node.as_ref().unwrap().id, node);
    rig.add_manager();
    let Some(Message::Session(message)) = rig.messages[&stream].last() else { panic!("a session") };
    assert_eq!(message.managers.len(), 2);
}

#[test]
fn a_silent_node_is_down_and_a_beating_one_is_not() {
    let mut rig = Rig::new(32);
    let (silent, _, _) = worker(&mut rig);
    let (beating, _, session_id) = worker(&mut rig);
    for _ in 0..10 {
        rig.run(Duration::from_secs(2));
        let beat = pb::HeartbeatRequest { session_id: session_id.clone() };
        let answer = rig.call("node1", worker_of(&beating), Call::Heartbeat(beat)).unwrap();
        let Answer::Heartbeat(answer) = answer else { panic!("a heartbeat's answer") };
        // Half of the cluster's five seconds, give or take a tenth.
        let period = answer.period.unwrap();
        let millis = period.seconds * 1000 + i64::from(period.nanos) / 1_000_000;
        assert!((2000..=3000).contains(&millis), "{millis} ms");
    }
    assert_eq!(state(&rig, &silent), pb::node_status::State::Down);
    assert_eq!(state(&rig, &beating), pb::node_status::State::Ready);
    let remove = pb::RemoveNodeRequest { node_id: beating, force: false };
    assert_eq!(rig.control(remove).unwrap_err().code, Code::FailedPrecondition);
}

#[test]
fn who_loses_the_lead_closes_its_sessions() {
    let mut rig = Rig::new(33);
    rig.add_manager();
    rig.add_manager();
    let (_, stream, _) = worker(&mut rig);
    rig.cut = rig.leader();
    rig.run(Duration::from_secs(30));
    assert!(rig.closed[&stream].is_err());
}

#[test]
fn strangers_open_nothing() {
    let mut rig = Rig::new(34);
    let session = || Open::Session(pb::SessionRequest::default());
    for caller in [Caller::default(), Caller { organization: "other".into(), ..worker_of("x") }] {
        let stream = rig.open("node1", caller, session());
        assert_eq!(rig.closed[&stream].as_ref().unwrap_err().code, Code::PermissionDenied);
    }
    let logs = Open::SubscribeLogs(pb::SubscribeLogsRequest::default());
    let stream = rig.open("node1", worker_of("w"), logs);
    assert_eq!(rig.closed[&stream].as_ref().unwrap_err().code, Code::PermissionDenied);
    assert_eq!(CLUSTER, rig.cluster().id);
}

#[test]
fn logs_come_from_the_nodes_that_have_them_and_end() {
    let mut rig = Rig::new(35);
    let (node, _, _) = worker(&mut rig);
    let ear = rig.open(
        "node1",
        worker_of(&node),
        Open::ListenSubscriptions(pb::ListenSubscriptionsRequest {}),
    );
    let selector = pb::LogSelector { node_ids: vec![node.clone()], ..Default::default() };
    let request = pb::SubscribeLogsRequest { selector: Some(selector), options: None };
    let reader = rig.open("node1", manager_of("node1"), Open::SubscribeLogs(request));
    let Some(Message::Subscription(asked)) = rig.messages[&ear].last() else { panic!("asked") };
    let subscription_id = asked.id.clone();
    let context = pb::LogContext { node_id: node.clone(), ..Default::default() };
    let line =
        pb::LogMessage { context: Some(context), data: b"hello".to_vec(), ..Default::default() };
    let publish = |messages, close| {
        Call::PublishLogs(pb::PublishLogsMessage {
            subscription_id: subscription_id.clone(),
            messages,
            close,
        })
    };
    let stranger = rig.call("node1", worker_of("other"), publish(vec![line.clone()], false));
    assert_eq!(stranger.err().unwrap().code, Code::PermissionDenied);
    rig.call("node1", worker_of(&node), publish(vec![line], false)).unwrap();
    assert!(!rig.closed.contains_key(&reader));
    rig.call("node1", worker_of(&node), publish(Vec::new(), true)).unwrap();
    assert_eq!(rig.closed[&reader], Ok(()));
    let Some(Message::Logs(logs)) = rig.messages[&reader].first() else { panic!("a line") };
    assert_eq!(logs.messages[0].data, b"hello");
}

#[test]
fn a_node_that_came_back_is_asked_again_for_what_it_had_not_finished() {
    let mut rig = Rig::new(37);
    let (node, _, _) = worker(&mut rig);
    let listen = |rig: &mut Rig| {
        let open = Open::ListenSubscriptions(pb::ListenSubscriptionsRequest {});
        rig.open("node1", worker_of(&node), open)
    };
    let first = listen(&mut rig);
    let selector = pb::LogSelector { node_ids: vec![node.clone()], ..Default::default() };
    let request = pb::SubscribeLogsRequest { selector: Some(selector), options: None };
    let reader = rig.open("node1", manager_of("node1"), Open::SubscribeLogs(request));
    assert_eq!(rig.messages[&first].len(), 1);
    let second = listen(&mut rig);
    assert_eq!(rig.closed[&first], Ok(()));
    let asked = &rig.messages[&second];
    let [Message::Subscription(asked)] = &asked[..] else { panic!("asked once") };
    let end = pb::PublishLogsMessage {
        subscription_id: asked.id.clone(),
        messages: Vec::new(),
        close: true,
    };
    rig.call("node1", worker_of(&node), Call::PublishLogs(end)).unwrap();
    assert_eq!(rig.closed[&reader], Ok(()));
}

#[test]
fn a_node_that_came_back_is_not_asked_again_for_what_it_had_finished() {
    let mut rig = Rig::new(38);
    let nodes = [worker(&mut rig).0, worker(&mut rig).0];
    let listen = |rig: &mut Rig, node: &str| {
        let open = Open::ListenSubscriptions(pb::ListenSubscriptionsRequest {});
        rig.open("node1", worker_of(node), open)
    };
    let ears = [listen(&mut rig, &nodes[0]), listen(&mut rig, &nodes[1])];
    let selector = pb::LogSelector { node_ids: nodes.to_vec(), ..Default::default() };
    let request = pb::SubscribeLogsRequest { selector: Some(selector), options: None };
    let reader = rig.open("node1", manager_of("node1"), Open::SubscribeLogs(request));
    let [Message::Subscription(asked)] = &rig.messages[&ears[0]][..] else { panic!("asked") };
    let subscription_id = asked.id.clone();
    let end = pb::PublishLogsMessage { subscription_id, messages: Vec::new(), close: true };
    rig.call("node1", worker_of(&nodes[0]), Call::PublishLogs(end)).unwrap();
    let again = listen(&mut rig, &nodes[0]);
    assert!(!rig.messages.contains_key(&again), "its lines would come twice");
    assert!(!rig.closed.contains_key(&reader), "the other has not finished");
}

#[test]
fn a_reader_hears_when_a_node_is_not_there() {
    let mut rig = Rig::new(36);
    let (node, _, _) = worker(&mut rig);
    let selector = pb::LogSelector { node_ids: vec![node.clone()], ..Default::default() };
    let request = pb::SubscribeLogsRequest { selector: Some(selector), options: None };
    let reader = rig.open("node1", manager_of("node1"), Open::SubscribeLogs(request.clone()));
    let failure = rig.closed[&reader].as_ref().unwrap_err();
    assert!(failure.message.contains(&format!("node {node} is not available")), "{failure}");
    let ear = rig.open(
        "node1",
        worker_of(&node),
        Open::ListenSubscriptions(pb::ListenSubscriptionsRequest {}),
    );
    let options = pb::LogSubscriptionOptions { follow: true, ..Default::default() };
    let request = pb::SubscribeLogsRequest { options: Some(options), ..request };
    let reader = rig.open("node1", manager_of("node1"), Open::SubscribeLogs(request));
    assert!(!rig.closed.contains_key(&reader));
    rig.step("node1", Event::Closed { stream: reader });
    let Some(Message::Subscription(last)) = rig.messages[&ear].last() else { panic!("told") };
    assert!(last.close, "the node hears that nobody reads any more");
}

#[test]
fn a_manager_that_was_held_up_waits_to_hear_what_was_said_meanwhile() {
    let mut rig = Rig::new(35);
    let (node, _, session_id) = worker(&mut rig);
    let beat = || Call::Heartbeat(pb::HeartbeatRequest { session_id: session_id.clone() });
    rig.run(Duration::from_secs(5));
    rig.call("node1", worker_of(&node), beat()).unwrap();
    // Stopped; when it goes on its own clock is heard before the node's beats, which wait in line.
    rig.now = rig.now + Duration::from_secs(60);
    rig.settle();
    assert_eq!(state(&rig, &node), pb::node_status::State::Ready);
    rig.call("node1", worker_of(&node), beat()).expect("the session still counts");
    rig.run(Duration::from_secs(10));
    assert_eq!(state(&rig, &node), pb::node_status::State::Down, "its own silence counts as ever");
}

/// What a user can rely on: whatever else is on the nodes, and whichever of them joined a moment
/// ago, no ready node has two tasks more of a new service than another.
#[test]
fn the_tasks_of_a_service_are_spread_evenly_over_the_ready_nodes() {
    for seed in 0..10 {
        let mut rig = Rig::new(100 + seed);
        let mut nodes = vec![worker(&mut rig).0];
        for replicas in [4, 1, 7, 30] {
            nodes.push(worker(&mut rig).0);
            let spec = Some(service(&format!("s{replicas}"), replicas));
            let made = rig.control(pb::CreateServiceRequest { spec }).unwrap().service.unwrap();
            rig.settle();
            let store = rig.manager("node1").store();
            let of_service = |node: &String| {
                store.tasks_of_node(node).filter(|task| task.service_id == made.id).count()
            };
            let counts: Vec<usize> = nodes.iter().map(of_service).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "seed {seed}, {replicas} replicas: {counts:?}");
            assert_eq!(counts.iter().sum::<usize>() as u64, replicas, "all have a place");
        }
    }
}

//! An agent's days, event by event.

use super::*;
use gossip::{ENDPOINT_TABLE, OVERLAY_PEER_TABLE};
use netplan::view::{Backend, NodeEngine};
use prost::Message as _;
use wire::networktable::{EndpointRecord, PeerRecord, PortConfig};

mod away;
mod claims;
mod guests;
mod others;
mod ports;
mod restart;

const OWN: &str = "aaaaaaaaaaaa";

struct World {
    now: Instant,
    agent: Agent,
}

fn config() -> Config {
    Config {
        node_id: "n1".into(),
        data_path: "192.0.2.1".parse().unwrap(),
        gossip_name: OWN.into(),
        description: pb::NodeDescription::default(),
        node: None,
        mesh_open: true,
        had_peers: false,
        seed: [1; 32],
    }
}

impl World {
    fn new(records: Vec<Record>) -> Self {
        let now = Instant::from_nanos(1_000_000_000_000);
        World { now, agent: Agent::new(config(), records) }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.agent.step(self.now, event)
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let end = self.now + time;
        let mut effects = Vec::new();
        while let Some(at) = self.agent.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            effects.extend(self.step(Event::Deadline));
        }
        self.now = end;
        effects
    }

    /// A session with this node attached to both networks.
    fn connect(&mut self) -> Vec<Effect> {
        let _ = self.step(Event::Deadline);
        let attachments = vec![attach(&ingress(), "10.0.0.2/24"), attach(&web(), "10.0.1.9/24")];
        let node = pb::Node { id: "n1".into(), attachments, vxlanudp_port: 4789, ..<_>::default() };
        self.step(Event::Session(Box::new(pb::SessionMessage {
            session_id: "s1".into(),
            node: Some(node),
            ..Default::default()
        })))
    }

    fn assign(&mut self, from: &str, to: &str, tasks: Vec<pb::Task>) -> Vec<Effect> {
        let changes = tasks.into_iter().map(|task| change(task, 0)).collect();
        let kind = if from.is_empty() { 0 } else { 1 };
        self.step(Event::Assignments(pb::AssignmentsMessage {
            r#type: kind,
            applies_to: from.into(),
            results_in: to.into(),
            changes,
        }))
    }

    fn staged(&mut self, stage: Stage) -> Vec<Effect> {
        let container = Container { container_id: "c".repeat(64), pid: 7, ..Default::default() };
        self.step(Event::Staged { task: "t1".into(), stage, result: Ok(container) })
    }

    fn run(&mut self) {
        let _ = self.connect();
        let _ = self.assign("", "1", vec![task(TaskState::Running)]);
        let _ = self.staged(Stage::Prepare);
        let _ = self.staged(Stage::Start);
    }

    /// Rows about this node's endpoints, by what others say of them.
    fn announced(&self) -> Vec<u64> {
        let rows = self.agent.shown.rows.iter();
        let endpoints = rows.filter(|((_, table, _), _)| *table == ENDPOINT_TABLE);
        endpoints.map(|((network, _, key), value)| gossip::row_print(network, key, value)).collect()
    }

    fn row(&mut self, network: &str, table: &str, key: &str, owner: &str, value: Vec<u8>) {
        let _ = self.step(Event::Row {
            network: network.into(),
            table: table.into(),
            key: key.into(),
            owner: owner.into(),
            value: Some(value),
        });
    }
}

fn change(task: pb::Task, action: i32) -> pb::AssignmentChange {
    let item = Some(pb::assignment::Item::Task(task));
    pb::AssignmentChange { assignment: Some(pb::Assignment { item }), action }
}

fn network(id: &str, vni: &str, subnet: &str, ingress: bool) -> pb::Network {
    let options = [("com.docker.network.driver.overlay.vxlanid_list".to_owned(), vni.to_owned())];
    let config = pb::IpamConfig {
        subnet: subnet.into(),
        gateway: subnet.replace(".0/24", ".1"),
        ..Default::default()
    };
    pb::Network {
        id: id.into(),
        spec: Some(pb::NetworkSpec {
            annotations: Some(pb::Annotations { name: id.into(), ..Default::default() }),
            ingress,
            ..Default::default()
        }),
        driver_state: Some(pb::Driver { name: "overlay".into(), options: options.into() }),
        ipam: Some(pb::IpamOptions { driver: None, configs: vec![config] }),
        ..Default::default()
    }
}

fn web() -> pb::Network {
    network("web", "4097", "10.0.1.0/24", false)
}

fn ingress() -> pb::Network {
    network("ingress", "4096", "10.0.0.0/24", true)
}

fn attach(network: &pb::Network, address: &str) -> pb::NetworkAttachment {
    pb::NetworkAttachment {
        network: Some(network.clone()),
        addresses: vec![address.into()],
        aliases: vec!["shop".into()],
        ..Default::default()
    }
}

fn task(desired: TaskState) -> pb::Task {
    let vip = |network: &str, addr: &str| pb::endpoint::VirtualIp {
        network_id: network.into(),
        addr: addr.into(),
    };
    let port = pb::PortConfig { target_port: 80, published_port: 8080, ..Default::default() };
    let mut status = pb::TaskStatus::default();
    status.set_state(TaskState::Assigned);
    let mut task = pb::Task {
        id: "t1".into(),
        service_id: "svc".into(),
        slot: 3,
        node_id: "n1".into(),
        service_annotations: Some(pb::Annotations {
            name: "shop-web".into(),
            ..Default::default()
        }),
        networks: vec![attach(&ingress(), "10.0.0.5/24"), attach(&web(), "10.0.1.5/24")],
        endpoint: Some(pb::Endpoint {
            ports: vec![port],
            virtual_ips: vec![vip("ingress", "10.0.0.4/24"), vip("web", "10.0.1.4/24")],
            ..Default::default()
        }),
        status: Some(status),
        ..Default::default()
    };
    task.set_desired_state(desired);
    task
}

/// The effects in short, in their order.
fn short(effects: &[Effect]) -> Vec<String> {
    let name = |effect: &Effect| match effect {
        Effect::OpenSession(_) => "open".to_owned(),
        Effect::CloseSession => "close".to_owned(),
        Effect::OpenAssignments(_) => "assignments".to_owned(),
        Effect::Heartbeat(_) => "heartbeat".to_owned(),
        Effect::Report(request) => {
            let states = request
                .updates
                .iter()
                .map(|update| format!("{:?}", update.status.as_ref().unwrap().state()));
            format!("report {}", states.collect::<Vec<_>>().join(" "))
        }
        Effect::Persist(record) => format!("persist {:?}", record.status.state()),
        Effect::Forget { .. } => "forget".to_owned(),
        Effect::Prepare(_) => "prepare".to_owned(),
        Effect::Start { .. } => "start".to_owned(),
        Effect::Shutdown { .. } => "shutdown".to_owned(),
        Effect::Remove { .. } => "remove".to_owned(),
        Effect::Overlays(_) => "overlays".to_owned(),
        Effect::Zones(_) => "zones".to_owned(),
        Effect::JoinNetwork(id) => format!("join {id}"),
        Effect::LeaveNetwork(id) => format!("leave {id}"),
        Effect::PutRow { network, table, .. } => format!("put {network} {table}"),
        Effect::DeleteRow { network, table, .. } => format!("delete {network} {table}"),
        Effect::Node(_) => "node".to_owned(),
        _ => "other".to_owned(),
    };
    effects.iter().map(name).collect()
}

fn overlays(effects: &[Effect]) -> Option<&OverlayState> {
    effects.iter().rev().find_map(|effect| match effect {
        Effect::Overlays(state) => Some(state),
        _ => None,
    })
}

fn zone<'a>(effects: &'a [Effect], network: &str) -> Option<&'a dns::Zone> {
    effects.iter().rev().find_map(|effect| match effect {
        Effect::Zones(zones) => zones.get(network),
        _ => None,
    })
}

#[test]
fn a_task_comes_to_life_stage_by_stage() {
    let mut world = World::new(vec![]);
    assert_eq!(short(&world.step(Event::Deadline)), ["open"]);
    let told = world.connect();
    let told = short(&told);
    assert_eq!(told[..5], ["node", "assignments", "heartbeat", "join ingress", "join web"]);
    let assigned = world.assign("", "1", vec![task(TaskState::Running)]);
    let assigned = short(&assigned);
    let (first, last) = (&assigned[0], &assigned[assigned.len() - 2..]);
    assert_eq!(
        (first.as_str(), last),
        ("persist Preparing", &["prepare".to_owned(), "report Preparing".to_owned()][..])
    );
    let prepared = short(&world.staged(Stage::Prepare));
    assert!(prepared.contains(&"persist Starting".to_owned()));
    assert!(
        prepared.contains(&"put web overlay_peer_table".to_owned()),
        "reachable before it runs"
    );
    assert!(!prepared.contains(&"put web endpoint_table".to_owned()));
    assert!(prepared.ends_with(&["start".to_owned()]), "one report is under way");
    let reported = short(&world.step(Event::Reported { ok: true }));
    assert_eq!(reported, ["report Starting"]);
    let started = world.staged(Stage::Start);
    let names = zone(&started, "web").unwrap();
    assert_eq!(names.names["shop-web"], ["10.0.1.4".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(names.names["tasks.shop"], ["10.0.1.5".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(names.pointers[&"10.0.1.5".parse().unwrap()], "shop-web.3.t1");
    assert!(short(&started).contains(&"put web endpoint_table".to_owned()));
}

#[test]
fn a_task_is_drained_before_it_is_stopped_and_leaves_nothing() {
    let mut world = World::new(vec![]);
    world.run();
    let stopping = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(short(&stopping).contains(&"put web endpoint_table".to_owned()));
    assert!(!short(&stopping).contains(&"shutdown".to_owned()));
    let state = overlays(&stopping).unwrap();
    let backend = Backend { address: "10.0.1.5".parse().unwrap(), ready: false };
    assert_eq!(state.overlays["web"].services[0].backends, [backend]);
    let drained = world.pass(Duration::from_millis(300));
    assert!(short(&drained).contains(&"shutdown".to_owned()));
    let stopped = world.staged(Stage::Shutdown);
    assert!(short(&stopped).contains(&"delete web endpoint_table".to_owned()));
    assert!(short(&stopped).contains(&"persist Shutdown".to_owned()));
    let gone = world.step(Event::Assignments(pb::AssignmentsMessage {
        r#type: 1,
        applies_to: "2".into(),
        results_in: "3".into(),
        changes: vec![change(pb::Task { id: "t1".into(), ..Default::default() }, 1)],
    }));
    assert!(short(&gone).contains(&"remove".to_owned()));
    assert!(short(&world.staged(Stage::Remove)).contains(&"forget".to_owned()));
}

#[test]
fn failures_say_why() {
    let mut world = World::new(vec![]);
    let _ = world.connect();
    let _ = world.assign("", "1", vec![task(TaskState::Running)]);
    let error = StageError { message: "No such image: nope".into(), reject: true };
    let event = Event::Staged { task: "t1".into(), stage: Stage::Prepare, result: Err(error) };
    let _ = world.step(event);
    let status = &world.agent.lives["t1"].status;
    assert_eq!((status.state(), status.err.as_str()), (TaskState::Rejected, "No such image: nope"));

    for (code, state, err) in
        [(0, TaskState::Complete, ""), (3, TaskState::Failed, "task: non-zero exit (3)")]
    {
        let mut world = World::new(vec![]);
        world.run();
        let container = Some(Container { exit_code: code, ..Default::default() });
        let event = Event::Exited { task: "t1".into(), container, message: String::new() };
        let _ = world.step(event);
        let status = &world.agent.lives["t1"].status;
        assert_eq!((status.state(), status.err.as_str()), (state, err));
    }
    let mut world = World::new(vec![]);
    world.run();
    let effects = world.step(Event::Health { task: "t1".into(), healthy: false });
    assert!(short(&effects).contains(&"shutdown".to_owned()));
    let _ = world.staged(Stage::Shutdown);
    let status = &world.agent.lives["t1"].status;
    assert_eq!(status.state(), TaskState::Failed);
    assert!(status.err.contains("unhealthy container"));
}

fn failed(world: &mut World, stage: Stage) -> Vec<Effect> {
    let message = "tried to kill container, but did not receive an exit event".to_owned();
    let result = Err(StageError { message, reject: false });
    world.step(Event::Staged { task: "t1".into(), stage, result })
}

#[test]
fn a_task_that_cannot_be_stopped_is_not_told_as_shut_down_and_is_tried_again() {
    let mut world = World::new(vec![]);
    world.run();
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(short(&world.pass(Duration::from_secs(1))).contains(&"shutdown".to_owned()));
    let told = short(&failed(&mut world, Stage::Shutdown));
    assert!(told.contains(&"persist Running".to_owned()), "{told:?}");
    assert!(!told.contains(&"delete web endpoint_table".to_owned()), "{told:?}");
    let status = &world.agent.lives["t1"].status;
    assert_eq!(status.state(), TaskState::Running);
    assert!(status.err.starts_with("tried to kill container"));
    assert!(!short(&world.pass(Duration::from_secs(9))).contains(&"shutdown".to_owned()));
    assert!(short(&world.pass(Duration::from_secs(2))).contains(&"shutdown".to_owned()));
    let stopped = short(&world.staged(Stage::Shutdown));
    assert!(stopped.contains(&"delete web endpoint_table".to_owned()), "{stopped:?}");
    let status = &world.agent.lives["t1"].status;
    assert_eq!((status.state(), status.err.as_str()), (TaskState::Shutdown, ""));
}

#[test]
fn why_an_unhealthy_task_is_not_stopped_is_not_hidden_by_what_is_known_of_ports() {
    let mut world = World::new(vec![]);
    world.run();
    let _ = world.step(Event::PortsTaken([].into()));
    let unhealthy = world.step(Event::Health { task: "t1".into(), healthy: false });
    assert!(short(&unhealthy).contains(&"shutdown".to_owned()));
    let _ = failed(&mut world, Stage::Shutdown);
    let _ = world.pass(Duration::from_secs(1));
    let status = &world.agent.lives["t1"].status;
    assert_eq!(status.state(), TaskState::Running);
    assert!(status.err.starts_with("tried to kill container"), "{}", status.err);
}

#[test]
fn a_task_that_ends_after_its_stop_had_failed_is_shut_down() {
    let mut world = World::new(vec![]);
    world.run();
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    let _ = world.pass(Duration::from_secs(1));
    let _ = failed(&mut world, Stage::Shutdown);
    let container = Some(Container { exit_code: 137, ..Default::default() });
    let late = Event::Exited { task: "t1".into(), container, message: String::new() };
    let _ = world.step(late);
    let status = &world.agent.lives["t1"].status;
    assert_eq!((status.state(), status.err.as_str()), (TaskState::Shutdown, ""));
}

#[test]
fn a_container_that_cannot_be_removed_is_remembered_and_tried_again() {
    let mut world = World::new(vec![]);
    world.run();
    let _ = world.assign("", "2", vec![]);
    let _ = world.pass(Duration::from_secs(1));
    let removing = short(&world.staged(Stage::Shutdown));
    assert!(removing.contains(&"remove".to_owned()), "{removing:?}");
    let told = short(&failed(&mut world, Stage::Remove));
    assert!(!told.contains(&"forget".to_owned()), "{told:?}");
    assert!(!short(&world.pass(Duration::from_secs(9))).contains(&"remove".to_owned()));
    assert!(short(&world.pass(Duration::from_secs(2))).contains(&"remove".to_owned()));
    assert!(short(&world.staged(Stage::Remove)).contains(&"forget".to_owned()));
}

#[test]
fn a_restart_adopts_what_runs_and_leaves_the_networks_alone_at_first() {
    let mut world = World::new(vec![]);
    world.run();
    let record = world.agent.lives["t1"].record();
    let mut world = World::new(vec![record]);
    let first = world.step(Event::Deadline);
    assert!(overlays(&first).is_none());
    assert!(short(&first).contains(&"put web endpoint_table".to_owned()));
    let told = world.connect();
    let assigned = world.assign("", "1", vec![task(TaskState::Running)]);
    for effects in [&told, &assigned] {
        let effects = short(effects);
        assert!(!effects.iter().any(|e| ["prepare", "start", "shutdown"].contains(&e.as_str())));
        assert!(overlays(&[]).is_none());
    }
    let settled = world.pass(Duration::from_secs(5));
    assert!(overlays(&settled).is_some());
    assert!(short(&settled).contains(&"report Running".to_owned()));
    let dead = Event::Exited { task: "t1".into(), container: None, message: String::new() };
    let _ = world.step(dead);
    assert_eq!(world.agent.lives["t1"].state(), TaskState::Failed);
}

#[test]
fn a_lost_session_is_opened_again_with_growing_pauses() {
    let mut world = World::new(vec![]);
    world.run();
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let lost = world.step(Event::SessionLost { reason: "gone".into() });
        assert!(short(&lost).contains(&"close".to_owned()));
        let start = world.now;
        while !short(&world.step(Event::Deadline)).contains(&"open".to_owned()) {
            world.now = world.agent.deadline().unwrap();
        }
        pauses.push(world.now.since(start));
    }
    assert!(pauses[0] <= Duration::from_millis(100));
    assert!(*pauses.last().unwrap() >= Duration::from_secs(4));
    let back = world.connect();
    assert!(short(&back).contains(&"report Running".to_owned()));
}

#[test]
fn assignments_that_do_not_follow_are_asked_for_again() {
    let mut world = World::new(vec![]);
    world.run();
    let odd = world.assign("7", "8", vec![]);
    assert!(short(&odd).contains(&"assignments".to_owned()));
    assert_eq!(world.agent.lives.len(), 1);
    let empty = world.assign("", "1", vec![]);
    assert!(!short(&empty).is_empty());
    assert!(world.agent.lives["t1"].unassigned);
}

#[test]
fn a_start_that_is_asked_for_again_after_a_restart_tells_the_end_itself() {
    let mut world = World::new(vec![]);
    let _ = world.connect();
    let _ = world.assign("", "1", vec![task(TaskState::Running)]);
    let _ = world.staged(Stage::Prepare);
    let record = world.agent.lives["t1"].record();
    assert_eq!(record.status.state(), TaskState::Starting);
    let mut world = World::new(vec![record]);
    assert!(short(&world.step(Event::Deadline)).contains(&"start".to_owned()));
    let early = Event::Exited { task: "t1".into(), container: None, message: String::new() };
    let _ = world.step(early);
    assert_eq!(world.agent.lives["t1"].state(), TaskState::Starting);
    let _ = world.staged(Stage::Start);
    assert_eq!(world.agent.lives["t1"].state(), TaskState::Running);
}

/// A world with one task that runs, and another node on both networks.
fn beside(skep: bool) -> World {
    let mut world = World::new(vec![]);
    let name = "bbbbbbbbbbbb".to_owned();
    let address = "192.0.2.2".parse().unwrap();
    let _ = world.step(Event::MemberUp { name: name.clone(), address, skep });
    for network in ["web", "ingress"] {
        let names = [name.clone(), OWN.to_owned()].into();
        let _ = world.step(Event::Peers { network: network.into(), names, failed: [].into() });
    }
    let _ = world.connect();
    let _ = world.assign("", "1", vec![task(TaskState::Running)]);
    let _ = world.step(Event::Reported { ok: true });
    let _ = world.staged(Stage::Prepare);
    let _ = world.step(Event::Reported { ok: true });
    world
}

/// The other node puts to work what was announced.
fn applied(world: &mut World, effects: &[Effect]) -> Vec<Effect> {
    let print = |effect: &Effect| match effect {
        Effect::PutRow { network, table, key, value } if *table == ENDPOINT_TABLE => {
            Some(gossip::row_print(network, key, value))
        }
        _ => None,
    };
    let rows = effects.iter().filter_map(print).collect();
    world.step(Event::Applied { by: "bbbbbbbbbbbb".into(), rows })
}

#[test]
fn a_task_is_said_to_run_once_every_node_sends_to_it() {
    let mut world = beside(true);
    let started = world.staged(Stage::Start);
    assert!(short(&started).contains(&"put web endpoint_table".to_owned()));
    assert!(!short(&started).contains(&"report Running".to_owned()));
    let _ = applied(&mut world, &started);
    let said = world.pass(Duration::from_millis(100));
    assert!(short(&said).contains(&"report Running".to_owned()));
}

#[test]
fn a_node_that_does_not_answer_is_awaited_for_ten_seconds() {
    let mut world = beside(true);
    let _ = world.staged(Stage::Start);
    assert!(!short(&world.pass(Duration::from_millis(9_999))).contains(&"report Running".into()));
    assert!(short(&world.pass(Duration::from_millis(1))).contains(&"report Running".into()));
    // One that is down is not awaited at all.
    let mut world = beside(true);
    let _ = world.staged(Stage::Start);
    let down = world.step(Event::MemberDown { name: "bbbbbbbbbbbb".into() });
    assert!(short(&down).contains(&"report Running".into()));
}

#[test]
fn a_task_is_stopped_when_the_last_node_has_said_that_it_sends_no_more() {
    let mut world = beside(true);
    let started = world.staged(Stage::Start);
    let _ = applied(&mut world, &started);
    let _ = world.pass(Duration::from_secs(5));
    let stopping = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(!short(&world.pass(Duration::from_millis(1_500))).contains(&"shutdown".into()));
    let late = applied(&mut world, &stopping);
    assert!(!short(&late).contains(&"shutdown".into()), "requests under way have their time");
    assert!(short(&world.pass(Duration::from_millis(100))).contains(&"shutdown".into()));
}

#[test]
fn a_docker_engine_node_is_given_the_time_that_news_takes() {
    let mut world = beside(false);
    let _ = world.staged(Stage::Start);
    let _ = world.pass(Duration::from_secs(5));
    let _ = world.assign("1", "2", vec![task(TaskState::Shutdown)]);
    assert!(!short(&world.pass(Duration::from_millis(400))).contains(&"shutdown".into()));
    assert!(short(&world.pass(Duration::from_millis(100))).contains(&"shutdown".into()));
}

#[test]
fn the_owner_of_a_row_hears_that_it_is_followed_after_the_networks_are_told() {
    let mut world = beside(true);
    let _ = world.staged(Stage::Start);
    let record = EndpointRecord {
        name: "shop-web.1.t9".into(),
        endpoint_ip: "10.0.1.6".into(),
        ..Default::default()
    };
    let value = record.encode_to_vec();
    let print = gossip::row_print(&"web".into(), "e1", &value);
    world.row("web", ENDPOINT_TABLE, "e1", "bbbbbbbbbbbb", value);
    let shown = world.pass(Duration::from_millis(10));
    let at = |wanted: &dyn Fn(&Effect) -> bool| shown.iter().position(wanted);
    let told = at(
        &|effect| matches!(effect, Effect::Applied { to, rows } if to == "bbbbbbbbbbbb" && rows == &[print]),
    );
    assert!(
        told > at(&|effect| matches!(effect, Effect::Zones(_))) && told.is_some(),
        "{}",
        shown.len()
    );
}

#[test]
fn a_restarted_node_without_tasks_keeps_its_networks_until_it_has_the_rows_again() {
    let mut world = World::new(vec![]);
    let node = world.connect().into_iter().find_map(|effect| match effect {
        Effect::Node(node) => Some(*node),
        _ => None,
    });
    world.agent = Agent::new(Config { node, ..config() }, vec![]);
    assert!(overlays(&world.step(Event::Deadline)).is_none());
    let address = "192.0.2.2".parse().unwrap();
    let _ = world.step(Event::MemberUp { name: "bbbbbbbbbbbb".into(), address, skep: true });
    for network in ["web", "ingress"] {
        let names = ["bbbbbbbbbbbb".to_owned()].into();
        let _ = world.step(Event::Peers { network: network.into(), names, failed: [].into() });
    }
    assert!(overlays(&world.pass(Duration::from_secs(3))).is_none(), "no rows yet");
    assert!(overlays(&world.step(Event::Synced { network: "web".into() })).is_none());
    assert!(overlays(&world.step(Event::Synced { network: "ingress".into() })).is_some());
}

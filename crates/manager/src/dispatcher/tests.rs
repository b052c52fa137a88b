//! Sessions, assignments and statuses, call by call.

use rand::SeedableRng;
use store::Transaction;

use super::*;
use access::TaskState;

struct World {
    now: Instant,
    store: Store,
    dispatcher: Dispatcher,
    version: u64,
}

impl World {
    fn new() -> Self {
        let dice = ChaCha8Rng::seed_from_u64(3);
        let mut world = World {
            now: Instant::from_nanos(1_000_000_000_000),
            store: Store::default(),
            dispatcher: Dispatcher::new(dice, "leader"),
            version: 0,
        };
        let _ =
            world.commit(vec![Change::create(pb::Node { id: "n".into(), ..Default::default() })]);
        world
    }

    fn commit(&mut self, changes: Vec<Change>) -> Vec<Effect> {
        self.version += 1;
        let mut transaction = Transaction::new(&self.store);
        changes.into_iter().for_each(|change| transaction.apply(change).unwrap());
        let actions = transaction.finish(self.now, self.version);
        let touched = self.store.apply(actions);
        self.ask(Ask::Touched(&touched))
    }

    fn ask(&mut self, ask: Ask) -> Vec<Effect> {
        self.dispatcher.step(self.now, &self.store, ask)
    }

    fn plan(&mut self) -> Vec<Effect> {
        let changes = self.dispatcher.plan(self.now, &self.store);
        self.commit(changes)
    }

    fn open(&mut self, stream: u64, session: &str) -> Vec<Effect> {
        let description = pb::NodeDescription { hostname: "host".into(), ..Default::default() };
        let request =
            pb::SessionRequest { description: Some(description), session_id: session.into() };
        let address = "10.0.0.9".to_owned();
        self.ask(Ask::Session { stream: StreamId(stream), node: "n", address, request })
    }

    fn session(&self) -> String {
        self.dispatcher.sessions["n"].id.clone()
    }

    fn report(&mut self, task: &str, state: TaskState) -> Reply {
        let mut status = pb::TaskStatus::default();
        status.set_state(state);
        let update = pb::update_task_status_request::TaskStatusUpdate {
            task_id: task.into(),
            status: Some(status),
        };
        let request =
            pb::UpdateTaskStatusRequest { session_id: self.session(), updates: vec![update] };
        let ticket = Ticket(1);
        match self.ask(Ask::UpdateTaskStatus { ticket, node: "n", request }).pop() {
            Some(Effect::Reply { reply, .. }) => reply,
            _ => panic!("no reply"),
        }
    }

    fn node(&self) -> State {
        access::node_state(self.store.get::<pb::Node>("n").unwrap())
    }
}

fn task(id: &str, node: &str, secret: Option<&str>) -> pb::Task {
    let secrets =
        secret.map(|id| pb::SecretReference { secret_id: id.into(), ..Default::default() });
    let container =
        pb::ContainerSpec { secrets: secrets.into_iter().collect(), ..Default::default() };
    let mut status = pb::TaskStatus::default();
    status.set_state(TaskState::Assigned);
    pb::Task {
        id: id.into(),
        node_id: node.into(),
        status: Some(status),
        spec: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn session_messages(effects: &[Effect]) -> usize {
    let is_session = |effect: &&Effect| matches!(effect, Effect::Message { message, .. } if matches!(**message, Message::Session(_)));
    effects.iter().filter(is_session).count()
}

/// What a stream of assignments said: `+s1 +t1 -t2`, in its order.
fn assigned(effects: &[Effect]) -> Vec<String> {
    let mut said = Vec::new();
    for effect in effects {
        let Effect::Message { message, .. } = effect else { continue };
        let Message::Assignments(message) = &**message else { continue };
        said.push(format!("{}>{}", message.applies_to, message.results_in));
        for change in &message.changes {
            let sign = if change.action() == pb::assignment_change::AssignmentAction::Update {
                '+'
            } else {
                '-'
            };
            let id = match change.assignment.as_ref().unwrap().item.as_ref().unwrap() {
                pb::assignment::Item::Task(task) => &task.id,
                pb::assignment::Item::Secret(secret) => &secret.id,
                _ => panic!("unexpected"),
            };
            said.push(format!("{sign}{id}"));
        }
    }
    said
}

#[test]
fn a_session_makes_a_node_ready_and_silence_takes_it_down() {
    let mut world = World::new();
    assert_eq!(session_messages(&world.open(1, "")), 1);
    assert_eq!(session_messages(&world.plan()), 1, "its own change is told");
    assert_eq!(world.node(), State::Ready);
    let stored = world.store.get::<pb::Node>("n").unwrap();
    assert_eq!(stored.description.as_ref().unwrap().hostname, "host");
    assert_eq!(stored.status.as_ref().unwrap().addr, "10.0.0.9");
    assert!(world.dispatcher.plan(world.now, &world.store).is_empty());

    let request = pb::HeartbeatRequest { session_id: world.session() };
    world.now = world.now + Duration::from_secs(7);
    let beat = world.ask(Ask::Heartbeat { ticket: Ticket(1), node: "n", request });
    let [Effect::Reply { reply: Ok(Answer::Heartbeat(answer)), .. }] = &beat[..] else {
        panic!("no answer");
    };
    let period = access::duration(answer.period.as_ref().unwrap());
    assert!((2_250..=2_750).contains(&period.as_millis()));
    world.now = world.now + period * 3;
    let ended = world.ask(Ask::Deadline);
    assert!(matches!(ended[..], [Effect::Close { stream: StreamId(1), .. }]));
    let _ = world.plan();
    assert_eq!(world.node(), State::Down);
    let request = pb::HeartbeatRequest { session_id: "old".into() };
    let beat = world.ask(Ask::Heartbeat { ticket: Ticket(2), node: "n", request });
    let [Effect::Reply { reply: Err(failure), .. }] = &beat[..] else { panic!("answered") };
    assert_eq!(failure.code, Code::NotFound);
}

#[test]
fn foreign_sessions_and_too_many_registrations_are_refused() {
    let mut world = World::new();
    let _ = world.open(1, "");
    let request = pb::AssignmentsRequest { session_id: "wrong".into() };
    let refused = world.ask(Ask::Assignments { stream: StreamId(9), node: "n", request });
    let [Effect::Close { end: Err(failure), .. }] = &refused[..] else { panic!("opened") };
    assert_eq!(failure.code, Code::InvalidArgument);
    let session = world.session();
    assert_eq!(session_messages(&world.open(2, &session)), 2, "both streams of one session");
    let _ = world.open(3, "");
    let _ = world.open(4, "");
    let refused = world.open(5, "");
    let [Effect::Close { end: Err(failure), .. }] = &refused[..] else { panic!("opened") };
    assert_eq!(failure.code, Code::Unavailable);
    world.now = world.now + Duration::from_secs(8);
    assert_eq!(session_messages(&world.open(6, "")), 1);
}

#[test]
fn assignments_are_complete_once_then_incremental_secrets_first() {
    let mut world = World::new();
    let secret = |id: &str| Change::create(pb::Secret { id: id.into(), ..Default::default() });
    let _ = world.commit(vec![secret("z-secret"), secret("elsewhere")]);
    let _ = world.commit(vec![
        Change::create(task("t1", "n", Some("z-secret"))),
        Change::create(task("t2", "other", Some("elsewhere"))),
    ]);
    let _ = world.open(1, "");
    let _ = world.plan();
    let request = pb::AssignmentsRequest { session_id: world.session() };
    let first = world.ask(Ask::Assignments { stream: StreamId(2), node: "n", request });
    assert_eq!(assigned(&first), [">1", "+z-secret", "+t1"]);
    let next = world.commit(vec![Change::create(task("t3", "n", Some("z-secret")))]);
    assert_eq!(assigned(&next), ["1>2", "+t3"]);
    assert!(world.report("t1", TaskState::Running).is_ok());
    assert!(assigned(&world.plan()).is_empty(), "what the node said it is not told");
    let mut stop = pb::Task::clone(world.store.get("t1").unwrap());
    stop.set_desired_state(TaskState::Shutdown);
    assert_eq!(assigned(&world.commit(vec![Change::update(stop)])), ["2>3", "+t1"]);
    let gone = vec![Change::remove::<pb::Task>("t1"), Change::remove::<pb::Task>("t3")];
    assert_eq!(assigned(&world.commit(gone)), ["3>4", "-t1", "-t3", "-z-secret"]);
    let early = vec![Change::create(task("t4", "n", Some("late")))];
    assert_eq!(assigned(&world.commit(early)), ["4>5", "+t4"]);
    assert_eq!(assigned(&world.commit(vec![secret("late")])), ["5>6", "+late"]);
}

/// The sizes of the messages on a stream of assignments.
fn sizes(effects: &[Effect]) -> Vec<usize> {
    use prost::Message as _;
    let size = |effect: &Effect| match effect {
        Effect::Message { message, .. } => match &**message {
            Message::Assignments(message) => Some(message.encoded_len()),
            _ => None,
        },
        _ => None,
    };
    effects.iter().filter_map(size).collect()
}

#[test]
fn no_message_of_assignments_is_larger_than_a_worker_takes() {
    let mut world = World::new();
    let secret = |id: String| {
        let spec = pb::SecretSpec { data: vec![7; 500_000], ..Default::default() };
        Change::create(pb::Secret { id, spec: Some(spec), ..Default::default() })
    };
    let _ = world.commit((0..20).map(|number| secret(format!("s{number:02}"))).collect());
    let task = |id: &str, state: TaskState, secrets: std::ops::Range<usize>| {
        let mut task = task(id, "n", None);
        let container = pb::ContainerSpec {
            secrets: secrets
                .map(|number| pb::SecretReference {
                    secret_id: format!("s{number:02}"),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let spec = task.spec.get_or_insert_default();
        spec.runtime = Some(pb::task_spec::Runtime::Container(container));
        task.status.get_or_insert_default().set_state(state);
        Change::create(task)
    };
    let _ = world.commit(vec![
        task("new", TaskState::Assigned, 0..10),
        task("runs", TaskState::Running, 5..10),
    ]);
    let _ = world.open(1, "");
    let _ = world.plan();
    let request = pb::AssignmentsRequest { session_id: world.session() };
    let first = world.ask(Ask::Assignments { stream: StreamId(2), node: "n", request });
    let most = 4 << 20;
    assert!(sizes(&first).iter().all(|size| *size <= most), "{:?}", sizes(&first));
    let said = assigned(&first);
    assert_eq!(said[..2], [">1", "+runs"], "what runs is not ended: {said:?}");
    assert_eq!(said.last().unwrap(), "+new", "after what it mounts: {said:?}");
    assert_eq!(said.iter().filter(|said| said.starts_with("+s")).count(), 10);
    assert!(said.contains(&"1>2".to_owned()), "{said:?}");

    let next = world.commit(vec![task("late", TaskState::Assigned, 10..20)]);
    assert!(sizes(&next).iter().all(|size| *size <= most), "{:?}", sizes(&next));
    let said = assigned(&next);
    assert_eq!(said.iter().filter(|said| said.starts_with("+s")).count(), 10);
    assert_eq!(said.last().unwrap(), "+late");
}

#[test]
fn statuses_never_go_backwards_and_only_the_tasks_node_reports() {
    let mut world = World::new();
    let _ = world.commit(vec![
        Change::create(task("t1", "n", None)),
        Change::create(task("t2", "other", None)),
    ]);
    let _ = world.open(1, "");
    let _ = world.plan();
    assert!(world.report("t1", TaskState::Running).is_ok());
    let _ = world.plan();
    assert!(world.report("t1", TaskState::Preparing).is_ok());
    assert!(world.report("unknown", TaskState::Running).is_ok());
    let _ = world.plan();
    let stored = world.store.get::<pb::Task>("t1").unwrap();
    assert_eq!(access::state(stored), TaskState::Running);
    assert_eq!(stored.status.as_ref().unwrap().applied_by, "leader");
    assert!(world.dispatcher.plan(world.now, &world.store).is_empty());
    let refused = world.report("t2", TaskState::Running).err().unwrap();
    assert_eq!(refused.code, Code::PermissionDenied);
}

#[test]
fn a_new_leader_waits_for_the_nodes_before_it_calls_them_down() {
    let mut world = World::new();
    let _ = world.open(1, "");
    let _ = world.plan();
    world.dispatcher = Dispatcher::new(ChaCha8Rng::seed_from_u64(4), "leader2");
    let _ = world.ask(Ask::Touched(&[]));
    let _ = world.plan();
    assert_eq!(world.node(), State::Unknown);
    let _ = world.open(2, "");
    let _ = world.plan();
    assert_eq!(world.node(), State::Ready);
    world.dispatcher = Dispatcher::new(ChaCha8Rng::seed_from_u64(5), "leader3");
    let _ = world.ask(Ask::Touched(&[]));
    world.now = world.dispatcher.deadline().unwrap();
    let _ = world.ask(Ask::Deadline);
    let _ = world.plan();
    assert_eq!(world.node(), State::Down);
}

#[test]
fn a_node_has_its_own_address_before_it_hears_of_a_users_container() {
    let mut world = World::new();
    let _ = world.open(1, "");
    let _ = world.plan();
    let request = pb::AssignmentsRequest { session_id: world.session() };
    let _ = world.ask(Ask::Assignments { stream: StreamId(2), node: "n", request });
    let attached = |id: &str| {
        let mut task = task(id, "n", None);
        let runtime = pb::task_spec::Runtime::Attachment(pb::NetworkAttachmentSpec::default());
        task.spec.get_or_insert_default().runtime = Some(runtime);
        Change::create(task)
    };
    let on = |node: &pb::Node, network: &str| {
        let mut node = node.clone();
        let network = pb::Network { id: network.into(), ..Default::default() };
        node.attachments
            .push(pb::NetworkAttachment { network: Some(network), ..Default::default() });
        Change::update(node)
    };
    let joins = on(world.store.get::<pb::Node>("n").unwrap(), "web");
    let both = world.commit(vec![joins, attached("u1"), Change::create(task("t1", "n", None))]);
    assert_eq!(session_messages(&both), 1);
    assert_eq!(assigned(&both), ["1>2", "+t1"], "a service's task does not wait");
    world.now = world.dispatcher.deadline().unwrap();
    assert_eq!(assigned(&world.ask(Ask::Deadline)), ["2>3", "+u1"]);
    // It has an address there now.
    assert_eq!(assigned(&world.commit(vec![attached("u2")])), ["3>4", "+u2"]);
    // What is gone before its time is not told.
    let joins = on(world.store.get::<pb::Node>("n").unwrap(), "other");
    assert!(assigned(&world.commit(vec![joins, attached("u3")])).is_empty());
    assert!(assigned(&world.commit(vec![Change::remove::<pb::Task>("u3")])).is_empty());
    world.now = world.dispatcher.deadline().unwrap();
    assert!(assigned(&world.ask(Ask::Deadline)).is_empty());
}

//! Whole lives of services: orchestrator and scheduler over a store, with nodes that obey.

mod absent;
mod jobs;
mod parts;

use std::time::Duration;

use rand::SeedableRng;
use scheduler::Scheduler;
use store::Transaction;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct World {
    now: Instant,
    store: Store,
    orchestrator: Orchestrator,
    scheduler: Scheduler,
    touched: Vec<Touched>,
    version: u64,
    /// Tasks of these images fail as soon as they start.
    broken: BTreeSet<String>,
    /// Tasks of these images cannot even be prepared.
    absent: BTreeSet<String>,
    /// Nodes that neither obey nor report.
    deaf: BTreeSet<String>,
}

impl World {
    fn new(nodes: &[&str]) -> Self {
        let dice = || ChaCha8Rng::seed_from_u64(7);
        let mut world = World {
            now: Instant::from_nanos(1_700_000_000_000_000_000),
            store: Store::default(),
            orchestrator: Orchestrator::new(dice()),
            scheduler: Scheduler::new(dice()),
            touched: Vec::new(),
            version: 0,
            broken: BTreeSet::new(),
            absent: BTreeSet::new(),
            deaf: BTreeSet::new(),
        };
        for id in nodes {
            let node = pb::Node { id: (*id).into(), ..Default::default() };
            world.commit(vec![Change::create(node)]);
            world.set_node(id, pb::node_status::State::Ready);
        }
        world
    }

    fn commit(&mut self, changes: Vec<Change>) {
        self.version += 1;
        let mut transaction = Transaction::new(&self.store);
        for change in changes {
            let _conflicts_are_wished_again = transaction.apply(change);
        }
        let actions = transaction.finish(self.now, self.version);
        self.touched.extend(self.store.apply(actions));
    }

    fn set_node(&mut self, id: &str, state: pb::node_status::State) {
        let mut node = pb::Node::clone(self.store.get(id).unwrap());
        node.status.get_or_insert_default().set_state(state);
        self.commit(vec![Change::update(node)]);
        match state {
            pb::node_status::State::Ready => self.deaf.remove(id),
            _ => self.deaf.insert(id.to_owned()),
        };
    }

    fn set_availability(&mut self, id: &str, availability: pb::node_spec::Availability) {
        let mut node = pb::Node::clone(self.store.get(id).unwrap());
        node.spec.get_or_insert_default().set_availability(availability);
        self.commit(vec![Change::update(node)]);
    }

    fn deploy(&mut self, image: &str, change: impl FnOnce(&mut pb::ServiceSpec)) {
        let old = self.store.get::<pb::Service>("s").map(|service| pb::Service::clone(service));
        let mut service =
            old.clone().unwrap_or(pb::Service { id: "s".into(), ..Default::default() });
        let container = pb::ContainerSpec { image: image.into(), ..Default::default() };
        let spec = service.spec.get_or_insert_default();
        if spec.mode.is_none() {
            let mode = pb::ReplicatedService { replicas: 1 };
            spec.mode = Some(pb::service_spec::Mode::Replicated(mode));
        }
        spec.task.get_or_insert_default().runtime =
            Some(pb::task_spec::Runtime::Container(container));
        change(spec);
        service.previous_spec = old.as_ref().and_then(|old| old.spec.clone());
        service.previous_spec_version = old.as_ref().and_then(|old| old.spec_version);
        service.update_status = None;
        let run = service.job_status.and_then(|status| status.job_iteration);
        let index = run.map_or(0, |run| run.index + 1);
        let job_iteration = Some(pb::Version { index });
        service.job_status = service
            .spec
            .as_ref()
            .is_some_and(access::is_job)
            .then_some(pb::JobStatus { job_iteration, ..Default::default() });
        service.spec_version = Some(pb::Version { index: self.version });
        let change = if old.is_some() { Change::update(service) } else { Change::create(service) };
        self.commit(vec![change]);
    }

    /// Plans, lets the nodes obey, and goes on until nothing changes at this very moment.
    fn settle(&mut self) {
        for _ in 0..200 {
            let touched = std::mem::take(&mut self.touched);
            let mut changes = self.orchestrator.plan(self.now, &self.store, &touched);
            changes.extend(self.scheduler.plan(self.now, &self.store, &touched));
            if changes.is_empty() {
                changes = self.obey();
            }
            if changes.is_empty() {
                return;
            }
            self.commit(changes);
        }
        panic!("never at rest");
    }

    fn obey(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for task in self.store.all::<pb::Task>() {
            let state = access::state(task);
            let desired = task.desired_state();
            let image = &store::object::container(task.spec.as_ref().unwrap()).unwrap().image;
            let next = match state {
                TaskState::New => TaskState::Pending,
                _ if task.node_id.is_empty() || self.deaf.contains(&task.node_id) => continue,
                TaskState::Assigned if desired <= TaskState::Complete => {
                    let absent = self.absent.contains(image);
                    if absent { TaskState::Rejected } else { TaskState::Ready }
                }
                TaskState::Ready if matches!(desired, TaskState::Running | TaskState::Complete) => {
                    let broken = self.broken.contains(image);
                    if broken { TaskState::Failed } else { TaskState::Running }
                }
                state if state <= TaskState::Running && desired > TaskState::Complete => {
                    TaskState::Shutdown
                }
                _ => continue,
            };
            let mut task = pb::Task::clone(task);
            let status = task.status.get_or_insert_default();
            status.set_state(next);
            status.timestamp = Some(store::transaction::timestamp(self.now));
            changes.push(Change::update(task));
        }
        changes
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some(at) = self.orchestrator.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    fn running(&self) -> Vec<(u64, String, String)> {
        let mut running: Vec<_> = self
            .store
            .all::<pb::Task>()
            .filter(|task| access::state(task) == TaskState::Running && access::is_wanted(task))
            .map(|task| {
                let spec = task.spec.as_ref().unwrap();
                let image = store::object::container(spec).unwrap().image.clone();
                (task.slot, task.node_id.clone(), image)
            })
            .collect();
        running.sort();
        running
    }

    fn images(&self) -> Vec<String> {
        self.running().into_iter().map(|(_, _, image)| image).collect()
    }

    fn update_state(&self) -> (pb::update_status::UpdateState, String) {
        let service = self.store.get::<pb::Service>("s").unwrap();
        let status = service.update_status.clone().unwrap_or_default();
        (status.state(), status.message)
    }
}

fn replicas(spec: &mut pb::ServiceSpec, replicas: u64) {
    let mode = pb::ReplicatedService { replicas };
    spec.mode = Some(pb::service_spec::Mode::Replicated(mode));
}

fn restart(spec: &mut pb::ServiceSpec, policy: pb::RestartPolicy) {
    spec.task.as_mut().unwrap().restart = Some(policy);
}

#[test]
fn replicas_run_scale_and_go() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| replicas(spec, 6));
    world.settle();
    let slots: Vec<u64> = world.running().iter().map(|(slot, _, _)| *slot).collect();
    assert_eq!(slots, [1, 2, 3, 4, 5, 6]);
    assert_eq!(world.running().iter().filter(|(_, node, _)| node == "a").count(), 3);
    world.deploy("v1", |spec| replicas(spec, 2));
    world.settle();
    let mut nodes: Vec<String> = world.running().into_iter().map(|(_, node, _)| node).collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "b"], "what remains is spread");
    assert_eq!(world.store.count::<pb::Task>(), 2, "removed tasks leave no history");
    world.deploy("v1", |spec| replicas(spec, 500));
    world.settle();
    assert_eq!(world.running().len(), 500);
    world.commit(vec![Change::remove::<pb::Service>("s")]);
    world.settle();
    assert_eq!(world.store.count::<pb::Task>(), 0);
}

#[test]
fn a_failing_task_restarts_after_its_delay_and_the_history_is_bounded() {
    let mut world = World::new(&["a"]);
    world.broken.insert("bad".into());
    world.deploy("bad", |_| {});
    world.settle();
    assert_eq!(world.store.count::<pb::Task>(), 2);
    let ready = |world: &World| {
        let mut tasks = world.store.all::<pb::Task>();
        tasks.any(|task| task.desired_state() == TaskState::Ready)
    };
    assert!(ready(&world));
    world.pass(Duration::from_millis(4_900));
    assert_eq!(world.store.count::<pb::Task>(), 2);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.store.count::<pb::Task>(), 3);
    world.pass(SECOND * 60);
    assert_eq!(world.store.count::<pb::Task>(), 5);
}

#[test]
fn the_restart_policy_limits_attempts_and_conditions() {
    use pb::restart_policy::RestartCondition;
    for (condition, attempts, tasks) in [
        (RestartCondition::None, 0, 1),
        (RestartCondition::Any, 2, 3),
        (RestartCondition::OnFailure, 7, 8),
    ] {
        let mut world = World::new(&["a"]);
        world.broken.insert("bad".into());
        world.deploy("bad", |spec| {
            let mut policy = pb::RestartPolicy { max_attempts: attempts, ..Default::default() };
            policy.set_condition(condition);
            restart(spec, policy);
        });
        world.pass(SECOND * 120);
        assert_eq!(world.store.count::<pb::Task>(), tasks, "{condition:?}");
        assert!(world.running().is_empty());
    }
}

#[test]
fn a_lost_node_is_replaced_at_once_and_one_that_is_back_in_time_keeps_its_task() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| replicas(spec, 2));
    world.settle();
    world.set_node("b", pb::node_status::State::Down);
    world.settle();
    assert_eq!(world.running().iter().filter(|(_, node, _)| node == "a").count(), 2);
    let lost = world.store.tasks_of_node("b").next().unwrap();
    assert_eq!(lost.desired_state(), TaskState::Shutdown);

    let mut world = World::new(&["a"]);
    world.deploy("v1", |_| {});
    world.settle();
    let kept = world.store.all::<pb::Task>().next().unwrap().id.clone();
    world.set_node("a", pb::node_status::State::Down);
    world.pass(SECOND * 60);
    assert_eq!(world.store.count::<pb::Task>(), 2, "a substitute waits for a node");
    world.set_node("a", pb::node_status::State::Ready);
    world.pass(SECOND * 60);
    assert_eq!(world.running().len(), 1);
    let running = world.store.get::<pb::Task>(&kept).unwrap();
    assert!(access::is_wanted(running) && access::state(running) == TaskState::Running);
}

#[test]
fn draining_moves_tasks_without_delay_and_removal_of_a_node_too() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| replicas(spec, 4));
    world.settle();
    world.set_availability("a", pb::node_spec::Availability::Drain);
    world.settle();
    assert!(world.running().iter().all(|(_, node, _)| node == "b"));
    assert_eq!(world.running().len(), 4);
    world.set_availability("a", pb::node_spec::Availability::Active);
    world.commit(vec![Change::remove::<pb::Node>("b")]);
    world.settle();
    assert!(world.running().iter().all(|(_, node, _)| node == "a"));
    assert_eq!(world.running().len(), 4);
    assert_eq!(world.store.tasks_of_node("b").count(), 0);
}

#[test]
fn a_constraint_that_no_longer_holds_moves_the_task() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| {
        let placement = pb::Placement {
            constraints: vec!["node.labels.no != here".into()],
            ..Default::default()
        };
        spec.task.as_mut().unwrap().placement = Some(placement);
    });
    world.settle();
    let at = world.running()[0].1.clone();
    let mut node = pb::Node::clone(world.store.get(&at).unwrap());
    let annotations = node.spec.get_or_insert_default().annotations.get_or_insert_default();
    annotations.labels.insert("no".into(), "here".into());
    world.commit(vec![Change::update(node)]);
    world.settle();
    assert_ne!(world.running()[0].1, at);
}

#[test]
fn an_update_goes_one_by_one_and_completes_after_monitoring() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| replicas(spec, 3));
    world.settle();
    world.deploy("v2", |spec| {
        let delay = Some(prost_types::Duration { seconds: 10, nanos: 0 });
        spec.update = Some(pb::UpdateConfig { parallelism: 1, delay, ..Default::default() });
    });
    world.pass(SECOND);
    let new = |world: &World| world.images().iter().filter(|image| *image == "v2").count();
    assert_eq!((new(&world), world.running().len()), (1, 3));
    world.pass(SECOND * 10);
    assert_eq!((new(&world), world.running().len()), (2, 3));
    world.pass(SECOND * 10);
    assert_eq!(new(&world), 3);
    assert_eq!(world.update_state().0, pb::update_status::UpdateState::Updating);
    world.pass(SECOND * 10);
    let done = (pb::update_status::UpdateState::Completed, "update completed".to_owned());
    assert_eq!(world.update_state(), done);
}

#[test]
fn an_old_task_that_came_back_with_its_node_is_updated_too() {
    use pb::node_status::State::{Down, Ready};
    let mut world = World::new(&["a", "b"]);
    world.deploy("image1", |_| {});
    world.settle();
    let first = world.store.all::<pb::Task>().next().unwrap().node_id.clone();
    let other = if first == "a" { "b" } else { "a" };
    // While the first one is silent its successor is given to the other, which falls silent before it
    // has begun, when the first one is back.
    world.pass(SECOND);
    world.set_node(&first, Down);
    world.deploy("image2", |_| {});
    world.deaf.insert(other.to_owned());
    world.settle();
    world.set_node(&first, Ready);
    world.settle();
    world.set_node(other, Down);
    world.settle();
    world.set_node(other, Ready);
    world.settle();
    world.pass(60 * SECOND);
    assert_eq!(world.images(), ["image2"]);
    assert_eq!(world.update_state().0, pb::update_status::UpdateState::Completed);
}

#[test]
fn start_first_never_has_fewer_tasks_than_wanted() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| replicas(spec, 2));
    world.settle();
    world.deploy("v2", |spec| {
        let mut config = pb::UpdateConfig::default();
        config.set_order(pb::update_config::UpdateOrder::StartFirst);
        spec.update = Some(config);
    });
    for _ in 0..50 {
        assert!(world.running().len() >= 2);
        let touched = std::mem::take(&mut world.touched);
        let mut changes = world.orchestrator.plan(world.now, &world.store, &touched);
        changes.extend(world.scheduler.plan(world.now, &world.store, &touched));
        if changes.is_empty() {
            changes = world.obey();
        }
        world.commit(changes);
    }
    assert_eq!(world.images(), ["v2", "v2"]);
}

#[test]
fn a_broken_update_pauses_names_the_task_and_leaves_the_rest_running() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| replicas(spec, 3));
    world.settle();
    world.broken.insert("bad".into());
    world.deploy("bad", |_| {});
    world.pass(SECOND * 60);
    let (state, message) = world.update_state();
    assert_eq!(state, pb::update_status::UpdateState::Paused);
    let task = message.strip_prefix("update paused due to failure or early termination of task ");
    assert!(task.is_some_and(|task| task.len() == 25));
    assert_eq!(world.images(), ["v1", "v1"]);
    world.deploy("v1", |_| {});
    world.pass(SECOND * 60);
    assert_eq!(world.images(), ["v1", "v1", "v1"]);
}

/// Replicas with an update that is rolled back when it fails.
fn cautious(spec: &mut pb::ServiceSpec) {
    replicas(spec, 3);
    let mut config = pb::UpdateConfig { parallelism: 1, ..Default::default() };
    config.set_failure_action(pb::update_config::FailureAction::Rollback);
    spec.update = Some(config);
}

#[test]
fn a_broken_update_is_rolled_back_when_asked_to() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", cautious);
    world.settle();
    world.broken.insert("bad".into());
    world.deploy("bad", |_| {});
    world.settle();
    let (state, message) = world.update_state();
    assert_eq!(state, pb::update_status::UpdateState::RollbackStarted);
    let words = "update rolled back due to failure or early termination of task ";
    assert!(message.strip_prefix(words).is_some_and(|task| task.len() == 25), "{message}");
    world.pass(SECOND * 60);
    assert_eq!(world.images(), ["v1", "v1", "v1"]);
    let done = (pb::update_status::UpdateState::RollbackCompleted, "rollback completed".to_owned());
    assert_eq!(world.update_state(), done);
    let service = world.store.get::<pb::Service>("s").unwrap();
    assert_eq!(service.previous_spec, None);
}

#[test]
fn a_rollback_that_fails_itself_pauses() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", cautious);
    world.settle();
    world.broken.extend(["v1".into(), "bad".into()]);
    world.deploy("bad", |_| {});
    world.pass(SECOND * 60);
    let (state, message) = world.update_state();
    assert_eq!(state, pb::update_status::UpdateState::RollbackPaused);
    assert!(message.starts_with("rollback paused due to failure"), "{message}");
}

#[test]
fn a_rollback_ends_as_one() {
    let mut world = World::new(&["a"]);
    world.deploy("v1", |spec| replicas(spec, 2));
    world.settle();
    world.deploy("v2", |_| {});
    world.pass(SECOND * 30);
    world.deploy("v1", |_| {});
    let mut service = pb::Service::clone(world.store.get("s").unwrap());
    let mut status = pb::UpdateStatus::default();
    status.set_state(pb::update_status::UpdateState::RollbackStarted);
    service.update_status = Some(status);
    world.commit(vec![Change::update(service)]);
    world.pass(SECOND * 30);
    assert_eq!(world.images(), ["v1", "v1"]);
    assert_eq!(world.update_state().0, pb::update_status::UpdateState::RollbackCompleted);
}

#[test]
fn a_global_service_has_one_task_on_each_node_that_may_have_one() {
    let mut world = World::new(&["a", "b", "c"]);
    world.set_availability("c", pb::node_spec::Availability::Drain);
    world.deploy("v1", |spec| {
        spec.mode = Some(pb::service_spec::Mode::Global(pb::GlobalService {}));
    });
    world.settle();
    let nodes =
        |world: &World| world.running().into_iter().map(|(_, node, _)| node).collect::<Vec<_>>();
    assert_eq!(nodes(&world), ["a", "b"]);
    world.set_availability("c", pb::node_spec::Availability::Active);
    world.set_availability("a", pb::node_spec::Availability::Drain);
    world.settle();
    assert_eq!(nodes(&world), ["b", "c"]);
    world.set_availability("a", pb::node_spec::Availability::Active);
    world.set_node("b", pb::node_status::State::Down);
    world.pass(SECOND * 30);
    assert_eq!(nodes(&world), ["a", "b", "c"], "the silent node keeps its task");
    world.deploy("v2", |_| {});
    world.set_node("b", pb::node_status::State::Ready);
    world.pass(SECOND * 60);
    assert_eq!(world.images(), ["v2", "v2", "v2"]);
}

#[test]
fn a_new_leader_goes_on_without_touching_what_runs() {
    let mut world = World::new(&["a", "b"]);
    world.deploy("v1", |spec| replicas(spec, 4));
    world.settle();
    world.deploy("v2", |_| {});
    for _ in 0..3 {
        let touched = std::mem::take(&mut world.touched);
        let changes = world.orchestrator.plan(world.now, &world.store, &touched);
        world.commit(changes);
    }
    world.orchestrator = Orchestrator::new(ChaCha8Rng::seed_from_u64(99));
    world.scheduler = Scheduler::new(ChaCha8Rng::seed_from_u64(99));
    world.pass(SECOND * 60);
    assert_eq!(world.images(), ["v2"; 4]);
    let before = world.running();
    world.orchestrator = Orchestrator::new(ChaCha8Rng::seed_from_u64(100));
    world.pass(SECOND * 60);
    assert_eq!(world.running(), before);
    assert_eq!(world.update_state().0, pb::update_status::UpdateState::Completed);
}

#[test]
fn a_service_is_not_looked_at_for_each_report_about_its_tasks() {
    use TaskState::{Assigned, Failed, Running, Shutdown, Starting};
    let task = |id: &str, state, desired| {
        let mut task = pb::Task {
            id: id.into(),
            service_id: "s".into(),
            slot: 1,
            status: Some(pb::TaskStatus { state: state as i32, ..Default::default() }),
            ..Default::default()
        };
        task.set_desired_state(desired);
        task
    };
    let touched = |old: pb::Task, new: pb::Task| Touched {
        kind: Kind::Task,
        id: new.id.clone(),
        old: Some(Held::Task(old.into())),
        new: Some(Held::Task(new.into())),
    };
    let stands = |state| Change::create(task("t", state, Running));
    let mut world = World::new(&[]);
    world.commit(vec![stands(Starting)]);
    for (old, new, desired, looks) in [
        (Assigned, Starting, Running, false),
        (Starting, Running, Running, false),
        (Running, Running, Running, false),
        (Running, Failed, Running, true),
        (Running, Running, Shutdown, true),
    ] {
        let change = touched(task("t", old, Running), task("t", new, desired));
        assert_eq!(concerns_service(&world.store, &change), looks, "{old:?} {new:?} {desired:?}");
    }
    let runs = touched(task("t", Starting, Running), task("t", Running, Running));
    let created = Touched { old: None, ..runs.clone() };
    assert!(concerns_service(&world.store, &created));
    let placed = pb::Task { node_id: "n".into(), ..task("t", Assigned, Running) };
    assert!(concerns_service(&world.store, &touched(task("t", Assigned, Running), placed)));

    let mut status = pb::UpdateStatus::default();
    status.set_state(pb::update_status::UpdateState::Updating);
    let updating =
        pb::Service { id: "s".into(), update_status: Some(status), ..Default::default() };
    world.commit(vec![Change::create(updating)]);
    assert!(concerns_service(&world.store, &runs), "an update goes on");
    world.commit(vec![
        Change::remove::<pb::Service>("s"),
        Change::create(task("old", Running, Running)),
    ]);
    assert!(concerns_service(&world.store, &runs), "its predecessor can go");
}

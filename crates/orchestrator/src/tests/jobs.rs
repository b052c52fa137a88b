//! Jobs: as many completions as asked for, at most so many at a time, and none twice.

use TaskState::{Complete, Failed, Running};

use super::*;

impl World {
    fn job(&mut self, image: &str, total: u64, at_a_time: u64) {
        let job = pb::ReplicatedJob { max_concurrent: at_a_time, total_completions: total };
        self.deploy(image, |spec| spec.mode = Some(Mode::ReplicatedJob(job)));
    }

    fn global_job(&mut self, image: &str) {
        self.deploy(image, |spec| spec.mode = Some(Mode::GlobalJob(pb::GlobalJob {})));
    }

    /// The tasks that run come to this end by themselves.
    fn end(&mut self, state: TaskState, which: impl Fn(&pb::Task) -> bool) {
        let tasks = self.store.all::<pb::Task>();
        let running = tasks.filter(|task| access::state(task) == Running && which(task));
        let ended = running.map(|task| {
            let mut task = pb::Task::clone(task);
            task.status.get_or_insert_default().set_state(state);
            Change::update(task)
        });
        let ended = ended.collect();
        self.commit(ended);
        self.settle();
    }

    /// Slot, node and state of the present run's tasks that are wanted.
    fn present(&self) -> Vec<(u64, String, TaskState)> {
        let run = access::job_iteration(self.store.get::<pb::Service>("s").unwrap()).unwrap();
        let tasks = self.store.all::<pb::Task>();
        let of_run =
            tasks.filter(|task| access::is_of_iteration(task, run) && access::is_wanted(task));
        let mut present: Vec<_> =
            of_run.map(|task| (task.slot, task.node_id.clone(), access::state(task))).collect();
        present.sort();
        present
    }

    fn states(&self) -> Vec<(u64, TaskState)> {
        self.present().into_iter().map(|(slot, _, state)| (slot, state)).collect()
    }

    /// Of a global job.
    fn by_node(&self) -> Vec<String> {
        let present = self.present().into_iter();
        present.map(|(_, node, state)| format!("{node} {state:?}")).collect()
    }
}

fn all_complete(total: u64) -> Vec<(u64, TaskState)> {
    (0..total).map(|slot| (slot, Complete)).collect()
}

#[test]
fn a_replicated_job_completes_as_often_as_asked_and_never_again() {
    let mut world = World::new(&["a", "b"]);
    world.job("v1", 5, 2);
    world.settle();
    assert_eq!(world.states(), [(0, Running), (1, Running)]);
    assert!(world.store.all::<pb::Task>().all(|task| task.desired_state() == Complete));
    world.end(Complete, |task| task.slot == 0);
    assert_eq!(world.states(), [(0, Complete), (1, Running), (2, Running)]);
    world.end(Complete, |_| true);
    world.end(Complete, |_| true);
    world.pass(SECOND * 600);
    assert_eq!(world.states(), all_complete(5));
    assert_eq!(world.store.count::<pb::Task>(), 5);
    // Nor because a node comes, goes, or another leader begins.
    world.set_node("a", pb::node_status::State::Down);
    world.set_availability("b", pb::node_spec::Availability::Drain);
    world.commit(vec![Change::remove::<pb::Node>("a")]);
    world.orchestrator = Orchestrator::new(ChaCha8Rng::seed_from_u64(8));
    world.pass(SECOND * 600);
    assert_eq!(world.states(), all_complete(5));
    assert_eq!(world.store.count::<pb::Task>(), 5);
}

#[test]
fn a_failed_task_of_a_job_is_tried_again_as_the_restart_policy_says() {
    use pb::restart_policy::RestartCondition;
    for (condition, attempts, tasks) in [
        (RestartCondition::None, 0, 1),
        (RestartCondition::OnFailure, 2, 3),
        // Completion is the aim of a job, so any end means any failure.
        (RestartCondition::Any, 2, 3),
    ] {
        let mut world = World::new(&["a"]);
        world.broken.insert("bad".into());
        world.deploy("bad", |spec| {
            let job = pb::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
            spec.mode = Some(Mode::ReplicatedJob(job));
            let mut policy = pb::RestartPolicy { max_attempts: attempts, ..Default::default() };
            policy.set_condition(condition);
            restart(spec, policy);
        });
        world.pass(SECOND * 120);
        assert_eq!(world.store.count::<pb::Task>(), tasks, "{condition:?}");
        assert!(world.present().is_empty(), "{condition:?}");
        world.orchestrator = Orchestrator::new(ChaCha8Rng::seed_from_u64(8));
        world.pass(SECOND * 120);
        assert_eq!(world.store.count::<pb::Task>(), tasks, "a failed slot stays failed");
    }
}

#[test]
fn a_slot_that_failed_for_good_leaves_its_place_to_others_and_is_not_begun_again() {
    let mut world = World::new(&["a"]);
    let orchestration = pb::OrchestrationConfig { task_history_retention_limit: 0 };
    let spec = pb::ClusterSpec { orchestration: Some(orchestration), ..Default::default() };
    let cluster = pb::Cluster { id: "c".into(), spec: Some(spec), ..Default::default() };
    world.commit(vec![Change::create(cluster)]);
    world.deploy("v1", |spec| {
        let job = pb::ReplicatedJob { max_concurrent: 1, total_completions: 3 };
        spec.mode = Some(Mode::ReplicatedJob(job));
        restart(spec, pb::RestartPolicy::default());
    });
    world.settle();
    world.end(Failed, |_| true);
    assert_eq!(world.states(), [(1, Running)]);
    world.end(Complete, |_| true);
    world.end(Complete, |_| true);
    world.pass(SECOND * 60);
    assert_eq!(world.states(), [(1, Complete), (2, Complete)]);
    let failed = world.store.all::<pb::Task>().find(|task| task.slot == 0).unwrap();
    assert_eq!((access::state(failed), failed.desired_state()), (Failed, TaskState::Shutdown));
}

#[test]
fn a_retry_waits_for_the_restart_delay() {
    let mut world = World::new(&["a"]);
    world.job("v1", 1, 1);
    world.settle();
    world.end(Failed, |_| true);
    let desired = |world: &World| {
        let mut tasks = world.store.all::<pb::Task>();
        tasks.find(|task| access::is_wanted(task)).map(|task| task.desired_state())
    };
    assert_eq!(desired(&world), Some(TaskState::Ready));
    world.pass(Duration::from_millis(4_900));
    assert!(world.running().is_empty());
    world.pass(Duration::from_millis(200));
    assert_eq!(world.states(), [(0, Running)]);
    assert_eq!(desired(&world), Some(Complete));
}

#[test]
fn a_change_of_a_job_begins_a_run_that_stops_the_one_before() {
    let mut world = World::new(&["a"]);
    world.job("v1", 2, 1);
    world.settle();
    world.end(Complete, |_| true);
    world.job("v2", 2, 2);
    world.settle();
    assert_eq!(world.images(), ["v2", "v2"]);
    let run = Some(pb::Version { index: 1 });
    let tasks = world.store.all::<pb::Task>();
    let old: Vec<_> = tasks.filter(|task| task.job_iteration != run).collect();
    assert_eq!(old.len(), 1, "what had completed is history, what ran is gone");
    assert_eq!(access::state(old[0]), Complete);
    world.end(Complete, |_| true);
    for run in 0..20 {
        world.job(&format!("v{run}"), 2, 2);
        world.settle();
        world.end(Complete, |_| true);
    }
    assert_eq!(world.store.count::<pb::Task>(), 2 * 5, "the history has its limit in each slot");
    assert_eq!(world.states(), all_complete(2));
}

#[test]
fn a_node_that_is_drained_or_silent_keeps_its_task_of_a_job() {
    let mut world = World::new(&["a", "b"]);
    world.job("v1", 2, 2);
    world.settle();
    let before = world.present();
    world.set_availability("a", pb::node_spec::Availability::Drain);
    world.set_node("b", pb::node_status::State::Down);
    world.pass(SECOND * 600);
    assert_eq!(world.present(), before);
    world.set_node("b", pb::node_status::State::Ready);
    world.end(Complete, |_| true);
    assert_eq!(world.states(), all_complete(2));
}

#[test]
fn the_task_of_a_removed_node_is_done_elsewhere_and_so_is_one_that_may_not_stay() {
    let mut world = World::new(&["a", "b"]);
    world.job("v1", 2, 2);
    world.settle();
    world.commit(vec![Change::remove::<pb::Node>("b")]);
    world.pass(SECOND * 10);
    assert_eq!(world.present(), [(0, "a".into(), Running), (1, "a".into(), Running)]);

    let mut world = World::new(&["a"]);
    world.deploy("v1", |spec| {
        let job = pb::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
        spec.mode = Some(Mode::ReplicatedJob(job));
        let constraints = vec!["node.labels.no != here".into()];
        let placement = pb::Placement { constraints, ..Default::default() };
        spec.task.as_mut().unwrap().placement = Some(placement);
    });
    world.settle();
    assert_eq!(world.states(), [(0, Running)]);
    let mut node = pb::Node::clone(world.store.get("a").unwrap());
    let annotations = node.spec.get_or_insert_default().annotations.get_or_insert_default();
    annotations.labels.insert("no".into(), "here".into());
    world.commit(vec![Change::update(node)]);
    world.pass(SECOND * 60);
    assert!(world.running().is_empty());
    assert_eq!(world.states(), [(0, TaskState::Pending)]);
}

#[test]
fn a_global_job_runs_once_on_each_node_also_on_one_that_joins_later() {
    let mut world = World::new(&["a", "b"]);
    world.set_availability("b", pb::node_spec::Availability::Pause);
    world.global_job("v1");
    world.settle();
    assert_eq!(world.by_node(), ["a Running"]);
    world.end(Complete, |_| true);
    world.set_availability("b", pb::node_spec::Availability::Active);
    world.commit(vec![Change::create(pb::Node { id: "c".into(), ..Default::default() })]);
    world.settle();
    assert_eq!(world.by_node(), ["a Complete", "b Running"], "c is not ready");
    world.set_node("c", pb::node_status::State::Ready);
    world.settle();
    assert_eq!(world.by_node(), ["a Complete", "b Running", "c Running"]);
    world.end(Failed, |task| task.node_id == "b");
    world.end(Complete, |_| true);
    world.pass(SECOND * 10);
    assert_eq!(world.by_node(), ["a Complete", "b Running", "c Complete"]);
    world.end(Complete, |_| true);
    world.global_job("v2");
    world.settle();
    assert_eq!(world.by_node(), ["a Running", "b Running", "c Running"]);
    assert_eq!(world.store.count::<pb::Task>(), 3, "an earlier run leaves no history");
}

#[test]
fn a_removed_job_leaves_nothing() {
    let mut world = World::new(&["a"]);
    world.job("v1", 2, 1);
    world.settle();
    world.end(Complete, |_| true);
    world.commit(vec![Change::remove::<pb::Service>("s")]);
    world.settle();
    assert_eq!(world.store.count::<pb::Task>(), 0);
}

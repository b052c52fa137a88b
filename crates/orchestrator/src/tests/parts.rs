//! What is looked at for one change of one task, however many tasks there are.

use super::*;

/// Objects that are read until everything is at rest again.
fn reads(world: &mut World, change: impl FnOnce(&mut World)) -> u64 {
    world.settle();
    let before = world.store.reads();
    change(world);
    let own = world.store.reads() - before;
    let touched = std::mem::take(&mut world.touched);
    let changes = world.orchestrator.plan(world.now, &world.store, &touched);
    assert!(!changes.is_empty(), "something is to be done");
    world.touched = touched;
    world.store.reads() - before - own
}

fn fail_one(world: &mut World) {
    let task = world.store.all::<pb::Task>().find(|task| access::state(task) == TaskState::Running);
    let mut task = pb::Task::clone(task.unwrap());
    task.status.as_mut().unwrap().set_state(TaskState::Failed);
    world.commit(vec![Change::update(task)]);
}

#[test]
fn one_slot_is_looked_at_when_one_task_fails() {
    let cost = |count: u64| {
        let mut world = World::new(&["a", "b", "c"]);
        world.deploy("v1", |spec| replicas(spec, count));
        reads(&mut world, fail_one)
    };
    assert_eq!(cost(10), cost(400));
}

/// Only the orchestrator's part: the nodes do nothing.
fn plan_alone(world: &mut World) -> usize {
    let touched = std::mem::take(&mut world.touched);
    let changes = world.orchestrator.plan(world.now, &world.store, &touched);
    let count = changes.len();
    world.commit(changes);
    count
}

#[test]
fn one_slot_is_looked_at_when_its_old_task_ends_during_an_update() {
    let cost = |count: u64| {
        let mut world = World::new(&["a", "b", "c"]);
        world.deploy("v1", |spec| replicas(spec, count));
        world.settle();
        world.deploy("v2", |spec| {
            spec.update = Some(pb::UpdateConfig { parallelism: 1, ..Default::default() });
        });
        while plan_alone(&mut world) > 0 {}
        let old = world
            .store
            .all::<pb::Task>()
            .find(|task| task.desired_state() == TaskState::Shutdown)
            .expect("one makes room");
        let mut old = pb::Task::clone(old);
        old.status.as_mut().unwrap().set_state(TaskState::Shutdown);
        world.commit(vec![Change::update(old)]);
        let before = world.store.reads();
        assert_eq!(plan_alone(&mut world), 1, "its successor may start");
        let cost = world.store.reads() - before;
        (cost, world)
    };
    let ((few, mut world), (many, _)) = (cost(10), cost(200));
    assert_eq!(few, many);
    world.pass(SECOND * 30);
    assert_eq!(world.images(), ["v2"; 10]);
    assert_eq!(world.update_state().0, pb::update_status::UpdateState::Completed);
}

#[test]
fn tasks_too_large_for_an_entry_leave_room_for_other_services() {
    let mut world = World::new(&["a"]);
    let vast = "x".repeat(1 << 20);
    world.deploy("v1", |spec| {
        replicas(spec, 10_000);
        spec.annotations =
            Some(pb::Annotations { labels: [("blob".into(), vast)].into(), ..Default::default() });
    });
    let mode = Some(Mode::Replicated(pb::ReplicatedService { replicas: 5 }));
    let spec = Some(pb::ServiceSpec { mode, task: Some(Default::default()), ..Default::default() });
    world.commit(vec![Change::create(pb::Service { id: "t".into(), spec, ..Default::default() })]);
    for _ in 0..3 {
        let touched = std::mem::take(&mut world.touched);
        let changes = world.orchestrator.plan(world.now, &world.store, &touched);
        let of = |service: &str| {
            let made = changes.iter().filter(|change| {
                matches!(change, Change::Create(store::Target::Task(task)) if task.service_id == service)
            });
            made.count()
        };
        assert_eq!((of("s"), of("t")), (1, 5), "not carried out, they are wished again");
    }
}

#[test]
fn one_node_s_slots_are_looked_at_when_it_is_drained() {
    let cost = |others: usize| {
        let names: Vec<String> = (0..others).map(|number| format!("n{number:03}")).collect();
        let mut nodes: Vec<&str> = names.iter().map(String::as_str).collect();
        nodes.push("z");
        let mut world = World::new(&nodes);
        let global = Some(Mode::Global(pb::GlobalService {}));
        world.deploy("v1", |spec| spec.mode = global);
        let drain = |world: &mut World| {
            world.set_availability("z", pb::node_spec::Availability::Drain);
        };
        reads(&mut world, drain)
    };
    assert_eq!(cost(3), cost(100));
}

#[test]
fn a_service_s_slots_are_whole_again_when_one_vanishes() {
    let mut world = World::new(&["a"]);
    world.deploy("v1", |spec| replicas(spec, 4));
    world.settle();
    let task = world.store.all::<pb::Task>().nth(2).unwrap().id.clone();
    world.commit(vec![Change::remove::<pb::Task>(task)]);
    world.settle();
    assert_eq!(world.running().len(), 4);
}

#[test]
fn more_services_than_one_plan_looks_at_are_all_looked_at() {
    let mut world = World::new(&["a"]);
    let service = |number: usize| {
        let container = pb::ContainerSpec { image: "v1".into(), ..Default::default() };
        let mode = pb::ReplicatedService { replicas: 100 };
        let spec = pb::ServiceSpec {
            mode: Some(Mode::Replicated(mode)),
            task: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                ..Default::default()
            }),
            ..Default::default()
        };
        let id = format!("s{number:02}");
        Change::create(pb::Service { id, spec: Some(spec), ..Default::default() })
    };
    world.commit((0..50).map(service).collect());
    world.settle();
    assert_eq!(world.running().len(), 5_000);
    // A new leader finds everything in order, in several steps.
    world.orchestrator = Orchestrator::new(ChaCha8Rng::seed_from_u64(9));
    let mut plans = 0;
    loop {
        let before = world.store.reads();
        assert!(world.orchestrator.plan(world.now, &world.store, &[]).is_empty());
        plans += 1;
        let read = world.store.reads() - before;
        assert!(plans == 1 || read < READS_MAX + 1_000, "{read} in plan {plans}");
        if world.orchestrator.deadline().is_none() {
            break;
        }
    }
    assert!(plans > 1);
}

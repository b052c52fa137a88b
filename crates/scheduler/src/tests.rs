//! Placement as tables: nodes and tasks in, nodes or reasons out.

use std::collections::BTreeMap;

use rand::SeedableRng;
use store::Transaction;

use super::*;

fn node(id: &str, labels: &[(&str, &str)]) -> pb::Node {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let annotations = pb::Annotations { labels, ..Default::default() };
    let mut status = pb::NodeStatus::default();
    status.set_state(pb::node_status::State::Ready);
    pb::Node {
        id: id.into(),
        spec: Some(pb::NodeSpec { annotations: Some(annotations), ..Default::default() }),
        status: Some(status),
        description: Some(pb::NodeDescription {
            hostname: id.into(),
            platform: Some(pb::Platform { architecture: "x86_64".into(), os: "linux".into() }),
            resources: Some(pb::Resources {
                nano_cpus: 4_000_000_000,
                memory_bytes: 1 << 30,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn task(id: &str, spec: pb::TaskSpec) -> pb::Task {
    let mut status = pb::TaskStatus::default();
    status.set_state(access::TaskState::Pending);
    let mut task = pb::Task {
        id: id.into(),
        service_id: "s".into(),
        spec: Some(spec),
        status: Some(status),
        ..Default::default()
    };
    task.set_desired_state(access::TaskState::Running);
    task
}

fn placed(constraints: &[&str]) -> pb::TaskSpec {
    let placement = pb::Placement {
        constraints: constraints.iter().map(|text| text.to_string()).collect(),
        ..Default::default()
    };
    pb::TaskSpec { placement: Some(placement), ..Default::default() }
}

/// Commits the objects, plans until nothing is wished, and gives the store back.
fn run(nodes: Vec<pb::Node>, tasks: Vec<pb::Task>) -> Store {
    let mut store = Store::default();
    let mut scheduler = Scheduler::new(ChaCha8Rng::seed_from_u64(1));
    let nodes = nodes.into_iter().map(Change::create);
    let mut changes: Vec<Change> = nodes.chain(tasks.into_iter().map(Change::create)).collect();
    let mut touched = Vec::new();
    for version in 1..100 {
        let mut transaction = Transaction::new(&store);
        changes.drain(..).for_each(|change| transaction.apply(change).unwrap());
        let actions = transaction.finish(Instant::from_nanos(version), version);
        touched.extend(store.apply(actions));
        changes = scheduler.plan(Instant::from_nanos(version), &store, &touched);
        touched.clear();
        if changes.is_empty() {
            for node in store.all::<pb::Node>() {
                let kept = scheduler.nodes.get(&node.id);
                assert_eq!(kept, Some(&NodeInfo::new(&store, node)), "kept as if read anew");
            }
            return store;
        }
    }
    panic!("the scheduler never comes to rest");
}

fn err(store: &Store, id: &str) -> String {
    store.get::<pb::Task>(id).unwrap().status.as_ref().unwrap().err.clone()
}

fn count(store: &Store, node: &str) -> usize {
    store.tasks_of_node(node).count()
}

#[test]
fn tasks_spread_evenly_over_ready_nodes() {
    let mut drained = node("d", &[]);
    drained.spec.as_mut().unwrap().set_availability(pb::node_spec::Availability::Drain);
    let tasks = (0..6).map(|n| task(&format!("t{n}"), pb::TaskSpec::default())).collect();
    let store = run(vec![node("a", &[]), node("b", &[]), node("c", &[]), drained], tasks);
    let counts: Vec<usize> = ["a", "b", "c", "d"].map(|id| count(&store, id)).into();
    assert_eq!(counts, [2, 2, 2, 0]);
    let stored = store.get::<pb::Task>("t0").unwrap();
    assert_eq!(access::state(stored), access::TaskState::Assigned);
    assert_eq!(stored.status.as_ref().unwrap().message, ASSIGNED);
}

#[test]
fn the_reason_is_swarmkits() {
    let mut drained = node("d", &[]);
    drained.spec.as_mut().unwrap().set_availability(pb::node_spec::Availability::Drain);
    let all = vec![node("a", &[]), node("b", &[("rack", "1")]), drained];
    let store = run(all.clone(), vec![task("t", placed(&["node.labels.rack == 7"]))]);
    assert_eq!(
        err(&store, "t"),
        "no suitable node (scheduling constraints not satisfied on 2 nodes; \
         1 node not available for new tasks)"
    );
    let big = pb::ResourceRequirements {
        reservations: Some(pb::Resources { memory_bytes: 1 << 40, ..Default::default() }),
        ..Default::default()
    };
    let spec = pb::TaskSpec { resources: Some(big), ..Default::default() };
    let store = run(all[..2].to_vec(), vec![task("t", spec)]);
    assert_eq!(err(&store, "t"), "no suitable node (insufficient resources on 2 nodes)");
    let mut arm = placed(&[]);
    let platform = pb::Platform { architecture: "arm64".into(), os: "linux".into() };
    arm.placement.as_mut().unwrap().platforms.push(platform);
    let store = run(all[..1].to_vec(), vec![task("t", arm)]);
    assert_eq!(err(&store, "t"), "no suitable node (unsupported platform on 1 node)");
    let store = run(vec![], vec![task("t", pb::TaskSpec::default())]);
    assert_eq!(err(&store, "t"), "no suitable node");
}

#[test]
fn reservations_host_ports_and_max_replicas_fill_nodes_up() {
    let half = pb::ResourceRequirements {
        reservations: Some(pb::Resources { nano_cpus: 2_000_000_000, ..Default::default() }),
        ..Default::default()
    };
    let spec = pb::TaskSpec { resources: Some(half), ..Default::default() };
    let store =
        run(vec![node("a", &[])], (0..3).map(|n| task(&format!("t{n}"), spec.clone())).collect());
    assert_eq!(count(&store, "a"), 2);

    let port = pb::PortConfig {
        published_port: 80,
        publish_mode: pb::port_config::PublishMode::Host as i32,
        ..Default::default()
    };
    let endpoint = pb::Endpoint {
        spec: Some(pb::EndpointSpec { ports: vec![port], ..Default::default() }),
        ..Default::default()
    };
    let with_port = |id: &str| pb::Task {
        endpoint: Some(endpoint.clone()),
        ..task(id, pb::TaskSpec::default())
    };
    let store = run(vec![node("a", &[])], vec![with_port("t0"), with_port("t1")]);
    assert_eq!(count(&store, "a"), 1);
    assert_eq!(err(&store, "t1"), "no suitable node (host-mode port already in use on 1 node)");

    let mut one = placed(&[]);
    one.placement.as_mut().unwrap().max_replicas = 1;
    let tasks = (0..3).map(|n| task(&format!("t{n}"), one.clone())).collect();
    let store = run(vec![node("a", &[]), node("b", &[])], tasks);
    assert_eq!((count(&store, "a"), count(&store, "b")), (1, 1));
    assert_eq!(err(&store, "t2"), "no suitable node (max replicas per node limit exceed)");
}

#[test]
fn a_task_that_has_its_node_from_the_start_does_not_stand_in_its_own_way() {
    let alone = |id: &str, node: &str| {
        let mut spec = reserving();
        spec.placement = Some(pb::Placement { max_replicas: 1, ..Default::default() });
        let reserved = spec.resources.get_or_insert_default().reservations.get_or_insert_default();
        (reserved.nano_cpus, reserved.memory_bytes) = (3_000_000_000, 800 << 20);
        let mut port = pb::PortConfig { published_port: 80, ..Default::default() };
        port.set_publish_mode(pb::port_config::PublishMode::Host);
        let endpoint = pb::EndpointSpec { ports: vec![port], ..Default::default() };
        let endpoint = pb::Endpoint { spec: Some(endpoint), ..Default::default() };
        pb::Task { node_id: node.into(), endpoint: Some(endpoint), ..task(id, spec) }
    };
    let nodes = vec![node("n1", &[]), node("n2", &[])];
    let store = run(nodes, vec![alone("a", "n1"), alone("b", "n2"), alone("c", "n1")]);
    for (id, why) in [
        ("a", ""),
        ("b", ""),
        // Another than itself does.
        ("c", "insufficient resources on 1 node"),
    ] {
        assert_eq!(err(&store, id), why, "{id}");
        let placed = store.get::<pb::Task>(id).map(|task| access::state(task));
        assert_eq!(placed == Some(access::TaskState::Assigned), why.is_empty(), "{id}");
    }
}

#[test]
fn a_spread_preference_balances_the_groups_first() {
    let nodes = vec![
        node("a1", &[("rack", "a")]),
        node("a2", &[("rack", "a")]),
        node("a3", &[("rack", "a")]),
        node("b1", &[("rack", "b")]),
    ];
    let mut spec = placed(&[]);
    let spread = pb::SpreadOver { spread_descriptor: "node.labels.rack".into() };
    spec.placement.as_mut().unwrap().preferences.push(pb::PlacementPreference {
        preference: Some(pb::placement_preference::Preference::Spread(spread)),
    });
    let tasks = (0..6).map(|n| task(&format!("t{n}"), spec.clone())).collect();
    let store = run(nodes, tasks);
    let counts: Vec<usize> = ["a1", "a2", "a3", "b1"].map(|id| count(&store, id)).into();
    assert_eq!(counts, [1, 1, 1, 3]);
}

#[test]
fn a_waiting_task_goes_as_soon_as_a_node_comes() {
    let store = run(vec![], vec![task("t", pb::TaskSpec::default())]);
    assert_eq!(err(&store, "t"), "no suitable node");
    let waiting = pb::Task::clone(store.get("t").unwrap());
    let store = run(vec![node("a", &[])], vec![waiting]);
    assert_eq!(count(&store, "a"), 1);
    assert_eq!(err(&store, "t"), "");
}

#[test]
fn tasks_alike_fill_the_nodes_evenly_and_then_say_why_no_more_fit() {
    let nodes = (1..=3).map(|number| node(&format!("n{number}"), &[])).collect();
    let mut tasks = Vec::new();
    for number in 0..14 {
        let service = if number % 2 == 0 { "s" } else { "other" };
        let id = format!("t{number:02}");
        tasks.push(pb::Task { service_id: service.into(), ..task(&id, reserving()) });
    }
    let store = run(nodes, tasks);
    for number in 1..=3 {
        assert_eq!(store.tasks_of_node(&format!("n{number}")).count(), 4, "n{number}");
        let others = store.tasks_of_node(&format!("n{number}")).filter(|t| t.service_id != "s");
        assert!((2..=3).contains(&others.count()), "each service is spread by itself");
    }
    let left: Vec<_> = store.all::<pb::Task>().filter(|task| task.node_id.is_empty()).collect();
    assert_eq!(left.len(), 2);
    for task in left {
        let why = "no suitable node (insufficient resources on 3 nodes)";
        assert_eq!(err(&store, &task.id), why);
    }
}

#[test]
fn a_placement_that_did_not_come_true_is_wished_again_and_takes_nothing_meanwhile() {
    let mut store = Store::default();
    let mut scheduler = Scheduler::new(ChaCha8Rng::seed_from_u64(1));
    let commit = |store: &mut Store, changes: Vec<Change>, version| {
        let mut transaction = Transaction::new(store);
        changes.into_iter().for_each(|change| transaction.apply(change).unwrap());
        let actions = transaction.finish(Instant::from_nanos(version), version);
        store.apply(actions)
    };
    let mut objects = vec![Change::create(node("n1", &[])), Change::create(node("n2", &[]))];
    objects.extend((0..8).map(|number| Change::create(task(&format!("t{number}"), reserving()))));
    let touched = commit(&mut store, objects, 1);
    let now = Instant::from_nanos(2);
    let first = scheduler.plan(now, &store, &touched);
    assert_eq!(first.len(), 8);
    assert_eq!(scheduler.plan(now, &store, &[]), first);
    let touched = commit(&mut store, first, 2);
    assert!(scheduler.plan(now, &store, &touched).is_empty());
    let touched = commit(&mut store, vec![Change::create(task("t9", reserving()))], 3);
    let changes = scheduler.plan(now, &store, &touched);
    commit(&mut store, changes, 4);
    assert_eq!(err(&store, "t9"), "no suitable node (insufficient resources on 2 nodes)");
}

/// One of a node's four processors.
fn reserving() -> pb::TaskSpec {
    let reservations = pb::Resources { nano_cpus: 1_000_000_000, ..Default::default() };
    let resources =
        pb::ResourceRequirements { reservations: Some(reservations), ..Default::default() };
    pb::TaskSpec { resources: Some(resources), ..Default::default() }
}

/// A hundred tasks of many services over many nodes, and how many nodes were looked at for each.
fn looks_for_each(nodes: usize) -> u64 {
    let mut store = Store::default();
    let mut scheduler = Scheduler::new(ChaCha8Rng::seed_from_u64(1));
    let node = |number: usize| Change::create(node(&format!("n{number:04}"), &[]));
    let task = |number: usize| {
        let mut task = task(&format!("t{number:04}"), placed(&[]));
        task.service_id = format!("s{number}");
        Change::create(task)
    };
    let mut changes: Vec<Change> = (0..nodes).map(node).chain((0..100).map(task)).collect();
    let mut version = 0;
    let mut touched = Vec::new();
    while !changes.is_empty() {
        version += 1;
        let rest = changes.split_off(changes.len().min(store::ACTIONS_MAX));
        let mut transaction = Transaction::new(&store);
        changes.into_iter().for_each(|change| transaction.apply(change).unwrap());
        let actions = transaction.finish(Instant::default(), version);
        touched.extend(store.apply(actions));
        changes = rest;
        if changes.is_empty() {
            changes = scheduler.plan(Instant::default(), &store, &std::mem::take(&mut touched));
        }
    }
    assert!(store.all::<pb::Task>().all(|task| !task.node_id.is_empty()));
    let busiest = store.all::<pb::Node>().map(|node| store.tasks_of_node(&node.id).count()).max();
    assert_eq!(busiest, Some(100_usize.div_ceil(nodes)));
    scheduler.looks() / 100
}

#[test]
fn a_task_is_placed_without_a_look_at_every_node() {
    assert_eq!((looks_for_each(10), looks_for_each(1_000)), (1, 1));
}

#[test]
fn tasks_that_no_node_fits_are_looked_at_a_few_thousand_nodes_at_a_time() {
    let mut store = Store::default();
    let mut scheduler = Scheduler::new(ChaCha8Rng::seed_from_u64(1));
    let mut transaction = Transaction::new(&store);
    for number in 0..1_000 {
        transaction.apply(Change::create(node(&format!("n{number:04}"), &[]))).unwrap();
    }
    for number in 0..100 {
        let mut task = task(&format!("t{number:04}"), placed(&["node.labels.rack == a"]));
        task.service_id = format!("s{number}");
        task.status.as_mut().unwrap().err =
            "no suitable node (scheduling constraints not satisfied on 1000 nodes)".into();
        transaction.apply(Change::create(task)).unwrap();
    }
    let actions = transaction.finish(Instant::default(), 1);
    store.apply(actions);
    let (mut rounds, mut before) = (0, 0);
    loop {
        assert!(scheduler.plan(Instant::default(), &store, &[]).is_empty(), "they say so already");
        rounds += 1;
        assert!(scheduler.looks() - before <= LOOKS_MAX + 1_100);
        before = scheduler.looks();
        if scheduler.deadline().is_none() {
            break;
        }
    }
    assert_eq!(rounds, 10, "{before} looks");
}

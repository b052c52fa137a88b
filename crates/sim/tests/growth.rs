//! A row of `examples/growth.rs` small enough for every run, held to counts: no clock, no luck.

use std::time::Duration;

use sim::growth::{Cost, Swarm};

const REPLICAS: usize = 20;
const TASKS_PER_WORKER: usize = 20;

/// What a cluster of this size costs: per task placed, moved or updated, and per beat.
#[derive(Debug)]
struct Costs {
    place: Counts,
    beat_reads: f64,
    moved: Counts,
    updated: Counts,
}

#[derive(Debug)]
struct Counts {
    reads: f64,
    logged: f64,
    told: f64,
}

fn counted(swarm: &mut Swarm, what: impl FnOnce(&mut Swarm) -> usize) -> Counts {
    let before = swarm.cost;
    let count = what(swarm) as f64;
    let each = |of: fn(&Cost) -> u64| (of(&swarm.cost) - of(&before)) as f64 / count;
    Counts {
        reads: each(|cost| cost.reads),
        logged: each(|cost| cost.logged),
        told: each(|cost| cost.told),
    }
}

fn grown(workers: usize) -> Costs {
    let mut swarm = Swarm::found(REPLICAS, || Duration::ZERO);
    (0..workers).for_each(|_| swarm.join());
    let tasks = workers * TASKS_PER_WORKER;
    let place = counted(&mut swarm, |swarm| {
        (0..tasks / REPLICAS).for_each(|_| swarm.deploy());
        tasks
    });
    assert_eq!(swarm.running(), tasks, "everything runs");
    let before = swarm.cost;
    swarm.pass(Duration::from_secs(30));
    let beats = swarm.cost.heartbeats - before.heartbeats;
    let beat_reads = (swarm.cost.beat_reads - before.beat_reads) as f64 / beats as f64;
    // Now and then all nodes are looked at, whatever happens.
    let idle_reads = (swarm.cost.reads - before.reads) as f64;
    let mut moved = counted(&mut swarm, Swarm::lose_a_node);
    moved.reads -= idle_reads / TASKS_PER_WORKER as f64;
    assert_eq!(swarm.running(), tasks, "what ran on the lost node runs elsewhere");
    swarm.find_it_again();
    let updated = counted(&mut swarm, |swarm| {
        swarm.update("image2");
        REPLICAS
    });
    Costs { place, beat_reads, moved, updated }
}

#[test]
fn what_a_task_costs_does_not_grow_with_the_cluster() {
    let (small, large) = (grown(15), grown(60));
    println!("15 workers: {small:#?}\n60 workers: {large:#?}");
    let same = |what: &str, small: f64, large: f64, slack: f64| {
        assert!(large <= small * slack, "{what}: {small:.1} with 15 workers, {large:.1} with 60");
    };
    for (what, small, large) in [
        ("placing", &small.place, &large.place),
        ("moving", &small.moved, &large.moved),
        ("updating", &small.updated, &large.updated),
    ] {
        same(&format!("bytes logged, {what} a task"), small.logged, large.logged, 1.3);
        same(&format!("changes told, {what} a task"), small.told, large.told, 1.3);
        same(&format!("objects read, {what} a task"), small.reads, large.reads, 1.3);
    }
    same("objects read for a beat", small.beat_reads, large.beat_reads, 1.1);
}

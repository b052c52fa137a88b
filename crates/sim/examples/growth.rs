//! One manager while its cluster grows to a thousand workers and a hundred thousand tasks: time and memory per step.
//!
//! `cargo run --release -p sim --example growth [WORKERS [TASKS_PER_WORKER]]`. What should be a
//! constant in each column is, or somebody's loop looks at everything for every change.

use std::time::Duration;

use sim::growth::{Cost, Swarm};

const STEPS: usize = 5;
const REPLICAS: usize = 100;
const IDLE_SECONDS: u32 = 10;

const HEAD: &str = "\
| workers | tasks | join, ms each | place, µs per task | longest step, ms | snapshot aside, ms each | \
idle, ms per s | node lost, µs per task | update, µs per task | memory, MiB | memory, KiB per task |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

/// How long this thread has run, whatever else the machine does meanwhile.
fn processor_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident memory in MiB, from the kernel.
fn memory() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(f64::NAN) * 4096.0 / (1 << 20) as f64
}

/// What it cost meanwhile.
fn measured(swarm: &mut Swarm, what: impl FnOnce(&mut Swarm)) -> Cost {
    swarm.cost.longest = Duration::ZERO;
    let before = swarm.cost;
    what(swarm);
    Cost {
        busy: swarm.cost.busy - before.busy,
        aside: swarm.cost.aside - before.aside,
        snapshots: swarm.cost.snapshots - before.snapshots,
        ..swarm.cost
    }
}

fn each(time: Duration, count: usize, unit: f64) -> f64 {
    time.as_secs_f64() * unit / count.max(1) as f64
}

fn main() {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<usize>().expect("a number"));
    let workers = words.next().unwrap_or(1_000);
    let tasks = words.next().unwrap_or(100) * workers;
    let mut swarm = Swarm::found(REPLICAS, processor_time);
    println!("{HEAD}");
    for step in 1..=STEPS {
        let (workers, tasks) = (workers * step / STEPS, tasks * step / STEPS);
        println!("{}", row(&mut swarm, workers, tasks, step));
    }
}

fn row(swarm: &mut Swarm, workers: usize, tasks: usize, step: usize) -> String {
    let (had_workers, had_tasks) = (swarm.workers(), swarm.tasks());
    let join = measured(swarm, |swarm| (had_workers..workers).for_each(|_| swarm.join()));
    let place = measured(swarm, |swarm| {
        while swarm.tasks() < tasks {
            swarm.deploy();
        }
    });
    assert_eq!(swarm.running(), swarm.tasks(), "everything runs");
    let idle = measured(swarm, |swarm| swarm.pass(Duration::from_secs(1) * IDLE_SECONDS));
    let mut moved = 0;
    let lost = measured(swarm, |swarm| moved = swarm.lose_a_node());
    swarm.find_it_again();
    let update = measured(swarm, |swarm| swarm.update(&format!("image{step}")));
    let phases =
        [("join", join), ("place", place), ("idle", idle), ("lost", lost), ("update", update)];
    let longest = phases.into_iter().max_by_key(|(_, cost)| cost.longest);
    let (what, longest) = longest.map_or(("", Duration::ZERO), |(what, it)| (what, it.longest));
    let (tasks, mib) = (swarm.tasks(), memory());
    format!(
        "| {} | {tasks} | {:.2} | {:.0} | {:.1} ({what}) | {:.0} | {:.2} | {:.0} | {:.0} | {mib:.0} | {:.1} |",
        swarm.workers(),
        each(join.busy, workers - had_workers, 1e3),
        each(place.busy, tasks - had_tasks, 1e6),
        each(longest, 1, 1e3),
        each(place.aside, place.snapshots as usize, 1e3),
        each(idle.busy, IDLE_SECONDS as usize, 1e3),
        each(lost.busy, moved, 1e6),
        each(update.busy, REPLICAS, 1e6),
        mib * 1024.0 / tasks.max(1) as f64,
    )
}

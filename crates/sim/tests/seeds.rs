//! Many seeds; one that breaks is printed and replays exactly: `SEEDS=17..18 cargo test -p sim`.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim::{Plan, Weather, World, run};

/// `SEEDS=first..end` lives through others, or more.
fn seeds() -> Range<u64> {
    let given = std::env::var("SEEDS").ok();
    let range = given.as_deref().and_then(|text| text.split_once(".."));
    match range.map(|(first, end)| (first.parse(), end.parse())) {
        Some((Ok(first), Ok(end))) => first..end,
        _ => 0..200,
    }
}

#[test]
fn every_seed_keeps_its_promises() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let broken = Mutex::new(Vec::new());
    let totals = Mutex::new((0, 0, 0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match run(Plan::of_seed(seed)) {
                        Ok(report) => {
                            let mut totals = totals.lock().unwrap();
                            totals.0 += report.acknowledged;
                            totals.1 += report.faults;
                            totals.2 += report.events;
                        }
                        Err(why) => {
                            println!("{why}");
                            broken.lock().unwrap().push(why);
                        }
                    }
                }
            });
        }
    });
    let (acknowledged, faults, events) = *totals.lock().unwrap();
    println!("{acknowledged} writes acknowledged, {faults} faults, {events} events");
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "{} seeds broke:\n{}", broken.len(), broken.join("\n"));
    assert!(acknowledged > 0);
}

#[test]
fn the_same_seed_gives_the_same_days() {
    for seed in [3, 24] {
        let first = run(Plan::of_seed(seed));
        assert_eq!(first, run(Plan::of_seed(seed)));
        assert_ne!(first.unwrap().trace, 0);
    }
    assert_ne!(run(Plan::of_seed(3)), run(Plan::of_seed(4)));
}

#[test]
fn a_worker_that_was_cut_off_keeps_its_tasks_when_it_comes_back() {
    for seconds in [10, 60, 600] {
        let plan = Plan {
            seed: seconds,
            managers: 3,
            workers: 3,
            trouble: 0,
            healing: 0,
            weather: Weather::FAIR,
        };
        let seen = World::new(plan).cut_off(seconds, 12).unwrap();
        assert!(seen.before > seen.pinned, "{seconds} s: {seen:?}");
        let others = seen.wanted - seen.pinned;
        assert_eq!(seen.elsewhere, others, "{seconds} s: replaced meanwhile: {seen:?}");
        assert_eq!(seen.after, seen.wanted, "{seconds} s: {seen:?}");
        assert_eq!(seen.adopted, seen.pinned, "{seconds} s: what nobody replaced: {seen:?}");
        assert_eq!(seen.started, 0, "{seconds} s: nothing starts anew: {seen:?}");
    }
}

#[test]
fn a_worker_that_was_cut_off_for_a_moment_is_as_before() {
    let plan =
        Plan { seed: 5, managers: 3, workers: 3, trouble: 0, healing: 0, weather: Weather::FAIR };
    let seen = World::new(plan).cut_off(5, 12).unwrap();
    assert_eq!((seen.adopted, seen.started), (seen.before, 0), "{seen:?}");
}

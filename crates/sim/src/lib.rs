//! Seeded clusters in one thread: managers and agents under loss, partitions, crashes and skewed clocks.
//!
//! Everything that happens follows from the seed: [`run`] with the same plan gives the same days.
//! While the faults last, what must never happen is checked; after they are healed, what must be.

mod agents;
mod check;
mod client;
mod cut_off;
mod disk;
mod executor;
mod faults;
mod founding;
pub mod growth;
mod host;
mod managers;
mod network;
mod weather;
mod world;

pub use cut_off::CutOff;
pub use weather::Weather;
pub use world::{Report, World};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Workers of the largest cluster.
const WORKERS_MAX: usize = 200;

/// How large a cluster and for how long it suffers.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub managers: usize,
    pub workers: usize,
    /// Simulated seconds with faults, and after them.
    pub trouble: u64,
    pub healing: u64,
    pub weather: Weather,
}

impl Plan {
    /// Mostly small clusters, now and then a large one.
    pub fn of_seed(seed: u64) -> Self {
        let mut dice = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        let managers = [3, 3, 3, 5, 5, 7][dice.random_range(0..6)];
        let workers = match seed % 100 {
            99 => WORKERS_MAX,
            49 => 50,
            24 | 74 => 20,
            _ => dice.random_range(1..=5),
        };
        let weather = Weather::roll(&mut dice);
        Self { seed, managers, workers, trouble: 60, healing: 90, weather }
    }
}

/// Lives through a plan; the error says what was broken and when.
pub fn run(plan: Plan) -> Result<Report, String> {
    let mut world = World::new(plan);
    world.live().map_err(|broken| format!("seed {}: at {}: {broken}", plan.seed, world.clock()))
}

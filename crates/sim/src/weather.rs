//! How bad the network, the clocks and the disks of one plan are.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Chances are per message, while the trouble lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    /// A message between managers is lost.
    pub loss: f64,
    /// It comes twice, the second time later.
    pub double: f64,
    /// It is late by up to two seconds, so that later ones overtake it.
    pub late: f64,
    /// A node's call is carried out, and its answer is lost.
    pub answer_lost: f64,
    /// Clocks differ by up to so many milliseconds, anew after each loss of power.
    pub skew_ms: i64,
    /// And run faster or slower by up to so many parts in a million.
    pub drift_ppm: i64,
    /// Raft entries between snapshots; 0 for the cluster's default.
    pub snapshot_interval: u64,
}

impl Weather {
    pub const FAIR: Weather = Weather {
        loss: 0.0,
        double: 0.0,
        late: 0.0,
        answer_lost: 0.0,
        skew_ms: 0,
        drift_ppm: 0,
        snapshot_interval: 0,
    };

    pub fn roll(dice: &mut ChaCha8Rng) -> Self {
        Weather {
            loss: [0.0, 0.02, 0.02, 0.1][dice.random_range(0..4)],
            double: [0.0, 0.02, 0.1][dice.random_range(0..3)],
            late: [0.0, 0.01, 0.05][dice.random_range(0..3)],
            answer_lost: [0.0, 0.01, 0.05][dice.random_range(0..3)],
            skew_ms: [50, 2_000, 10_000][dice.random_range(0..3)],
            drift_ppm: [0, 100, 5_000][dice.random_range(0..3)],
            snapshot_interval: [0, 20, 60][dice.random_range(0..3)],
        }
    }
}

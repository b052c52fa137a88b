//! Filter, spread and explain: which node a task goes to, or why none.
//!
//! A leader makes one when it begins to lead and drops it when it no longer does: everything in
//! here follows from the stored objects. A plan is a wish over committed state; changes that are
//! not carried out are wished again by the next plan.

use model::Instant;
use rand_chacha::ChaCha8Rng;
use store::{Change, Store, Touched};

pub struct Scheduler {
    _dice: ChaCha8Rng,
}

impl Scheduler {
    pub fn new(dice: ChaCha8Rng) -> Self {
        Self { _dice: dice }
    }

    /// What should change now. `touched` is everything that was applied since the last call; the
    /// first call reads the whole store instead.
    #[must_use]
    pub fn plan(&mut self, _now: Instant, _store: &Store, _touched: &[Touched]) -> Vec<Change> {
        Vec::new()
    }

    /// When [`Self::plan`] has something to do although nothing was applied.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }
}

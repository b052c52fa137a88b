//! How long a silent node may still answer before it counts as failed.

use std::collections::BTreeSet;
use std::time::Duration;

use model::Instant;

/// memberlist's `SuspicionMult` of a LAN.
const FACTOR: f64 = 4.0;
/// memberlist's `SuspicionMaxTimeoutMult`.
const MAX_FACTOR: u32 = 6;

/// One silent node's respite: shorter the more nodes find it silent.
#[derive(Clone, Debug)]
pub(crate) struct Suspicion {
    began: Instant,
    min: Duration,
    max: Duration,
    /// Confirmations after which the respite is the shortest.
    wanted: u32,
    accusers: BTreeSet<String>,
}

impl Suspicion {
    pub fn new(began: Instant, accuser: String, nodes: usize, probe_interval: Duration) -> Self {
        let scale = (nodes.max(1) as f64).log10().max(1.0);
        let min = probe_interval.mul_f64(FACTOR * scale);
        let wanted = if nodes < 2 + 2 { 0 } else { 2 };
        Self { began, min, max: min * MAX_FACTOR, wanted, accusers: BTreeSet::from([accuser]) }
    }

    /// Another node finds it silent too; whether that is news.
    pub fn confirm(&mut self, accuser: String) -> bool {
        self.confirmations() < self.wanted && self.accusers.insert(accuser)
    }

    fn confirmations(&self) -> u32 {
        self.accusers.len() as u32 - 1
    }

    pub fn deadline(&self) -> Instant {
        if self.wanted == 0 {
            return self.began + self.min;
        }
        let part = f64::from(self.confirmations() + 1).ln() / f64::from(self.wanted + 1).ln();
        let shorter = (self.max - self.min).mul_f64(part.clamp(0.0, 1.0));
        self.began + (self.max - shorter).max(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(suspicion: &Suspicion) -> f64 {
        suspicion.deadline().since(Instant::from_nanos(0)).as_secs_f64()
    }

    #[test]
    fn two_confirmations_shorten_the_respite_to_its_minimum() {
        let second = Duration::from_secs(1);
        let mut suspicion = Suspicion::new(Instant::from_nanos(0), "a".into(), 10, second);
        assert_eq!(seconds(&suspicion), 24.0);
        assert!(!suspicion.confirm("a".into()));
        assert!(suspicion.confirm("b".into()));
        assert!((seconds(&suspicion) - 11.38).abs() < 0.01);
        assert!(suspicion.confirm("c".into()));
        assert_eq!(seconds(&suspicion), 4.0);
        assert!(!suspicion.confirm("d".into()));
    }

    #[test]
    fn few_nodes_cannot_confirm_so_the_respite_is_short_and_many_nodes_have_longer() {
        let second = Duration::from_secs(1);
        assert_eq!(seconds(&Suspicion::new(Instant::from_nanos(0), "a".into(), 3, second)), 4.0);
        let large = Suspicion::new(Instant::from_nanos(0), "a".into(), 1_000, second);
        assert_eq!(seconds(&large), 72.0);
    }
}

//! What a client saw: counts, reasons and delays.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Failures that are told one by one.
const FAILURES_TOLD_MAX: usize = 8;

#[derive(Default)]
pub struct Report {
    pub answered: u64,
    /// Reasons, and how often each.
    pub failed: BTreeMap<String, u64>,
    /// The first of them: the second of the day (UTC) at which each ended, and how long it took.
    pub failures: Vec<String>,
    /// Who answered, and how often.
    pub by: BTreeMap<String, u64>,
    pub delays: Vec<Duration>,
    pub time: Duration,
}

impl Report {
    pub fn answer(&mut self, by: &str, delay: Duration) {
        self.answered += 1;
        self.delays.push(delay);
        match self.by.get_mut(by) {
            Some(count) => *count += 1,
            None => drop(self.by.insert(by.to_owned(), 1)),
        }
    }

    pub fn fail(&mut self, reason: impl ToString) {
        *self.failed.entry(reason.to_string()).or_default() += 1;
    }

    pub fn fail_after(&mut self, reason: impl ToString, delay: Duration) {
        if self.failures.len() < FAILURES_TOLD_MAX {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let at = (now.as_secs_f64() % 86_400.0, delay.as_secs_f64());
            self.failures.push(format!("{:.3} after {:.3} s: {}", at.0, at.1, reason.to_string()));
        }
        self.fail(reason);
    }

    pub fn merge(&mut self, other: Report) {
        self.answered += other.answered;
        self.delays.extend(other.delays);
        for (reason, count) in other.failed {
            *self.failed.entry(reason).or_default() += count;
        }
        for (who, count) in other.by {
            *self.by.entry(who).or_default() += count;
        }
    }

    /// Delays in microseconds.
    pub fn print(mut self) -> ! {
        self.delays.sort_unstable();
        let at = |part: f64| {
            let place =
                ((self.delays.len() as f64 * part) as usize).min(self.delays.len().max(1) - 1);
            self.delays.get(place).map_or(0, Duration::as_micros) as u64
        };
        let rate = self.answered as f64 / self.time.as_secs_f64().max(f64::EPSILON);
        let line = serde_json::json!({
            "answered": self.answered,
            "failed": self.failed.values().sum::<u64>(),
            "reasons": self.failed,
            "failures": self.failures,
            "by": self.by,
            "rate": rate,
            "p50": at(0.5),
            "p99": at(0.99),
            "max": at(1.0),
        });
        println!("{line}");
        // The runtime would wait for somebody to close the standard input.
        std::process::exit(0)
    }
}

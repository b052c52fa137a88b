//! The one place where the cluster's cores get the time from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Instant;

/// How far the wall clock may be ahead before it is followed: what is less is slewed by the host.
const AHEAD_MAX: u64 = 10_000_000_000;

/// Anchored to the wall clock, advanced by the monotonic one. It follows the wall clock forwards: a
/// host that slept, or whose clock was set only after it booted, must not sign certificates for the
/// past, nor miss the end of its own. Backwards it never goes.
#[derive(Clone)]
pub struct Clock {
    begin: std::time::Instant,
    begin_nanos: u64,
    gained: Arc<AtomicU64>,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            begin: std::time::Instant::now(),
            begin_nanos: wall(),
            gained: Arc::new(AtomicU64::new(0)),
        }
    }

    pub fn now(&self) -> Instant {
        self.at(self.begin.elapsed(), wall())
    }

    fn at(&self, elapsed: Duration, wall: u64) -> Instant {
        let steady = Instant::from_nanos(self.begin_nanos) + elapsed;
        let ahead = wall.saturating_sub(steady.as_nanos());
        if ahead > self.gained.load(Ordering::Relaxed).saturating_add(AHEAD_MAX) {
            self.gained.fetch_max(ahead, Ordering::Relaxed);
        }
        steady + Duration::from_nanos(self.gained.load(Ordering::Relaxed))
    }

    /// Returns when the time has come; without one, never.
    pub async fn sleep_until(&self, when: Option<Instant>) {
        match when {
            None => std::future::pending().await,
            Some(when) => match when.since(self.now()) {
                Duration::ZERO => {}
                wait => tokio::time::sleep(wait).await,
            },
        }
    }
}

fn wall() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_followed_forwards_and_never_backwards() {
        let begin_nanos = 1_000_000_000_000;
        let clock = Clock { begin_nanos, ..Clock::start() };
        let second = 1_000_000_000;
        let at = |elapsed: u64, wall: i64| {
            let wall = begin_nanos.checked_add_signed(wall * second).unwrap();
            (clock.at(Duration::from_secs(elapsed), wall).as_nanos() - begin_nanos)
                / u64::try_from(second).unwrap()
        };
        assert_eq!(at(1, 1), 1);
        assert_eq!(at(2, 11), 2, "a little is slewed");
        assert_eq!(at(3, 3_600), 3_600, "it was set, or the host slept");
        assert_eq!(at(4, 3_601), 3_601);
        assert_eq!(at(5, -500), 3_602, "never back");
        assert_eq!(at(6, 3_603), 3_603);
        assert_eq!(at(7, 7_200), 7_200);
    }
}

//! A point in time that is given, never read.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds since the Unix epoch on a clock that never goes backwards.
///
/// The shell anchors it to the wall clock at start and advances it with the monotonic clock, so
/// that cores can both measure with it and stamp objects with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole seconds and the nanoseconds beyond them, as in protobuf's `Timestamp`.
    pub const fn unix(self) -> (i64, i32) {
        ((self.0 / 1_000_000_000) as i64, (self.0 % 1_000_000_000) as i32)
    }

    /// Zero when `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, delay: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, delay: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)))
    }
}

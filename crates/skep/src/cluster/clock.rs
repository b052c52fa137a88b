//! The one place where the cluster's cores get the time from.

use std::time::Duration;

use model::Instant;

/// Anchored to the wall clock once, advanced by the monotonic one.
#[derive(Clone, Copy)]
pub struct Clock {
    begin: std::time::Instant,
    begin_nanos: u64,
}

impl Clock {
    pub fn start() -> Self {
        let since_1970 =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            begin: std::time::Instant::now(),
            begin_nanos: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.begin_nanos) + self.begin.elapsed()
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

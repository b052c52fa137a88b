//! A small daemon: what a burst of work left in memory is given back when it is over.

use std::time::Duration;

use runtime::memory;

/// Giving back takes about a millisecond, and what is needed still comes back by page faults.
const INTERVAL: Duration = Duration::from_secs(2);
/// Growth that is worth the trouble.
const GROWTH_MIN: u64 = 2 << 20;

/// Looks at intervals whether there is anything to give back; never ends.
pub async fn keep_small() {
    let mut least = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = resident();
        if now > least + GROWTH_MIN {
            let give = || memory::give_back(memory::Of::Program);
            let given = tokio::task::spawn_blocking(give).await;
            least = resident();
            tracing::debug!(before = now, after = least, ok = given.is_ok(), "memory given back");
        } else {
            least = least.min(now);
        }
    }
}

/// Bytes of this process that are in memory; 0 where the kernel does not tell.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    pages.unwrap_or_default() * rustix::param::page_size() as u64
}

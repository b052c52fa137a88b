//! Waits for the program of a task to listen where its service publishes: one that has only just been
//! executed does not, and would refuse what comes through the routing mesh or the virtual address.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use netlink::listening::Listening;

/// A program that listens later than this, or never, counts as started all the same: only a health
/// check knows better.
const LISTENING_MAX: Duration = Duration::from_secs(1);
/// Many tasks may start together; most programs listen within milliseconds.
const LOOK_MIN: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(50);

/// Until something listens on each of these TCP ports in the network of a process, as long as somebody waits for it,
/// and for a second at the most: false after that. What cannot be read, because the process has ended, is nothing to
/// wait for.
pub async fn until(pid: u32, ports: &BTreeSet<u16>, waits: impl Fn() -> bool) -> bool {
    let Ok(mut listening) = Listening::open(&PathBuf::from(format!("/proc/{pid}/ns/net"))) else {
        return true;
    };
    let all_listened_on = async {
        let mut pause = LOOK_MIN;
        while waits() && listening.tcp_ports().is_ok_and(|found| !ports.is_subset(&found)) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    };
    tokio::time::timeout(LISTENING_MAX, all_listened_on).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_program_is_waited_for_until_it_listens_or_a_second_at_the_most() {
        let own = std::process::id();
        let (one, other) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
        let [one, other] = [one, other].map(|socket| socket.expect("a socket"));
        let port = |socket: &TcpListener| socket.local_addr().expect("bound").port();
        let both = BTreeSet::from([port(&one), port(&other)]);
        assert!(until(own, &both, || true).await, "both listen");
        assert!(until(u32::MAX, &both, || true).await, "who has ended is not waited for");
        drop(other);
        assert!(until(own, &both, || false).await, "nobody waits");
        assert!(!until(own, &both, || true).await, "one does not listen");
    }
}

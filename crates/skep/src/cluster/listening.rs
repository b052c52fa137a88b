//! Whether the program of a task listens where its service publishes: one that has only just been
//! executed does not, and would refuse what comes through the routing mesh or the virtual address.

use std::collections::BTreeSet;
use std::time::Duration;

/// A program that listens later than this, or never, counts as started all the same: only a health
/// check knows better.
pub const LISTENING_MAX: Duration = Duration::from_secs(1);
pub const LISTENING_LOOK: Duration = Duration::from_millis(5);
/// TCP_LISTEN (include/net/tcp_states.h in the kernel), as /proc/net/tcp writes it.
const LISTEN: &str = "0A";

/// Whether something listens on each of these TCP ports in the network of a process. What cannot be
/// read, because the process has ended, is nothing to wait for.
pub fn listens(pid: u32, ports: &BTreeSet<u16>) -> bool {
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        match std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(text) => found.extend(listening(&text)),
            // A kernel without IPv6 has no second table.
            Err(_) if table == "tcp6" => {}
            Err(_) => return true,
        }
    }
    ports.is_subset(&found)
}

/// The ports of the sockets that listen, of any address.
fn listening(table: &str) -> impl Iterator<Item = u16> {
    table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok().filter(|_| state == LISTEN)
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_port_listens_from_its_socket_on_and_not_for_a_connection_alone() {
        let own = std::process::id();
        let ports = |all: &[&TcpListener]| -> BTreeSet<u16> {
            all.iter().map(|socket| socket.local_addr().expect("bound").port()).collect()
        };
        let four = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let other = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let both = ports(&[&four, &other]);
        assert!(listens(own, &both) && listens(own, &BTreeSet::new()));
        let held = TcpStream::connect(other.local_addr().expect("bound")).expect("connected");
        let _accepted = other.accept().expect("accepted");
        drop(other);
        assert!(!listens(own, &both), "{held:?} is a connection");
        if let Ok(six) = TcpListener::bind("[::1]:0") {
            assert!(listens(own, &ports(&[&four, &six])));
        }
        assert!(listens(u32::MAX, &both), "who has ended is not waited for");
    }
}

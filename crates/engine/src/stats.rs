//! What a running container uses, and its processes.

use std::collections::BTreeMap;

pub use runtime::Stats;

use crate::Engine;
use crate::containers::Container;
use crate::error::{Error, Result};

/// Counters of one link inside the container.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkCounters {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

impl Engine {
    /// `None` when it does not run.
    pub async fn stats(
        &self,
        container: &Container,
    ) -> Result<Option<(Stats, BTreeMap<String, LinkCounters>)>> {
        if !container.is_running() {
            return Ok(None);
        }
        let pid = container.state().pid;
        match self.runtime.stats(container.id().as_str()).await {
            Ok(stats) => Ok(Some((stats, links(pid)))),
            // It has ended in between.
            Err(_) if !container.is_running() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn top(&self, name: &str, ps_args: &str) -> Result<(Vec<String>, Vec<Vec<String>>)> {
        let container = self.container(name)?;
        if !container.is_running() {
            return Err(Error::conflict(format!("Container {} is not running", container.id())));
        }
        let table = self.runtime.top(container.id().as_str(), ps_args).await?;
        self.publish(&container, "top", []);
        Ok(table)
    }
}

/// The links of a process's network namespace, without the loopback.
fn links(pid: u32) -> BTreeMap<String, LinkCounters> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    parse_links(&text)
}

fn parse_links(text: &str) -> BTreeMap<String, LinkCounters> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let n: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let name = name.trim();
        if name == "lo" || n.len() < 12 {
            return None;
        }
        let counters = LinkCounters {
            rx_bytes: n[0],
            rx_packets: n[1],
            rx_errors: n[2],
            rx_dropped: n[3],
            tx_bytes: n[8],
            tx_packets: n[9],
            tx_errors: n[10],
            tx_dropped: n[11],
        };
        Some((name.to_owned(), counters))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_of_links_is_read() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let links = parse_links(text);
        assert_eq!(links.len(), 1);
        assert_eq!((links["eth0"].rx_bytes, links["eth0"].tx_dropped), (10, 8));
    }
}

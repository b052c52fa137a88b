//! What others have on the host: links that hold a segment's number, filters that drop what is forwarded.

use std::io;

use netplan::{Namespace, TABLE_NAME};

use crate::kernel::Kernel;
use crate::message::Received;
use crate::{nft, route};

/// A chain of somebody else's that drops what is forwarded and what none of its rules accepts.
#[derive(Debug, Clone)]
pub struct Closed {
    /// As `nft` names it: `ip filter FORWARD`.
    pub chain: String,
    /// The rules of its table, as the kernel holds them.
    rules: Vec<Received>,
}

impl Closed {
    /// Whether any rule names the link.
    pub fn knows(&self, link: &str) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.payload.windows(link.len()).any(|bytes| bytes == link.as_bytes()))
    }
}

impl Kernel {
    /// The link of the host's own namespace that has this segment on this port.
    pub fn segment_link(&mut self, vni: u32, port: u16) -> io::Result<Option<String>> {
        let links = self.space(&Namespace::Host)?.route.dump(route::dump_links())?;
        let mut segments = links.iter().filter_map(route::read_segment);
        let found = segments.find(|(_, of, at)| (*of, *at) == (vni, port));
        Ok(found.map(|(name, ..)| name))
    }

    /// The host's chains that are closed to what is forwarded, skep's own aside.
    pub fn closed(&mut self) -> io::Result<Vec<Closed>> {
        let socket = &mut self.space(&Namespace::Host)?.netfilter;
        let chains = socket.dump(nft::dump_chains_of_all())?;
        let mut closed = Vec::new();
        for (family, table, chain) in chains.iter().filter_map(nft::read_closed) {
            if table != TABLE_NAME {
                let rules = socket.dump(nft::dump_rules_of(family, &table))?;
                let family = nft::family_name(family);
                closed.push(Closed { chain: format!("{family} {table} {chain}"), rules });
            }
        }
        Ok(closed)
    }
}

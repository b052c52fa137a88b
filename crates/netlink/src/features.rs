//! What this kernel can do, tried in a namespace that is gone afterwards.

use std::io;

use netplan::Table;
use netplan::table::{Action, Chain, ChainKind, Hook, PRIORITY_RAW};

use crate::socket::{Family, Socket};
use crate::{namespace, nft};

/// Can flows be kept apart by zones? Not in a kernel without `CONFIG_NF_CONNTRACK_ZONES`.
pub fn flow_zones() -> io::Result<bool> {
    let mut chain = Chain::base("apart", ChainKind::Filter, Hook::Prerouting, PRIORITY_RAW);
    chain.rule(Vec::new(), Action::CtZoneBySource);
    let table = Table { chains: vec![chain] };
    let tried = namespace::scratch(|| {
        Socket::open(Family::Netfilter)?.transaction(nft::replace(Some(&table)))
    });
    match tried {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_keeps_flows_apart() {
        assert!(super::flow_zones().expect("the kernel says whether it has zones"));
    }
}
